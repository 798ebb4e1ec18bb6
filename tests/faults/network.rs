//! A network that loses, delays, doubles and reorders packets, is cut for a while, or carries only
//! short ones. TCP mends all of it; the server must bear what that does to its sockets: sends that
//! are short, connections that are silent for seconds, requests that come in pieces.

use std::{fs, time::Duration};

use crate::{
    promises::{POLICY, Rooms, endure},
    support::{Client, Link, Quality, Server, beside_link, wait_until},
};

/// A server at this end, on an address that is not loopback.
fn serve(link: &Link) -> Server {
    Server::start_at(&[link.address()], &["--shards", "2", "--insecure", POLICY])
}

/// Rooms of two members at this end and two at the other one.
fn across(link: &Link, server: &Server) -> Rooms {
    Rooms::of("across", |path| {
        let open = || [(); 2].map(|()| Client::connect(server.address(), path));
        open().into_iter().chain(link.beyond(open)).collect()
    })
}

/// What the kernel has counted in the network of this thread: `file` is one of /proc/net, in which
/// a line of names is followed by a line of values.
pub(crate) fn counted(file: &str, protocol: &str, name: &str) -> u64 {
    let path = format!("/proc/thread-self/net/{file}");
    let text = fs::read_to_string(&path).expect("/proc is mounted");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut columns = names.split_whitespace().zip(values.split_whitespace());
    let value = columns.find_map(|(column, value)| (column == name).then_some(value));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{path} has no {name}"))
}

fn retransmitted() -> u64 {
    counted("snmp", "Tcp:", "RetransSegs")
}

#[test]
fn a_link_that_loses_delays_doubles_and_reorders_harms_no_promise() {
    beside_link(|link| {
        let server = serve(link);
        let ms = Duration::from_millis;
        let perfect = Quality::PERFECT;
        let bad = [
            Quality { loss: 5, ..perfect },
            Quality { delay: ms(20), ..perfect },
            Quality { jitter: ms(10), ..perfect },
            Quality { duplication: 30, ..perfect },
            Quality { loss: 3, duplication: 10, delay: ms(5), jitter: ms(10) },
        ];
        endure(&server, 2, |_| {
            let mut rooms = across(link, &server);
            for quality in bad {
                link.set_quality(quality);
                rooms.talk(48, 200);
            }
            // Others come and go over it, too.
            let mut late = link.beyond(|| Client::join(server.address(), "late", "late"));
            late.expect_silence();
            late.close();
            link.set_quality(perfect);
        });
        // Else the link was not bad.
        assert!(retransmitted() > 0);
        let out_of_order = || counted("netstat", "TcpExt:", "TCPOFOQueue");
        assert!(out_of_order() > 0 && link.beyond(out_of_order) > 0);
    });
}

#[test]
fn a_link_that_is_cut_for_a_while_loses_nothing_and_nobody_else_waits() {
    beside_link(|link| {
        let server = serve(link);
        let mut others = Rooms::near("others", server.address());
        endure(&server, 2, |_| {
            let mut rooms = across(link, &server);
            rooms.talk(16, 200);
            link.cut();
            let published = || server.metrics(["fanwire_publishes_total"])[0];
            let (before, messages) = (retransmitted(), published());
            rooms.talk_while(160, 2000, || {
                others.talk(160, 200);
                wait_until("the server's end has tried again", || retransmitted() > before + 1);
                // Of three rooms two members each at this end, and as many of the others.
                let all = messages + 2 * 3 * 2 * 160;
                wait_until("they have said all at this end", || published() >= all);
                link.set_quality(Quality::PERFECT);
            });
        });
        // Who was cut off is behind what its rooms keep, and was told so where that is the policy.
        assert!(server.metrics(["fanwire_skipped_messages_total"])[0] > 0);
    });
}

#[test]
fn packets_may_be_as_short_as_the_kernel_lets_them() {
    beside_link(|link| {
        let server = serve(link);
        endure(&server, 2, |_| {
            // Over connections that are open already, ...
            let mut rooms = across(link, &server);
            for mtu in [1500, 576, 100] {
                link.set_mtu(mtu);
                rooms.talk(32, 2000);
            }
            // ... and over those that never knew better: even the upgrade comes in pieces.
            across(link, &server).talk(32, 2000);
            link.set_mtu(1500);
        });
    });
}
