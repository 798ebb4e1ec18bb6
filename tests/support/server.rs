//! The real binary as a child process: started on free ports, watched, signalled and ended.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{PATIENCE, Wire, wait_until};

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts `fanwire serve` on free ports of 127.0.0.1 with `flags` and waits until it serves.
    pub fn start(flags: &[&str]) -> Server {
        Server::start_at(&[loopback(free_port())], flags)
    }

    /// The same on these addresses; [`Server::address`] is the first.
    pub fn start_at(listen: &[SocketAddr], flags: &[&str]) -> Server {
        let admin = loopback(free_port());
        let mut command = fanwire(&["serve", "--admin", &admin.to_string()]);
        for address in listen {
            command.args(["--listen", &address.to_string()]);
        }
        command.args(flags);
        Server::spawn(command, listen[0], Some(admin))
    }

    /// Runs a prepared command that will serve on `address`; waits for 200 from `/health` on
    /// `admin`, or with that off until `address` answers.
    pub fn spawn(mut command: Command, address: SocketAddr, admin: Option<SocketAddr>) -> Server {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the fanwire binary starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = sink.lock().expect("nobody panics with the log in hand");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Server { child, address, admin, log, reader: Some(reader) };
        server.wait_ready();
        server
    }

    /// Where WebSocket clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin HTTP listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("this server was started with it")
    }

    /// What has been read of the server's stderr: all of it after [`Server::wait_exit`], before
    /// that perhaps not yet the line of what a client has just seen.
    pub fn log(&self) -> String {
        self.log.lock().expect("nobody panics with the log in hand").clone()
    }

    /// Waits until the log contains `words`, and gives all of it.
    pub fn wait_log(&self, words: &str) -> String {
        self.wait_log_from(0, words)
    }

    /// The same, for words behind the first `seen` bytes of the log.
    pub fn wait_log_from(&self, seen: usize, words: &str) -> String {
        let mut log = String::new();
        wait_until(&format!("the log says {words:?}"), || {
            log = self.log();
            log[seen..].contains(words)
        });
        log
    }

    /// Sends a signal, `libc::SIGTERM` for one.
    #[expect(unsafe_code, reason = "std can only send SIGKILL")]
    pub fn signal(&self, signal: i32) {
        let pid = self.pid();
        // SAFETY: kill(2) takes two integers and touches no memory of ours; the child has not been
        // waited for, so its id still names it.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "signal {signal} to process {pid}");
    }

    /// Waits for the process to end by itself, and for the last line of its log.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let status = wait_exit(&mut self.child);
        self.join_reader();
        status
    }

    /// True until the process has ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be asked").is_none()
    }

    /// What `GET /metrics` says of each of `names`: the sum of its series.
    pub fn metrics<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        let mut wire = Wire::connect(self.admin());
        wire.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let text = String::from_utf8(wire.response().body).expect("metrics are text");
        names.map(|name| {
            let series = text.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let value = rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next())??;
                Some(value.parse::<u64>().unwrap_or_else(|_| panic!("{line}")))
            });
            let values: Vec<u64> = series.collect();
            assert!(!values.is_empty(), "there is no {name}: {text}");
            values.iter().sum()
        })
    }

    /// Resident memory in bytes, exact. Always 0 with AddressSanitizer: that keeps what is freed, to
    /// see who uses it still.
    ///
    /// `VmRSS` in `/proc/PID/status` is a per-CPU counter and may be off by 256 KiB on two CPUs;
    /// `smaps_rollup` walks the page tables.
    pub fn rss_bytes(&self) -> u64 {
        if cfg!(asan) {
            return 0;
        }
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = std::fs::read_to_string(&path).expect("the server runs");
        let line = text.lines().find(|line| line.starts_with("Rss:")).expect("smaps has Rss");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|number| number.parse().ok())
            .expect("Rss is a number of KiB");
        kib * 1024
    }

    /// A field of `/proc/PID/status`.
    pub fn status(&self, field: &str) -> String {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).expect("the server runs");
        let values = |line: &str| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned);
        let value = text.lines().find_map(values);
        value.unwrap_or_else(|| panic!("{path} has no {field}")).trim().to_owned()
    }

    /// Open descriptors, summed over the threads.
    ///
    /// Shards have private descriptor tables, so `/proc/PID/fd` would show one table alone. What
    /// threads share is counted once for each of them: compare counts, do not read them as totals.
    pub fn descriptors(&self) -> usize {
        let tasks = format!("/proc/{}/task", self.child.id());
        std::fs::read_dir(&tasks)
            .expect("the server runs")
            .flatten()
            .filter_map(|task| std::fs::read_dir(task.path().join("fd")).ok())
            .map(Iterator::count)
            .sum()
    }

    /// Waits until the server holds `count` descriptors, as [`Server::descriptors`] counts.
    pub fn wait_descriptors(&self, count: usize, why: &str) {
        let mut now = 0;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            now = self.descriptors();
            if now == count {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{why}: the server holds {now} descriptors, expected {count}");
    }

    /// The resident memory once it has stopped moving: equal at several looks in a row.
    pub fn settled_rss_bytes(&self) -> u64 {
        settled(|| self.rss_bytes())
    }

    /// The descriptors once their number has stopped moving.
    pub fn settled_descriptors(&self) -> usize {
        settled(|| self.descriptors())
    }

    /// Stops one thread of the server until the result is dropped, as a debugger does. Only the
    /// calling thread can let it go on.
    pub fn stop_thread(&self, name: &str) -> StoppedThread {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let is_it = |path: &std::path::Path| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let path = tasks.flatten().map(|task| task.path()).find(|path| is_it(path));
        let path = path.unwrap_or_else(|| panic!("no thread called {name}"));
        let id = path.file_name().and_then(|id| id.to_str()).and_then(|id| id.parse().ok());
        StoppedThread::stop(id.expect("threads are named by numbers"))
    }

    /// The id of the process.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are positive i32")
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let (asked, target) = self.admin.map_or((self.address, "/"), |admin| (admin, "/health"));
        while !answers(asked, target) {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                self.join_reader();
                panic!("the server ended at once with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "never healthy; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn join_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            // The reader only fails by panicking, and then its message is on stderr already.
            let _ = reader.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; both calls then have nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.join_reader();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}

/// A thread that stands still; see [`Server::stop_thread`].
pub struct StoppedThread {
    id: i32,
}

impl StoppedThread {
    #[expect(unsafe_code, reason = "std can only wait for processes that it has started")]
    fn stop(id: i32) -> StoppedThread {
        let stopped = StoppedThread { id };
        stopped.trace(libc::PTRACE_SEIZE);
        stopped.trace(libc::PTRACE_INTERRUPT);
        // SAFETY: waitpid(2) with a null pointer writes nothing.
        let waited = unsafe { libc::waitpid(id, std::ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, id, "{}", std::io::Error::last_os_error());
        stopped
    }

    #[expect(unsafe_code, reason = "std cannot stop a thread")]
    fn trace(&self, request: libc::c_uint) {
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests of ptrace(2) read and write no memory of ours.
        let result = unsafe { libc::ptrace(request, self.id, null, null) };
        let error = std::io::Error::last_os_error();
        assert_eq!(result, 0, "ptrace request {request} on thread {}: {error}", self.id);
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        self.trace(libc::PTRACE_DETACH);
    }
}

/// What a command that ended by itself has left.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

/// Runs a command that must end by itself.
pub fn run(mut command: Command) -> Finished {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the fanwire binary starts");
    let stdout = drain(child.stdout.take().expect("stdout is piped"));
    let stderr = drain(child.stderr.take().expect("stderr is piped"));
    let status = wait_exit(&mut child);
    Finished {
        code: status.code(),
        stdout: stdout.join().expect("the reader of stdout ends"),
        stderr: stderr.join().expect("the reader of stderr ends"),
    }
}

/// The binary under test with these arguments and none of our own `FANWIRE_` environment.
pub fn fanwire(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// `command` behind `wrapper`: a command that runs the command that is its arguments' end.
pub fn wrapped(wrapper: &[&str], command: Command) -> Command {
    let mut outer = Command::new(wrapper[0]);
    outer.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// A port that nothing listens on now, never given twice in one process.
///
/// Taken below the range from which the kernel gives ports to connecting clients, else a client of
/// another test could take it before the server binds.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + start.wrapping_add(step) % COUNT;
        let port = u16::try_from(port).expect("the range ends below 65536");
        if TcpListener::bind(loopback(port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT);
}

/// Looks again and again until several looks in a row give the same; at most [`PATIENCE`].
fn settled<T: PartialEq>(look: impl Fn() -> T) -> T {
    let (mut last, mut equal) = (look(), 0);
    let deadline = Instant::now() + PATIENCE;
    while equal < 5 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(60));
        let now = look();
        equal = if now == last { equal + 1 } else { 0 };
        last = now;
    }
    last
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn is_ours(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("FANWIRE_"))
}

/// True if a GET of `target` is answered 200.
fn answers(address: SocketAddr, target: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
        return false;
    };
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_end(&mut answer).is_ok()
        && answer.starts_with(b"HTTP/1.1 200")
}

fn wait_exit(child: &mut Child) -> ExitStatus {
    let mut status = None;
    let deadline = Instant::now() + PATIENCE;
    while status.is_none() && Instant::now() < deadline {
        status = child.try_wait().expect("the child can be asked");
        std::thread::sleep(Duration::from_millis(5));
    }
    status.unwrap_or_else(|| {
        // Without this a failing test would leave the process behind.
        let _ = child.kill();
        let _ = child.wait();
        panic!("process {} has not ended after {PATIENCE:?}", child.id())
    })
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("the output is UTF-8");
        text
    })
}
