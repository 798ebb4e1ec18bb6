//! Who is in which room, and who publishes into which.
//!
//! A *line* is what one publisher says in one room: messages that are numbered from 0 and arrive in
//! that order. There are two ways to publish:
//!
//! ```text
//! own room   the publishers are members like any other; line N is what publisher N says in the
//!            one room it is in
//! roaming    the publishers are members of many rooms, which are dealt to them like cards, and the
//!            connections after them of one room each; line N is what is said in room N
//! ```
//!
//! In both, a line is in the room `line % rooms` and of the publisher `line % publishers`; and the
//! numbers of the rooms that a connection is in, and of the lines it hears there, are those that
//! leave the same rest when divided by the same step. So nothing is stored per connection or room.

use std::iter::StepBy;
use std::ops::Range;

/// See the module documentation.
#[derive(Debug, Clone, Copy)]
pub struct Rooms {
    /// How many; at least one.
    pub count: u32,
    /// Publishers: the first connections. At least one, and no more than rooms if they roam.
    pub publishers: u32,
    /// Whether publishers are in many rooms.
    pub roaming: bool,
}

impl Rooms {
    /// The rooms that connection `number` is in; at least one.
    pub fn of(self, number: u32) -> StepBy<Range<u32>> {
        let (rest, step) = self.rest_and_step(number);
        (rest..self.count).step_by(step as usize)
    }

    /// How many lines there are.
    #[must_use]
    pub fn lines(self) -> u32 {
        if self.roaming { self.count } else { self.publishers }
    }

    /// The room of a line.
    #[must_use]
    pub fn room(self, line: u32) -> u32 {
        line % self.count
    }

    /// The publisher of a line.
    #[must_use]
    pub fn publisher(self, line: u32) -> u32 {
        line % self.publishers
    }

    /// The lines of a publisher; at least one.
    pub fn lines_of(self, publisher: u32) -> StepBy<Range<u32>> {
        (publisher..self.lines()).step_by(self.publishers as usize)
    }

    /// The lines that connection `number` hears.
    pub fn heard_by(self, number: u32) -> StepBy<Range<u32>> {
        let (rest, step) = self.rest_and_step(number);
        (rest..self.lines()).step_by(step as usize)
    }

    /// The place of `line` among those that connection `number` hears, if it is one of them.
    #[must_use]
    pub fn place(self, number: u32, line: u32) -> Option<u32> {
        let (rest, step) = self.rest_and_step(number);
        (line < self.lines() && line % step == rest).then_some(line / step)
    }

    /// See the module documentation.
    fn rest_and_step(self, number: u32) -> (u32, u32) {
        match number.checked_sub(self.publishers) {
            _ if !self.roaming => (number % self.count, self.count),
            Some(after) => (after % self.count, self.count),
            None => (number, self.publishers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hears_a_line_is_in_its_room() {
        for (count, publishers, roaming) in
            [(1, 1, false), (3, 7, false), (7, 3, false), (7, 3, true), (10, 4, true), (4, 4, true)]
        {
            let rooms = Rooms { count, publishers, roaming };
            for line in 0..rooms.lines() {
                let publisher = rooms.publisher(line);
                assert!(rooms.lines_of(publisher).any(|own| own == line), "{rooms:?} {line}");
                assert!(rooms.place(publisher, line).is_some(), "it hears itself: {rooms:?}");
            }
            for number in 0..30 {
                let heard: Vec<_> = rooms.heard_by(number).collect();
                for line in 0..rooms.lines() + 3 {
                    let in_room = rooms.of(number).any(|room| room == rooms.room(line));
                    let hears = in_room && line < rooms.lines();
                    assert_eq!(heard.contains(&line), hears, "{rooms:?} {number} {line}");
                    let place = heard.iter().position(|&heard| heard == line);
                    let found = rooms.place(number, line).map(|place| place as usize);
                    assert_eq!(found, place, "{rooms:?} {number} {line}");
                }
            }
        }
    }

    #[test]
    fn roaming_publishers_share_the_rooms_and_all_others_have_one() {
        let rooms = Rooms { count: 10, publishers: 4, roaming: true };
        let of = |number| rooms.of(number).collect::<Vec<_>>();
        assert_eq!((of(0), of(3)), (vec![0, 4, 8], vec![3, 7]));
        assert_eq!((of(4), of(13), of(14)), (vec![0], vec![9], vec![0]));
        let rooms = Rooms { roaming: false, ..rooms };
        let of = |number| rooms.of(number).collect::<Vec<_>>();
        assert_eq!((of(0), of(13)), (vec![0], vec![3]));
    }
}
