//! Where publishes over HTTP are handed in, and their outcomes collected.
//!
//! A request hands in all its publishes at once and waits for an [`Outcome`] for each. The shards
//! answer at their own pace; [`collect`] takes in what they say and wakes the requests that are
//! complete. Everything here runs on the control thread: the lock is for the HTTP library, which
//! wants to be able to move a request to another thread, and nobody ever waits for it.
//!
//! Bounds: what may be under way to one shard is [`Publisher`]'s matter. A request whose client has
//! gone keeps its place until its publishes are answered, and there are [`REQUESTS_MAX`] places: so
//! clients that come and go cannot pile up messages for a shard that is behind.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;
use tracing::error;

use crate::dialect::publish::{Publication, PublishError};
use crate::io::uring::Bells;
use crate::shard::publisher::{Publisher, Refused, Ticket};
use crate::shard::thread::Publishing;
use crate::slab::{Key, Slab};

/// Requests with publishes that are not answered. As many as there are admin connections.
const REQUESTS_MAX: usize = super::admin::CONNECTIONS_MAX;

/// What became of one publish: its offset, `None` when nobody was in the room, or why it was not
/// published.
pub(super) type Outcome = Result<Option<u64>, Failure>;

/// Why a publish was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is wrong.
    Invalid(PublishError),
    /// Its room's shard is behind.
    Busy,
    /// The server is about to end.
    Draining,
}

/// See the module documentation. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Desk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    publisher: Publisher,
    bells: Bells,
    requests: Slab<Request>,
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
    /// A desk at which requests hand in publishes, served on the runtime of the calling thread.
    ///
    /// # Errors
    /// When the bell cannot be watched.
    pub(super) fn open(publishing: Publishing) -> io::Result<Self> {
        let Publishing { publisher, bells, bell } = publishing;
        let bell = UnixStream::from_std(bell)?;
        let desk = Self::new(publisher, bells);
        monoio::spawn(collect(desk.clone(), bell));
        Ok(desk)
    }

    /// A desk of whose shards nobody is heard until [`Desk::take_answers`].
    pub(super) fn new(publisher: Publisher, bells: Bells) -> Self {
        Self(Arc::new(Mutex::new(Inner { publisher, bells, requests: Slab::new() })))
    }

    /// Hands in the publishes of one request, those that are right, in order; the answer has an
    /// outcome for each item. Wakes each shard once.
    pub(super) fn publish<'m>(
        &self,
        items: impl Iterator<Item = Result<Publication<'m>, PublishError>>,
    ) -> Answer {
        let mut inner = self.lock();
        let Inner { publisher, bells, requests } = &mut *inner;
        let is_full = requests.len() >= REQUESTS_MAX;
        let waits = State::Waits(None);
        let key = requests.insert(Request { outcomes: Vec::new(), left: 0, state: waits });
        let request = requests.get_mut(key).expect("just put there");
        request.outcomes.reserve(items.size_hint().0);
        for (index, item) in items.enumerate() {
            let ticket = Ticket { request: key, item: index as u32 };
            let taken = match item {
                Err(error) => Err(Failure::Invalid(error)),
                Ok(_) if is_full => Err(Failure::Busy),
                Ok(publication) => publisher.publish(publication, ticket).map_err(Failure::from),
            };
            request.left += usize::from(taken.is_ok());
            // In place of the offset, until it is known.
            request.outcomes.push(taken.map(|()| None));
        }
        publisher.wake_shards(|shard| bells.ring(shard.index()));
        Answer { desk: self.clone(), request: key }
    }

    /// Takes in what the shards have answered.
    pub(super) fn take_answers(&self) {
        let mut inner = self.lock();
        let Inner { publisher, requests, .. } = &mut *inner;
        publisher.take_answers(|ticket, answer| {
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
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy => Self::Busy,
            Refused::Ended => Self::Draining,
        }
    }
}

/// Takes in answers whenever a shard rings.
async fn collect(desk: Desk, mut bell: UnixStream) {
    let mut rings = vec![0; 64];
    loop {
        desk.take_answers();
        if !desk.lock().publisher.fall_asleep() {
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

/// Comes true when all outcomes of a request are known.
pub(super) struct Answer {
    desk: Desk,
    request: Key,
}

impl Future for Answer {
    type Output = Vec<Outcome>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<Outcome>> {
        let mut inner = self.desk.lock();
        let request = inner.requests.get_mut(self.request).expect("not polled after its end");
        if request.left > 0 {
            request.state = State::Waits(Some(context.waker().clone()));
            return Poll::Pending;
        }
        let request = inner.requests.remove(self.request).expect("looked at above");
        Poll::Ready(request.outcomes)
    }
}

impl Drop for Answer {
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
