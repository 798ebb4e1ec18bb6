//! A server that gets no time: stopped as a whole, or on a core that others keep busy.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::{
    promises::{Rooms, endure},
    serve,
    support::{Client, Server, Wire, frame, upgrade_request, wait_until},
};
use core_affinity::CoreId;

const PING: u8 = 9;

/// Every timeout is over when the server goes on, but nobody has been late except itself: what
/// peers sent in time lies in its sockets.
#[test]
fn a_server_that_was_stopped_for_ten_seconds_holds_it_against_nobody() {
    // Each longer than every timeout.
    const STOPS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(5)];
    const EACH: usize = 64;
    let server = serve(&[
        "--shards=2",
        "--ping-interval=4s",
        "--pong-timeout=4s",
        "--handshake-timeout=4s",
        "--message-timeout=4s",
    ]);
    let address = server.address();
    let message = frame(0x81, br#"{"type":"ping"}"#);
    let request = upgrade_request("/ws");
    endure(&server, STOPS.len(), |round| {
        let mut rooms = Rooms::near("room", address);
        let open = || (0..EACH).map(|_| Wire::open(address, "/ws")).collect::<Vec<_>>();
        let mut idle = open();
        wait_until("somebody has to answer a ping", || idle.iter_mut().any(Wire::has_input));
        let mut begun = open();
        let mut opening: Vec<Wire> = (0..EACH).map(|_| Wire::connect(address)).collect();
        opening.iter_mut().for_each(|wire| wire.send(&request[..9]));
        begun.iter_mut().for_each(|wire| wire.send(&message[..9]));
        rooms.talk_while(1000, 200, || {
            server.signal(libc::SIGSTOP);
            idle.iter_mut().for_each(|wire| wire.send(&message));
            begun.iter_mut().for_each(|wire| wire.send(&message[9..]));
            opening.iter_mut().for_each(|wire| wire.send(&request[9..]));
            // The fault itself.
            thread::sleep(STOPS[round]);
            server.signal(libc::SIGCONT);
        });
        opening.iter_mut().for_each(|wire| assert_eq!(wire.response().status, 101));
        for wire in idle.iter_mut().chain(&mut begun) {
            let mut frame = wire.expect_frame();
            while frame.opcode == PING {
                frame = wire.expect_frame();
            }
            assert_eq!(frame.payload, br#"{"type":"pong"}"#);
        }
    });
    let log = server.log();
    assert!(!log.contains("WARN"), "{log}");
}

/// Threads that take all of one core that others leave them, until dropped.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The CPUs on which a thread of the server called `name` may run, as the kernel writes them.
fn cpus_of(server: &Server, name: &str) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it runs");
    tasks.flatten().find_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |field| {
            let value = status.lines().find_map(|line| line.strip_prefix(field));
            value.map(|value| value.trim().to_owned())
        };
        (field("Name:")? == name).then(|| field("Cpus_allowed_list:"))?
    })
}

#[test]
fn a_core_that_others_keep_busy_slows_its_shard_and_breaks_nothing() {
    const SPINNERS: usize = 8;
    let core = core_affinity::get_core_ids().expect("cores")[0];
    let server = serve(&["--shards", "2"]);
    let mut rooms =
        Rooms::of("room", |path| [(); 4].map(|()| Client::connect(server.address(), path)).into());
    // What is kept busy is the shard's core, and it has no other.
    assert_eq!(cpus_of(&server, "fanwire-shard-0"), Some(core.id.to_string()));
    let mut come_and_go = |_| {
        rooms.talk(200, 200);
        let crowd: Vec<Wire> =
            (0..100).map(|_| Wire::open(server.address(), "/raw/crowd")).collect();
        drop(crowd);
    };
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        let _busy = Busy(&busy);
        for _ in 0..SPINNERS {
            scope.spawn(|| {
                assert!(core_affinity::set_for_current(CoreId { id: core.id }));
                while busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        endure(&server, 2, &mut come_and_go);
    });
    // And when they have gone.
    endure(&server, 1, &mut come_and_go);
}
