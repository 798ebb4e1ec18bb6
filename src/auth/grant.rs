//! What the claims of a token allow: a user, rooms, direct messages, until when.
//!
//! ```json
//! {
//!   "sub": "alice",
//!   "exp": 1890000000,
//!   "rooms": [
//!     {"pattern": "chat:*", "join": true, "publish": true},
//!     {"pattern": "news", "join": true}
//!   ],
//!   "direct": true
//! }
//! ```
//!
//! What is not allowed is forbidden: a token without `rooms` opens a connection and no room, and
//! `join` and `publish` are false where they are left out. All patterns count, not only the first
//! that matches, so that rights can be put together from several sources.
//!
//! Memory: a [`Grant`] is 40 bytes, the user's name, and for each pattern 24 bytes and its text:
//! bounded by [`ROOMS_MAX`] and the length of the token.

use std::rc::Rc;

use serde::{Deserialize, Deserializer};

use super::TokenError;
use crate::pattern::Pattern;

/// The most entries of `rooms`.
pub const ROOMS_MAX: usize = 64;

/// What a connection may do, from its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whose it is: `sub`, as it stands there. Whether it may name a user is the caller's to check.
    pub user_id: Rc<str>,
    /// The second since 1970 in which it ends; at most 2^32 - 1, which is in the year 2106.
    pub expires: u32,
    /// Whether its user may send direct messages.
    pub direct: bool,
    rooms: Box<[RoomGrant]>,
}

/// What is allowed in the rooms that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RoomGrant {
    pattern: Pattern,
    join: bool,
    publish: bool,
}

impl Grant {
    /// Whether it allows to become a member of the room with that name. Cost: linear in the
    /// patterns.
    #[must_use]
    pub fn may_join(&self, room: &str) -> bool {
        self.rooms.iter().any(|grant| grant.join && grant.pattern.matches(room))
    }

    /// Whether it allows to publish in the room with that name.
    #[must_use]
    pub fn may_publish(&self, room: &str) -> bool {
        self.rooms.iter().any(|grant| grant.publish && grant.pattern.matches(room))
    }
}

/// The claims that mean something here; all others are passed over.
#[derive(Deserialize)]
pub(super) struct Claims {
    sub: String,
    #[serde(deserialize_with = "seconds")]
    pub(super) exp: u64,
    #[serde(default, deserialize_with = "optional_seconds")]
    pub(super) nbf: Option<u64>,
    pub(super) iss: Option<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    pub(super) aud: Vec<String>,
    #[serde(default)]
    rooms: Vec<RoomClaim>,
    #[serde(default)]
    direct: bool,
}

#[derive(Deserialize)]
struct RoomClaim {
    pattern: String,
    #[serde(default)]
    join: bool,
    #[serde(default)]
    publish: bool,
}

impl Claims {
    /// Reads the claims of a token that is not trusted yet.
    pub(super) fn read(json: &[u8]) -> Result<Claims, TokenError> {
        let claims: Claims = serde_json::from_slice(json).map_err(|error| {
            if error.is_data() { TokenError::Claims } else { TokenError::Malformed }
        })?;
        // An array of the right values would do for serde.
        let is_object = json.trim_ascii_start().first() == Some(&b'{');
        let few = claims.rooms.len() <= ROOMS_MAX;
        if is_object && few { Ok(claims) } else { Err(TokenError::Claims) }
    }

    /// What they allow from `now` on.
    pub(super) fn grant(self, now: u64, leeway_s: u32) -> Result<Grant, TokenError> {
        let rooms = self.rooms.into_iter().map(RoomGrant::try_from).collect::<Result<_, _>>()?;
        // Leeway lets in; it makes nothing last longer but what would end at once.
        let end = if self.exp > now { self.exp } else { self.exp + u64::from(leeway_s) };
        Ok(Grant {
            user_id: self.sub.into(),
            expires: u32::try_from(end).unwrap_or(u32::MAX),
            direct: self.direct,
            rooms,
        })
    }
}

impl TryFrom<RoomClaim> for RoomGrant {
    type Error = TokenError;

    fn try_from(claim: RoomClaim) -> Result<Self, TokenError> {
        let RoomClaim { pattern, join, publish } = claim;
        Ok(Self { pattern: Pattern::new(&pattern).ok_or(TokenError::Claims)?, join, publish })
    }
}

/// A `NumericDate` (RFC 7519 §2): seconds since 1970, perhaps with a fraction, which is dropped.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    // Before 1970 is 1970, and past all numbers is the largest.
    f64::deserialize(deserializer).map(|seconds| seconds as u64)
}

fn optional_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    // As `iss`: a claim that is null is one that is not there.
    Option::<f64>::deserialize(deserializer).map(|seconds| seconds.map(|seconds| seconds as u64))
}

/// One string or an array of them, as `aud` may be (RFC 7519 §4.1.3), or null.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Audience>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Audience::One(one)) => vec![one],
        Some(Audience::Many(many)) => many,
    })
}

// What the module documentation says.
const _: () = assert!(size_of::<Grant>() == 40);
const _: () = assert!(size_of::<RoomGrant>() == 24);
