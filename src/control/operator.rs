//! `POST /v1/disconnect`, `GET /v1/top`, `GET` and `PUT /v1/log-level`: what an operator does to a
//! running server.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::info;

use super::api::{Api, Refusal, json_of};
use super::failure::Failure;
use super::questions::Questions;
use super::refusal::Code;
use super::rooms::{self, PeerView, RoomView, views};
use crate::config::LogLevel;
use crate::dialect::is_json;
use crate::dialect::native::ErrorCode;
use crate::id::{ConnectionId, NameSpace, RoomName, ShardId};
use crate::shard::question::{Answer, Busy, Close, CloseError, Question, Slow, Whom};

/// Entries of each list of `/v1/top`.
const TOP_DEFAULT: usize = 10;
const TOP_MAX: usize = 100;

/// How a connection is closed if nothing else is said: policy violation.
const CODE_DEFAULT: u16 = 1008;

/// The body of `POST /v1/disconnect`.
#[derive(Deserialize)]
struct Disconnect {
    connection: Option<String>,
    user_id: Option<String>,
    room_id: Option<String>,
    namespace: Option<String>,
    code: Option<u16>,
    reason: Option<String>,
}

pub(super) async fn disconnect(
    State(api): State<Api>,
    head: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let asked: Disconnect = read(api.json_body(&head, &body)?)?;
    let close = Close::new(asked.code.unwrap_or(CODE_DEFAULT), &asked.reason.unwrap_or_default());
    let close = Arc::new(close.map_err(|error| match error {
        CloseError::Code => BAD_CODE,
        CloseError::Reason => BAD_REASON,
    })?);
    let ask = |whom| Question::Disconnect { whom, close: Arc::clone(&close) };
    let questions = &api.questions;
    let answers = match (asked.connection, asked.user_id, asked.room_id, asked.namespace) {
        (Some(connection), None, None, None) => {
            let id: ConnectionId = connection.parse().map_err(|_| NO_CONNECTION)?;
            if id.shard.index() >= questions.shards() {
                return Err(NO_CONNECTION);
            }
            vec![questions.ask(id.shard, ask(Whom::Connection(id.key))).await?]
        }
        (None, Some(user_id), None, None) => {
            let user = || Whom::User(user_id.as_str().into());
            let all = (0..questions.shards()).map(ShardId::from);
            questions.ask_each(all.map(|shard| (shard, ask(user())))).await?
        }
        (None, None, Some(room_id), namespace) => {
            let space = NameSpace::from_name(namespace.as_deref().unwrap_or("native"));
            let name = RoomName::new(space.ok_or(BAD_TARGET)?, &room_id);
            let shards = rooms::find(questions, name).await?.shards;
            let members = shards.into_iter().map(|(shard, key)| (shard, ask(Whom::Room(key))));
            questions.ask_each(members).await?
        }
        _ => return Err(BAD_TARGET),
    };
    let mut disconnected = 0;
    for answer in answers {
        let Answer::Disconnect(count) = answer else { unreachable!("it was told to disconnect") };
        disconnected += count.ok_or(NO_CONNECTION)?;
    }
    Ok(json_of(StatusCode::OK, &json!({ "disconnected": disconnected })))
}

/// Reads a body.
fn read<'b, T: Deserialize<'b>>(body: &'b str) -> Result<T, Refusal> {
    let is_json = || is_json(body.as_bytes());
    serde_json::from_str(body).map_err(|_| if is_json() { BAD_MESSAGE } else { BAD_JSON })
}

/// The parameters of `/v1/top`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TopPage {
    n: Option<usize>,
}

#[derive(Serialize)]
struct TopView {
    slow_consumers: Vec<SlowView>,
    rooms: Vec<RoomView>,
    publishers: Vec<PublisherView>,
}

#[derive(Serialize)]
struct SlowView {
    #[serde(flatten)]
    peer: PeerView,
    namespace: &'static str,
    room_id: Box<str>,
    behind_bytes: u64,
}

#[derive(Serialize)]
struct PublisherView {
    #[serde(flatten)]
    peer: PeerView,
    messages: u32,
}

pub(super) async fn top(
    State(api): State<Api>,
    page: Result<Query<TopPage>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(TopPage { n }) = page.map_err(|_| BAD_N)?;
    let limit = n.unwrap_or(TOP_DEFAULT);
    if !(1..=TOP_MAX).contains(&limit) {
        return Err(BAD_N);
    }
    let questions = &api.questions;
    let all = (0..questions.shards()).map(ShardId::from);
    let answers = questions.ask_each(all.map(|shard| (shard, Question::Busiest { limit }))).await?;
    let (mut slow, mut busy): (Vec<Slow>, Vec<Busy>) = Default::default();
    for answer in answers {
        let Answer::Busiest(more_slow, more_busy) = answer else {
            unreachable!("it was asked for the busiest")
        };
        slow.extend(more_slow);
        busy.extend(more_busy);
    }
    slow.sort_by_key(|slow| (Reverse(slow.peer.behind_bytes), slow.peer.id));
    busy.sort_by_key(|busy| (Reverse(busy.messages), busy.peer.id));
    slow.truncate(limit);
    busy.truncate(limit);
    let slow_view = |slow: Slow| SlowView {
        peer: (&slow.peer).into(),
        namespace: slow.room.space.name(),
        room_id: slow.room.name,
        behind_bytes: slow.peer.behind_bytes,
    };
    let publisher_view =
        |busy: Busy| PublisherView { peer: (&busy.peer).into(), messages: busy.messages };
    let view = TopView {
        slow_consumers: slow.into_iter().map(slow_view).collect(),
        rooms: biggest_rooms(questions, limit).await?,
        publishers: busy.into_iter().map(publisher_view).collect(),
    };
    Ok(json_of(StatusCode::OK, &view))
}

/// The rooms with most members, over all shards.
///
/// A room may be small on every shard and large in all, so every shard is asked for the sizes of
/// all its rooms; what is added up is one number per room, found by the slot at its home. Memory:
/// 4 bytes for each room there is.
async fn biggest_rooms(questions: &Questions, limit: usize) -> Result<Vec<RoomView>, Failure> {
    let mut members: Vec<Vec<u32>> = vec![Vec::new(); questions.shards()];
    for shard in (0..questions.shards()).map(ShardId::from) {
        let mut next = Some(0);
        while let Some(from) = next {
            let answer = questions.ask(shard, Question::Sizes { from }).await?;
            let Answer::Sizes(sizes, rest) = answer else { unreachable!("it was asked for sizes") };
            for size in sizes {
                let (rooms, slot) = (&mut members[size.home.index()], size.slot as usize);
                if rooms.len() <= slot {
                    rooms.resize(slot + 1, 0);
                }
                rooms[slot] = rooms[slot].saturating_add(size.members);
            }
            next = rest;
        }
    }
    let mut biggest = BinaryHeap::new();
    for (home, rooms) in members.iter().enumerate() {
        for (slot, &members) in rooms.iter().enumerate().filter(|(_, members)| **members > 0) {
            biggest.push(Reverse((members, Reverse((home, slot)))));
            if biggest.len() > limit {
                biggest.pop();
            }
        }
    }
    let mut slots: BTreeMap<ShardId, Vec<u32>> = BTreeMap::new();
    for Reverse((_, Reverse((home, slot)))) in biggest {
        slots.entry(ShardId::from(home)).or_default().push(slot as u32);
    }
    let named = slots.into_iter().map(|(home, slots)| (home, Question::RoomsAt(slots)));
    let mut rooms = Vec::new();
    for answer in questions.ask_each(named).await? {
        let Answer::RoomsAt(found) = answer else { unreachable!("it was asked for rooms") };
        rooms.extend(found);
    }
    // Counted once more: a slot may have another room by now.
    let mut rooms = views(questions, rooms).await?;
    rooms.sort_by_key(|room| Reverse(room.members));
    Ok(rooms)
}

/// The body of `PUT /v1/log-level`, and of the answers.
#[derive(Serialize, Deserialize)]
struct Level {
    level: LogLevel,
}

pub(super) async fn log_level(State(api): State<Api>) -> Response {
    json_of(StatusCode::OK, &Level { level: api.log.level() })
}

pub(super) async fn set_log_level(
    State(api): State<Api>,
    head: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let asked = api.json_body(&head, &body)?;
    let Level { level } = read(asked)
        .map_err(|refusal| if refusal.code == BAD_MESSAGE.code { BAD_LEVEL } else { refusal })?;
    let before = api.log.level();
    // What is said here counts as important by the old level or by the new one.
    api.log.set(before.max(level));
    info!("PUT /v1/log-level: log_level {before} -> {level}");
    api.log.set(level);
    Ok(json_of(StatusCode::OK, &Level { level }))
}

const BAD_JSON: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of(ErrorCode::InvalidJson.code()),
    message: ErrorCode::InvalidJson.message(),
};

const BAD_MESSAGE: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of(ErrorCode::InvalidMessage.code()),
    message: "The body must be a JSON object whose fields have the types that \
              GET /v1/openapi.json says.",
};

const BAD_LEVEL: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of(ErrorCode::InvalidMessage.code()),
    message: "Send {\"level\":L} with error, warn, info, debug or trace for L.",
};

const BAD_TARGET: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of("invalid_target"),
    message: "Say who is to go: exactly one of connection, user_id and room_id, the last with a \
              namespace of native (as without one) or raw.",
};

const BAD_CODE: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of("invalid_code"),
    message: "`code` must be 1000, 1001, 1008 (as without one) or one of 3000 to 4999.",
};

const BAD_REASON: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of("invalid_reason"),
    message: "`reason` must be at most 123 bytes of UTF-8: more does not fit into a close frame.",
};

const NO_CONNECTION: Refusal = Refusal {
    status: StatusCode::NOT_FOUND,
    code: Code::of("unknown_connection"),
    message: "There is no such connection, or it is gone.",
};

const BAD_N: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of("invalid_parameter"),
    message: "The parameter is n (1 to 100): how many of each.",
};
