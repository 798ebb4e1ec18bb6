//! The one member of the room: reads every delivery on a thread of its own, and checks it.
//!
//! It can publish, too: whoever publishes over a WebSocket is a member. The thread reads while the
//! other side writes, so neither can wait for the other forever.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;
use tungstenite::protocol::frame::coding::{Control, OpCode};

use crate::cli::Target;
use crate::random::Xorshift;
use crate::sequence::{Arrival, Streams};
use crate::template::Stamp;
use crate::wire::{self, ClientError, Upgrade};

/// Where the server speaks its native protocol.
const PATH: &str = "/ws";
/// How an error begins there.
const ERROR: &[u8] = br#"{"type":"error""#;
/// How long the server may stand still.
const STILL_MAX: Duration = Duration::from_secs(30);

/// What the member has heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// Messages that arrived for the first time.
    pub delivered: u64,
    /// Deliveries that came again.
    pub duplicated: u64,
    /// Deliveries that came after a later one.
    pub reordered: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Member {
    stream: TcpStream,
    /// Gone when it has failed.
    reader: Option<JoinHandle<Result<Heard, ClientError>>>,
    /// How many messages have arrived, whenever some have; at first 0, when it has joined.
    progress: Receiver<u64>,
    random: Xorshift,
}

impl Member {
    /// Connects, and joins the room `room_id`.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn join(target: &Target, room_id: &str) -> Result<Self, ClientError> {
        let mut stream = TcpStream::connect(target.address)?;
        stream.set_nodelay(true)?;
        let upgrade = Upgrade { host: target.host.clone(), subprotocol: None };
        let opening = upgrade.open(PATH).map_err(Box::new)?;
        stream.write_all(&opening.request)?;
        let (sender, progress) = channel();
        let own = stream.try_clone()?;
        let reader = thread::spawn(move || read(own, &opening.accept, &sender));
        let mut member = Self { stream, reader: Some(reader), progress, random: Xorshift::new(0) };
        let join = json!({"type": "join", "room_id": room_id});
        member.send([join.to_string()].into_iter())?;
        member.wait(0)?;
        Ok(member)
    }

    /// Publishes `contents` into a room, all in one write.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn publish(&mut self, room_id: &str, contents: &[String]) -> Result<(), ClientError> {
        let message =
            |content| json!({"type": "broadcast", "room_id": room_id, "content": content});
        self.send(contents.iter().map(|content| message(content).to_string()))
    }

    fn send(&mut self, messages: impl Iterator<Item = String>) -> Result<(), ClientError> {
        let mut output = Vec::new();
        for message in messages {
            wire::write_text(message, self.random.draw().to_ne_bytes(), &mut output);
        }
        Ok(self.stream.write_all(&output)?)
    }

    /// Waits until `count` messages have arrived since it joined.
    ///
    /// # Errors
    /// [`ClientError`], of its thread if that has ended.
    pub fn wait(&mut self, count: u64) -> Result<(), ClientError> {
        let (mut delivered, mut since) = (None, Instant::now());
        while delivered.is_none_or(|delivered| delivered < count) {
            let left = STILL_MAX.saturating_sub(since.elapsed());
            match self.progress.recv_timeout(left) {
                Ok(now) => (delivered, since) = (Some(now), Instant::now()),
                Err(error) => {
                    if error == RecvTimeoutError::Disconnected {
                        self.end()?;
                    }
                    let missing = count - delivered.unwrap_or(0);
                    return Err(ClientError::Broken(format!("{missing} deliveries never came")));
                }
            }
        }
        Ok(())
    }

    /// Leaves, and says what it has heard, to the last message that was on its way.
    ///
    /// # Errors
    /// What its thread failed with.
    pub fn leave(mut self) -> Result<Heard, ClientError> {
        let mut close = Vec::new();
        wire::write_close(self.random.draw().to_ne_bytes(), &mut close);
        // Whether the server still reads it or not, the stream ends.
        let _ = self.stream.write_all(&close);
        let _ = self.stream.shutdown(Shutdown::Write);
        self.end()
    }

    /// Waits for the end of its thread.
    fn end(&mut self) -> Result<Heard, ClientError> {
        let ended = self.reader.take().map(JoinHandle::join);
        let ended = ended.transpose().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ended.unwrap_or_else(|| Ok(Heard::default()))
    }
}

/// Reads until the server closes.
fn read(mut stream: TcpStream, accept: &str, progress: &Sender<u64>) -> Result<Heard, ClientError> {
    stream.set_read_timeout(Some(STILL_MAX))?;
    let mut input = Vec::new();
    let mut streams = Streams::new(1);
    let (mut heard, mut upgraded, mut joined) = (Heard::default(), false, false);
    loop {
        let mut more = [0; 64 << 10];
        match stream.read(&mut more)? {
            0 => return Ok(heard),
            len => input.extend_from_slice(&more[..len]),
        }
        let mut used = 0;
        if !upgraded {
            let Some(len) = wire::read_response(&input, accept)? else { continue };
            (used, upgraded) = (len, true);
        }
        while let Some(frame) = wire::read_frame(&input[used..])? {
            match (frame.opcode, Stamp::find(frame.payload)) {
                (OpCode::Control(Control::Close), _) => return Ok(heard),
                (OpCode::Data(_), Some(stamp)) => heard.count(&mut streams, stamp),
                // The answer to the join, or a refusal.
                (OpCode::Data(_), None) if frame.payload.starts_with(ERROR) => {
                    let text = String::from_utf8_lossy(frame.payload).into_owned();
                    return Err(ClientError::Broken(format!("the server says {text}")));
                }
                (OpCode::Data(_), None) => joined = true,
                (OpCode::Control(_), _) => {}
            }
            used += frame.len;
        }
        input.drain(..used);
        // Nobody listens any more after an error.
        if joined {
            let _ = progress.send(heard.delivered);
        }
    }
}

impl Heard {
    fn count(&mut self, streams: &mut Streams, stamp: Stamp) {
        match streams.arrive(0, stamp.sequence) {
            Arrival::Duplicate => return self.duplicated += 1,
            Arrival::Reordered => self.reordered += 1,
            Arrival::InOrder => {}
        }
        self.delivered += 1;
    }
}
