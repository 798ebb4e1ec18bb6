//! The drain: who hears what, how fast connections are closed, and what becomes of the rest.

pub mod support;

use std::{collections::BTreeSet, time::Instant};

use serde_json::{Value, json};
use support::{Client, Server, Wire, wait_until};
use tungstenite::Message;

/// Takes the notice of the drain and gives its `reconnect_in_ms`.
fn expect_notice(client: &mut Client) -> u64 {
    let notice: Value = serde_json::from_str(&client.receive_text()).expect("JSON");
    let reconnect_in_ms = notice["reconnect_in_ms"].as_u64().expect("a number");
    let expected =
        json!({"type": "system", "event": "draining", "reconnect_in_ms": reconnect_in_ms});
    assert_eq!(notice, expected);
    reconnect_in_ms
}

/// The next message must be a close with that code.
fn expect_close(client: &mut Client, code: u16) {
    match client.receive() {
        Message::Close(Some(close)) => assert_eq!(u16::from(close.code), code),
        other => panic!("a close, not {other:?}"),
    }
}

#[test]
fn native_clients_are_told_each_another_time_and_then_closed() {
    let mut server = Server::start(&["--shards", "4", "--echo"]);
    let address = server.address();
    let mut native: Vec<Client> =
        (0..40).map(|n| Client::join(address, "r", &n.to_string())).collect();
    let mut others = ["/raw/r", "/echo"].map(|path| Client::connect(address, path));
    server.signal(libc::SIGTERM);
    let mut told = BTreeSet::new();
    for client in &mut native {
        told.insert(expect_notice(client));
        expect_close(client, 1001);
    }
    others.iter_mut().for_each(|client| expect_close(client, 1001));
    assert!(told.len() > 30, "each another: {told:?}");
    assert!(told.last().is_some_and(|&ms| ms < 1000), "within a second: {told:?}");
    let halves = told.iter().filter(|&&ms| ms < 500).count();
    assert!((10..=30).contains(&halves), "spread: {told:?}");
    drop((native, others));
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
    assert!(server.log().contains("SIGTERM: draining 42 connections"), "{}", server.log());
}

#[test]
fn connections_close_one_by_one_and_the_others_go_on() {
    let flags = ["--shards", "2", "--drain-rate", "2", "--drain-timeout", "1h"];
    let mut server = Server::start(&flags);
    let mut members: Vec<Client> =
        (0..12).map(|n| Client::join(server.address(), "r", &n.to_string())).collect();
    let start = Instant::now();
    server.signal(libc::SIGTERM);
    // All of them at once, before the last one is closed; with 2 per second that is 5 seconds away.
    for member in &mut members {
        assert!(expect_notice(member) < 6000, "as long as it takes");
    }
    server.wait_log("draining 12 connections, 2 per second");
    // A member publishes in the middle of it, and every other one that is left gets it.
    let mut left = members;
    let mut closed = 0;
    for round in 0.. {
        let Some(publisher) = left.last_mut() else { break };
        let text =
            format!(r#"{{"type":"broadcast","room_id":"r","content":{round},"id":{round}}}"#);
        publisher.send_text(&text);
        left.retain_mut(|member| {
            loop {
                match member.receive() {
                    Message::Close(close) => {
                        assert_eq!(close.map(|it| u16::from(it.code)), Some(1001));
                        closed += 1;
                        return false;
                    }
                    Message::Text(text) => {
                        let message: Value = serde_json::from_str(&text).expect("JSON");
                        if message["type"] == "broadcast" && message["content"] == round {
                            return true;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        assert!(
            left.is_empty() || closed <= 3 + 2 * start.elapsed().as_secs() as usize,
            "too fast"
        );
    }
    assert_eq!(closed, 12);
    assert!(start.elapsed().as_secs() >= 4, "12 at 2 per second");
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
    assert!(server.log().contains("of 12 connections closed, "), "{}", server.log());
    assert!(server.log().contains("drained=12 cut=0"), "{}", server.log());
}

#[test]
fn what_was_acknowledged_before_the_drain_arrives_before_the_close() {
    let mut server = Server::start(&["--shards", "4"]);
    let address = server.address();
    let mut members: Vec<Client> =
        (0..16).map(|n| Client::join(address, "r", &n.to_string())).collect();
    let mut publisher = Client::join(address, "r", "publisher");
    const COUNT: u64 = 500;
    for n in 0..COUNT {
        let message = json!({"type": "broadcast", "room_id": "r", "content": n, "id": n});
        publisher.queue(Message::text(message.to_string()));
    }
    publisher.flush();
    let mut acks = 0;
    while acks < COUNT {
        acks += u64::from(publisher.receive_reply().kind == "ack");
    }
    server.signal(libc::SIGTERM);
    for member in &mut members {
        let mut offsets = Vec::new();
        while let Message::Text(text) = member.receive() {
            let message: Value = serde_json::from_str(&text).expect("JSON");
            offsets.extend(message["offset"].as_u64());
        }
        assert_eq!(offsets, (1..=COUNT).collect::<Vec<_>>());
    }
    drop((members, publisher));
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
}

#[test]
fn a_rate_that_does_not_fit_is_said_and_the_rest_is_cut() {
    let flags = ["--shards", "2", "--drain-rate", "1", "--drain-timeout", "1s"];
    let mut server = Server::start(&flags);
    let clients: Vec<Client> =
        (0..20).map(|_| Client::connect(server.address(), "/raw/r")).collect();
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
    let log = server.log();
    let words = "drain_rate 1 closes 1 of 20 connections within drain_timeout 1s";
    assert!(log.contains(words), "{log}");
    assert!(log.contains("connections are cut"), "{log}");
    let outcomes = clients.into_iter().map(|mut client| match client.try_receive() {
        Some(Message::Close(_)) => 1,
        Some(other) => panic!("{other:?}"),
        None => 0,
    });
    let closed: usize = outcomes.sum();
    assert!((1..=4).contains(&closed), "{closed} closed, at 1 per second and 2 shards");
}

#[test]
fn a_delay_comes_before_anything_else() {
    let mut server = Server::start(&["--shards", "2", "--drain-delay", "1h"]);
    let mut member = Client::join(server.address(), "r", "member");
    let ask = |method: &str, path: &str, body: &str| {
        let mut wire = Wire::connect(server.admin());
        let (kind, len) = ("Content-Type: application/json", body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len}\r\n\r\n\
             {body}"
        );
        wire.send(request.as_bytes());
        let response = wire.response();
        (response.status, response.json())
    };
    server.signal(libc::SIGTERM);
    let draining = json!({"status": "draining"});
    wait_until("it says so", || ask("GET", "/health", "") == (200, draining.clone()));
    assert_eq!(ask("GET", "/ready", ""), (503, draining));
    member.expect_silence();
    // It goes on with everything, for backends and operators, too.
    let published = ask("POST", "/v1/publish", r#"{"room_id":"r","content":1}"#);
    assert_eq!(published, (200, json!({"room_id": "r", "offset": 1})));
    assert_eq!(member.receive_reply().offset, Some(1));
    let reloaded = ask("POST", "/v1/reload", "");
    assert_eq!(reloaded, (200, json!({"changed": [], "needs_restart": []})));
    Client::join(server.address(), "r", "late").expect_silence();
    // The second signal waits for nothing.
    server.signal(libc::SIGTERM);
    server.wait_exit();
}
