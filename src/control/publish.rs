//! `POST /v1/publish` and `POST /v1/publish/batch`: publishes by backends.
//!
//! What an item may say is the matter of [`dialect::publish`](crate::dialect::publish), how it gets
//! to its room that of [`Desk`](super::desk::Desk). Here is HTTP: what is checked first, what an
//! outcome looks like, and which status it has.
//!
//! | Status | When                                                                             |
//! |--------|----------------------------------------------------------------------------------|
//! | 200    | published, also to a room that nobody is in; a batch: an outcome for each item   |
//! | 400    | no JSON, or not what is asked for                                                |
//! | 413    | a message, or a batch, is longer than it may be                                  |
//! | 415    | the Content-Type is not `application/json`                                       |
//! | 429    | the room's shard is behind; a batch: no item was taken, some because of that     |
//! | 503    | the server drains                                                                |

use std::iter;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::response::Response;

use super::api::{Api, Refusal, json};
use super::desk::Outcome;
use super::failure::Failure;
use super::refusal::Code;
use crate::dialect::native::ErrorCode;
use crate::dialect::publish::{PublishError, parse, parse_batch};

pub(super) async fn one(
    State(api): State<Api>,
    head: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let item = publish_body(&api, &head, &body)?;
    let publication = parse(item, &api.limits.get())?;
    let room_id = publication.room_id.clone().into_owned();
    let outcomes = api.desk.publish(iter::once(Ok(publication))).await;
    let offset = outcomes[0]?;
    let mut answer = b"{\"room_id\":".to_vec();
    put_json(&room_id, &mut answer);
    answer.extend_from_slice(b",\"offset\":");
    put_json(&offset, &mut answer);
    answer.push(b'}');
    Ok(json(StatusCode::OK, answer))
}

pub(super) async fn batch(
    State(api): State<Api>,
    head: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let items = parse_batch(publish_body(&api, &head, &body)?)?;
    let limits = api.limits.get();
    let publications = items.iter().map(|item| parse(item.get(), &limits));
    let outcomes = api.desk.publish(publications).await;
    for refusal in outcomes.iter().filter_map(|outcome| outcome.err()).map(Refusal::from) {
        api.refusals.note(refusal.status, refusal.code);
    }
    Ok(json(batch_status(&outcomes), batch_answer(&outcomes)))
}

/// The body of a request to publish, unless it cannot be taken.
fn publish_body<'b>(api: &Api, head: &HeaderMap, body: &'b [u8]) -> Result<&'b str, Refusal> {
    if api.health.refuses() {
        return Err(Failure::Draining.into());
    }
    api.json_body(head, body)
}

/// Of the items when nothing was published and that is not their own fault, otherwise 200.
fn batch_status(outcomes: &[Outcome]) -> StatusCode {
    if outcomes.iter().any(Result::is_ok) {
        return StatusCode::OK;
    }
    let failures = outcomes.iter().filter_map(|outcome| outcome.err());
    let ours = failures.filter(|failure| !matches!(failure, Failure::Invalid(_)));
    ours.map(|failure| Refusal::from(failure).status).next().unwrap_or(StatusCode::OK)
}

/// The outcomes in the order of the items.
fn batch_answer(outcomes: &[Outcome]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(16 + outcomes.len() * OUTCOME_BYTES_USUAL);
    answer.extend_from_slice(b"{\"items\":[");
    for (index, outcome) in outcomes.iter().enumerate() {
        if index > 0 {
            answer.push(b',');
        }
        match outcome {
            Ok(offset) => {
                answer.extend_from_slice(b"{\"offset\":");
                put_json(offset, &mut answer);
                answer.push(b'}');
            }
            Err(failure) => Refusal::from(*failure).put(&mut answer),
        }
    }
    answer.extend_from_slice(b"]}");
    answer
}

/// One offset in the answer to a batch.
const OUTCOME_BYTES_USUAL: usize = 24;

fn put_json(value: &impl serde::Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value)
        .expect("strings and numbers are JSON, and memory never fails");
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Invalid(error) => error.into(),
            Failure::Busy => Self {
                status: StatusCode::TOO_MANY_REQUESTS,
                code: const { Code::of(ErrorCode::ServerBusy.code()) },
                message: ErrorCode::ServerBusy.message(),
            },
            Failure::Behind => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                code: const { Code::of("shard_behind") },
                message: "A shard has too much to do to answer in time; try again later.",
            },
            Failure::Draining => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                code: const { Code::of("draining") },
                message: "The server is about to end; turn to another one.",
            },
        }
    }
}

impl From<PublishError> for Refusal {
    fn from(error: PublishError) -> Self {
        let status = match error {
            PublishError::MessageTooLong | PublishError::TooManyItems => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            _ => StatusCode::BAD_REQUEST,
        };
        Self { status, code: Code::of(error.code()), message: error.message() }
    }
}
