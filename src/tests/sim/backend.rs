//! A backend: publishes without being a member, and asks who is there, through the queues of the
//! control thread.
//!
//! It rests until a shard wakes it, so a lost wake-up shows as answers that never come.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rand::RngExt;

use super::check::{Checker, Room};
use super::net::Net;
use super::peer::{ROOM_NAMES, padding, pick};
use super::plan::Plan;
use crate::dialect::publish::{Content, Publication};
use crate::id::ShardId;
use crate::shard::publisher::{Publisher, Refused, Ticket};
use crate::shard::question::{Answer, Inquirer, Question};
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
    inquirer: Inquirer,
    /// What was asked and has no answer, by the number in the ticket.
    asked: BTreeMap<u32, (usize, usize)>,
    questions: u32,
    /// Rooms that were listed, and their keys where they have members.
    rooms: Vec<(ShardId, Key)>,
    /// Members that were listed.
    pub(super) listed: u64,
}

impl Backend {
    pub(super) fn new(mut publisher: Publisher, inquirer: Inquirer) -> Self {
        assert!(publisher.fall_asleep(), "nothing was published yet");
        Self {
            publisher,
            request: Slab::new().insert(()),
            sequences: BTreeMap::new(),
            left: 0,
            published: 0,
            busy: 0,
            inquirer,
            asked: BTreeMap::new(),
            questions: 0,
            rooms: Vec::new(),
            listed: 0,
        }
    }

    /// Questions and publishes without an answer.
    pub(super) fn waits_for(&self) -> usize {
        self.left + self.asked.len()
    }

    /// Publishes a batch, or asks something.
    pub(super) fn act(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        if net.chance(0.3) {
            return self.ask(plan, net);
        }
        for _ in 0..net.rng.random_range(1..=6) {
            self.publish(plan, net, check);
        }
        self.publisher.wake_shards(|shard| net.wake(shard.index()));
    }

    fn ask(&mut self, plan: &Plan, net: &mut Net) {
        let (from, limit) = (pick(net, &[0, 0, 3, 300]), pick(net, &[1, 2, 50]));
        let (listed, mut room) = (self.rooms.len(), None);
        if listed > 0 {
            room = Some(self.rooms[net.rng.random_range(0..listed)]);
        }
        let shard = ShardId::from(net.rng.random_range(0..plan.shards));
        let (shard, limit, question) = match (net.rng.random_range(0..5), room) {
            (0, Some((shard, room))) => (shard, limit, Question::Members { room, from, limit }),
            (1, Some((shard, room))) => (shard, 3, Question::Counts(vec![room; 3])),
            (2, _) => (shard, usize::MAX, Question::Sizes { from }),
            (3, _) => (shard, limit, Question::Busiest { limit }),
            _ => (shard, limit, Question::Rooms { from, limit, prefix: "".into() }),
        };
        self.questions += 1;
        let ticket = Ticket { request: self.request, item: self.questions };
        match self.inquirer.ask(shard, question, ticket, net.base + net.clock) {
            Ok(()) => drop(self.asked.insert(self.questions, (shard.index(), limit))),
            Err(Refused::Busy | Refused::Behind) => {}
            Err(Refused::Ended) => assert!(plan.ended, "no shard has ended"),
        }
        self.inquirer.wake_shards(|shard| net.wake(shard.index()));
    }

    /// Takes in what shards say of rooms and members. Whether it is true, only the shard knows: it
    /// may have changed. But it is what was asked for, and each question has one answer.
    fn take_answers(&mut self, plan: &Plan, net: &mut Net) {
        let Self { inquirer, asked, rooms, listed, .. } = self;
        inquirer.take_answers(|ticket, answer| {
            let (shard, limit) = asked.remove(&ticket.item).expect("it was asked and not answered");
            net.note("answer", &[u64::from(ticket.item)]);
            // Until all are answered it is not quiet.
            net.moved += 1;
            let Ok(answer) = answer else {
                return assert!(plan.ended, "no shard has ended");
            };
            let len = match answer {
                Answer::Rooms(found, _) => {
                    let keys = found.iter().flat_map(|room| room.shards.clone());
                    rooms.splice(.., keys.take(8));
                    found.len()
                }
                Answer::Members(members, _) => {
                    *listed += members.len() as u64;
                    assert!(members.iter().all(|member| member.id.shard.index() == shard));
                    assert!(members.is_sorted_by(|a, b| a.id.key.slot() < b.id.key.slot()));
                    members.len()
                }
                Answer::Counts(counts) => {
                    assert_eq!(counts.len(), limit);
                    limit
                }
                Answer::Sizes(sizes, _) => sizes.len(),
                Answer::Busiest(slow, busy) => slow.len().max(busy.len()),
                Answer::Room(_) | Answer::RoomsAt(_) | Answer::Disconnect(_) => {
                    panic!("nobody asked for that")
                }
            };
            assert!(len <= limit, "{len} are more than {limit}");
        });
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
        match self.publisher.publish(publication, ticket, net.base + net.clock) {
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
            Err((Refused::Busy | Refused::Behind, _)) => {
                self.busy += 1;
                check.publish_in_vain(room, NUMBER);
            }
            Err((Refused::Ended, _)) => assert!(plan.ended, "no shard has ended"),
        }
    }

    /// Takes in answers when it was woken.
    pub(super) fn step(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        net.control_woken = false;
        self.publisher.wake_up();
        while {
            self.take_answers(plan, net);
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
            !self.publisher.fall_asleep() || self.inquirer.has_answers()
        } {}
    }
}
