//! Peers that mean harm, by the dozen: handshakes and messages that come byte by byte for ever, and
//! connections that come by the thousand, and go in every possible way or hold on.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    network::counted,
    promises::{POLICY, Rooms, endure},
    serve,
    support::{Client, Server, Wire, beside_link, close_frame, frame, upgrade_request, wait_until},
};

/// How many at once.
const CROWD: usize = 64;

/// Sends to each of `wires` one byte of `endless` after the other, until it has an answer.
fn trickle(wires: &mut [Wire], endless: &[u8]) {
    for byte in endless.iter().cycle() {
        let mut waiting = 0;
        for wire in wires.iter_mut() {
            // It may have been answered meanwhile, and hung up on.
            waiting += usize::from(!wire.has_input() && wire.try_send(&[*byte]).is_ok());
        }
        if waiting == 0 {
            return;
        }
        // The pace of the attack; nobody waits for it.
        thread::sleep(Duration::from_millis(10));
    }
}

/// More of them than there are places for handshakes: the others wait in the backlog until the
/// deadline has freed a place, and so does an honest client, who gets in all the same.
#[test]
fn handshakes_that_trickle_end_in_time_and_hold_up_nobody_who_is_there() {
    let flags = ["--shards", "2", "--handshakes-max", "8", "--handshake-timeout", "300ms"];
    let server = serve(&flags);
    let address = server.address();
    let mut witness = Rooms::near("witness", address);
    endure(&server, 2, |_| {
        let mut slow: Vec<Wire> = (0..CROWD).map(|_| Wire::connect(address)).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                slow.iter_mut().for_each(|wire| wire.send(b"GET /ws HTTP/1.1\r\nX: "));
                trickle(&mut slow, b"x");
            });
            witness.talk(64, 200);
            Client::connect(address, "/ws").close();
        });
        for wire in &mut slow {
            assert_eq!(wire.response().status, 408);
            wire.expect_eof();
        }
    });
}

#[test]
fn messages_that_trickle_end_in_time_and_hold_up_nobody() {
    let server = serve(&["--shards", "2", "--echo", "--message-timeout", "1s"]);
    let address = server.address();
    let mut witness = Rooms::near("witness", address);
    endure(&server, 2, |_| {
        let paths = ["/ws", "/raw/slow", "/echo"].into_iter().cycle();
        let mut slow: Vec<Wire> = paths.take(CROWD).map(|path| Wire::open(address, path)).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                // Half of them in one frame of 64 KiB, half in fragments of one byte.
                let (frames, fragments) = slow.split_at_mut(CROWD / 2);
                frames.iter_mut().for_each(|wire| wire.send(&frame(0x82, &[0; 65_536])[..14]));
                fragments.iter_mut().for_each(|wire| wire.send(&frame(0x02, b"")));
                thread::scope(|scope| {
                    scope.spawn(|| trickle(frames, b"\0"));
                    trickle(fragments, &frame(0x00, b"\0"));
                });
            });
            witness.talk(64, 200);
        });
        for wire in &mut slow {
            assert_eq!(wire.expect_close(), Some(1008));
            let _ = wire.try_send(&close_frame(1008, ""));
            wire.expect_eof();
        }
    });
}

/// How far a connection of a flood gets before it is torn down.
const STAGES: usize = 8;

/// Opens a connection, does so much with it, and ends it: with a reset, or in order.
fn strike(address: SocketAddr, stage: usize, reset: bool) {
    let request = upgrade_request("/raw/flood");
    let mut wire = Wire::connect(address);
    match stage {
        0 => {}
        1 => wire.send(&request[..9]),
        2 => wire.send(&request),
        3 => wire.send(b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n"),
        _ => {
            wire.send(&request);
            wire.response_head();
            match stage {
                4 => {}
                5 => wire.send(&frame(0x82, b"half a message")[..9]),
                6 => wire.send(&frame(0x82, &[7; 4096])),
                _ => wire.half_close(),
            }
        }
    }
    if reset {
        be_reset(wire.stream());
    }
}

/// Has the connection reset when it is dropped.
fn be_reset(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("the option can be set");
}

#[test]
fn a_flood_of_connections_leaves_nothing_behind() {
    const THREADS: usize = 2;
    const STRIKES: usize = 800;
    let server = serve(&["--shards", "2", "--close-timeout", "300ms"]);
    let address = server.address();
    let mut witness = Rooms::near("witness", address);
    endure(&server, 3, |_| {
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    for number in 0..STRIKES {
                        let reset = (number / STAGES + thread).is_multiple_of(2);
                        strike(address, number % STAGES, reset);
                    }
                });
            }
            witness.talk(200, 200);
        });
    });
}

/// As many connections as there may be, and all of them are reset at once.
#[test]
fn a_flood_that_holds_on_is_refused_beyond_the_limit_and_leaves_nothing_behind() {
    const PLACES: usize = 2000;
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit can be raised");
    let server = serve(&["--shards", "2", "--connections-max", &PLACES.to_string()]);
    let address = server.address();
    let mut witness = Rooms::near("witness", address);
    let connect = |number: usize| {
        let mut wire = Wire::connect(address);
        wire.send(&upgrade_request(["/ws", "/raw/flood", "/raw/other"][number % 3]));
        let status = wire.response().status;
        (wire, status)
    };
    endure(&server, 2, |_| {
        let held = (0..).map(connect).take_while(|(_, status)| *status == 101);
        let mut held: Vec<Wire> = held.map(|(wire, _)| wire).collect();
        assert_eq!(held.len() + witness.connections(), PLACES);
        (0..100).for_each(|number| assert_eq!(connect(number).1, 503));
        witness.talk(64, 200);
        // Messages that are not whole take memory until the end, too.
        held.iter_mut().for_each(|wire| wire.send(&frame(0x82, &[7; 2000])[..1000]));
        held.iter().for_each(|wire| be_reset(wire.stream()));
        drop(held);
        witness.talk(64, 200);
    });
}

/// More connections that say nothing than there are places for handshakes, and than the kernel lets
/// wait for one. Nobody else comes in, but who is there does not notice.
#[test]
fn a_flood_at_the_door_is_gone_when_it_lets_go() {
    const HANDSHAKES: usize = 256;
    const BACKLOG: usize = 512;
    const SHARDS: usize = 2;
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit can be raised");
    beside_link(|link| {
        fs::write("/proc/sys/net/core/somaxconn", BACKLOG.to_string()).expect("it is our network");
        let address = link.address();
        let handshakes = HANDSHAKES.to_string();
        let server = Server::start_at(
            &[address],
            &[
                "--shards=2",
                "--insecure",
                "--handshake-timeout=1m",
                "--handshakes-max",
                &handshakes,
                POLICY,
            ],
        );
        let mut witness = Rooms::near("witness", address);
        endure(&server, 2, |_| {
            let dropped = || counted("netstat", "TcpExt:", "ListenOverflows");
            let before = dropped();
            let knock = || {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                socket.set_nonblocking(true).expect("the option can be set");
                // It is under way, and may stay so.
                let _ = socket.connect(&address.into());
                let stream = TcpStream::from(socket);
                be_reset(&stream);
                stream
            };
            let crowd: Vec<TcpStream> =
                (0..SHARDS * (HANDSHAKES + BACKLOG) + 1000).map(|_| knock()).collect();
            wait_until("the kernel lets no more wait", || dropped() > before);
            witness.talk(64, 200);
            drop(crowd);
            Client::connect(address, "/ws").close();
        });
    });
}
