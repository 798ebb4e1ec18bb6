//! Messages of the native protocol, held against JSON as a tree.

use std::sync::LazyLock;

use bytes::BytesMut;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::config::Limits;
use crate::dialect::is_name;
use crate::dialect::native::{self, Command, ErrorCode, ID_BYTES_MAX, Request};

/// One text message.
///
/// # Panics
/// When the request is not what the JSON says, does not survive being written again, or is answered
/// with something that is no JSON.
pub fn native(data: &[u8]) {
    static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
        room_id_bytes_max: 16,
        user_id_bytes_max: 12,
        ..Limits::default()
    });
    // What is not UTF-8 does not get past the decoder.
    let Ok(text) = std::str::from_utf8(data) else { return };
    let is_json = serde_json::from_str::<&RawValue>(text).is_ok();
    match native::parse(data, &LIMITS) {
        Ok(request) => {
            assert!(is_json && text.trim_ascii_start().starts_with('{'), "{text:?}");
            check(&request, text, &LIMITS);
            answer(&request);
        }
        Err(refusal) => {
            assert_eq!(refusal.code == ErrorCode::InvalidJson, !is_json, "{text:?}");
            let Some(answer) = written(|out| native::error(refusal.code, refusal.id, out)) else {
                return;
            };
            assert_eq!(answer["code"], refusal.code.code());
            check_id(refusal.id, &answer);
        }
    }
}

/// Whether `request` is what `text` says, and stays itself when it is written again.
fn check(request: &Request<'_>, text: &str, limits: &Limits) {
    let is_room = |name: &str| is_name(name, limits.room_id_bytes_max);
    let is_user = |name: &str| is_name(name, limits.user_id_bytes_max);
    let mut again = match &request.command {
        Command::Join { room_id, user_id: None } => json!({"type": "join", "room_id": room_id}),
        Command::Join { room_id, user_id: Some(user_id) } => {
            assert!(is_room(room_id) && is_user(user_id));
            json!({"type": "join", "room_id": room_id, "user_id": user_id})
        }
        Command::Leave { room_id } => json!({"type": "leave", "room_id": room_id}),
        Command::Broadcast { room_id, .. } => {
            assert!(is_room(room_id));
            json!({"type": "broadcast", "room_id": room_id})
        }
        Command::Direct { user_id, .. } => {
            assert!(is_user(user_id));
            json!({"type": "direct", "user_id": user_id})
        }
        Command::Ping => json!({"type": "ping"}),
        Command::Auth { token } => json!({"type": "auth", "token": token}),
    };
    // Not every JSON can be read as a tree: numbers may be too large, and what is not looked at
    // may be nested too deeply, or have half of a character.
    if let Ok(said) = serde_json::from_str::<Value>(text) {
        for (name, value) in again.as_object().into_iter().flatten() {
            assert_eq!(&said[name], value, "{text}");
        }
        for (name, raw) in [("id", request.id), ("content", content(request))] {
            let raw: Option<Value> = raw.map(|raw| serde_json::from_str(raw).expect("JSON"));
            assert!(raw.is_none_or(|raw| said[name] == raw), "{text}");
        }
    }
    again["unknown"] = json!({"type": null, "room_id": []});
    let mut again = again.to_string();
    for (name, raw) in [("id", request.id), ("content", content(request))] {
        if let Some(raw) = raw {
            assert!(text.contains(raw), "as it was written");
            again = format!("{} , \"{name}\" :{raw} }}", &again[..again.len() - 1]);
        }
    }
    assert_eq!(native::parse(again.as_bytes(), limits).as_ref(), Ok(request), "{again}");
}

fn content<'m>(request: &Request<'m>) -> Option<&'m str> {
    match request.command {
        Command::Broadcast { content, .. } | Command::Direct { content, .. } => Some(content),
        _ => None,
    }
}

/// Writes what the server may answer, and what members get.
fn answer(request: &Request<'_>) {
    let id = request.id;
    let answer = match &request.command {
        Command::Join { room_id, .. } => written(|out| native::joined(room_id, 7, id, out)),
        Command::Leave { room_id } => written(|out| native::left(room_id, id, out)),
        Command::Ping => written(|out| native::pong(id, out)),
        Command::Auth { .. } => written(|out| native::authenticated(600, id, out)),
        Command::Broadcast { room_id, content } => {
            broadcast(room_id, content);
            match id {
                Some(id) => written(|out| native::ack(id, 7, out)),
                None => return,
            }
        }
        Command::Direct { user_id, content } => {
            let mut out = BytesMut::new();
            native::direct(user_id, content, &mut out);
            let direct = read(&out);
            assert!(direct.is_none_or(|direct| direct["sender"] == **user_id));
            match id {
                Some(id) => written(|out| native::ack_direct(id, 2, out)),
                None => return,
            }
        }
    };
    let Some(answer) = answer else { return };
    check_id(id, &answer);
    for name in ["room_id", "user_id"] {
        assert!(answer[name].is_null() || answer[name].is_string());
    }
}

/// A broadcast gets its offset where the room's home is told to put it, and is no longer than it
/// may be.
fn broadcast(room_id: &str, content: &str) {
    let mut out = BytesMut::from("before");
    let at = native::broadcast(room_id, room_id, content, &mut out) as usize;
    let message = out.split_off("before".len());
    let numbered = [&message[..at], b"18446744073709551615", &message[at..]].concat();
    let len_max = native::broadcast_len_max(room_id.len(), room_id.len(), content.len());
    assert!(numbered.len() <= len_max, "{} > {len_max}", numbered.len());
    if let Some(message) = read(&numbered) {
        assert_eq!((&message["offset"], &message["type"]), (&json!(u64::MAX), &json!("broadcast")));
        assert_eq!((&message["room_id"], &message["sender"]), (&json!(room_id), &json!(room_id)));
        assert_eq!(message.as_object().map(serde_json::Map::len), Some(5));
    }
}

/// The JSON that `write` writes, if it can be a tree: an `id` may have half of a character in it.
fn written(write: impl FnOnce(&mut BytesMut)) -> Option<Value> {
    let mut out = BytesMut::new();
    write(&mut out);
    read(&out)
}

/// The JSON in `bytes` as a tree, if it can be one.
fn read(bytes: &[u8]) -> Option<Value> {
    assert!(serde_json::from_slice::<&RawValue>(bytes).is_ok(), "{}", bytes.escape_ascii());
    serde_json::from_slice(bytes).ok()
}

/// Whether the answer carries the `id` of its request.
fn check_id(id: Option<&str>, answer: &Value) {
    match id {
        None => assert_eq!(answer.get("id"), None),
        Some(id) => {
            assert!(id.len() <= ID_BYTES_MAX);
            assert!(answer["id"].is_string() || answer["id"].is_number());
        }
    }
}
