//! What connects a shard to the others and to the control thread.

use std::sync::Arc;

use super::census::Census;
use super::message::{Control, Delivery, Request};
use super::publisher::{Inlet, Publisher};
use super::question::{Enquiries, Inquirer};
use crate::config::Limits;
use crate::id::{HomeHasher, ShardId};
use crate::io::mailbox::{Lanes, Sleeper, Sleepers};

/// What connects a shard to the others; made for all of them by [`Ends::mesh`].
#[derive(Debug)]
pub struct Ends {
    /// Which one this is.
    pub shard: ShardId,
    pub(super) requests: Lanes<Request>,
    pub(super) deliveries: Lanes<Delivery>,
    pub(super) sleepers: Sleepers,
    pub(super) homes: HomeHasher,
    pub(super) census: Census,
    pub(super) control: rtrb::Consumer<Control>,
    pub(super) inlet: Inlet,
    pub(super) enquiries: Enquiries,
}

/// The control thread's ends of all shards, see [`Ends::mesh`].
#[derive(Debug)]
pub struct ControlEnds {
    /// The mailboxes for commands, by shard.
    pub controls: Vec<rtrb::Producer<Control>>,
    /// The queues for publishes.
    pub publisher: Publisher,
    /// The queues for questions.
    pub inquirer: Inquirer,
}

/// How many commands of the control thread may wait for a shard.
const CONTROLS_MAX: usize = 16;

impl Ends {
    /// The ends of the shards over which `homes` spreads the rooms, with mailboxes as long as
    /// `limits` says, and those of the control thread.
    #[must_use]
    pub fn mesh(homes: &HomeHasher, limits: &Limits) -> (Vec<Self>, ControlEnds) {
        let shards = homes.shards();
        let sleepers = Sleepers::new(shards);
        let census = Census::default();
        let own = Arc::new(Sleeper::default());
        let len_max = limits.publish_queue_len_max;
        let (publisher, inlets) = Publisher::new(homes, &sleepers, Arc::clone(&own), len_max);
        let (inquirer, enquiries) = Inquirer::new(homes, &sleepers, &own);
        let mut controls = Vec::with_capacity(shards);
        let ends = Lanes::mesh(shards, limits.mailbox_len_max)
            .into_iter()
            .zip(Lanes::mesh(shards, limits.mailbox_len_max))
            .zip(inlets.into_iter().zip(enquiries))
            .enumerate()
            .map(|(index, ((requests, deliveries), (inlet, enquiries)))| {
                let (producer, control) = rtrb::RingBuffer::new(CONTROLS_MAX);
                controls.push(producer);
                Self {
                    shard: ShardId::from(index),
                    requests,
                    deliveries,
                    sleepers: sleepers.clone(),
                    homes: homes.clone(),
                    census: census.clone(),
                    control,
                    inlet,
                    enquiries,
                }
            })
            .collect();
        (ends, ControlEnds { controls, publisher, inquirer })
    }

    /// How many messages, requests and publishes the mailboxes hold.
    pub(super) fn depth(&self) -> usize {
        self.requests.depth() + self.deliveries.depth() + self.inlet.depth()
    }

    /// Whether a mailbox for messages, requests or publishes holds any.
    pub(super) fn has_messages(&self) -> bool {
        self.requests.has_input() || self.deliveries.has_input() || self.inlet.has_input()
    }
}
