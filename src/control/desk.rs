//! Where publishes over HTTP are handed in, and their outcomes collected.
//!
//! A request hands in its publishes and waits for an [`Outcome`] for each. The shards answer at
//! their own pace; [`collect`] takes in what they say and wakes the requests that can go on. Where
//! a shard's queue is full the request waits for room, but not longer than [`PATIENCE`]: then the
//! shard is behind, and what does not fit is refused. So is, at once, what comes when a publish has
//! waited for its answer as long as that. What was handed in before has no deadline: nobody could
//! say any more that it is not published.
//!
//! Everything here runs on the control thread: the lock is for the HTTP library, which wants to be
//! able to move a request to another thread, and nobody ever waits for it.
//!
//! Bounds: what may be under way to one shard is [`Publisher`]'s matter. A request whose client has
//! gone keeps its place until its publishes are answered, and there are [`REQUESTS_MAX`] places: so
//! clients that come and go cannot pile up messages for a shard that is behind.

use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;
use tracing::error;

use super::failure::{Failure, REQUESTS_MAX};
use super::questions::Questions;
use crate::dialect::publish::{Publication, PublishError};
use crate::io::uring::Bells;
use crate::shard::publisher::{PATIENCE, Publisher, Refused, Ticket};
use crate::shard::thread::Publishing;
use crate::slab::{Key, Slab};

/// What became of one publish: its offset, `None` when nobody was in the room, or why it was not
/// published.
pub(super) type Outcome = Result<Option<u64>, Failure>;

/// See the module documentation. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Desk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    publisher: Publisher,
    bells: Bells,
    requests: Slab<Request>,
    patience: Duration,
    /// Requests that wait for room in some queue.
    crowd: Vec<Waker>,
    /// Whether [`give_up`] is going to wake them.
    timer: bool,
}

#[derive(Debug)]
struct Request {
    outcomes: Vec<Outcome>,
    /// How many of them are not known yet.
    left: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Waits(Option<Waker>),
    /// The client has gone.
    Abandoned,
}

impl Desk {
    /// A desk at which requests hand in publishes, and one where they ask, served on the runtime of
    /// the calling thread.
    ///
    /// # Errors
    /// When the bell cannot be watched.
    pub(super) fn open(publishing: Publishing) -> io::Result<(Self, Questions)> {
        let Publishing { publisher, inquirer, bells, bell } = publishing;
        let bell = UnixStream::from_std(bell)?;
        let questions = Questions::new(inquirer, bells.clone());
        let desk = Self::new(publisher, bells, PATIENCE);
        monoio::spawn(collect(desk.clone(), questions.clone(), bell));
        Ok((desk, questions))
    }

    /// A desk of whose shards nobody is heard until [`Desk::take_answers`].
    pub(super) fn new(publisher: Publisher, bells: Bells, patience: Duration) -> Self {
        let (requests, crowd) = (Slab::new(), Vec::new());
        let inner = Inner { publisher, bells, requests, patience, crowd, timer: false };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Hands in the publishes of one request, those that are right, in order; comes true with an
    /// outcome for each item. Wakes each shard once, if there is room for all.
    pub(super) fn publish<'m, I>(&self, items: I) -> Publishes<'m, I>
    where
        I: Iterator<Item = Result<Publication<'m>, PublishError>>,
    {
        let mut inner = self.lock();
        let is_refused = inner.requests.len() >= REQUESTS_MAX;
        let outcomes = Vec::with_capacity(items.size_hint().0);
        let request = Request { outcomes, left: 0, state: State::Waits(None) };
        let request = inner.requests.insert(request);
        let desk = self.clone();
        Publishes { desk, request, items, next: None, give_up_at: None, is_refused }
    }

    /// Takes in what the shards have answered.
    pub(super) fn take_answers(&self) {
        let mut inner = self.lock();
        let Inner { publisher, requests, .. } = &mut *inner;
        let mut has_room = false;
        publisher.take_answers(|ticket, answer| {
            has_room = true;
            let request = requests.get_mut(ticket.request).expect("it stays until it is complete");
            request.outcomes[ticket.item as usize] = answer.map_err(Failure::from);
            request.left -= 1;
            if request.left == 0 {
                match &mut request.state {
                    State::Waits(waker) => waker.take().into_iter().for_each(Waker::wake),
                    State::Abandoned => drop(requests.remove(ticket.request)),
                }
            }
        });
        if has_room {
            inner.wake_crowd();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn wake_crowd(&mut self) {
        mem::take(&mut self.crowd).into_iter().for_each(Waker::wake);
    }
}

/// Takes in answers whenever a shard rings.
async fn collect(desk: Desk, questions: Questions, mut bell: UnixStream) {
    let mut rings = vec![0; 64];
    loop {
        desk.take_answers();
        questions.take_answers();
        // After that a shard rings for whatever it answers; so look once more before.
        if !desk.lock().publisher.fall_asleep() {
            continue;
        }
        if questions.has_answers() {
            desk.lock().publisher.wake_up();
            continue;
        }
        let (read, buffer) = bell.read(rings).await;
        rings = buffer;
        desk.lock().publisher.wake_up();
        if let Err(error) = read {
            return error!("what shards answer can no longer be heard: {error}");
        }
    }
}

/// Wakes those that wait for room: for some of them it is time to give up.
async fn give_up(desk: Desk, at: Instant) {
    monoio::time::sleep(at.saturating_duration_since(Instant::now())).await;
    let mut inner = desk.lock();
    inner.timer = false;
    inner.wake_crowd();
}

/// One request: hands in its publishes, then waits until all outcomes are known.
pub(super) struct Publishes<'m, I> {
    desk: Desk,
    request: Key,
    /// What is still to be handed in, and the one for which there was no room.
    items: I,
    next: Option<Publication<'m>>,
    give_up_at: Option<Instant>,
    /// There was no place for the request.
    is_refused: bool,
}

impl<'m, I> Publishes<'m, I>
where
    I: Iterator<Item = Result<Publication<'m>, PublishError>>,
{
    /// Hands in what it can, and says whether that was all. Where there is no room it waits,
    /// so that the rest does not overtake; once it has given up it never waits again.
    fn hand_in(&mut self, inner: &mut Inner, waker: &Waker) -> bool {
        let Inner { publisher, bells, requests, patience, .. } = inner;
        let request = requests.get_mut(self.request).expect("here until it is complete");
        let mut wants_room = None;
        let now = Instant::now();
        while let Some(item) = self.next.take().map(Ok).or_else(|| self.items.next()) {
            let ticket = Ticket { request: self.request, item: request.outcomes.len() as u32 };
            let taken = match item {
                Err(error) => Err(Failure::Invalid(error)),
                Ok(_) if self.is_refused => Err(Failure::Busy),
                Ok(publication) => match publisher.publish(publication, ticket, now) {
                    Ok(()) => Ok(()),
                    Err((Refused::Busy, publication)) => {
                        let at = *self.give_up_at.get_or_insert(now + *patience);
                        if now < at {
                            self.next = Some(publication);
                            wants_room = Some(at);
                            break;
                        }
                        Err(Failure::Busy)
                    }
                    Err((refused, _)) => Err(refused.into()),
                },
            };
            request.left += usize::from(taken.is_ok());
            // In place of the offset, until it is known.
            request.outcomes.push(taken.map(|()| None));
        }
        publisher.wake_shards(|shard| bells.ring(shard.index()));
        let Some(at) = wants_room else { return true };
        inner.crowd.push(waker.clone());
        if !mem::replace(&mut inner.timer, true) {
            monoio::spawn(give_up(self.desk.clone(), at));
        }
        false
    }
}

impl<'m, I> Future for Publishes<'m, I>
where
    I: Iterator<Item = Result<Publication<'m>, PublishError>> + Unpin,
{
    type Output = Vec<Outcome>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<Outcome>> {
        let desk = self.desk.clone();
        let mut inner = desk.lock();
        if !self.hand_in(&mut inner, context.waker()) {
            return Poll::Pending;
        }
        let request = inner.requests.get_mut(self.request).expect("not polled after its end");
        if request.left > 0 {
            request.state = State::Waits(Some(context.waker().clone()));
            return Poll::Pending;
        }
        let request = inner.requests.remove(self.request).expect("looked at above");
        Poll::Ready(request.outcomes)
    }
}

impl<I> Drop for Publishes<'_, I> {
    fn drop(&mut self) {
        let mut inner = self.desk.lock();
        // Not there when it has come true.
        let Some(request) = inner.requests.get_mut(self.request) else { return };
        request.state = State::Abandoned;
        if request.left == 0 {
            inner.requests.remove(self.request);
        }
    }
}
