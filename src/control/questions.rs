//! Where requests ask the shards, and wait for what they answer.
//!
//! A request asks some shards one question each ([`Questions::ask_each`]) and goes on when all have
//! answered, or after [`PATIENCE`]: then some shard is far behind. What it asked is answered all
//! the same, and until then keeps its place: so clients that come and go, or give up, cannot pile
//! up questions. There are [`REQUESTS_MAX`] places.
//!
//! Everything here runs on the control thread; the lock is for the HTTP library, as it is in
//! [`super::desk`], which also hears the bell for both.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::failure::{Failure, REQUESTS_MAX};
use crate::id::{RoomName, ShardId};
use crate::io::uring::Bells;
use crate::shard::calls::Ticket;
use crate::shard::question::{Answer, Inquirer, QUESTIONS_MAX, Question};
use crate::slab::{Key, Slab};

// A request has one question under way to a shard at a time.
const _: () = assert!(QUESTIONS_MAX >= REQUESTS_MAX);

/// How long a request waits for the answers to one question, or to one for each shard. A shard with
/// a million connections looks at all of them in some ten milliseconds while it has nothing else to
/// do.
const PATIENCE: Duration = Duration::from_secs(8);

/// How often those that have waited too long are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// See the module documentation. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Questions(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    inquirer: Inquirer,
    bells: Bells,
    requests: Slab<Request>,
    patience: Duration,
    /// Whether [`give_up`] looks for those that have waited too long.
    timer: bool,
}

/// Questions of which some are not answered.
#[derive(Debug)]
struct Request {
    answers: Vec<Option<Answer>>,
    failure: Option<Failure>,
    left: usize,
    give_up_at: Instant,
    /// Whoever waits is here.
    state: State,
}

#[derive(Debug)]
enum State {
    Waits(Option<Waker>),
    /// The client has gone, or has been told that it takes too long.
    Abandoned,
}

impl Questions {
    /// Nobody hears what shards answer until [`Questions::take_answers`].
    pub(super) fn new(inquirer: Inquirer, bells: Bells) -> Self {
        let requests = Slab::new();
        let patience = PATIENCE;
        Self(Arc::new(Mutex::new(Inner { inquirer, bells, requests, patience, timer: false })))
    }

    /// The same for tests of those who lose their patience at once.
    #[cfg(test)]
    pub(super) fn impatient(inquirer: Inquirer, bells: Bells) -> Self {
        let questions = Self::new(inquirer, bells);
        questions.lock().patience = Duration::ZERO;
        questions
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.lock().inquirer.shards()
    }

    /// The home shard of `room`.
    pub(super) fn home(&self, room: &RoomName) -> ShardId {
        self.lock().inquirer.home(room)
    }

    /// Asks one shard.
    ///
    /// # Errors
    /// As [`Questions::ask_each`].
    pub(super) async fn ask(&self, shard: ShardId, question: Question) -> Result<Answer, Failure> {
        let mut answers = self.ask_each([(shard, question)]).await?;
        Ok(answers.pop().expect("one question, one answer"))
    }

    /// Asks shards, each at most once; comes true with the answers in this order.
    ///
    /// # Errors
    /// `Busy` when there is no place for the request, `Behind` when a shard takes too long,
    /// `Draining` when one has ended.
    pub(super) fn ask_each(
        &self,
        questions: impl IntoIterator<Item = (ShardId, Question)>,
    ) -> Asking {
        let mut inner = self.lock();
        let request = inner.hand_in(questions, Instant::now());
        let Inner { inquirer, bells, .. } = &mut *inner;
        inquirer.wake_shards(|shard| bells.ring(shard.index()));
        if request.is_some() && !std::mem::replace(&mut inner.timer, true) {
            monoio::spawn(give_up(self.clone()));
        }
        Asking { questions: self.clone(), request }
    }

    /// Takes in what the shards have answered.
    pub(super) fn take_answers(&self) {
        let mut inner = self.lock();
        let Inner { inquirer, requests, .. } = &mut *inner;
        inquirer.take_answers(|ticket, answer| {
            let request = requests.get_mut(ticket.request).expect("it stays until it is complete");
            match answer {
                Ok(answer) => request.answers[ticket.item as usize] = Some(answer),
                Err(refused) => request.failure = Some(refused.into()),
            }
            request.left -= 1;
            if request.left == 0 {
                match &mut request.state {
                    State::Waits(waker) => waker.take().into_iter().for_each(Waker::wake),
                    State::Abandoned => drop(requests.remove(ticket.request)),
                }
            }
        });
    }

    /// Whether shards have answered since the last [`Questions::take_answers`].
    pub(super) fn has_answers(&self) -> bool {
        self.lock().inquirer.has_answers()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The request, if there was a place for it.
    fn hand_in(
        &mut self,
        questions: impl IntoIterator<Item = (ShardId, Question)>,
        now: Instant,
    ) -> Option<Key> {
        if self.requests.len() >= REQUESTS_MAX {
            return None;
        }
        let key = self.requests.insert(Request {
            answers: Vec::new(),
            failure: None,
            left: 0,
            give_up_at: now + self.patience,
            state: State::Waits(None),
        });
        let request = self.requests.get_mut(key).expect("inserted above");
        for (shard, question) in questions {
            let ticket = Ticket { request: key, item: request.answers.len() as u32 };
            request.answers.push(None);
            match self.inquirer.ask(shard, question, ticket, now) {
                Ok(()) => request.left += 1,
                Err(refused) => request.failure = Some(refused.into()),
            }
        }
        Some(key)
    }
}

/// Wakes those that have waited too long, as long as somebody waits.
async fn give_up(questions: Questions) {
    loop {
        monoio::time::sleep(LOOK_INTERVAL).await;
        let mut inner = questions.lock();
        let now = Instant::now();
        let mut waiting = false;
        for slot in 0..inner.requests.slots() {
            let Some(request) = inner.requests.at_mut(slot) else { continue };
            if let State::Waits(waker) = &mut request.state {
                waiting = true;
                if request.give_up_at <= now {
                    waker.take().into_iter().for_each(Waker::wake);
                }
            }
        }
        if !waiting {
            inner.timer = false;
            return;
        }
    }
}

/// Waits for the answers of some shards.
#[derive(Debug)]
pub(super) struct Asking {
    questions: Questions,
    /// `None`: there was no place for it.
    request: Option<Key>,
}

impl Future for Asking {
    type Output = Result<Vec<Answer>, Failure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(key) = self.request else { return Poll::Ready(Err(Failure::Busy)) };
        let mut inner = self.questions.lock();
        let request = inner.requests.get_mut(key).expect("not polled after its end");
        if request.left > 0 {
            if request.give_up_at <= Instant::now() {
                return Poll::Ready(Err(Failure::Behind));
            }
            request.state = State::Waits(Some(context.waker().clone()));
            return Poll::Pending;
        }
        let request = inner.requests.remove(key).expect("looked at above");
        Poll::Ready(match request.failure {
            Some(failure) => Err(failure),
            None => Ok(request.answers.into_iter().flatten().collect()),
        })
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(key) = self.request else { return };
        let mut inner = self.questions.lock();
        // Not there when it has come true.
        let Some(request) = inner.requests.get_mut(key) else { return };
        request.state = State::Abandoned;
        if request.left == 0 {
            inner.requests.remove(key);
        }
    }
}
