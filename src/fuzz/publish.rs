//! What backends post, held against JSON as a tree, and an item against itself in a batch.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::config::Limits;
use crate::dialect::is_name;
use crate::dialect::publish::{
    BATCH_ITEMS_MAX, Content, Publication, PublishError, parse, parse_batch,
};

/// The body of a publish, or of a batch.
///
/// # Panics
/// When an item is not what its JSON says, or is something else in a batch.
pub fn publish(data: &[u8]) {
    static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
        room_id_bytes_max: 16,
        user_id_bytes_max: 12,
        ws_message_bytes_max: 64,
        raw_message_bytes_max: 48,
        ..Limits::default()
    });
    let Ok(body) = std::str::from_utf8(data) else { return };
    let is_json = serde_json::from_str::<&RawValue>(body).is_ok();
    let alone = parse(body, &LIMITS);
    assert_eq!(is_json, alone != Err(PublishError::InvalidJson), "{body:?}");
    if let Ok(publication) = &alone {
        check(publication, body, &LIMITS);
    }
    if is_json {
        let batch = format!("{{\"items\":[{body},7]}}");
        let items = parse_batch(&batch).expect("two items");
        assert_eq!(parse(items[0].get(), &LIMITS), alone, "{body:?}");
        assert_eq!(parse(items[1].get(), &LIMITS), Err(PublishError::InvalidMessage));
    }
    let batch = parse_batch(body);
    assert_eq!(is_json, !matches!(batch, Err(PublishError::InvalidJson)), "{body:?}");
    let items = batch.unwrap_or_default();
    assert!(items.len() <= BATCH_ITEMS_MAX);
    for item in items {
        assert!(body.contains(item.get()), "as it was written");
        assert_ne!(parse(item.get(), &LIMITS), Err(PublishError::InvalidJson));
    }
}

/// Whether `publication` is what `body` says.
fn check(publication: &Publication<'_>, body: &str, limits: &Limits) {
    let Publication { room_id, content } = publication;
    assert!(is_name(room_id, limits.room_id_bytes_max));
    let mut said = json!({"room_id": room_id});
    match content {
        Content::Native { content, user_id } => {
            assert!(content.len() <= limits.ws_message_bytes_max && body.contains(content));
            assert!(serde_json::from_str::<&RawValue>(content).is_ok());
            if let Some(user_id) = user_id {
                assert!(is_name(user_id, limits.user_id_bytes_max));
                said["user_id"] = json!(user_id);
            }
        }
        Content::Text(text) => {
            assert!(text.len() <= limits.raw_message_bytes_max);
            said["text"] = json!(text);
        }
        Content::Binary(bytes) => {
            assert!(bytes.len() <= limits.raw_message_bytes_max);
            said["binary"] = json!(STANDARD.encode(bytes));
        }
    }
    if let Ok(tree) = serde_json::from_str::<Value>(body) {
        for (name, value) in said.as_object().into_iter().flatten() {
            assert_eq!(&tree[name], value, "{body}");
        }
    }
}
