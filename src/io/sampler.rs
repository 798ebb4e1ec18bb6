//! Samples what the threads of this process do: the stuff of a CPU profile.
//!
//! While a [`Sampler`] lives, every thread has a timer on its own CPU time, and each time it has
//! used so much of that it is sent SIGPROF and writes down its stack, in a ring of its own. So a
//! sample belongs to the thread that has used the CPU, whatever the kernel's version; a thread that
//! sleeps is not disturbed. The thread that owns the sampler empties the rings and counts.
//!
//! The handler runs in the middle of anything: it takes no lock, allocates nothing, opens and
//! writes nothing. (Rejected: the crate `pprof`. Its handler writes what does not fit into memory
//! to a file, by the number of a descriptor: in a shard, whose descriptor table is its own, that
//! number is some client's connection. It has one timer for the whole process, whose signals go to
//! the main thread before Linux 6.4, and it keeps 80 MB after the first profile.)
//!
//! Stacks are found with the unwinder that panics use, which reads tables and no symbols; its
//! first call, which allocates, is made before the first signal.
//!
//! Sources: timer_create(2), sigaction(2), signal-safety(7).

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fs;
use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer, RingBuffer};

/// Frames of a stack, from the innermost on.
const FRAMES_MAX: usize = 64;
/// Samples of one thread that may wait to be counted: a thirtieth of a second's at the highest
/// frequency.
const SAMPLES_MAX: usize = 32;
/// How often [`Sampler::collect`] must be called, so that no sample is lost.
pub const COLLECT_INTERVAL: Duration = Duration::from_millis(20);

/// Why nothing can be sampled.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Somebody samples already.
    #[error("a profile is being taken already")]
    Running,
    /// The kernel said no.
    #[error("cannot {what}: {error}")]
    Kernel {
        /// To what.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

/// Where CPU time went.
#[derive(Debug)]
pub struct Samples {
    /// The threads that were sampled, by their names.
    pub threads: Vec<String>,
    /// How often which thread was at which place: the addresses of a stack, the innermost first,
    /// as they are in memory. All but the first are where a call returns to.
    pub stacks: HashMap<(usize, Box<[usize]>), u64>,
    /// Samples for which there was no place.
    pub lost: u64,
    /// CPU time between two samples of a thread.
    pub period: Duration,
    /// How long it lasted.
    pub duration: Duration,
}

/// One stack, as the handler writes it down.
#[derive(Debug)]
struct Sample {
    len: usize,
    frames: [usize; FRAMES_MAX],
}

/// What the handler finds of a thread.
struct Seat {
    thread: libc::pid_t,
    /// Only for the handler, on this thread.
    ring: UnsafeCell<Producer<Sample>>,
    lost: AtomicU64,
}

/// What the handler finds.
struct Session {
    seats: Box<[Seat]>,
}

/// The session that is under way; null: none.
static SESSION: AtomicPtr<Session> = AtomicPtr::new(ptr::null_mut());
/// Handlers that may be looking at it.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// See the module documentation.
#[derive(Debug)]
pub struct Sampler {
    timers: Vec<libc::timer_t>,
    rings: Vec<Consumer<Sample>>,
    samples: Samples,
    since: Instant,
    ended: bool,
}

// SAFETY: a timer's id is a number of the process, which the C library spells as a pointer.
unsafe impl Send for Sampler {}

impl Sampler {
    /// Begins to sample every thread but the calling one, `frequency` times per second of its CPU
    /// time.
    ///
    /// # Errors
    /// See [`SampleError`].
    pub fn start(frequency: u32) -> Result<Self, SampleError> {
        // What the unwinder allocates, it does now.
        backtrace::trace(|_| true);
        let since = Instant::now();
        let (mut threads, mut seats, mut rings) = (Vec::new(), Vec::new(), Vec::new());
        for (thread, name) in threads_of_process()? {
            let (ring, consumer) = RingBuffer::new(SAMPLES_MAX);
            threads.push(name);
            rings.push(consumer);
            seats.push(Seat { thread, ring: UnsafeCell::new(ring), lost: AtomicU64::new(0) });
        }
        let ids: Vec<_> = seats.iter().map(|seat| seat.thread).collect();
        let session = Box::into_raw(Box::new(Session { seats: seats.into() }));
        let null = ptr::null_mut();
        let order = Ordering::SeqCst;
        if SESSION.compare_exchange(null, session, order, order).is_err() {
            // SAFETY: made above, and nobody has seen it.
            drop(unsafe { Box::from_raw(session) });
            return Err(SampleError::Running);
        }
        let period = Duration::from_secs(1) / frequency.max(1);
        let (stacks, duration) = (HashMap::new(), Duration::ZERO);
        let samples = Samples { threads, stacks, lost: 0, period, duration };
        // From here on its drop ends the session.
        let mut sampler = Self { timers: Vec::new(), rings, samples, since, ended: false };
        handle_signal()?;
        for (index, thread) in ids.into_iter().enumerate() {
            match start_timer(thread, index, period) {
                Ok(timer) => sampler.timers.push(timer),
                // The thread has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => {
                    return Err(SampleError::Kernel { what: "make a timer for a thread", error });
                }
            }
        }
        Ok(sampler)
    }

    /// Counts what has been written down.
    pub fn collect(&mut self) {
        for (thread, ring) in self.rings.iter_mut().enumerate() {
            while let Ok(Sample { len, frames }) = ring.pop() {
                let stack = (thread, frames[..len].into());
                *self.samples.stacks.entry(stack).or_default() += 1;
            }
        }
    }

    /// Ends it.
    #[must_use]
    pub fn finish(mut self) -> Samples {
        self.end();
        self.collect();
        let samples = &mut self.samples;
        samples.duration = self.since.elapsed();
        Samples {
            threads: mem::take(&mut samples.threads),
            stacks: mem::take(&mut samples.stacks),
            ..*samples
        }
    }

    /// Ends the session, if it has not ended.
    fn end(&mut self) {
        if mem::replace(&mut self.ended, true) {
            return;
        }
        for timer in self.timers.drain(..) {
            // SAFETY: a timer of ours that has not been deleted.
            unsafe { libc::timer_delete(timer) };
        }
        // A signal may still be on its way: it finds nothing.
        let session = SESSION.swap(ptr::null_mut(), Ordering::SeqCst);
        while INSIDE.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        // SAFETY: it came from a box and is this sampler's, since there is one at a time; nobody
        // finds it any more, and those who had are done.
        let session = unsafe { Box::from_raw(session) };
        let lost = session.seats.iter().map(|seat| seat.lost.load(Ordering::Relaxed));
        self.samples.lost = lost.sum();
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}

/// The threads of this process but the calling one, by id and name.
fn threads_of_process() -> Result<Vec<(libc::pid_t, String)>, SampleError> {
    let failed = |error| SampleError::Kernel { what: "list the threads", error };
    // SAFETY: gettid(2) does nothing but answer.
    let own = unsafe { libc::gettid() };
    let mut threads = Vec::new();
    for task in fs::read_dir("/proc/self/task").map_err(failed)? {
        let task = task.map_err(failed)?;
        let Some(id) = task.file_name().to_str().and_then(|id| id.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        // The kernel's own workers for rings have no stack of ours.
        if id != own && !name.starts_with("iou-") {
            threads.push((id, name.trim_end().to_owned()));
        }
    }
    threads.sort();
    Ok(threads)
}

/// Has SIGPROF handled from now on, also when a last one comes after the session.
fn handle_signal() -> Result<(), SampleError> {
    // SAFETY: all zero is a valid sigaction: the default action.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = take_sample as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is complete, its mask is empty, and its handler has the right signature.
    let result = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) };
    if result == 0 {
        return Ok(());
    }
    Err(SampleError::Kernel { what: "handle SIGPROF", error: io::Error::last_os_error() })
}

/// Sends the thread SIGPROF, with `index`, whenever it has used `period` of CPU time.
fn start_timer(thread: libc::pid_t, index: usize, period: Duration) -> io::Result<libc::timer_t> {
    // The clock of a thread's CPU time, as the kernel spells it (include/linux/posix-timers.h).
    let clock: libc::clockid_t = (!thread << 3) | 6;
    // SAFETY: all zero is a valid sigevent.
    let mut event: libc::sigevent = unsafe { mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = libc::SIGPROF;
    event.sigev_notify_thread_id = thread;
    event.sigev_value = libc::sigval { sival_ptr: ptr::without_provenance_mut(index) };
    let mut timer = MaybeUninit::<libc::timer_t>::uninit();
    // SAFETY: both point to values that live until it returns.
    let result = unsafe { libc::timer_create(clock, &raw mut event, timer.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it succeeded, so it has written the id.
    let timer = unsafe { timer.assume_init() };
    let interval = libc::timespec {
        tv_sec: period.as_secs().cast_signed(),
        tv_nsec: i64::from(period.subsec_nanos()),
    };
    let times = libc::itimerspec { it_interval: interval, it_value: interval };
    // SAFETY: `times` lives until it returns; the old setting is not asked for.
    let result = unsafe { libc::timer_settime(timer, 0, &raw const times, ptr::null_mut()) };
    if result != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: made above.
        unsafe { libc::timer_delete(timer) };
        return Err(error);
    }
    Ok(timer)
}

/// The handler of SIGPROF. See the module documentation for what it must not do.
extern "C" fn take_sample(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: every thread has an errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is this thread's.
    let before = unsafe { *errno };
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let session = SESSION.load(Ordering::SeqCst);
    // SAFETY: whoever takes it away does so before they look whether somebody is inside, and frees
    // it when nobody is.
    if let Some(session) = unsafe { session.as_ref() } {
        // SAFETY: a handler with SA_SIGINFO is given one.
        let info = unsafe { &*info };
        // SAFETY: the kernel has filled it in for a signal of a timer, the only ones that count;
        // for others it is some number.
        let value = unsafe { info.si_value() }.sival_ptr.addr();
        let index = if info.si_code == libc::SI_TIMER { value } else { usize::MAX };
        // SAFETY: gettid(2) does nothing but answer.
        let own = unsafe { libc::gettid() };
        if let Some(seat) = session.seats.get(index).filter(|seat| seat.thread == own) {
            let sample = unwind(interrupted_at(context));
            // SAFETY: the seat is this thread's, and the signal is blocked while it is handled: so
            // nobody else has the ring.
            let ring = unsafe { &mut *seat.ring.get() };
            if ring.push(sample).is_err() {
                seat.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// The stack of this thread from the interrupted instruction on.
fn unwind(interrupted: usize) -> Sample {
    let mut sample = Sample { len: 1, frames: [0; FRAMES_MAX] };
    sample.frames[0] = interrupted;
    let mut found = false;
    let take = |frame: &backtrace::Frame| {
        let address = frame.ip().addr();
        if found {
            sample.frames[sample.len] = address;
            sample.len += 1;
        }
        // Before it lie the handler's own frames.
        found |= address == interrupted;
        sample.len < FRAMES_MAX
    };
    // SAFETY: it must not run twice at a time on Windows only.
    unsafe { backtrace::trace_unsynchronized(take) };
    sample
}

/// Where the thread was when the signal came.
fn interrupted_at(context: *mut c_void) -> usize {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the third argument of a handler with SA_SIGINFO points to this.
    #[cfg(target_arch = "x86_64")]
    let address = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] } as usize;
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    let address = unsafe { (*context).uc_mcontext.pc } as usize;
    address
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, Barrier};
    use std::thread;

    use super::*;

    #[inline(never)]
    fn burn(stop: &AtomicBool) -> u64 {
        let mut sum = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        sum
    }

    /// One test, because there is one session.
    #[test]
    fn a_busy_thread_is_found_where_it_is_and_an_idle_one_is_not() {
        let stop = Arc::new(AtomicBool::new(false));
        let (idle, waits) = std::sync::mpsc::channel::<()>();
        // A thread gives itself its name when it begins.
        let began = Arc::new(Barrier::new(3));
        let named = |name: &str| thread::Builder::new().name(name.into());
        let sleeper = named("idle").spawn({
            let began = Arc::clone(&began);
            move || {
                began.wait();
                waits.recv().is_ok()
            }
        });
        let busy = named("busy").spawn({
            let (began, stop) = (Arc::clone(&began), Arc::clone(&stop));
            move || {
                began.wait();
                burn(&stop)
            }
        });
        began.wait();
        for _ in 0..2 {
            let mut sampler = Sampler::start(500).unwrap();
            assert!(matches!(Sampler::start(99), Err(SampleError::Running)));
            let of = |samples: &Samples, name: &str| -> u64 {
                let is_it = |thread: usize| samples.threads[thread] == name;
                samples.stacks.iter().filter(|((t, _), _)| is_it(*t)).map(|(_, n)| n).sum()
            };
            while of(&sampler.samples, "busy") < 20 {
                thread::sleep(COLLECT_INTERVAL);
                sampler.collect();
            }
            let samples = sampler.finish();
            assert_eq!(of(&samples, "idle"), 0);
            let mut in_burn = 0;
            for ((thread, stack), count) in &samples.stacks {
                let mut is_burn = false;
                for &address in stack {
                    backtrace::resolve(ptr::without_provenance_mut(address), |symbol| {
                        let name = symbol.name().map(|name| name.to_string());
                        is_burn |= name.is_some_and(|name| name.contains("burn"));
                    });
                }
                in_burn += if is_burn && samples.threads[*thread] == "busy" { *count } else { 0 };
            }
            assert!(2 * in_burn > of(&samples, "busy"), "{in_burn} of {samples:?}");
        }
        stop.store(true, Ordering::Relaxed);
        drop(idle);
        busy.unwrap().join().unwrap();
        sleeper.unwrap().join().unwrap();
        // Nobody holds the session of one that was dropped.
        drop(Sampler::start(99).unwrap());
        drop(Sampler::start(99).unwrap());
    }
}
