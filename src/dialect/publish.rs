//! Publishes that come as plain JSON, not over a WebSocket: what a backend posts.
//!
//! | Item                                            | What the members of the room get         |
//! |-------------------------------------------------|------------------------------------------|
//! | `{"room_id":R,"content":C,"user_id":U}`         | native room: a `broadcast` with `sender` U |
//! | `{"room_id":R,"text":T}`                        | raw room: T as a text message            |
//! | `{"room_id":R,"binary":B}`                      | raw room: what B is in Base64, as a binary message |
//!
//! Names and sizes have the limits they have for WebSocket clients. `content` is any JSON value
//! and passes through byte for byte; `user_id` may be absent. Unknown fields are ignored.
//!
//! A batch is `{"items":[..]}` with at most [`BATCH_ITEMS_MAX`] items; each is read alone, so a
//! bad one harms no other.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::is_json;
use super::native::{name, present, string};
use crate::config::Limits;

/// Items in one batch at most.
pub const BATCH_ITEMS_MAX: usize = 1000;

/// A message for the members of a room.
#[derive(Debug, PartialEq, Eq)]
pub struct Publication<'m> {
    /// The room, by the name its members use.
    pub room_id: Cow<'m, str>,
    /// The message, which also says which kind of room it is.
    pub content: Content<'m>,
}

/// What is published.
#[derive(Debug, PartialEq, Eq)]
pub enum Content<'m> {
    /// To a native room.
    Native {
        /// The content as JSON.
        content: &'m str,
        /// Who says it.
        user_id: Option<Cow<'m, str>>,
    },
    /// To a raw room, as a text message.
    Text(Cow<'m, str>),
    /// To a raw room, as a binary message.
    Binary(Vec<u8>),
}

/// Why nothing can be published: a closed list, part of the interface. Where the native protocol
/// knows the reason, the code is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishError {
    /// The body is no JSON.
    InvalidJson,
    /// No JSON object, a field twice or of the wrong type, or fields that exclude each other.
    InvalidMessage,
    /// A needed field is not there.
    MissingField,
    /// `room_id` is empty, too long, or has control characters or others that rooms have not here.
    InvalidRoomId,
    /// `user_id` is empty, too long, or has control characters.
    InvalidUserId,
    /// A message is longer than clients of that kind of room may send.
    MessageTooLong,
    /// A batch has more than [`BATCH_ITEMS_MAX`] items.
    TooManyItems,
}

impl PublishError {
    /// All of them.
    pub const ALL: [PublishError; 7] = [
        Self::InvalidJson,
        Self::InvalidMessage,
        Self::MissingField,
        Self::InvalidRoomId,
        Self::InvalidUserId,
        Self::MessageTooLong,
        Self::TooManyItems,
    ];

    /// The code in the answer.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidMessage => "invalid_message",
            Self::MissingField => "missing_field",
            Self::InvalidRoomId => "invalid_room_id",
            Self::InvalidUserId => "invalid_user_id",
            Self::MessageTooLong => "message_too_long",
            Self::TooManyItems => "too_many_items",
        }
    }

    /// What is wrong and what to do, for a person.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::InvalidJson => "The body is not valid JSON in UTF-8.",
            Self::InvalidMessage => {
                "Give a JSON object, each field once, with exactly one of content (any JSON), text \
                 (a string) and binary (Base64 with padding); room_id is a string, user_id too, \
                 and goes with content only. A batch is an object with an array called items."
            }
            Self::MissingField => {
                "A publish needs room_id and one of content, text and binary; a batch needs items."
            }
            Self::InvalidRoomId => {
                "room_id must not be empty, too long, or have characters that rooms have not here."
            }
            Self::InvalidUserId => {
                "user_id must not be empty, too long, or have control characters."
            }
            Self::MessageTooLong => {
                "The message is longer than a client may send; publish less, or raise \
                 ws_message_bytes_max (for content) or raw_message_bytes_max (for text, binary)."
            }
            Self::TooManyItems => "A batch has at most 1000 items; send several.",
        }
    }
}

/// Reads one publish.
///
/// Cost: one pass over the JSON; allocates only for strings with escapes, and for Base64.
///
/// # Errors
/// All [`PublishError`] but those of batches.
pub fn parse<'m>(item: &'m str, limits: &Limits) -> Result<Publication<'m>, PublishError> {
    let fields: Fields<'_> = read(item)?;
    let name = |value, bytes_max, invalid| {
        name(value, bytes_max, [PublishError::MissingField, PublishError::InvalidMessage, invalid])
    };
    let room_id = name(fields.room_id, limits.room_id_bytes_max, PublishError::InvalidRoomId)?;
    if !limits.room_id_alphabet.allows(&room_id) {
        return Err(PublishError::InvalidRoomId);
    }
    let user_id = fields.user_id.filter(|user_id| user_id.get() != "null");
    let content = match (fields.content, fields.text, fields.binary) {
        (None, None, None) => return Err(PublishError::MissingField),
        (Some(content), None, None) => {
            let content = content.get();
            check_len(content.as_bytes(), limits.ws_message_bytes_max)?;
            let user_id = user_id.map(|user_id| {
                name(Some(user_id), limits.user_id_bytes_max, PublishError::InvalidUserId)
            });
            Content::Native { content, user_id: user_id.transpose()? }
        }
        (None, Some(text), None) if user_id.is_none() => {
            let text = string(text).ok_or(PublishError::InvalidMessage)?;
            check_len(text.as_bytes(), limits.raw_message_bytes_max)?;
            Content::Text(text)
        }
        (None, None, Some(binary)) if user_id.is_none() => {
            let binary = string(binary).ok_or(PublishError::InvalidMessage)?;
            let bytes =
                STANDARD.decode(binary.as_bytes()).map_err(|_| PublishError::InvalidMessage)?;
            check_len(&bytes, limits.raw_message_bytes_max)?;
            Content::Binary(bytes)
        }
        _ => return Err(PublishError::InvalidMessage),
    };
    Ok(Publication { room_id, content })
}

/// Splits a batch into its items, unread.
///
/// # Errors
/// Those of the batch as a whole: `InvalidJson` (wherever in it), `InvalidMessage`, `MissingField`,
/// `TooManyItems`.
pub fn parse_batch(body: &str) -> Result<Vec<&RawValue>, PublishError> {
    let batch: Batch<'_> = read(body)?;
    let Items(items) = batch.items.ok_or(PublishError::MissingField)?;
    if items.len() > BATCH_ITEMS_MAX { Err(PublishError::TooManyItems) } else { Ok(items) }
}

/// The known fields of an item, each as written, so that each wrong one gets its own code.
#[derive(Deserialize)]
struct Fields<'m> {
    #[serde(borrow, default, deserialize_with = "present")]
    room_id: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    user_id: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    content: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    text: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    binary: Option<&'m RawValue>,
}

#[derive(Deserialize)]
struct Batch<'m> {
    #[serde(borrow)]
    items: Option<Items<'m>>,
}

/// The first items of an array: one more than there may be, which says that there are too many.
struct Items<'m>(Vec<&'m RawValue>);

impl<'de: 'm, 'm> Deserialize<'de> for Items<'m> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ItemsVisitor).map(Items)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = array.next_element()? {
            if items.len() <= BATCH_ITEMS_MAX {
                items.push(item);
            }
        }
        Ok(items)
    }
}

/// Reads a JSON object.
fn read<'m, T: Deserialize<'m>>(json: &'m str) -> Result<T, PublishError> {
    let read = serde_json::from_str(json).map_err(|_| {
        let is_json = is_json(json.as_bytes());
        if is_json { PublishError::InvalidMessage } else { PublishError::InvalidJson }
    })?;
    // An array of the right values would do for serde, but not for the interface.
    if json.trim_start().starts_with('{') { Ok(read) } else { Err(PublishError::InvalidMessage) }
}

fn check_len(message: &[u8], bytes_max: usize) -> Result<(), PublishError> {
    if message.len() <= bytes_max { Ok(()) } else { Err(PublishError::MessageTooLong) }
}

#[cfg(test)]
mod tests;
