//! Which peers have something to do, and which will have later: kept up to date, never looked for.

use std::collections::BTreeSet;
use std::time::Duration;

use super::net::Net;
use super::peer::Peer;

/// See the module documentation. Peers are called by their numbers.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// Those that would do something at once, in no particular order.
    busy: Vec<usize>,
    entries: Vec<Entry>,
    /// When to look at whom again; it may be for nothing.
    times: BTreeSet<(Duration, usize)>,
    /// How many are there.
    present: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    /// Where it stands among the busy ones.
    busy_at: Option<usize>,
    gone: bool,
}

impl Agenda {
    /// A peer comes; they count from 0.
    pub(super) fn add(&mut self, peer: &Peer, net: &Net) {
        self.entries.push(Entry::default());
        self.present += 1;
        self.update(self.entries.len() - 1, peer, net);
    }

    /// Something has happened to the peer, or it has done something.
    pub(super) fn update(&mut self, number: usize, peer: &Peer, net: &Net) {
        self.times.extend(peer.next_time(net).map(|at| (at, number)));
        let entry = &mut self.entries[number];
        if peer.done && !std::mem::replace(&mut entry.gone, true) {
            self.present -= 1;
        }
        match (entry.busy_at, peer.has_work(net)) {
            (None, true) => {
                entry.busy_at = Some(self.busy.len());
                self.busy.push(number);
            }
            (Some(at), false) => {
                entry.busy_at = None;
                self.busy.swap_remove(at);
                if let Some(&moved) = self.busy.get(at) {
                    self.entries[moved].busy_at = Some(at);
                }
            }
            _ => {}
        }
    }

    /// Who has something to do.
    pub(super) fn busy(&self) -> &[usize] {
        &self.busy
    }

    /// How many peers are there.
    pub(super) fn present(&self) -> usize {
        self.present
    }

    /// Takes somebody who is to be looked at again by now.
    pub(super) fn take(&mut self, now: Duration) -> Option<usize> {
        self.times.first().filter(|time| time.0 <= now)?;
        self.times.pop_first().map(|(_, number)| number)
    }

    /// When somebody will have something to do.
    pub(super) fn next_time(&self) -> Option<Duration> {
        self.times.first().map(|time| time.0)
    }
}
