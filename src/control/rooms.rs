//! `GET /v1/rooms` and `GET /v1/rooms/{namespace}/{room_id}`: which rooms there are, and who is in
//! one.
//!
//! Rooms are listed by their homes, one shard after the other, in the order of their slots; how
//! many members they have is then asked of every shard that has some. A page ends with the place of
//! the next one ([`Place`]). Whatever is there from the first page to the last is listed exactly
//! once; what comes or goes meanwhile may be missing, and a room that ends and begins again may be
//! there twice.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::api::{Api, Refusal, json_of};
use super::failure::Failure;
use super::questions::Questions;
use super::refusal::Code;
use crate::id::{NameSpace, RoomName, ShardId};
use crate::shard::question::{Answer, Listing, Peer, Question};
use crate::slab::Key;

/// Entries of a page.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;
/// When a page has taken so long it ends, however few entries it has.
const PAGE_PATIENCE: Duration = Duration::from_secs(5);

/// A room, as operators see it.
#[derive(Debug, Serialize)]
pub(super) struct RoomView {
    namespace: &'static str,
    room_id: Box<str>,
    /// Over all shards.
    pub(super) members: u64,
    /// The newest one.
    offset: u64,
}

/// A connection, as operators see it.
#[derive(Debug, Serialize)]
pub(super) struct PeerView {
    connection: String,
    user_id: Option<Box<str>>,
    address: Option<String>,
}

impl From<&Peer> for PeerView {
    fn from(peer: &Peer) -> Self {
        Self {
            connection: peer.id.to_string(),
            user_id: peer.user_id.clone(),
            address: peer.address.map(|address| address.to_string()),
        }
    }
}

#[derive(Serialize)]
struct RoomPage {
    rooms: Vec<RoomView>,
    next: Option<String>,
}

#[derive(Serialize)]
struct MemberPage {
    room: RoomView,
    members: Vec<MemberView>,
    next: Option<String>,
}

#[derive(Serialize)]
struct MemberView {
    #[serde(flatten)]
    peer: PeerView,
    behind_bytes: u64,
}

/// The parameters of a page.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    limit: Option<usize>,
    after: Option<String>,
    prefix: Option<String>,
}

impl Page {
    fn limit(&self) -> Result<usize, Refusal> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if (1..=LIMIT_MAX).contains(&limit) { Ok(limit) } else { Err(BAD_PARAMETER) }
    }

    fn place(&self, shards: usize) -> Result<Place, Refusal> {
        let Some(after) = &self.after else { return Ok(Place::default()) };
        let place = after.parse::<Place>().ok().filter(|place| place.shard < shards);
        place.ok_or(BAD_CURSOR)
    }
}

/// Where a page begins: a slot of a shard. Prints as `SHARD-SLOT`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    shard: usize,
    slot: u32,
}

impl Place {
    /// Behind what a shard has said, which looked as far as `rest`.
    fn after(shard: usize, rest: Option<u32>) -> Self {
        rest.map_or(Self { shard: shard + 1, slot: 0 }, |slot| Self { shard, slot })
    }

    fn text(self) -> String {
        format!("{}-{}", self.shard, self.slot)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (shard, slot) = text.split_once('-').ok_or(())?;
        let place = Self { shard: shard.parse().map_err(drop)?, slot: slot.parse().map_err(drop)? };
        if place.text() == text { Ok(place) } else { Err(()) }
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(page) = page.map_err(|_| BAD_PARAMETER)?;
    let (limit, shards) = (page.limit()?, api.questions.shards());
    let mut place = page.place(shards)?;
    let prefix: Box<str> = page.prefix.unwrap_or_default().into();
    let give_up_at = Instant::now() + PAGE_PATIENCE;
    let mut rooms = Vec::new();
    while place.shard < shards && rooms.len() < limit && Instant::now() < give_up_at {
        let (from, limit) = (place.slot, limit - rooms.len());
        let question = Question::Rooms { from, limit, prefix: prefix.clone() };
        let answer = api.questions.ask(ShardId::from(place.shard), question).await?;
        let Answer::Rooms(found, rest) = answer else { unreachable!("it was asked for rooms") };
        rooms.extend(found);
        place = Place::after(place.shard, rest);
    }
    let rooms = views(&api.questions, rooms).await?;
    let next = (place.shard < shards).then(|| place.text());
    Ok(json_of(StatusCode::OK, &RoomPage { rooms, next }))
}

pub(super) async fn one(
    State(api): State<Api>,
    path: Result<Path<(String, String)>, PathRejection>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(page) = page.map_err(|_| BAD_PARAMETER)?;
    let (limit, mut place) = (page.limit()?, page.place(api.questions.shards())?);
    if page.prefix.is_some() {
        return Err(BAD_PARAMETER);
    }
    let Path((namespace, room_id)) = path.map_err(|_| NO_ROOM)?;
    let space = NameSpace::from_name(&namespace).ok_or(NO_ROOM)?;
    let room = find(&api.questions, RoomName::new(space, &room_id)).await?;
    let mut shards = room.shards.clone();
    shards.sort_unstable();
    let give_up_at = Instant::now() + PAGE_PATIENCE;
    let mut members = Vec::new();
    let mut next = None;
    for (shard, room) in shards {
        if shard.index() < place.shard {
            continue;
        }
        if shard.index() > place.shard {
            place = Place { shard: shard.index(), slot: 0 };
        }
        while place.shard == shard.index() {
            if members.len() == limit || Instant::now() >= give_up_at {
                next = Some(place.text());
                break;
            }
            let (from, limit) = (place.slot, limit - members.len());
            let question = Question::Members { room, from, limit };
            let answer = api.questions.ask(shard, question).await?;
            let Answer::Members(found, rest) = answer else {
                unreachable!("it was asked for members")
            };
            members.extend(found);
            place = Place::after(place.shard, rest);
        }
        if next.is_some() {
            break;
        }
    }
    let members = members
        .iter()
        .map(|peer| MemberView { peer: peer.into(), behind_bytes: peer.behind_bytes })
        .collect();
    let room = views(&api.questions, vec![room]).await?.pop().expect("one for each");
    Ok(json_of(StatusCode::OK, &MemberPage { room, members, next }))
}

/// Asks a room's home for it.
///
/// # Errors
/// 404 when there is none of that name.
pub(super) async fn find(questions: &Questions, name: RoomName) -> Result<Listing, Refusal> {
    let answer = questions.ask(questions.home(&name), Question::Room(name)).await?;
    let Answer::Room(room) = answer else { unreachable!("it was asked for a room") };
    room.ok_or(NO_ROOM)
}

/// Asks all shards at once how many members these rooms have.
pub(super) async fn views(
    questions: &Questions,
    rooms: Vec<Listing>,
) -> Result<Vec<RoomView>, Failure> {
    let mut keys: BTreeMap<ShardId, Vec<Key>> = BTreeMap::new();
    let mut indices: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
    for (index, room) in rooms.iter().enumerate() {
        for &(shard, key) in &room.shards {
            keys.entry(shard).or_default().push(key);
            indices.entry(shard).or_default().push(index);
        }
    }
    let asked = keys.into_iter().map(|(shard, keys)| (shard, Question::Counts(keys)));
    let answers = questions.ask_each(asked).await?;
    let mut members = vec![0; rooms.len()];
    for (indices, answer) in indices.values().zip(answers) {
        let Answer::Counts(counts) = answer else { unreachable!("it was asked for counts") };
        for (&index, count) in indices.iter().zip(counts) {
            members[index] += u64::from(count);
        }
    }
    let view = |(Listing { name, offset, .. }, members)| RoomView {
        namespace: name.space.name(),
        room_id: name.name,
        members,
        offset,
    };
    Ok(rooms.into_iter().zip(members).map(view).collect())
}

pub(super) const NO_ROOM: Refusal = Refusal {
    status: StatusCode::NOT_FOUND,
    code: Code::of("unknown_room"),
    message: "There is no such room: a room exists while it has members.",
};

const BAD_PARAMETER: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of("invalid_parameter"),
    message: "The parameters are limit (1 to 1000), after (the `next` of the page before) and, for \
              the list of rooms, prefix.",
};

const BAD_CURSOR: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of("invalid_cursor"),
    message: "`after` must be the `next` of the page before, from this run of the server.",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back() {
        for place in [Place::default(), Place { shard: 1023, slot: u32::MAX }] {
            assert_eq!(place.text().parse(), Ok(place));
        }
        for text in ["", "-", "0", "0-", "-0", "00-1", "0-+1", "0-1-2", "0-4294967296", "a-b"] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
    }
}
