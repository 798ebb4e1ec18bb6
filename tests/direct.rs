//! Direct messages: to all connections of a user, whatever shards they are on.

pub mod support;

use serde_json::{Value, json};
use support::{Client, Server, Wire, wait_until};

fn server() -> Server {
    Server::start(&["--shards", "4"])
}

/// Sends a direct message and gives how many connections it was handed to. Sent to oneself it comes
/// before its acknowledgement or behind it: what came before is in `came`.
fn send(client: &mut Client, to: &str, content: &Value, came: &mut Vec<Value>) -> u64 {
    let message = json!({"type": "direct", "user_id": to, "content": content, "id": "d"});
    client.send_text(&message.to_string());
    loop {
        let message: Value = serde_json::from_str(&client.receive_text()).expect("JSON");
        if message["type"] == "ack" {
            let delivered = message["delivered"].as_u64().expect("a number");
            assert_eq!(message, json!({"type": "ack", "id": "d", "delivered": delivered}));
            return delivered;
        }
        came.push(message);
    }
}

#[test]
fn all_connections_of_a_user_get_it_byte_for_byte_and_nobody_else() {
    let server = server();
    // Enough of them that every shard has some.
    let mut bob: Vec<Client> =
        (0..24).map(|n| Client::join(server.address(), &format!("r{n}"), "bob")).collect();
    let mut carol = Client::join(server.address(), "r0", "carol");
    let mut alice = Client::join(server.address(), "r0", "ali\"ce é");
    let contents = ["{ \"b\" :1,\"a\": [null , 1e3 ]}", "null", "\"\\u00e9é\"", "0.10", "[ ]"];
    for content in contents {
        let text = format!(r#"{{"type":"direct","user_id":"bob","content":{content},"id":7}}"#);
        let ack = alice.ask(&text);
        assert_eq!((ack.kind.as_str(), ack.id.as_deref()), ("ack", Some("7")), "{ack:?}");
        let expected = format!(r#"{{"type":"direct","sender":"ali\"ce é","content":{content}}}"#);
        for client in &mut bob {
            assert_eq!(client.receive_text(), expected);
        }
    }
    assert_eq!(send(&mut alice, "bob", &json!(1), &mut Vec::new()), 24);
    carol.expect_silence();
    alice.expect_silence();
    // Without an id there is no answer.
    alice.send_text(r#"{"type":"direct","user_id":"carol","content":2}"#);
    assert_eq!(carol.receive_text(), r#"{"type":"direct","sender":"ali\"ce é","content":2}"#);
    alice.expect_silence();
    // Those who have gone are not counted.
    bob.drain(..20).for_each(Client::close);
    wait_until("they are gone", || send(&mut alice, "bob", &json!(3), &mut Vec::new()) == 4);
}

#[test]
fn a_user_is_the_name_that_was_given_last() {
    let server = server();
    let mut alice = Client::connect(server.address(), "/ws");
    let mut bob = Client::connect(server.address(), "/ws");
    let mut count = |to: &str| send(&mut alice, to, &json!("hi"), &mut Vec::new());
    assert_eq!((count("bob"), count("anonymous")), (0, 0), "nobody has a name");
    bob.join_room("r", "bob");
    assert_eq!((count("bob"), count("rob")), (1, 0));
    assert_eq!(bob.receive_text(), r#"{"type":"direct","sender":"anonymous","content":"hi"}"#);
    bob.join_room("r", "rob");
    assert_eq!((count("bob"), count("rob")), (0, 1));
    // It stays when the room is left.
    bob.receive_text();
    assert_eq!(bob.ask(r#"{"type":"leave","room_id":"r"}"#).kind, "left");
    assert_eq!((count("bob"), count("rob")), (0, 1));
    // A room for raw clients and its members have nothing to do with users.
    let _raw = Client::connect(server.address(), "/raw/bob");
    assert_eq!(count("bob"), 0);
}

#[test]
fn to_oneself_it_comes_to_all_of_them() {
    let server = server();
    let mut devices: Vec<Client> =
        (0..5).map(|_| Client::join(server.address(), "r", "alice")).collect();
    let mut came = Vec::new();
    assert_eq!(send(&mut devices[0], "alice", &json!(1), &mut came), 5);
    let expected = json!({"type": "direct", "sender": "alice", "content": 1});
    if came.is_empty() {
        came.push(serde_json::from_str(&devices[0].receive_text()).expect("JSON"));
    }
    assert_eq!(came, std::slice::from_ref(&expected));
    for device in &mut devices[1..] {
        let message: Value = serde_json::from_str(&device.receive_text()).expect("JSON");
        assert_eq!(message, expected);
    }
}

#[test]
fn what_one_sends_to_one_comes_in_order() {
    // Short mailboxes: they fill up, and the senders wait.
    let server = Server::start(&["--shards", "4", "--mailbox-len-max", "16"]);
    let mut bob = Client::join(server.address(), "r", "bob");
    let mut senders: Vec<Client> =
        (0..4).map(|n| Client::join(server.address(), "r", &format!("s{n}"))).collect();
    const COUNT: u64 = 500;
    for n in 0..COUNT {
        for sender in &mut senders {
            let message = json!({"type": "direct", "user_id": "bob", "content": n});
            sender.queue(tungstenite::Message::text(message.to_string()));
        }
    }
    senders.iter_mut().for_each(Client::flush);
    let mut next = [0; 4];
    for _ in 0..4 * COUNT {
        let message: Value = serde_json::from_str(&bob.receive_text()).expect("JSON");
        let sender = message["sender"].as_str().and_then(|name| name[1..].parse::<usize>().ok());
        let next = &mut next[sender.expect("one of them")];
        assert_eq!(message["content"], *next);
        *next += 1;
    }
    assert_eq!(next, [COUNT; 4]);
}

#[test]
fn what_cannot_be_sent_is_an_error() {
    let server = Server::start(&["--shards", "2", "--user-id-bytes-max", "5"]);
    let mut client = Client::connect(server.address(), "/ws");
    let table = [
        (r#"{"type":"direct","user_id":"bob","id":1}"#, "missing_field"),
        (r#"{"type":"direct","content":1,"id":1}"#, "missing_field"),
        (r#"{"type":"direct","user_id":7,"content":1,"id":1}"#, "invalid_message"),
        (r#"{"type":"direct","user_id":"","content":1,"id":1}"#, "invalid_user_id"),
        (r#"{"type":"direct","user_id":"a\n","content":1,"id":1}"#, "invalid_user_id"),
        (r#"{"type":"direct","user_id":"robert","content":1,"id":1}"#, "invalid_user_id"),
    ];
    for (text, code) in table {
        let reply = client.ask(text);
        assert_eq!((reply.code.as_deref(), reply.id.as_deref()), (Some(code), Some("1")), "{text}");
    }
    client.expect_silence();
}

#[test]
fn who_does_not_read_is_a_slow_consumer() {
    let flags = ["--shards", "2", "--high-water-mark", "2MiB"];
    let server = Server::start(&flags);
    let mut slow = Wire::open(server.address(), "/ws");
    let join = br#"{"type":"join","room_id":"r","user_id":"slow"}"#;
    slow.send(&support::frame(0x81, join));
    assert_eq!(slow.expect_frame().opcode, 1, "joined");
    let mut other = Client::join(server.address(), "r", "other");
    let content = json!("x".repeat(100_000));
    // The kernel takes some, the server 2 MiB more, and then it is closed.
    let mut sent = 0;
    while send(&mut other, "slow", &content, &mut Vec::new()) == 1 {
        sent += 1;
        assert!(sent < 1000, "100 MB are waiting for one who does not read");
    }
    assert!(sent >= 20, "{sent} of 100 kB were taken");
    let mut came = 0;
    let close = loop {
        let frame = slow.expect_frame();
        if frame.opcode == 8 {
            break frame.close_code();
        }
        came += 1;
    };
    assert_eq!((came, close), (sent, Some(1013)), "what was counted, then the close");
    other.expect_silence();
}
