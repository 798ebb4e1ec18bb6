//! What must hold of direct messages: once to each connection of the user, in the order of their
//! sender, and counted.

use std::collections::{BTreeMap, BTreeSet};

/// One message to a user.
#[derive(Debug)]
struct Direct {
    from: usize,
    to: String,
    /// Exactly what must come.
    sender: String,
    content: String,
    /// How many peers had their names when it was handed in.
    at: usize,
    /// The peers that got it.
    seen: BTreeSet<usize>,
    /// What its sender was told.
    counted: Option<u64>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Directs {
    sent: Vec<Direct>,
    /// Peers and their names, in the order in which the server had taken note of them.
    users: Vec<(usize, String)>,
    /// Everybody who may ever have been known by a name.
    claims: Vec<(usize, String)>,
    /// The last message of each sender that came to each peer.
    last: BTreeMap<(usize, usize), usize>,
    pub(super) delivered: u64,
}

impl Directs {
    /// The peer says who it is.
    pub(super) fn claim(&mut self, peer: usize, name: &str) {
        self.claims.push((peer, name.to_owned()));
    }

    /// The server knows who the peer is.
    pub(super) fn know(&mut self, peer: usize, name: &str) {
        if self.users.iter().all(|user| user.0 != peer) {
            self.users.push((peer, name.to_owned()));
        }
    }

    /// A peer sends a message; `content` makes it of its number.
    pub(super) fn send(
        &mut self,
        from: usize,
        sender: &str,
        to: &str,
        content: impl FnOnce(usize) -> String,
    ) -> (usize, &str) {
        let number = self.sent.len();
        self.sent.push(Direct {
            from,
            to: to.to_owned(),
            sender: sender.to_owned(),
            content: content(number),
            at: self.users.len(),
            seen: BTreeSet::new(),
            counted: None,
        });
        (number, &self.sent[number].content)
    }

    /// A message comes to a peer called `name`.
    pub(super) fn deliver(
        &mut self,
        peer: usize,
        name: Option<&str>,
        number: usize,
        sender: &str,
        content: &str,
    ) {
        let direct = self.sent.get_mut(number).expect("delivers what nobody sent");
        assert_eq!(name, Some(direct.to.as_str()), "direct {number} comes to the wrong user");
        assert_eq!((sender, content), (direct.sender.as_str(), direct.content.as_str()));
        assert!(direct.seen.insert(peer), "direct {number} comes twice to {peer}");
        let before = self.last.insert((peer, direct.from), number);
        assert!(before < Some(number), "direct {number} comes behind {before:?} to {peer}");
        self.delivered += 1;
    }

    /// Its sender is told how many got it.
    pub(super) fn acknowledge(&mut self, number: usize, count: u64) {
        let counted = self.sent[number].counted.replace(count);
        assert_eq!(counted, None, "direct {number} is acknowledged twice");
    }

    /// All is quiet. `intact` says who is connected and got everything through.
    pub(super) fn check(&self, intact: impl Fn(usize) -> bool) {
        for (number, direct) in self.sent.iter().enumerate() {
            let certain = direct.counted.is_some() || intact(direct.from);
            for (peer, _) in self.users[..direct.at].iter().filter(|user| user.1 == direct.to) {
                let missed = certain && intact(*peer) && !direct.seen.contains(peer);
                assert!(!missed, "direct {number} never came to {peer}");
            }
            let Some(counted) = direct.counted else { continue };
            let seen = direct.seen.len() as u64;
            let claims = self.claims.iter().filter(|claim| claim.1 == direct.to);
            let gone: BTreeSet<usize> = claims
                .map(|claim| claim.0)
                .filter(|peer| !intact(*peer) && !direct.seen.contains(peer))
                .collect();
            assert!(
                (seen..=seen + gone.len() as u64).contains(&counted),
                "direct {number}: {counted} are counted, {seen} have it, {gone:?} may"
            );
        }
    }
}
