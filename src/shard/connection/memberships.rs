//! The rooms of one connection, its place in each, and its names there.
//!
//! What most connections need is in a [`super::Connection`] itself: no room, or the one room of a
//! raw connection. A native connection has its list, in the order of the rooms' keys.

use std::rc::Rc;

use crate::slab::Key;

/// The rooms a connection is in: none, one without a name of its own, or many with names.
#[derive(Debug)]
pub enum Memberships {
    /// None.
    None,
    /// A raw connection's room.
    One {
        /// The room.
        room: Key,
        /// Index among the room's members.
        index: u32,
    },
    /// A native connection's rooms.
    Many(Box<Named>),
}

/// A native connection's rooms and name.
#[derive(Debug, Default)]
pub struct Named {
    /// In the order of their keys.
    rooms: Vec<Membership>,
    /// The display name that was given last; stays when the rooms are left.
    last_user_id: Option<Rc<str>>,
}

impl Named {
    /// Where `room` is, or would be.
    fn find(&self, room: Key) -> Result<usize, usize> {
        self.rooms.binary_search_by_key(&room.to_bits(), |membership| membership.room.to_bits())
    }
}

/// One of a native connection's rooms.
#[derive(Debug)]
pub struct Membership {
    /// The room.
    pub room: Key,
    /// Index among the room's members.
    pub index: u32,
    /// The display name in this room; `None`: anonymous.
    pub user_id: Option<Rc<str>>,
}

impl Memberships {
    /// How many rooms.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One { .. } => 1,
            Self::Many(named) => named.rooms.len(),
        }
    }

    /// Whether it is in none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rooms and the connection's index in each.
    pub fn iter(&self) -> impl Iterator<Item = (Key, u32)> {
        let (one, many) = match self {
            Self::None => (None, &[][..]),
            Self::One { room, index } => (Some((*room, *index)), &[][..]),
            Self::Many(named) => (None, named.rooms.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|membership| (membership.room, membership.index)))
    }

    /// The index among the members of `room`, if it is in it. Cost: logarithmic in the rooms of
    /// this connection.
    #[must_use]
    pub fn index_in(&self, room: Key) -> Option<u32> {
        match self {
            Self::None => None,
            Self::One { room: one, index } => (*one == room).then_some(*index),
            Self::Many(named) => named.find(room).ok().map(|at| named.rooms[at].index),
        }
    }

    /// The room of `room` with its display name, for native connections.
    #[must_use]
    pub fn named(&mut self, room: Key) -> Option<&mut Membership> {
        match self {
            Self::Many(named) => named.find(room).ok().map(|at| &mut named.rooms[at]),
            Self::None | Self::One { .. } => None,
        }
    }

    /// The display name that was given last.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Many(named) => named.last_user_id.as_deref(),
            Self::None | Self::One { .. } => None,
        }
    }

    /// The display name in `room`.
    #[must_use]
    pub fn user_in(&self, room: Key) -> Option<&str> {
        match self {
            Self::Many(named) => named.rooms[named.find(room).ok()?].user_id.as_deref(),
            Self::None | Self::One { .. } => None,
        }
    }

    /// Notes the display name if one is given, and returns the one that was given last.
    pub fn name(&mut self, user_id: Option<Rc<str>>) -> Option<Rc<str>> {
        match user_id {
            Some(user_id) => self.named_mut().last_user_id.insert(user_id).clone().into(),
            None => match self {
                Self::Many(named) => named.last_user_id.clone(),
                Self::None | Self::One { .. } => None,
            },
        }
    }

    /// Notes that the index in `room` has changed.
    pub fn moved(&mut self, room: Key, to: u32) {
        match self {
            Self::One { index, .. } => *index = to,
            Self::Many(_) => {
                if let Some(membership) = self.named(room) {
                    membership.index = to;
                }
            }
            Self::None => {}
        }
    }

    /// Adds a named room in which it is not yet.
    pub fn add(&mut self, membership: Membership) {
        let named = self.named_mut();
        if named.rooms.is_empty() {
            // Most are in one room; a vector that grows by itself begins with four places.
            named.rooms.reserve_exact(1);
        }
        let (Ok(at) | Err(at)) = named.find(membership.room);
        named.rooms.insert(at, membership);
    }

    fn named_mut(&mut self) -> &mut Named {
        if !matches!(self, Self::Many(_)) {
            *self = Self::Many(Box::default());
        }
        match self {
            Self::Many(named) => named,
            Self::None | Self::One { .. } => unreachable!("made above"),
        }
    }

    /// Takes `room` out. Returns the index among its members.
    pub fn remove(&mut self, room: Key) -> Option<u32> {
        match self {
            Self::Many(named) => {
                let at = named.find(room).ok()?;
                Some(named.rooms.remove(at).index)
            }
            Self::One { room: one, index } if *one == room => {
                let index = *index;
                *self = Self::None;
                Some(index)
            }
            Self::None | Self::One { .. } => None,
        }
    }
}
