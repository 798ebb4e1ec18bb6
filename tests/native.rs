//! The native protocol v1 on `/ws`, from a client's side: join, leave, broadcast, ids, errors.

pub mod support;

use support::{Client, Reply, Server, rows};
use tungstenite::Message;

/// Joins "lobby" in `server` and gives the client.
fn lobby(server: &Server, user_id: &str) -> Client {
    Client::join(server.address(), "lobby", user_id)
}

#[test]
fn a_broadcast_reaches_every_member_the_sender_included() {
    let server = Server::start(&["--shards", "4"]);
    let mut members: Vec<Client> =
        (0..12).map(|number| lobby(&server, &format!("member-{number}"))).collect();

    members[3].send_text(r#"{"type":"broadcast","room_id":"lobby","content":"hello"}"#);

    for (number, member) in members.iter_mut().enumerate() {
        let reply = member.receive_reply();
        let expected = Reply {
            kind: "broadcast".to_owned(),
            room_id: Some("lobby".to_owned()),
            sender: Some("member-3".to_owned()),
            offset: Some(1),
            content: Some("\"hello\"".to_owned()),
            ..Reply::default()
        };
        assert_eq!(reply, expected, "member {number}");
        member.expect_silence();
    }
}

#[test]
fn joined_tells_the_newest_offset_of_the_room() {
    let server = Server::start(&["--shards", "4"]);
    let mut first = Client::connect(server.address(), "/ws");
    assert_eq!(first.join_room("lobby", "first"), 0, "a new room");
    for offset in 1..=5 {
        let reply = first.ask(r#"{"type":"broadcast","room_id":"lobby","content":1}"#);
        assert_eq!(reply.offset, Some(offset), "{reply:?}");
    }
    let mut late = Client::connect(server.address(), "/ws");
    assert_eq!(late.join_room("lobby", "late"), 5, "a room with five messages");
    late.expect_silence();
    let reply = first.ask(r#"{"type":"broadcast","room_id":"lobby","content":2}"#);
    assert_eq!(reply.offset, Some(6), "{reply:?}");
    assert_eq!(late.receive_reply().offset, Some(6));
}

#[test]
fn who_has_left_receives_nothing_and_may_not_publish() {
    let server = Server::start(&["--shards", "2"]);
    let mut stays = lobby(&server, "stays");
    let mut leaves = lobby(&server, "leaves");

    let left = leaves.ask(r#"{"type":"leave","room_id":"lobby"}"#);
    assert_eq!((left.kind.as_str(), left.room_id.as_deref()), ("left", Some("lobby")));
    let reply = stays.ask(r#"{"type":"broadcast","room_id":"lobby","content":1}"#);
    assert_eq!(reply.kind, "broadcast");
    leaves.expect_silence();

    let refused = leaves.ask(r#"{"type":"broadcast","room_id":"lobby","content":1}"#);
    assert_eq!(refused.code.as_deref(), Some("not_member"), "{refused:?}");
    stays.expect_silence();

    leaves.join_room("lobby", "leaves");
    stays.send_text(r#"{"type":"broadcast","room_id":"lobby","content":2}"#);
    assert_eq!(leaves.receive_reply().offset, Some(2), "back in the room");
}

#[test]
fn a_room_ends_with_its_last_member_and_begins_anew() {
    let server = Server::start(&["--shards", "4"]);
    let mut member = lobby(&server, "one");
    let reply = member.ask(r#"{"type":"broadcast","room_id":"lobby","content":1}"#);
    assert_eq!(reply.offset, Some(1));
    assert_eq!(member.ask(r#"{"type":"leave","room_id":"lobby"}"#).kind, "left");
    assert_eq!(member.join_room("lobby", "one"), 0, "a room lives while it has members");
}

#[test]
fn joining_again_answers_joined_and_changes_the_name() {
    let server = Server::start(&["--shards", "2"]);
    let mut member = lobby(&server, "before");
    let reply = member.ask(r#"{"type":"broadcast","room_id":"lobby","content":1}"#);
    assert_eq!(reply.sender.as_deref(), Some("before"));

    assert_eq!(member.join_room("lobby", "after"), 1, "the room and its offset are kept");
    let reply = member.ask(r#"{"type":"broadcast","room_id":"lobby","content":1}"#);
    assert_eq!(reply.sender.as_deref(), Some("after"));
    member.expect_silence();

    let left = member.ask(r#"{"type":"leave","room_id":"lobby"}"#);
    assert_eq!(left.kind, "left", "one leave undoes both joins");
    let refused = member.ask(r#"{"type":"leave","room_id":"lobby"}"#);
    assert_eq!(refused.code.as_deref(), Some("not_member"));
}

#[test]
fn a_sender_without_a_name_is_anonymous_or_keeps_the_last_one() {
    let server = Server::start(&["--shards", "2"]);
    let mut member = Client::connect(server.address(), "/ws");
    let mut sender_in = |join: &str, room_id: &str| {
        assert_eq!(member.ask(join).kind, "joined", "{join}");
        let message = format!(r#"{{"type":"broadcast","room_id":"{room_id}","content":0}}"#);
        member.ask(&message).sender
    };
    let rows = [
        (r#"{"type":"join","room_id":"a"}"#, "a", "anonymous"),
        (r#"{"type":"join","room_id":"b","user_id":"bob"}"#, "b", "bob"),
        (r#"{"type":"join","room_id":"c"}"#, "c", "bob"),
        (
            r#"{"type":"join","room_id":"d","user_id":"caf\u00e9 \"q\" \\ \u2028"}"#,
            "d",
            "café \"q\" \\ \u{2028}",
        ),
        (r#"{"type":"join","room_id":"e","user_id":"日本 👋"}"#, "e", "日本 👋"),
    ];
    for (join, room_id, expected) in rows {
        assert_eq!(sender_in(join, room_id).as_deref(), Some(expected), "{join}");
    }
}

#[test]
fn content_passes_byte_for_byte() {
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let long = format!("\"{}\"", "x".repeat(100_000));
    let contents = vec![
        r#""plain""#,
        r#""""#,
        "null",
        "true",
        "0",
        "-0.0",
        "1e400",
        "-1E+0400",
        "0.1000000000000000055511151231257827021181583404541015625",
        "123456789012345678901234567890123456789012345678901234567890",
        "1.50",
        "[]",
        "{}",
        "[ 1 ,\t2 ,\r\n3 ]",
        r#"{  "b" : 1, "a":2 ,"b":3}"#,
        r#"{"type":"join","room_id":"other","id":99,"content":{"content":1}}"#,
        r#""\u0041\u00e9\ud83d\udc4b A""#,
        r#""lone \ud83d surrogate""#,
        r#""\u0000 \/ \b\f\n\r\t \\ \"""#,
        r#""é 日本 👋""#,
        r#"{"\u006bey":"\u0076alue"}"#,
        r#"{"":{"":[[[{"":null}]]]}}"#,
        &deep,
        &long,
    ];
    let server = Server::start(&["--shards", "2"]);
    let name = |content: &&str| content.chars().take(60).collect();
    rows(contents, name, |content| {
        let mut publisher = lobby(&server, "publisher");
        let mut reader = lobby(&server, "reader");
        publisher
            .send_text(&format!(r#"{{"type":"broadcast","room_id":"lobby","content":{content}}}"#));
        for client in [&mut publisher, &mut reader] {
            assert_eq!(client.receive_reply().content.as_deref(), Some(*content));
        }
        publisher.send_text(&format!(
            "{{ \"content\"  : {content} \n, \"room_id\":\"lobby\",\t\"type\" :\"broadcast\" }} "
        ));
        for client in [&mut publisher, &mut reader] {
            let got = client.receive_reply().content;
            assert_eq!(got.as_deref(), Some(*content), "with the fields in another order");
        }
    });
}

#[test]
fn an_id_is_echoed_in_every_answer_as_it_came() {
    let long = format!("\"{}\"", "i".repeat(60));
    let ids = vec![
        "0",
        "7",
        "-1",
        "1.50",
        "1e3",
        "12345678901234567890123",
        "\"\"",
        "\"a b\"",
        "\"é\"",
        &long,
    ];
    let server = Server::start(&["--shards", "2"]);
    rows(
        ids,
        |id| (*id).to_owned(),
        |id| {
            let mut client = Client::connect(server.address(), "/ws");
            let asks = [
                (r#""type":"ping""#, "pong"),
                (r#""type":"join","room_id":"r""#, "joined"),
                (r#""type":"dance""#, "error"),
                (r#""type":"leave","room_id":"r""#, "left"),
                (r#""type":"leave","room_id":"r""#, "error"),
            ];
            for (fields, kind) in asks {
                for text in
                    [format!(r#"{{{fields},"id":{id}}}"#), format!(r#"{{"id":{id},{fields}}}"#)]
                {
                    let reply = client.ask(&text);
                    // The second join is a re-join and the second leave is refused: both answers count.
                    let refused = kind == "left" && reply.kind == "error";
                    assert!(reply.kind == kind || refused, "{text}: {reply:?}");
                    assert_eq!(reply.id.as_deref(), Some(*id), "{text}: {reply:?}");
                }
            }
        },
    );
}

#[test]
fn a_broadcast_with_an_id_is_acknowledged_with_its_offset() {
    let server = Server::start(&["--shards", "4"]);
    let mut publisher = lobby(&server, "publisher");
    let mut reader = lobby(&server, "reader");
    for offset in 1..=20 {
        publisher.send_text(&format!(
            r#"{{"type":"broadcast","room_id":"lobby","content":{offset},"id":"n{offset}"}}"#
        ));
        // The order of the message and its acknowledgement is not promised.
        let replies = [publisher.receive_reply(), publisher.receive_reply()];
        let ack = replies.iter().find(|reply| reply.kind == "ack").expect("an acknowledgement");
        let broadcast = replies.iter().find(|reply| reply.kind == "broadcast").expect("itself");
        assert_eq!(ack.offset, Some(offset), "{ack:?}");
        assert_eq!(ack.id, Some(format!("\"n{offset}\"")), "{ack:?}");
        assert_eq!(broadcast.offset, Some(offset), "{broadcast:?}");
        assert_eq!(broadcast.id, None, "the id is the sender's own: {broadcast:?}");
        let received = reader.receive_reply();
        assert_eq!((received.kind.as_str(), received.id), ("broadcast", None));
    }
    publisher.send_text(r#"{"type":"broadcast","room_id":"lobby","content":0}"#);
    assert_eq!(publisher.receive_reply().kind, "broadcast");
    publisher.expect_silence();
}

#[test]
fn what_a_client_may_not_or_cannot_do_has_its_error_code() {
    let long = "x".repeat(129);
    let long_room = format!(r#"{{"type":"join","room_id":"{long}"}}"#);
    let long_user = format!(r#"{{"type":"join","room_id":"r","user_id":"{long}"}}"#);
    let wide_room = format!(r#"{{"type":"join","room_id":"{}"}}"#, "é".repeat(65));
    let long_id = format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(80));
    let long_number = format!(r#"{{"type":"ping","id":{}}}"#, "1".repeat(80));
    let table = vec![
        ("", "invalid_json"),
        (" ", "invalid_json"),
        ("hello", "invalid_json"),
        ("{", "invalid_json"),
        (r#"{"type":"ping""#, "invalid_json"),
        (r#"{"type":"ping"} {"#, "invalid_json"),
        (r#"{"type":"ping"}{"type":"ping"}"#, "invalid_json"),
        (r#"{"type":"ping",}"#, "invalid_json"),
        (r#"{'type':'ping'}"#, "invalid_json"),
        (r#"{"type":"ping","x":01}"#, "invalid_json"),
        (r#"{"type":"ping","x":NaN}"#, "invalid_json"),
        (r#"{"type":"ping","x":"\q"}"#, "invalid_json"),
        ("{\"type\":\"ping\",\"x\":\"\n\"}", "invalid_json"),
        (r#"{"type":"broadcast","room_id":"lobby","content":}"#, "invalid_json"),
        (r#"{"type":"broadcast","room_id":"lobby","content":[}"#, "invalid_json"),
        ("[]", "invalid_message"),
        ("null", "invalid_message"),
        ("1", "invalid_message"),
        (r#""ping""#, "invalid_message"),
        (r#"[{"type":"ping"}]"#, "invalid_message"),
        (r#"["ping"]"#, "invalid_message"),
        (r#"{"type":1}"#, "invalid_message"),
        (r#"{"type":null}"#, "invalid_message"),
        (r#"{"type":["ping"]}"#, "invalid_message"),
        (r#"{"type":"join","room_id":1}"#, "invalid_message"),
        (r#"{"type":"join","room_id":["r"]}"#, "invalid_message"),
        (r#"{"type":"join","room_id":"r","user_id":1}"#, "invalid_message"),
        (r#"{"type":"leave","room_id":{}}"#, "invalid_message"),
        (r#"{"type":"broadcast","room_id":false,"content":1}"#, "invalid_message"),
        (r#"{"type":"ping","id":true}"#, "invalid_message"),
        (r#"{"type":"ping","id":[1]}"#, "invalid_message"),
        (r#"{"type":"ping","id":{}}"#, "invalid_message"),
        (&long_id, "invalid_message"),
        (&long_number, "invalid_message"),
        (r#"{"type":"dance"}"#, "unknown_type"),
        (r#"{"type":""}"#, "unknown_type"),
        (r#"{"type":"PING"}"#, "unknown_type"),
        (r#"{"type":"joined","room_id":"r"}"#, "unknown_type"),
        ("{}", "missing_field"),
        (r#"{"room_id":"lobby"}"#, "missing_field"),
        (r#"{"type":"join"}"#, "missing_field"),
        (r#"{"type":"leave"}"#, "missing_field"),
        (r#"{"type":"broadcast"}"#, "missing_field"),
        (r#"{"type":"broadcast","content":1}"#, "missing_field"),
        (r#"{"type":"broadcast","room_id":"lobby"}"#, "missing_field"),
        (r#"{"type":"join","room_id":""}"#, "invalid_room_id"),
        (&long_room, "invalid_room_id"),
        (&wide_room, "invalid_room_id"),
        (r#"{"type":"join","room_id":"a\u0000b"}"#, "invalid_room_id"),
        (r#"{"type":"join","room_id":"a\nb"}"#, "invalid_room_id"),
        (&long_user, "invalid_user_id"),
        (r#"{"type":"join","room_id":"r","user_id":"\u0001"}"#, "invalid_user_id"),
        (r#"{"type":"join","room_id":"r","user_id":"\u009f"}"#, "invalid_user_id"),
        (r#"{"type":"join","room_id":"r","user_id":""}"#, "invalid_user_id"),
        (r#"{"type":"leave","room_id":"elsewhere"}"#, "not_member"),
        (r#"{"type":"broadcast","room_id":"elsewhere","content":1}"#, "not_member"),
    ];
    let server = Server::start(&["--shards", "2"]);
    let name = |row: &(&str, &str)| row.0.chars().take(80).collect();
    rows(table, name, |(text, code)| {
        let mut client = lobby(&server, "member");
        let reply = client.ask(text);
        assert_eq!(reply.kind, "error", "{reply:?}");
        assert_eq!(reply.code.as_deref(), Some(*code), "{reply:?}");
        let message = reply.message.unwrap_or_default();
        assert!(!message.is_empty(), "an error explains itself");
        assert_eq!(reply.id, None, "no id was given");
        client.expect_silence();
    });
}

#[test]
fn a_binary_message_is_an_error_and_the_connection_stays() {
    let server = Server::start(&["--shards", "1"]);
    let mut client = lobby(&server, "member");
    client.send_binary(br#"{"type":"ping"}"#);
    let reply = client.receive_reply();
    assert_eq!(reply.code.as_deref(), Some("invalid_message"), "{reply:?}");
    client.expect_silence();
}

#[test]
fn escapes_and_unknown_fields_do_not_matter() {
    let table = vec![
        (r#"{"type":"ping"}"#, "pong"),
        (r#" { "type" : "ping" } "#, "pong"),
        (r#"{"type":"p\u0069ng"}"#, "pong"),
        (r#"{"t\u0079pe":"ping"}"#, "pong"),
        (r#"{"type":"ping","what":{"ever":[1,2,{"id":3}]},"x":"\ud83d"}"#, "pong"),
        (r#"{"type":"ping","content":[],"room_id":"lobby"}"#, "pong"),
        (r#"{"type":"join","room_id":"lob\u0062y","roomId":5}"#, "joined"),
        (
            r#"{"type":"broadcast","room_id":"lo\u0062by","content":1,"sender":"mallory","offset":9}"#,
            "broadcast",
        ),
        (r#"{"type":"leave","room_id":"\u006cobby"}"#, "left"),
    ];
    let server = Server::start(&["--shards", "1"]);
    rows(
        table,
        |row| row.0.to_owned(),
        |(text, kind)| {
            let mut client = lobby(&server, "alice");
            let reply = client.ask(text);
            assert_eq!(reply.kind, *kind, "{reply:?}");
            if *kind != "pong" {
                assert_eq!(reply.room_id.as_deref(), Some("lobby"), "{reply:?}");
            }
            if *kind == "broadcast" {
                assert_eq!(reply.sender.as_deref(), Some("alice"), "{reply:?}");
                assert_eq!(reply.offset, Some(1), "{reply:?}");
            }
        },
    );
}

#[test]
fn one_connection_is_in_several_rooms() {
    let server = Server::start(&["--shards", "4"]);
    let mut both = lobby(&server, "both");
    both.join_room("kitchen", "cook");
    let mut lobby_only = lobby(&server, "lobby-only");
    let mut kitchen_only = Client::join(server.address(), "kitchen", "kitchen-only");

    kitchen_only.send_text(r#"{"type":"broadcast","room_id":"kitchen","content":"k"}"#);
    assert_eq!(both.receive_reply().room_id.as_deref(), Some("kitchen"));
    lobby_only.send_text(r#"{"type":"broadcast","room_id":"lobby","content":"l"}"#);
    assert_eq!(both.receive_reply().room_id.as_deref(), Some("lobby"));

    assert_eq!(kitchen_only.receive_reply().room_id.as_deref(), Some("kitchen"));
    assert_eq!(lobby_only.receive_reply().room_id.as_deref(), Some("lobby"));
    lobby_only.expect_silence();
    kitchen_only.expect_silence();

    assert_eq!(both.ask(r#"{"type":"leave","room_id":"lobby"}"#).kind, "left");
    kitchen_only.send_text(r#"{"type":"broadcast","room_id":"kitchen","content":"k"}"#);
    assert_eq!(both.receive_reply().offset, Some(2), "leaving one room keeps the other");
}

#[test]
fn rooms_per_connection_max_is_where_joining_ends() {
    let server = Server::start(&["--shards", "2", "--rooms-per-connection-max", "3"]);
    let mut client = Client::connect(server.address(), "/ws");
    for room_id in ["a", "b", "c"] {
        client.join_room(room_id, "member");
    }
    let refused = client.ask(r#"{"type":"join","room_id":"d","id":4}"#);
    assert_eq!(refused.code.as_deref(), Some("too_many_rooms"), "{refused:?}");
    assert_eq!(refused.id.as_deref(), Some("4"));
    client.join_room("b", "renamed");
    assert_eq!(client.ask(r#"{"type":"leave","room_id":"a"}"#).kind, "left");
    client.join_room("d", "member");
    let refused = client.ask(r#"{"type":"join","room_id":"a"}"#);
    assert_eq!(refused.code.as_deref(), Some("too_many_rooms"), "{refused:?}");
    let mut other = Client::connect(server.address(), "/ws");
    other.join_room("a", "the limit is per connection");
}

#[test]
fn rooms_max_refuses_a_new_room_and_keeps_the_old_ones() {
    let server = Server::start(&["--shards", "1", "--rooms-max", "2"]);
    let mut client = Client::connect(server.address(), "/ws");
    client.join_room("a", "member");
    client.join_room("b", "member");
    let refused = client.ask(r#"{"type":"join","room_id":"c"}"#);
    assert_eq!(refused.code.as_deref(), Some("server_busy"), "{refused:?}");
    let reply = client.ask(r#"{"type":"broadcast","room_id":"a","content":1}"#);
    assert_eq!(reply.kind, "broadcast", "{reply:?}");
    assert_eq!(client.ask(r#"{"type":"leave","room_id":"a"}"#).kind, "left");
    client.join_room("c", "member");
}

#[test]
fn names_of_exactly_the_largest_length_are_accepted() {
    let server = Server::start(&["--shards", "2"]);
    let (room_id, user_id) = ("r".repeat(128), "é".repeat(64));
    let mut client = Client::join(server.address(), &room_id, &user_id);
    let reply = client.ask(&format!(r#"{{"type":"broadcast","room_id":"{room_id}","content":1}}"#));
    assert_eq!(reply.room_id.as_deref(), Some(room_id.as_str()));
    assert_eq!(reply.sender.as_deref(), Some(user_id.as_str()));
}

#[test]
fn who_disconnects_leaves_its_rooms() {
    let server = Server::start(&["--shards", "4"]);
    let mut stays = lobby(&server, "stays");
    for _ in 0..20 {
        lobby(&server, "polite").close();
        drop(lobby(&server, "rude"));
    }
    let reply = stays.ask(r#"{"type":"broadcast","room_id":"lobby","content":1}"#);
    assert_eq!(reply.offset, Some(1), "{reply:?}");
    // Once the last member's connection is gone the room is new again.
    stays.close();
    support::wait_until("the room ends with its last member", || {
        Client::connect(server.address(), "/ws").join_room("lobby", "newcomer") == 0
    });
}

#[test]
fn the_subprotocol_is_selected_only_when_offered() {
    let server = Server::start(&["--shards", "1"]);
    let table = vec![
        (None, None),
        (Some("fanwire.v1"), Some("fanwire.v1")),
        (Some("chat, fanwire.v1"), Some("fanwire.v1")),
        (Some(",fanwire.v1 , superchat"), Some("fanwire.v1")),
    ];
    rows(
        table,
        |row| format!("{:?}", row.0),
        |(offer, selected)| {
            let (mut client, response) = Client::connect_offering(server.address(), "/ws", *offer);
            let field = response.headers().get("sec-websocket-protocol");
            assert_eq!(field.map(|value| value.as_bytes()), selected.map(str::as_bytes));
            client.expect_silence();
        },
    );
}

#[test]
fn pings_are_answered_with_their_payload() {
    let server = Server::start(&["--shards", "1"]);
    let mut client = Client::connect(server.address(), "/ws");
    for payload in [&b""[..], b"x", &[0xff; 125]] {
        client.send(Message::Ping(tungstenite::Bytes::copy_from_slice(payload)));
        match client.receive() {
            Message::Pong(answer) => assert_eq!(&answer[..], payload),
            other => panic!("expected a pong, got {other:?}"),
        }
    }
}
