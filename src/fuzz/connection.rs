//! Clients of every dialect at shards without a kernel: whatever they send, what they are sent is
//! well-formed and in order, and when they have gone nothing is left of them. The first byte of the
//! input says how the server is set up: see [`Setting`].

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use bytes::BytesMut;
use serde_json::{Value, json};

use super::token::sign;
use super::wire::{Client, Wires};
use crate::auth::{Expected, Verifier};
use crate::config::{
    Limits, Policies, Policy, ProxyProtocol, SlowConsumer, TrustedProxies, TrustedProxy,
};
use crate::protocol::{FrameHeader, Opcode, parse_close, unmask};
use crate::shard::Residue;

/// What happens, in order.
#[derive(Debug, Arbitrary)]
struct Script {
    setting: Setting,
    steps: Vec<Step>,
}

/// How the server is set up: in bit 0 whether it has two shards, in bits 1 and 2 the policy of its
/// rooms, in bit 3 whether it wants tokens, in bits 4 and 5 the PROXY protocol.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Setting(u8);

#[derive(Debug, Arbitrary)]
enum Step {
    Connect(Opening),
    /// The client of that number, of those there are, sends something.
    Send(u8, Vec<Said>),
    Finish(u8),
    Reset(u8),
    /// Its socket takes so many more bytes.
    MakeSpace(u8, u16),
    Pass(u16),
}

#[derive(Debug, Arbitrary)]
struct Opening {
    path: Path,
    /// Its socket takes so many bytes at first; any number, if nothing is said.
    space: Option<u8>,
    /// Bytes that are received together; as many as can be, if nothing is said.
    piece: Option<u8>,
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Path {
    Native,
    Raw(Room),
    Echo,
    Page,
    /// A request that is written by hand.
    Other(Vec<u8>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Room {
    Lobby,
    Other,
    Third,
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Said {
    Join(Room, Option<User>),
    Leave(Room),
    Broadcast(Room, Content, bool),
    Direct(User, Content),
    Ping(u8),
    Auth,
    /// The fields of a message, some of which may be missing.
    Text(String),
    Binary(Vec<u8>),
    /// A message in parts, with a ping between them.
    Parts(Vec<u8>, u8),
    Control(u8, Vec<u8>),
    Close(u16, String),
    /// Not even a frame.
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum User {
    Alice,
    Bob,
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Content {
    Number(u32),
    Text(String),
    Long(u16),
}

/// Plays the script that is drawn from `data`.
///
/// # Panics
/// When a client is sent what it must not be, when a client that is alone is answered otherwise for
/// its bytes coming in other pieces, or when something is left at the end.
pub fn connection(data: &[u8]) {
    let Ok(script) = Script::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let transcripts = script.play(None);
    if script.is_timeless() {
        let one_by_one = script.play(Some(1));
        for (whole, pieces) in transcripts.iter().zip(&one_by_one) {
            assert_eq!(whole, pieces, "whole, and byte by byte");
        }
    }
}

impl Script {
    /// Whether what happens depends on nothing but what one client sends. (A request that is wrong
    /// in the middle of a line may be seen to be so at the end of the line only.)
    fn is_timeless(&self) -> bool {
        let connects = |step: &&Step| matches!(step, Step::Connect(_));
        let depends = |step: &Step| match step {
            Step::Connect(Opening { path: Path::Other(_), .. }) => true,
            Step::Connect(opening) => opening.space.is_some(),
            Step::Send(..) | Step::Finish(_) => false,
            Step::Reset(_) | Step::MakeSpace(..) | Step::Pass(_) => true,
        };
        self.steps.iter().filter(connects).count() == 1 && !self.steps.iter().any(depends)
    }

    /// What each client was sent. With `piece`, all clients' bytes are cut into so many.
    fn play(&self, piece: Option<usize>) -> Vec<Transcript> {
        let shards = self.setting.shards();
        let (mut wires, _control) = Wires::new(shards, &self.setting.limits());
        let mut clients: Vec<(Client, &Opening)> = Vec::new();
        for step in self.steps.iter().take(STEPS_MAX) {
            let of = |number: &u8| clients.get(usize::from(*number) % clients.len().max(1));
            match step {
                Step::Connect(opening) => {
                    let space = opening.space.map_or(usize::MAX, usize::from);
                    let number = clients.len();
                    let client = wires.connect(number % shards, space);
                    clients.push((client, opening));
                    let request = self.setting.request(&opening.path, number);
                    wires.send(client, &request, opening.piece(piece));
                }
                Step::Send(number, said) => {
                    let Some((client, opening)) = of(number) else { continue };
                    let mut bytes = BytesMut::new();
                    let token = self.setting.token(0).unwrap_or("a.b.c");
                    said.iter().for_each(|said| said.put(token, &mut bytes));
                    wires.send(*client, &bytes, opening.piece(piece));
                }
                Step::Finish(number) => of(number).into_iter().for_each(|(c, _)| wires.finish(*c)),
                Step::Reset(number) => of(number).into_iter().for_each(|(c, _)| wires.reset(*c)),
                Step::MakeSpace(number, bytes) => {
                    let Some((client, _)) = of(number) else { continue };
                    wires.make_space(*client, usize::from(*bytes));
                }
                Step::Pass(ms) => wires.pass(Duration::from_millis(u64::from(*ms))),
            }
            wires.settle();
        }
        // Mailboxes that were full are looked into again, and what is owed is sent.
        clients.iter().for_each(|(client, _)| wires.make_space(*client, usize::MAX));
        wires.pass(Duration::from_millis(10));
        let read = |(client, opening): &(Client, &Opening)| {
            let (bytes, _) = wires.received(*client);
            Transcript::read(&bytes, &opening.path, self.setting.rules())
        };
        let transcripts = clients.iter().map(read).collect();
        clients.iter().for_each(|(client, _)| wires.finish(*client));
        wires.pass(Duration::from_secs(120));
        for residue in wires.residues() {
            assert_eq!(residue, Residue::default(), "something is left");
        }
        transcripts
    }
}

/// A script that is longer takes long and reaches no further.
const STEPS_MAX: usize = 64;

impl Setting {
    const fn shards(self) -> usize {
        1 + (self.0 & 1) as usize
    }

    /// The policy of every room but the default, which nobody here is slow enough for.
    const fn policy(self) -> Option<SlowConsumer> {
        match self.0 >> 1 & 3 {
            0 => None,
            1 => Some(SlowConsumer::SkipToNewest),
            2 => Some(SlowConsumer::DropOldest),
            _ => Some(SlowConsumer::Disconnect),
        }
    }

    const fn wants_tokens(self) -> bool {
        self.0 >> 3 & 1 == 1
    }

    const fn proxy_protocol(self) -> ProxyProtocol {
        match self.0 >> 4 & 3 {
            0 | 1 => ProxyProtocol::Off,
            2 => ProxyProtocol::Optional,
            _ => ProxyProtocol::Required,
        }
    }

    /// What clients may be sent only so.
    fn rules(self) -> Rules {
        let skips =
            matches!(self.policy(), Some(SlowConsumer::SkipToNewest | SlowConsumer::DropOldest));
        Rules { skips, wants_tokens: self.wants_tokens() }
    }

    fn limits(self) -> Limits {
        let mut limits = limits();
        if let Some(slow_consumer) = self.policy() {
            let age_max =
                (slow_consumer == SlowConsumer::DropOldest).then_some(Duration::from_secs(1));
            let default = Policy { slow_consumer, high_water_mark: 1024, age_max };
            limits.policies = Policies { rules: Vec::new(), default };
        }
        if self.wants_tokens() {
            static VERIFIER: LazyLock<Arc<Verifier>> =
                LazyLock::new(|| Arc::new(super::token::verifier(Expected::default())));
            limits.verifier = Some(Arc::clone(&VERIFIER));
        }
        limits.proxy_protocol = self.proxy_protocol();
        if limits.proxy_protocol != ProxyProtocol::Off {
            let here = "192.0.2.0/24".parse().expect("a network");
            limits.trusted_proxies = TrustedProxies::new(&[TrustedProxy::Network(here)]);
            limits.connections_per_address_max = Some(2);
        }
        limits
    }

    /// The token of the client of that number: one that may do everything, one that may only join
    /// rooms, one that is soon over, or none.
    fn token(self, number: usize) -> Option<&'static str> {
        static TOKENS: LazyLock<[String; 3]> = LazyLock::new(|| {
            let token = |sub: &str, seconds: u64, publish: bool| {
                let rooms = json!([{"pattern": "*", "join": true, "publish": publish}]);
                let exp = super::token::NOW + seconds;
                sign(&json!({"sub": sub, "exp": exp, "direct": publish, "rooms": rooms}))
            };
            [token("alice", 600, true), token(READER, 600, false), token("bob\\", 5, true)]
        });
        let token = self.wants_tokens().then(|| TOKENS.get(number % 4));
        token.flatten().map(String::as_str)
    }

    /// What the client of that number begins with: behind what a proxy says before it, and with
    /// its token.
    fn request(self, path: &Path, number: usize) -> Vec<u8> {
        let mut request = path.request();
        if matches!(path, Path::Other(_)) {
            return request;
        }
        if let Some(token) = self.token(number) {
            request.truncate(request.len() - 2);
            request.extend_from_slice(format!("Authorization: Bearer {token}\r\n\r\n").as_bytes());
        }
        if self.proxy_protocol() != ProxyProtocol::Off {
            let header: &[u8] = match number % 3 {
                0 => b"PROXY TCP4 198.51.100.7 203.0.113.1 56324 443\r\n",
                1 => {
                    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\xcb\0\x71\x01\0\x05\0\x06"
                }
                _ => b"",
            };
            request.splice(..0, header.iter().copied());
        }
        request
    }
}

/// Who may not publish.
const READER: &str = "reader";

/// Small, so that they are met.
fn limits() -> Limits {
    static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
        echo: true,
        rooms_per_connection_max: 2,
        rooms_max: 4,
        ws_message_bytes_max: 300,
        raw_message_bytes_max: 300,
        echo_message_bytes_max: 500,
        partial_bytes_max: 1024,
        handshake_bytes_max: 512,
        target_bytes_max: 128,
        mailbox_len_max: 16,
        ..Limits::default()
    });
    LIMITS.clone()
}

impl Opening {
    fn piece(&self, piece: Option<usize>) -> usize {
        piece.or(self.piece.map(usize::from)).unwrap_or(usize::MAX)
    }
}

impl Room {
    const fn name(self) -> &'static str {
        match self {
            Self::Lobby => "lobby",
            Self::Other => "é",
            Self::Third => "a\"b",
        }
    }
}

impl User {
    const fn name(self) -> &'static str {
        match self {
            Self::Alice => "alice",
            Self::Bob => "bob\\",
        }
    }
}

impl Path {
    pub(crate) fn request(&self) -> Vec<u8> {
        let path = match self {
            Self::Native => "/ws",
            Self::Raw(Room::Lobby) => "/raw/lobby",
            Self::Raw(Room::Other) => "/raw/%C3%A9",
            Self::Raw(Room::Third) => "/raw/a%22b",
            Self::Echo => "/echo",
            Self::Page => "/",
            Self::Other(request) => return request.clone(),
        };
        format!(
            "GET {path} HTTP/1.1\r\nHost: fuzz\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .into_bytes()
    }
}

impl Said {
    /// Writes it; what a client proves who it is with is `token`.
    pub(crate) fn put(&self, token: &str, out: &mut BytesMut) {
        let text = |value: Value, out: &mut BytesMut| {
            frame(true, Opcode::Text, value.to_string().as_bytes(), out);
        };
        match self {
            Self::Join(room, user) => {
                let user = user.map(User::name);
                text(json!({"type": "join", "room_id": room.name(), "user_id": user}), out);
            }
            Self::Leave(room) => text(json!({"type": "leave", "room_id": room.name()}), out),
            Self::Broadcast(room, content, acknowledged) => {
                let mut message = json!({"type": "broadcast", "room_id": room.name()});
                message["content"] = content.value();
                if *acknowledged {
                    message["id"] = json!("é\n");
                }
                text(message, out);
            }
            Self::Direct(user, content) => {
                let user = user.name();
                let content = content.value();
                text(json!({"type": "direct", "user_id": user, "content": content, "id": 1}), out);
            }
            Self::Ping(id) => text(json!({"type": "ping", "id": id}), out),
            Self::Auth => text(json!({"type": "auth", "token": token}), out),
            Self::Text(text) => frame(true, Opcode::Text, text.as_bytes(), out),
            Self::Binary(bytes) => frame(true, Opcode::Binary, bytes, out),
            Self::Parts(bytes, at) => {
                let (first, last) = bytes.split_at(bytes.len().min(usize::from(*at)));
                frame(false, Opcode::Text, first, out);
                frame(true, Opcode::Ping, b"between", out);
                frame(true, Opcode::Continuation, last, out);
            }
            Self::Control(kind, payload) => {
                let payload = &payload[..payload.len().min(125)];
                let opcode = if kind % 2 == 0 { Opcode::Ping } else { Opcode::Pong };
                frame(true, opcode, payload, out);
            }
            Self::Close(code, reason) => {
                let payload = [&code.to_be_bytes(), reason.as_bytes()].concat();
                frame(true, Opcode::Close, &payload[..payload.len().min(125)], out);
            }
            Self::Bytes(bytes) => out.extend_from_slice(bytes),
        }
    }
}

impl Content {
    fn value(&self) -> Value {
        match self {
            Self::Number(number) => json!(number),
            Self::Text(text) => json!({ "text": text }),
            Self::Long(len) => json!("x".repeat(usize::from(*len) % 300)),
        }
    }
}

fn frame(fin: bool, opcode: Opcode, payload: &[u8], out: &mut BytesMut) {
    let masking_key = Some([1, 2, 3, 4]);
    let payload_len = payload.len() as u64;
    FrameHeader { fin, opcode, masking_key, payload_len }.encode(out);
    let start = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[start..], [1, 2, 3, 4], 0);
}

/// What clients may be sent under some settings only.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    /// That they have missed messages.
    skips: bool,
    /// That they have shown a token; and nothing that comes from [`READER`].
    wants_tokens: bool,
}

/// What a client was sent, checked: what of it depends on nothing but what the client has sent.
/// Acknowledgements and what comes from rooms have gone by way of a home shard, and are as early as
/// that was.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Transcript {
    status: u16,
    answers: Vec<Value>,
    echoes: Vec<(Opcode, Vec<u8>)>,
    pongs: Vec<Vec<u8>>,
    closed: Option<Option<u16>>,
}

impl Transcript {
    /// Reads what a client has received by the end.
    pub(crate) fn read(bytes: &[u8], path: &Path, rules: Rules) -> Self {
        let mut transcript = Self::default();
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(head)) = response.parse(bytes) else {
            // Nothing, or what was cut off in a socket that was full.
            return transcript;
        };
        transcript.status = response.code.unwrap_or_default();
        if transcript.status != 101 {
            assert!(matches!(transcript.status, 200 | 400..=599), "{}", transcript.status);
            return transcript;
        }
        let mut rest = &bytes[head..];
        let mut offsets = HashMap::new();
        while let Some((header, len)) = FrameHeader::decode(rest).expect("a well-formed frame") {
            let FrameHeader { fin, opcode, masking_key, payload_len } = header;
            assert!(fin && masking_key.is_none() && transcript.closed.is_none(), "{header:?}");
            let Some(payload) = rest.get(len..len + payload_len as usize) else { break };
            rest = &rest[len + payload.len()..];
            match opcode {
                Opcode::Pong => transcript.pongs.push(payload.to_vec()),
                Opcode::Ping => {}
                Opcode::Close => {
                    let close = parse_close(payload).expect("a well-formed close");
                    transcript.closed = Some(close.map(|close| close.code.0));
                }
                Opcode::Text if matches!(path, Path::Native) => {
                    let message = serde_json::from_slice(payload).expect("JSON");
                    transcript.take(message, &mut offsets, rules);
                }
                Opcode::Text | Opcode::Binary => {
                    assert!(!matches!(path, Path::Native));
                    let is_text = std::str::from_utf8(payload).is_ok();
                    assert!(opcode == Opcode::Binary || is_text, "{payload:?}");
                    if matches!(path, Path::Echo) {
                        transcript.echoes.push((opcode, payload.to_vec()));
                    }
                }
                Opcode::Continuation => panic!("the server does not fragment"),
            }
        }
        transcript
    }

    /// Takes a native message; `offsets` are those of the last messages in its rooms.
    fn take(&mut self, mut message: Value, offsets: &mut HashMap<String, u64>, rules: Rules) {
        let room = message["room_id"].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| message[name].as_u64().expect("a number");
        match message["type"].as_str().expect("every message has a type") {
            "broadcast" => {
                let offset = offsets.get_mut(&room).expect("only members get broadcasts");
                assert_eq!(number("offset"), *offset + 1, "{room}");
                *offset += 1;
                assert!(!rules.wants_tokens || message["sender"] != READER, "{message}");
            }
            "skipped" if rules.skips => {
                let offset = offsets.get_mut(&room).expect("only members miss anything");
                assert_eq!(number("from"), *offset + 1, "{room}");
                assert!(number("to") > *offset, "{message}");
                *offset = number("to");
            }
            "joined" => {
                let joined = number("offset");
                // Joined again, it goes on where it was.
                let offset = *offsets.entry(room).or_insert(joined);
                assert!(joined >= offset, "{joined} after {offset}");
                message["offset"].take();
                self.answers.push(message);
            }
            "left" => {
                offsets.remove(&room);
                self.answers.push(message);
            }
            "direct" | "ack" => {}
            "authenticated" if rules.wants_tokens => self.answers.push(message),
            "pong" | "error" => self.answers.push(message),
            other => panic!("{other} is nothing that this client can be sent"),
        }
    }
}
