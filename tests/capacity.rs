//! Tens of thousands of connections to one server, past the descriptor limit, and what they cost.
//!
//! The descriptor limit (RLIMIT_NOFILE) counts per descriptor table. The server's shards have
//! private tables; so have the client threads here (`unshare(CLONE_FILES)`), which is how one test
//! process holds the other ends. Each thread also has source addresses of its own from 127.0.0.0/8,
//! since one address has only so many ports to connect from.
//!
//! The tests of this file take turns: each of them fills the machine.

pub mod support;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    ops::RangeInclusive,
    sync::{Barrier, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rlimit::Resource;
use socket2::{Domain, Socket, Type};
use support::{Client, PATIENCE, Server, close_frame, frame, upgrade_request};

/// What the tests run under, whatever the host allows: RLIMIT_NOFILE, soft and hard.
const DESCRIPTORS_MAX: u64 = 20_000;
/// Handshakes a client thread has under way: enough to keep the server busy, and far from the
/// bound of its accept queue, where the kernel drops and the client waits a second to try again.
const UNDER_WAY: usize = 64;
/// The first port to connect from; the addresses they belong to are nobody else's.
const FIRST_PORT: u16 = 20_000;
/// The connections of a thread; the rest of its table is for what the process has open anyway.
const PER_THREAD_MAX: usize = 19_000;

/// One test at a time, with the descriptor limit set for it and the server it starts.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = rlimit::getrlimit(Resource::NOFILE).expect("the limit can be read");
    assert!(hard >= DESCRIPTORS_MAX, "these tests want {DESCRIPTORS_MAX} descriptors, not {hard}");
    rlimit::setrlimit(Resource::NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MAX)
        .expect("a limit can be lowered");
    turn
}

/// Gives the calling thread a descriptor table of its own.
#[expect(unsafe_code, reason = "std has no unshare")]
fn private_descriptors() {
    // SAFETY: unshare(2) with CLONE_FILES takes flags alone and touches no memory of ours; the
    // copied table refers to the same open files, so every descriptor this thread holds stays valid.
    let result = unsafe { libc::unshare(libc::CLONE_FILES) };
    assert_eq!(result, 0, "unshare: {}", std::io::Error::last_os_error());
}

/// Many members of `/raw/all`, held by one thread.
struct Crowd {
    members: Vec<TcpStream>,
}

impl Crowd {
    /// Opens `count` members from `source`; all have their 101 when this returns.
    fn open(address: SocketAddr, source: Ipv4Addr, count: usize) -> Crowd {
        assert!(count <= PER_THREAD_MAX, "{count} connections do not fit in one table");
        let request = upgrade_request("/raw/all");
        let mut members = Vec::with_capacity(count);
        let mut ports = FIRST_PORT..=u16::MAX;
        for number in 0..count {
            let mut stream = connect_from(address, source, &mut ports);
            stream.write_all(&request).expect("an upgrade request fits in a socket");
            members.push(stream);
            if let Some(oldest) = number.checked_sub(UNDER_WAY) {
                expect_upgrade(&mut members[oldest], oldest);
            }
        }
        for (number, member) in members.iter_mut().enumerate().rev().take(UNDER_WAY) {
            expect_upgrade(member, number);
        }
        Crowd { members }
    }

    /// Reads from every member exactly these bytes; they must come, and nothing in between.
    fn expect(&mut self, bytes: &[u8], what: &str) {
        let mut received = vec![0; bytes.len()];
        for (number, member) in self.members.iter_mut().enumerate() {
            member
                .read_exact(&mut received)
                .unwrap_or_else(|error| panic!("member {number}: {what}: {error}"));
            assert!(received == bytes, "member {number}: {what}: {received:?}");
        }
    }

    /// Closes all: a third politely, a third by hanging up, a third by a reset.
    fn close(mut self) {
        let close = close_frame(1000, "");
        for member in self.members.iter_mut().step_by(3) {
            member.write_all(&close).expect("a close frame fits in a socket");
        }
        let answer = [0x88, 2, 0x03, 0xe8];
        for (number, member) in self.members.iter_mut().enumerate().step_by(3) {
            let mut received = Vec::new();
            member
                .read_to_end(&mut received)
                .unwrap_or_else(|error| panic!("member {number}: the closing handshake: {error}"));
            assert_eq!(received, answer, "member {number}: the answer to its close");
        }
        for member in self.members.iter().skip(1).step_by(3) {
            let socket = socket2::SockRef::from(member);
            socket.set_linger(Some(Duration::ZERO)).expect("the option can be set");
        }
    }
}

/// Connects from `source` and the next of `ports` that is free.
///
/// Ports by number, because asking the kernel for any free one is a search: it took a minute of
/// system time for 50,000.
fn connect_from(
    address: SocketAddr,
    source: Ipv4Addr,
    ports: &mut RangeInclusive<u16>,
) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    // What an earlier run of the tests has left cooling down is no obstacle.
    socket.set_reuse_address(true).expect("the option can be set");
    let bound = ports.find(|port| {
        let source = SocketAddr::new(IpAddr::V4(source), *port);
        socket.bind(&source.into()).is_ok()
    });
    assert!(bound.is_some(), "no port of {source} is free");
    socket
        .connect_timeout(&address.into(), PATIENCE)
        .unwrap_or_else(|error| panic!("connect from {source}:{bound:?} to {address}: {error}"));
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    socket.set_tcp_nodelay(true).expect("the option can be set");
    TcpStream::from(socket)
}

fn expect_upgrade(stream: &mut TcpStream, number: usize) {
    let mut buffer = [0; 512];
    let mut len = 0;
    while !buffer[..len].ends_with(b"\r\n\r\n") {
        let count = stream
            .read(&mut buffer[len..])
            .unwrap_or_else(|error| panic!("connection {number}: the upgrade: {error}"));
        assert_ne!(
            count,
            0,
            "connection {number} ended: {:?}",
            String::from_utf8_lossy(&buffer[..len])
        );
        len += count;
    }
    let head = String::from_utf8_lossy(&buffer[..len]);
    assert!(head.starts_with("HTTP/1.1 101 "), "connection {number}: {head}");
}

/// The source address of a thread in a round: no port is wanted twice while it cools down.
fn source(round: usize, thread: usize) -> Ipv4Addr {
    let byte = |number: usize| u8::try_from(number + 1).expect("few rounds and threads");
    Ipv4Addr::new(127, 0, byte(round), byte(thread))
}

/// The frame the server sends for a binary message.
fn delivered(payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(payload.len()).expect("a short message");
    [&[0x82, len], payload].concat()
}

#[test]
fn fifty_thousand_connections_under_a_limit_of_twenty_thousand_hear_a_broadcast_once() {
    const THREADS: usize = 3;
    const TOTAL: usize = 50_000;
    let _turn = alone();
    // The crowd answers no pings.
    let server = Server::start(&["--shards", "3", "--ping-interval", "off"]);
    let address = server.address();
    let step = Barrier::new(THREADS + 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let step = &step;
            scope.spawn(move || {
                private_descriptors();
                let share = TOTAL / THREADS + usize::from(thread < TOTAL % THREADS);
                let opened =
                    std::panic::catch_unwind(|| Crowd::open(address, source(0, thread), share));
                step.wait();
                let mut crowd = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                // The second message directly behind the first: it came once, and nothing else did.
                crowd.expect(&delivered(b"to everyone"), "the broadcast");
                crowd.expect(&delivered(b"and no more"), "what follows the broadcast");
            });
        }
        step.wait();
        let mut publisher = Client::connect(address, "/raw/all");
        for text in [&b"to everyone"[..], b"and no more"] {
            publisher.send_binary(text);
            assert_eq!(&publisher.receive().into_data()[..], text);
        }
    });
}

#[test]
fn idle_members_cost_at_most_400_bytes_and_leave_nothing_behind() {
    const MEMBERS: usize = 18_000;
    const ROUNDS: usize = 10;
    const BYTES_MAX: u64 = 400;
    let _turn = alone();
    let server = Server::start(&["--shards", "2", "--ping-interval", "off"]);
    let address = server.address();
    let fresh_rss = server.settled_rss_bytes();
    let fresh_descriptors = server.settled_descriptors();
    let mut left = Vec::new();
    for round in 0..=ROUNDS {
        // A thread per round, because its descriptor table must end with it.
        std::thread::scope(|scope| {
            let server = &server;
            scope.spawn(move || {
                private_descriptors();
                let mut crowd = Crowd::open(address, source(round + 1, 0), MEMBERS);
                let descriptors = fresh_descriptors + MEMBERS;
                server.wait_descriptors(descriptors, "one descriptor per connection");
                if round == 0 {
                    let grown = server.settled_rss_bytes().saturating_sub(fresh_rss);
                    let each = grown.div_ceil(MEMBERS as u64);
                    println!("{MEMBERS} idle members: {grown} bytes more RSS, {each} each");
                    assert!(each <= BYTES_MAX, "an idle member costs {each} bytes");
                }
                let last = crowd.members.last_mut().expect("there are members");
                last.write_all(&frame(0x82, b"all here")).expect("a frame fits in a socket");
                crowd.expect(&delivered(b"all here"), "the message of the round");
                crowd.close();
            });
        });
        server.wait_descriptors(fresh_descriptors, &format!("after round {round}"));
        left.push(server.settled_rss_bytes());
        println!("after round {round}: RSS {} bytes", left[round]);
    }
    // A burst that is deeper than those before it makes a few more receive buffers, which stay (64 of
    // 16 KiB a shard at most). Two bytes that each connection left behind would be 360,000.
    let limit = left[0] + left[0] / 50 + 16 * 16 * 1024;
    assert!(left.iter().all(|rss| *rss <= limit), "RSS after each round, bytes: {left:?}");
}

#[test]
fn huge_pages_are_refused() {
    let server = Server::start(&["--shards", "1"]);
    assert_eq!(server.status("THP_enabled"), "0");
}
