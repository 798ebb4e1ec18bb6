//! `GET /debug/profile`: where the running server spends its CPU time.
//!
//! A thread of its own samples ([`crate::io::sampler`]), names the functions and writes the answer;
//! the control thread goes on meanwhile. One profile at a time; one whose client has gone ends.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use tracing::{info, warn};

use super::api::Refusal;
use super::refusal::Code;
use crate::io::sampler::{COLLECT_INTERVAL, SampleError, Sampler};

mod flame;
mod pprof;
mod symbols;

/// Seconds that a profile may take.
const SECONDS_DEFAULT: u64 = 10;
const SECONDS_MAX: u64 = 60;
/// Samples per second of a thread's CPU time; the usual number, at which no clock ticks.
const FREQUENCY_DEFAULT: u32 = 99;
const FREQUENCY_MAX: u32 = 999;

/// The parameters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    seconds: Option<u64>,
    frequency: Option<u32>,
    #[serde(default)]
    format: Format,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Pprof,
    Svg,
}

pub(super) async fn profile(
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Asked { seconds, frequency, format }) = asked.map_err(|_| BAD_PARAMETER)?;
    let seconds = seconds.unwrap_or(SECONDS_DEFAULT);
    let frequency = frequency.unwrap_or(FREQUENCY_DEFAULT);
    if !(1..=SECONDS_MAX).contains(&seconds) || !(1..=FREQUENCY_MAX).contains(&frequency) {
        return Err(BAD_PARAMETER);
    }
    let (time, wait) = (Duration::from_secs(seconds), Outcome::default());
    let outcome = wait.clone();
    let work = move || {
        let taken = take(time, frequency, format, &outcome);
        outcome.set(taken);
    };
    let started = thread::Builder::new().name("fanwire-profile".into()).spawn(work);
    started.map_err(|error| refuse(&SampleError::Kernel { what: "start a thread", error }))?;
    let body = wait.wait().await.map_err(|error| refuse(&error))?;
    let (content_type, disposition) = match format {
        Format::Pprof => ("application/octet-stream", "attachment; filename=\"fanwire.pb.gz\""),
        Format::Svg => ("image/svg+xml", "inline; filename=\"fanwire.svg\""),
    };
    let mut response = Response::new(Body::from(body));
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    fields.insert(CONTENT_DISPOSITION, HeaderValue::from_static(disposition));
    Ok(response)
}

/// Takes a profile, unless nobody wants it any more, and writes it down.
fn take(
    time: Duration,
    frequency: u32,
    format: Format,
    outcome: &Outcome,
) -> Result<Vec<u8>, SampleError> {
    let mut sampler = Sampler::start(frequency)?;
    let end = Instant::now() + time;
    while Instant::now() < end && outcome.is_wanted() {
        thread::sleep(COLLECT_INTERVAL);
        sampler.collect();
    }
    let samples = sampler.finish();
    let count: u64 = samples.stacks.values().sum();
    info!(samples = count, lost = samples.lost, "took a CPU profile");
    let written = match format {
        Format::Pprof => pprof::write(&samples),
        Format::Svg => flame::write(&samples),
    };
    // What names of functions were read from may be large.
    backtrace::clear_symbol_cache();
    written.map_err(|error| SampleError::Kernel { what: "write the profile", error })
}

/// Where the thread leaves its answer. Cloning shares it.
#[derive(Clone, Default)]
struct Outcome(Arc<Mutex<Left>>);

#[derive(Default)]
struct Left {
    answer: Option<Result<Vec<u8>, SampleError>>,
    waker: Option<Waker>,
}

impl Outcome {
    fn set(&self, answer: Result<Vec<u8>, SampleError>) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.answer = Some(answer);
        left.waker.take().into_iter().for_each(Waker::wake);
    }

    /// Whether somebody but the thread holds it.
    fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    async fn wait(self) -> Result<Vec<u8>, SampleError> {
        poll_fn(|context| {
            let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answer) = left.answer.take() {
                return Poll::Ready(answer);
            }
            left.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

fn refuse(error: &SampleError) -> Refusal {
    match error {
        SampleError::Running => RUNNING,
        SampleError::Kernel { .. } => {
            warn!("no CPU profile: {error}");
            FAILED
        }
    }
}

const BAD_PARAMETER: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    code: Code::of("invalid_parameter"),
    message: "The parameters are seconds (1 to 60), frequency (1 to 999) and format (pprof or svg).",
};

const RUNNING: Refusal = Refusal {
    status: StatusCode::CONFLICT,
    code: Code::of("profile_running"),
    message: "A profile is being taken already; ask again when it is done.",
};

const FAILED: Refusal = Refusal {
    status: StatusCode::SERVICE_UNAVAILABLE,
    code: Code::of("profile_failed"),
    message: "The host does not allow to take a profile now; the server's log says what it refused.",
};
