//! A native client that goes from room to room, and checks every promise that it can see.
//!
//! It joins a room, publishes, leaves, joins another; now and then it says something to the next of
//! its kind, and closes and connects again. Everything happens on one thread and a blocking socket:
//! while it pauses, in the middle of what it publishes, it does not read, so what comes meanwhile
//! waits. Those that pause for long fall behind, in a room that lets slow consumers skip.
//!
//! What it holds the server to: after `joined` with offset N come N + 1, N + 2 and so on, each
//! once; where one is missing a `skipped` has named it before; an acknowledged message has the
//! offset that the acknowledgement says, and arrives; direct messages of one sender come in order;
//! nothing comes after `left`.
//!
//! Source: "The native protocol" in README.md.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tungstenite::protocol::frame::coding::{Control, OpCode};

use crate::cli::Target;
use crate::random::Xorshift;
use crate::wire::{self, ClientError, Upgrade};

/// How long the server may be silent when something is owed.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// Visits of rooms on one connection.
const VISITS: u32 = 10;

/// How it behaves.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// The rooms it goes to are these words and a number below [`Habits::rooms`].
    pub prefix: &'static str,
    /// How many; one has no number.
    pub rooms: u32,
    /// Messages in each visit.
    pub publishes: u32,
    /// About how long it pauses in the middle of each.
    pub pause: Duration,
    /// Whether the room lets slow consumers skip; its receive buffer is small then.
    pub skips: bool,
}

/// What it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Connections.
    pub connections: u64,
    /// Rooms joined and left.
    pub visits: u64,
    /// Messages published and acknowledged.
    pub published: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Messages that it was told to have skipped.
    pub skipped: u64,
    /// Direct messages that arrived.
    pub directs: u64,
}

/// What the native protocol may say.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Message {
    Joined { room_id: String, offset: u64 },
    Left { room_id: String },
    Broadcast { room_id: String, sender: String, offset: u64, content: Value },
    Skipped { room_id: String, from: u64, to: u64 },
    Ack { id: u64, offset: Option<u64>, delivered: Option<u64> },
    Direct { sender: String, content: u64 },
    Error { code: String, message: String },
    System { event: String },
}

/// A room that it is in.
#[derive(Debug, Default)]
struct Visit {
    room_id: String,
    /// The offset of the next message, once it has joined.
    next: Option<u64>,
    /// The last offset that was skipped.
    skipped_to: u64,
    /// Its own messages by offset that are acknowledged and have not arrived, or the other way
    /// round: what each said.
    own: HashMap<u64, u64>,
}

/// See the module documentation.
struct Wanderer<'w> {
    target: &'w Target,
    habits: Habits,
    name: String,
    /// To whom it sends direct messages.
    next_name: String,
    stream: TcpStream,
    input: Vec<u8>,
    random: Xorshift,
    visit: Option<Visit>,
    /// Messages that are to be acknowledged.
    unacknowledged: u32,
    /// The number of the last message, of any kind.
    number: u64,
    /// The last number that each sender of direct messages has said.
    heard: HashMap<String, u64>,
    tally: Tally,
}

/// Wanders as number `number` of `count` until it is over, and says what it did.
///
/// # Errors
/// [`ClientError`], with the name of who had it.
pub fn wander(
    target: &Target,
    habits: Habits,
    number: u32,
    count: u32,
    over: &AtomicBool,
) -> Result<Tally, String> {
    let name = |number: u32| format!("{}{}", habits.prefix, number % count);
    let wander = || {
        let mut wanderer = Wanderer::connect(target, habits, name(number), name(number + 1))?;
        wanderer.random = Xorshift::new(number);
        while !over.load(Ordering::Relaxed) {
            for _ in 0..VISITS {
                wanderer.visit(over)?;
            }
            wanderer.close()?;
            wanderer.reconnect()?;
        }
        wanderer.close()?;
        Ok(wanderer.tally)
    };
    wander().map_err(|error: ClientError| format!("{}: {error}", name(number)))
}

impl<'w> Wanderer<'w> {
    fn connect(
        target: &'w Target,
        habits: Habits,
        name: String,
        next_name: String,
    ) -> Result<Self, ClientError> {
        let mut wanderer = Self {
            stream: connect(target, habits)?,
            target,
            habits,
            name,
            next_name,
            input: Vec::new(),
            random: Xorshift::new(0),
            visit: None,
            unacknowledged: 0,
            number: 0,
            heard: HashMap::new(),
            tally: Tally::default(),
        };
        wanderer.open()?;
        Ok(wanderer)
    }

    fn reconnect(&mut self) -> Result<(), ClientError> {
        self.stream = connect(self.target, self.habits)?;
        self.open()
    }

    /// The opening handshake.
    fn open(&mut self) -> Result<(), ClientError> {
        let upgrade = Upgrade { host: self.target.host.clone(), subprotocol: None };
        let opening = upgrade.open("/ws").map_err(Box::new)?;
        self.stream.write_all(&opening.request)?;
        self.input.clear();
        loop {
            if let Some(len) = wire::read_response(&self.input, &opening.accept)? {
                self.input.drain(..len);
                self.tally.connections += 1;
                return Ok(());
            }
            self.read()?;
        }
    }

    /// Joins a room, publishes, waits for all that it is owed, and leaves.
    fn visit(&mut self, over: &AtomicBool) -> Result<(), ClientError> {
        let room_id = match self.habits.rooms {
            1 => self.habits.prefix.to_owned(),
            rooms => format!("{}{}", self.habits.prefix, self.random.draw() % rooms),
        };
        self.visit = Some(Visit { room_id: room_id.clone(), ..Visit::default() });
        self.send(&json!({"type": "join", "room_id": room_id, "user_id": self.name}))?;
        self.until(|wanderer| wanderer.visit.as_ref().is_some_and(|visit| visit.next.is_some()))?;
        for _ in 0..self.habits.publishes {
            if over.load(Ordering::Relaxed) {
                break;
            }
            // From half of it to one and a half, so that no two keep step.
            let part = f64::from(self.random.draw()) / f64::from(u32::MAX);
            let pause = self.habits.pause.mul_f64(0.5 + part);
            let (id, to) = (self.number + 1, self.next_name.clone());
            self.number += 2;
            self.unacknowledged += 2;
            let message = json!({"type": "broadcast", "room_id": room_id, "content": id, "id": id});
            let message = self.frame(&message);
            // Cut anywhere: meanwhile the server keeps the incomplete message.
            let (first, rest) = message.split_at(1 + self.random.draw() as usize % message.len());
            self.stream.write_all(first)?;
            thread::sleep(pause);
            self.stream.write_all(rest)?;
            let direct = id + 1;
            self.send(&json!({"type": "direct", "user_id": to, "content": direct, "id": direct}))?;
            self.until(|wanderer| wanderer.unacknowledged == 0)?;
        }
        // Acknowledged is delivered to a member that reads, or was skipped with a notice.
        self.until(|wanderer| wanderer.visit.as_ref().is_some_and(|visit| visit.own.is_empty()))?;
        self.send(&json!({"type": "leave", "room_id": room_id}))?;
        self.until(|wanderer| wanderer.visit.is_none())?;
        self.tally.visits += 1;
        Ok(())
    }

    /// A closing handshake.
    fn close(&mut self) -> Result<(), ClientError> {
        let mut close = Vec::new();
        wire::write_close(self.random.draw().to_ne_bytes(), &mut close);
        self.stream.write_all(&close)?;
        while !self.handle_frames()? {
            self.read()?;
        }
        Ok(())
    }

    fn frame(&mut self, message: &Value) -> Vec<u8> {
        let mut frame = Vec::new();
        wire::write_text(message.to_string(), self.random.draw().to_ne_bytes(), &mut frame);
        frame
    }

    fn send(&mut self, message: &Value) -> io::Result<()> {
        let frame = self.frame(message);
        self.stream.write_all(&frame)
    }

    /// Reads until something is so.
    fn until(&mut self, is_so: impl Fn(&Self) -> bool) -> Result<(), ClientError> {
        loop {
            if self.handle_frames()? {
                return Err(broken("the server closes the connection"));
            }
            if is_so(self) {
                return Ok(());
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> Result<(), ClientError> {
        let mut more = [0; 16 << 10];
        match self.stream.read(&mut more)? {
            0 => Err(broken("the server ends the stream without a close")),
            len => {
                self.input.extend_from_slice(&more[..len]);
                Ok(())
            }
        }
    }

    /// Handles all frames that are here; whether one was a close.
    fn handle_frames(&mut self) -> Result<bool, ClientError> {
        let input = std::mem::take(&mut self.input);
        let (mut used, mut closed) = (0, false);
        while let Some(frame) = wire::read_frame(&input[used..])? {
            used += frame.len;
            match frame.opcode {
                OpCode::Control(Control::Close) => closed = true,
                OpCode::Control(Control::Ping) => {
                    let mut pong = Vec::new();
                    let key = self.random.draw().to_ne_bytes();
                    wire::write_pong(frame.payload, key, &mut pong);
                    self.stream.write_all(&pong)?;
                }
                OpCode::Control(_) => {}
                OpCode::Data(_) => self.handle(frame.payload)?,
            }
        }
        self.input = input[used..].to_vec();
        Ok(closed)
    }

    fn handle(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        let unexpected = || broken(format!("unexpected: {}", String::from_utf8_lossy(payload)));
        let message = serde_json::from_slice(payload).map_err(|_| unexpected())?;
        match message {
            Message::Joined { room_id, offset } => {
                let visit = self.visit.as_mut().filter(|visit| visit.room_id == room_id);
                visit.ok_or_else(unexpected)?.next = Some(offset + 1);
            }
            Message::Left { room_id } => {
                self.visit.take_if(|visit| visit.room_id == room_id).ok_or_else(unexpected)?;
            }
            Message::Broadcast { room_id, sender, offset, content } => {
                let own = (sender == self.name).then(|| content.as_u64()).flatten();
                let visit = self.visit.as_mut().filter(|visit| visit.room_id == room_id);
                visit.ok_or_else(unexpected)?.delivered(offset, own)?;
                self.tally.delivered += 1;
            }
            Message::Skipped { room_id, from, to } => {
                let skips = self.habits.skips;
                let visit = self.visit.as_mut().filter(|visit| skips && visit.room_id == room_id);
                self.tally.skipped += visit.ok_or_else(unexpected)?.skipped(from, to)?;
            }
            Message::Ack { id, offset, delivered } => {
                self.unacknowledged = self.unacknowledged.checked_sub(1).ok_or_else(unexpected)?;
                match (offset, delivered, &mut self.visit) {
                    (Some(offset), None, Some(visit)) => {
                        visit.acknowledged(offset, id)?;
                        self.tally.published += 1;
                    }
                    (None, Some(_), _) => {}
                    _ => return Err(unexpected()),
                }
            }
            Message::Direct { sender, content } => {
                let last = self.heard.insert(sender.clone(), content).unwrap_or(0);
                if content <= last {
                    let text = format!("direct message {content} of {sender} after {last}");
                    return Err(broken(text));
                }
                self.tally.directs += 1;
            }
            Message::Error { code, message } => {
                return Err(broken(format!("refused: {code}, {message}")));
            }
            Message::System { event } => return Err(broken(format!("the server is {event}"))),
        }
        Ok(())
    }
}

impl Visit {
    /// A message has arrived, with what it says if it is our own.
    fn delivered(&mut self, offset: u64, own: Option<u64>) -> Result<(), ClientError> {
        if self.next != Some(offset) {
            let Self { room_id, next, .. } = self;
            return Err(broken(format!("{room_id}: offset {offset} came where {next:?} is next")));
        }
        self.next = Some(offset + 1);
        own.map_or(Ok(()), |number| self.pair(offset, number))
    }

    /// Messages are missing, and named; how many.
    fn skipped(&mut self, from: u64, to: u64) -> Result<u64, ClientError> {
        if self.next != Some(from) || to < from {
            let Self { room_id, next, .. } = self;
            return Err(broken(format!(
                "{room_id}: {from} to {to} skipped where {next:?} is next"
            )));
        }
        self.next = Some(to + 1);
        self.skipped_to = to;
        self.own.retain(|offset, _| *offset > to);
        Ok(to - from + 1)
    }

    /// Our message `number` has been given this offset.
    fn acknowledged(&mut self, offset: u64, number: u64) -> Result<(), ClientError> {
        if offset <= self.skipped_to {
            return Ok(());
        }
        self.pair(offset, number)
    }

    /// An acknowledgement and a delivery belong together, whichever comes first.
    fn pair(&mut self, offset: u64, number: u64) -> Result<(), ClientError> {
        match self.own.remove(&offset) {
            Some(other) if other != number => {
                let text = format!("{}: {number} and {other} have offset {offset}", self.room_id);
                Err(broken(text))
            }
            Some(_) => Ok(()),
            None => {
                self.own.insert(offset, number);
                Ok(())
            }
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.visits += other.visits;
        self.published += other.published;
        self.delivered += other.delivered;
        self.skipped += other.skipped;
        self.directs += other.directs;
    }
}

fn connect(target: &Target, habits: Habits) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target.address), Type::STREAM, None)?;
    if habits.skips {
        // Before the connect, which offers the window that follows from it.
        socket.set_recv_buffer_size(SMALL_BUFFER_BYTES)?;
    }
    socket.connect(&target.address.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(SILENT_MAX))?;
    Ok(socket.into())
}

/// SO_RCVBUF of who is to fall behind; the kernel doubles it.
const SMALL_BUFFER_BYTES: usize = 4096;

fn broken(text: impl Into<String>) -> ClientError {
    ClientError::Broken(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a visit that has joined at offset 10 says of what happens to it.
    fn check(happens: &[(&str, u64, u64)]) -> Result<(u64, usize), String> {
        let mut visit = Visit { next: Some(11), ..Visit::default() };
        let mut skipped = 0;
        for &(what, first, second) in happens {
            let result = match what {
                "heard" => visit.delivered(first, None),
                "own" => visit.delivered(first, Some(second)),
                "ack" => visit.acknowledged(first, second),
                _ => visit.skipped(first, second).map(|count| skipped += count),
            };
            result.map_err(|error| format!("{what} {first} {second}: {error}"))?;
        }
        Ok((skipped, visit.own.len()))
    }

    #[test]
    fn order_gaps_and_duplicates_are_noticed() {
        assert_eq!(check(&[("heard", 11, 0), ("heard", 12, 0)]), Ok((0, 0)));
        assert_eq!(check(&[("skip", 11, 19), ("heard", 20, 0)]), Ok((9, 0)));
        for broken in [
            &[("heard", 10, 0)][..],
            &[("heard", 12, 0)],
            &[("heard", 11, 0), ("heard", 11, 0)],
            &[("skip", 12, 13)],
            &[("skip", 11, 10)],
            &[("skip", 11, 13), ("heard", 13, 0)],
            &[("heard", 11, 0), ("skip", 11, 13)],
        ] {
            assert!(check(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn an_acknowledged_message_must_arrive_as_itself() {
        assert_eq!(check(&[("own", 11, 1), ("ack", 11, 1)]), Ok((0, 0)));
        assert_eq!(check(&[("ack", 12, 1), ("heard", 11, 0), ("own", 12, 1)]), Ok((0, 0)));
        assert_eq!(check(&[("ack", 11, 1)]), Ok((0, 1)), "owed");
        assert!(check(&[("ack", 11, 1), ("own", 11, 2)]).is_err());
        // Skipped with a notice is not owed, whichever of the two comes first.
        assert_eq!(check(&[("ack", 12, 1), ("skip", 11, 12)]), Ok((2, 0)));
        assert_eq!(check(&[("skip", 11, 12), ("ack", 12, 1)]), Ok((2, 0)));
    }
}
