//! A backend: publishes without being a member, through the queues of the control thread.
//!
//! It rests until a shard wakes it, so a lost wake-up shows as answers that never come.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rand::RngExt;

use super::check::{Checker, Room};
use super::net::Net;
use super::peer::{ROOM_NAMES, padding};
use super::world::Plan;
use crate::dialect::publish::{Content, Publication};
use crate::shard::publisher::{Publisher, Refused, Ticket};
use crate::slab::{Key, Slab};

/// The name by which the checker knows it; no peer has that number.
const NUMBER: usize = usize::MAX;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Backend {
    publisher: Publisher,
    /// Named in its tickets; each publish is a request of its own.
    request: Key,
    sequences: BTreeMap<Room, u64>,
    /// Publishes without an answer.
    pub(super) left: usize,
    /// Publishes that members were there for, and publishes refused for want of room.
    pub(super) published: u64,
    pub(super) busy: u64,
}

impl Backend {
    pub(super) fn new(mut publisher: Publisher) -> Self {
        assert!(publisher.fall_asleep(), "nothing was published yet");
        Self {
            publisher,
            request: Slab::new().insert(()),
            sequences: BTreeMap::new(),
            left: 0,
            published: 0,
            busy: 0,
        }
    }

    /// Publishes a batch.
    pub(super) fn act(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        for _ in 0..net.rng.random_range(1..=6) {
            self.publish(plan, net, check);
        }
        self.publisher.wake_shards(|shard| net.wake(shard.index()));
    }

    fn publish(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        let number = net.rng.random_range(0..plan.rooms);
        let room = Room { raw: net.rng.random_bool(0.5), number };
        let binary = room.raw && net.rng.random_bool(0.5);
        let id = check.publishes.len();
        let padding = String::from_utf8(padding(net, plan.message_max - 200)).expect("ASCII");
        let body = match (room.raw, binary) {
            (false, _) => format!("{{\"p\": {id},\"x\":\"{padding}\"}}").into_bytes(),
            (true, false) => format!("{id:08}{padding}").into_bytes(),
            (true, true) => [&(id as u64).to_be_bytes(), padding.as_bytes()].concat(),
        };
        let text = || std::str::from_utf8(&body).expect("made of text");
        let content = match (room.raw, binary) {
            (false, _) => Content::Native { content: text(), user_id: Some("backend".into()) },
            (true, false) => Content::Text(text().into()),
            (true, true) => Content::Binary(body.clone()),
        };
        let publication = Publication { room_id: Cow::from(ROOM_NAMES[number]), content };
        let ticket = Ticket { request: self.request, item: id as u32 };
        match self.publisher.publish(publication, ticket) {
            Ok(()) => {
                net.note("publish", &[id as u64]);
                self.left += 1;
                let sequence = self.sequences.entry(room).or_default();
                *sequence += 1;
                check.publish(room, NUMBER, *sequence);
                check.publishes[id].body = body;
                check.publishes[id].binary = binary;
                check.publishes[id].sender = "backend".to_owned();
            }
            Err((Refused::Busy, _)) => self.busy += 1,
            Err((Refused::Ended, _)) => assert!(plan.ended, "no shard has ended"),
        }
    }

    /// Takes in answers when it was woken.
    pub(super) fn step(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        net.control_woken = false;
        self.publisher.wake_up();
        while {
            self.publisher.take_answers(|ticket, answer| {
                self.left -= 1;
                match answer {
                    Ok(Some(offset)) => {
                        net.note("published", &[u64::from(ticket.item), offset]);
                        self.published += 1;
                        check.acknowledge(ticket.item as usize, offset);
                    }
                    Ok(None) => check.publish_to_nobody(ticket.item as usize),
                    Err(refused) => {
                        assert_eq!(refused, Refused::Ended);
                        assert!(plan.ended, "no shard has ended");
                    }
                }
            });
            !self.publisher.fall_asleep()
        } {}
    }
}
