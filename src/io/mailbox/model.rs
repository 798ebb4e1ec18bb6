//! Waking, in the orders in which the threads may see each other's steps, by the model checker
//! loom: whoever sleeps is woken when there is a message.
//!
//! The sleeper is the real one, over a flag of loom's. The rings are `rtrb`'s, which loom cannot
//! look into; of a ring counts here what it shows the other side: a tail that is stored with
//! release when a message is pushed, and loaded with acquire to see whether there is one. The bell
//! stands for the eventfd: once rung it stays so until it is heard.
//!
//! A model that finds nothing proves little, unless it finds what is broken: [`broken`] takes away
//! one part after the other.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::thread::{self, JoinHandle};

use super::{Flag, Sleeper};

/// A thread that sleeps, and what others have put into its rings, one ring each.
struct Mailbox<F> {
    sleeper: Sleeper<F>,
    tails: Vec<AtomicUsize>,
    rung: AtomicBool,
}

impl<F: Flag + Default> Mailbox<F> {
    fn new(producers: usize) -> Self {
        let tails = (0..producers).map(|_| AtomicUsize::new(0)).collect();
        Self { sleeper: Sleeper::default(), tails, rung: AtomicBool::new(false) }
    }

    /// What a producer does with each message: pushes it, and wakes whoever sleeps.
    fn push(&self, ring: usize, messages: usize) {
        self.tails[ring].store(messages, Ordering::Release);
        if self.sleeper.must_wake() {
            self.rung.store(true, Ordering::Release);
        }
    }

    /// How many messages were pushed, as far as can be seen.
    fn seen(&self) -> usize {
        self.tails.iter().map(|tail| tail.load(Ordering::Acquire)).sum()
    }

    /// What a shard does, tick by tick, until all messages are there. Once it sleeps, nothing but
    /// the bell wakes it, and that has rung when all producers have done their part, or never.
    fn receive(&self, messages: usize, looks_again: bool, mut producers: Vec<JoinHandle<()>>) {
        loop {
            self.sleeper.wake_up();
            let seen = self.seen();
            if seen == messages {
                break;
            }
            self.sleeper.fall_asleep();
            if looks_again && self.seen() != seen {
                continue;
            }
            join(&mut producers);
            assert!(self.rung.swap(false, Ordering::Acquire), "a wake-up is lost");
        }
        join(&mut producers);
    }
}

fn join(threads: &mut Vec<JoinHandle<()>>) {
    threads.drain(..).for_each(|thread| thread.join().expect("it ends"));
}

/// Two producers with a message each, or one with two, and one that sleeps in between.
fn model<F: Flag + Default + Send + Sync + 'static>(looks_again: bool) {
    for (producers, each) in [(1, 2), (2, 1)] {
        let mut checker = loom::model::Builder::new();
        // How often a thread is put aside where it could go on. Without a bound two producers take
        // minutes; with three of these it takes twice as long, and finds no more.
        checker.preemption_bound = Some(2);
        checker.check(move || {
            let mailbox = Arc::new(Mailbox::<F>::new(producers));
            let produce = |ring| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || (1..=each).for_each(|count| mailbox.push(ring, count)))
            };
            let threads = (0..producers).map(produce).collect();
            mailbox.receive(producers * each, looks_again, threads);
        });
    }
}

/// A flag of loom's, with the fence of a kind.
macro_rules! flag {
    ($name:ident, $fence:expr) => {
        #[derive(Default)]
        struct $name(AtomicBool);

        impl Flag for $name {
            fn store(&self, value: bool) {
                // Not a store: loom lets one come between what a swap reads and what it writes,
                // which no memory does, and so takes back a flag that was raised after it.
                self.0.swap(value, Ordering::Relaxed);
            }

            fn load(&self) -> bool {
                self.0.load(Ordering::Relaxed)
            }

            fn take(&self) -> bool {
                self.0.swap(false, Ordering::Relaxed)
            }

            fn fence() {
                $fence
            }
        }
    };
}

flag!(Right, fence(Ordering::SeqCst));
flag!(WithoutFence, ());
flag!(WithWeakFence, fence(Ordering::AcqRel));

#[test]
fn no_wake_up_is_lost_in_any_order() {
    model::<Right>(true);
}

/// The same checks with one part taken away.
mod broken {
    use super::*;

    #[test]
    #[should_panic(expected = "a wake-up is lost")]
    fn without_the_fence() {
        model::<WithoutFence>(true);
    }

    #[test]
    #[should_panic(expected = "a wake-up is lost")]
    fn with_a_fence_that_keeps_no_store_before_a_load() {
        model::<WithWeakFence>(true);
    }

    #[test]
    #[should_panic(expected = "a wake-up is lost")]
    fn without_the_second_look() {
        model::<Right>(false);
    }
}
