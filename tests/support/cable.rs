//! A cable between two networks, as bad as a test wants it.
//!
//! At each end is a device of the kernel's (tun(4)) through which packets leave and arrive; a thread
//! of ours carries them from one to the other, and loses, doubles, delays and reorders them on the
//! way. The kernel's own netem can do the same, but not every kernel is built with it. Chance is
//! drawn from a seed; what it falls on, TCP decides.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// What becomes of packets on the way, in both directions alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quality {
    /// Lost, of a hundred.
    pub loss: u32,
    /// Carried twice, of a hundred.
    pub duplication: u32,
    /// From one end to the other.
    pub delay: Duration,
    /// At most so much more, drawn for each packet: so they overtake each other.
    pub jitter: Duration,
}

impl Quality {
    /// Every packet once, in order, at once.
    pub const PERFECT: Quality =
        Quality { loss: 0, duplication: 0, delay: Duration::ZERO, jitter: Duration::ZERO };
    /// No packet, and nobody is told.
    pub const CUT: Quality = Quality { loss: 100, ..Quality::PERFECT };
}

/// A cable; carries until it is dropped.
pub(super) struct Cable {
    quality: Arc<Mutex<Quality>>,
    ended: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Cable {
    /// A perfect one between two devices of [`plug`].
    pub(super) fn between(ends: [File; 2]) -> Cable {
        let quality = Arc::new(Mutex::new(Quality::PERFECT));
        let ended = Arc::new(AtomicBool::new(false));
        let carrier = Carrier {
            ends,
            quality: quality.clone(),
            ended: ended.clone(),
            under_way: BTreeMap::new(),
            carried: 0,
            chance: StdRng::seed_from_u64(1),
        };
        let carrier = thread::spawn(|| carrier.run());
        Cable { quality, ended, carrier: Some(carrier) }
    }

    /// Changes what becomes of packets from now on.
    pub(super) fn set_quality(&self, quality: Quality) {
        *self.quality.lock().unwrap_or_else(PoisonError::into_inner) = quality;
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            // It only fails by panicking, and then its message is on stderr already.
            let _ = carrier.join();
        }
    }
}

/// Makes a device called `name` in the network of this thread; it lives as long as the file.
#[expect(unsafe_code, reason = "std knows no ioctl")]
pub(super) fn plug(name: &str) -> io::Result<File> {
    let device =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN)?;
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(device),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where the kernel makes such devices.
const TUN: &str = "/dev/net/tun";
/// The longest packet of IPv4.
const PACKET_BYTES_MAX: usize = 65_535;
/// Packets taken from one end before it is the other's turn.
const PACKETS_PER_TURN: usize = 64;
/// How soon the carrier sees that it may go home.
const PATIENCE_MS: u128 = 20;

/// The thread that carries.
struct Carrier {
    ends: [File; 2],
    quality: Arc<Mutex<Quality>>,
    ended: Arc<AtomicBool>,
    /// By when it arrives and what number it had, the end it goes to and the packet.
    under_way: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    carried: u64,
    chance: StdRng,
}

impl Carrier {
    fn run(mut self) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        while !self.ended.load(Ordering::Relaxed) {
            self.wait();
            for from in [0, 1] {
                for _ in 0..PACKETS_PER_TURN {
                    // Nothing there, or the device is down: both pass.
                    let Ok(len) = (&self.ends[from]).read(&mut buffer) else { break };
                    self.take(1 - from, &buffer[..len]);
                }
            }
            let now = Instant::now();
            while let Some(entry) = self.under_way.first_entry()
                && entry.key().0 <= now
            {
                let (to, packet) = entry.remove();
                // A device that is down takes nothing: one more way to lose a packet.
                let _ = (&self.ends[to]).write(&packet);
            }
        }
    }

    /// Lets chance decide about one packet.
    fn take(&mut self, to: usize, packet: &[u8]) {
        let quality = *self.quality.lock().unwrap_or_else(PoisonError::into_inner);
        if self.chance.random_ratio(quality.loss, 100) {
            return;
        }
        let copies = 1 + u32::from(self.chance.random_ratio(quality.duplication, 100));
        for _ in 0..copies {
            let late = self.chance.random_range(Duration::ZERO..=quality.jitter);
            let arrives = Instant::now() + quality.delay + late;
            self.under_way.insert((arrives, self.carried), (to, packet.to_vec()));
            self.carried += 1;
        }
    }

    /// Waits for a packet at either end, or until one arrives.
    #[expect(unsafe_code, reason = "std cannot wait for two files")]
    fn wait(&self) {
        let next = self.under_way.first_key_value().map(|((arrives, _), _)| *arrives);
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        // In whole milliseconds, rounded up: else it would turn without a pause before each.
        let left = left.map_or(PATIENCE_MS, |left| left.as_micros().div_ceil(1000));
        let timeout = left.min(PATIENCE_MS) as libc::c_int;
        let watch =
            |end: &File| libc::pollfd { fd: end.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut watched = [watch(&self.ends[0]), watch(&self.ends[1])];
        // SAFETY: poll(2) reads and writes two pollfds, which outlive the call. An error is a
        // signal, after which the caller looks anyhow.
        unsafe { libc::poll(watched.as_mut_ptr(), 2, timeout) };
    }
}
