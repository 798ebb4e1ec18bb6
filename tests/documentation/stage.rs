//! Plays a conversation in the notation of docs/protocol.md: who says what, and what must come.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::process::Command;

use serde_json::Value;

use crate::support::{Frame, Server, Wire, close_frame, fanwire, frame, free_port, head_of, row};

/// Where the examples say that the server listens, as it does if nobody says otherwise.
const ADDRESS: &str = "127.0.0.1:8080";
const ADMIN: &str = "127.0.0.1:8081";

/// Plays a conversation on a server of its own.
pub(crate) fn play(text: &str) {
    let (first, rest) = text.split_once('\n').expect("a conversation has lines");
    match first.strip_prefix("$ fanwire serve ") {
        Some(flags) => Stage::start(&flags.split(' ').collect::<Vec<_>>()).play(rest),
        None => Stage::start(&["--shards", "4"]).play(text),
    }
}

/// A server, and who talks to it.
pub(crate) struct Stage {
    server: Server,
    clients: BTreeMap<String, Client>,
}

/// One connection.
struct Client {
    wire: Wire,
    state: State,
    /// What it says before it listens, which leaves in one piece: pauses would mean something where
    /// a rate is limited.
    unsent: Vec<u8>,
}

#[derive(PartialEq)]
enum State {
    /// The opening handshake waits for its answer.
    Opening,
    Open,
    /// It has sent a close.
    Closing,
    Ended,
}

impl Stage {
    /// Starts a server with these flags; relative names are those of files in tests/keys.
    pub(crate) fn start(flags: &[&str]) -> Stage {
        let [address, admin] = [(); 2].map(|()| ([127, 0, 0, 1], free_port()).into());
        let mut command = fanwire(&["serve", "--listen", &format!("{address}")]);
        // Where the file with the secret is.
        command.args(["--admin", &format!("{admin}")]).args(flags).current_dir("tests/keys");
        let server = Server::spawn(command, address, Some(admin));
        Stage { server, clients: BTreeMap::new() }
    }

    /// Plays a conversation to its end, and closes all connections.
    pub(crate) fn play(&mut self, text: &str) {
        let mut lines = text.lines().filter(|line| !line.is_empty()).peekable();
        while let Some(line) = lines.next() {
            let sent = said(line, '>');
            if sent.is_none() {
                self.clients.values_mut().for_each(Client::flush);
            }
            if let Some(command) = line.strip_prefix("$ ") {
                let mut command = command.to_owned();
                while command.matches('\'').count() % 2 == 1 || command.ends_with('\\') {
                    command = command + "\n" + lines.next().expect("the rest of the command");
                }
                let mut answer = String::new();
                while let Some(line) = lines.next_if(|it| !it.starts_with("$ ") && !is_said(it)) {
                    answer = answer + line + "\n";
                }
                row(line, || self.run(&command, &answer));
            } else if let Some((name, said)) = sent {
                row(line, || self.send(name, said));
            } else {
                // What comes together, to each in its own order.
                let mut heard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
                let mut next = Some(line);
                while let Some(line) = next {
                    let (name, what) = said(line, '<').unwrap_or_else(|| panic!("what is {line}"));
                    heard.entry(name).or_default().push(what);
                    next = lines.next_if(|line| said(line, '<').is_some());
                }
                for (name, expected) in heard {
                    row(&format!("{name}< {}", expected[0]), || self.hear(name, expected));
                }
            }
        }
        self.clients.retain(|_, client| client.state != State::Ended);
        for (name, client) in &mut self.clients {
            row(&format!("{name} at the end"), || client.expect_pong());
        }
        if !self.clients.is_empty() {
            // What is under way reaches everybody before the server closes.
            self.server.signal(libc::SIGTERM);
        }
        for (name, client) in &mut self.clients {
            row(&format!("{name} at the end"), || client.expect_end());
        }
    }

    /// Runs a command, whose standard output must be `expected`.
    fn run(&self, command: &str, expected: &str) {
        if command.starts_with("kill -TERM ") {
            return self.server.signal(libc::SIGTERM);
        }
        let real = command.replace(ADDRESS, &self.server.address().to_string());
        let real = real.replace(ADMIN, &self.server.admin().to_string());
        // A proxy of this host's has no part in it.
        let run = Command::new("sh").args(["-c", &real]).env("NO_PROXY", "*").output();
        let run = run.expect("there is a shell");
        let (said, failed) = (String::from_utf8_lossy(&run.stdout), !run.status.success());
        assert!(!failed, "{} (is curl installed?)", String::from_utf8_lossy(&run.stderr));
        let same = match (json(expected), json(&said)) {
            (Some(expected), Some(said)) => fits(&expected, &said),
            _ => expected.trim() == said.trim(),
        };
        assert!(same, "the answer is {said}");
    }

    fn send(&mut self, name: &str, said: &str) {
        if let Some(request) = said.strip_prefix("GET ") {
            let mut fields = request.split("  ");
            let target = fields.next().expect("a split has a part");
            let fields: Vec<_> = fields.map(|it| it.split_once(": ").expect("a field")).collect();
            let mut wire = Wire::connect(self.server.address());
            wire.send(&head_of(&format!("GET {target} HTTP/1.1"), &fields));
            self.clients.insert(name.to_owned(), Client::new(wire, State::Opening));
            return;
        }
        let open = || Wire::open(self.server.address(), "/ws");
        let client = self.clients.entry(name.to_owned());
        let client = client.or_insert_with(|| Client::new(open(), State::Open));
        assert!(client.state == State::Open, "the connection is not open");
        client.unsent.extend(match Said::parse(said) {
            Said::Binary(bytes) => frame(0x82, &bytes),
            Said::Close(code, reason) => {
                client.state = State::Closing;
                close_frame(code, &reason)
            }
            Said::Json(_) | Said::Text(_) => frame(0x81, said.as_bytes()),
        });
    }

    fn hear(&mut self, name: &str, expected: Vec<&str>) {
        let client = self.clients.get_mut(name).expect("who hears something has said something");
        let mut expected: Vec<&str> = expected;
        if client.state == State::Opening {
            client.expect_answer(expected.remove(0));
        }
        let mut expected: Vec<Said> = expected.into_iter().map(Said::parse).collect();
        while !expected.is_empty() {
            let heard = client.hear();
            let same = expected.iter().position(|it| it.kind() == heard.kind());
            let it = same.map(|place| expected.remove(place));
            assert!(it.is_some_and(|it| it.fits(&heard)), "what comes is {heard}");
        }
    }
}

impl Client {
    fn new(wire: Wire, state: State) -> Client {
        Client { wire, state, unsent: Vec::new() }
    }

    fn flush(&mut self) {
        self.wire.send(&std::mem::take(&mut self.unsent));
    }

    /// The answer to the opening handshake: the status, and these fields.
    fn expect_answer(&mut self, expected: &str) {
        let response = self.wire.response();
        let mut parts = expected.split("  ");
        let status = parts.next().and_then(|status| status.parse().ok());
        assert_eq!(status, Some(response.status), "{response:?}");
        for part in parts {
            let (name, value) = part.split_once(':').expect("a field");
            let (value, name) = (value.trim(), name.to_ascii_lowercase());
            let heard = response.field(&name).unwrap_or_default();
            let same = if value == "N" { heard.parse::<u32>().is_ok() } else { heard == value };
            assert!(same, "{response:?}");
        }
        self.state = State::Open;
        if response.status != 101 {
            self.wire.expect_eof();
            self.state = State::Ended;
        }
    }

    fn hear(&mut self) -> Said {
        assert!(self.state != State::Ended, "the connection has ended");
        let Frame { fin, opcode, payload } = self.wire.expect_frame();
        assert!(fin, "a server has no reason to send fragments");
        match opcode {
            1 => Said::of(String::from_utf8(payload).expect("text is UTF-8")),
            2 => Said::Binary(payload),
            8 => {
                if self.state == State::Open {
                    self.wire.send(&frame(0x88, &payload));
                }
                self.wire.expect_eof();
                self.state = State::Ended;
                let (code, reason) = payload.split_first_chunk().expect("a close code");
                let reason = String::from_utf8(reason.to_vec()).expect("a reason is UTF-8");
                Said::Close(u16::from_be_bytes(*code), reason)
            }
            other => panic!("a frame with opcode {other}"),
        }
    }

    /// All that it has sent has been read; nothing else has come.
    fn expect_pong(&mut self) {
        assert!(self.state == State::Open, "the example does not say what comes");
        self.unsent.extend(frame(0x89, b"the end"));
        self.flush();
        let heard = self.wire.expect_frame();
        assert_eq!(heard, Frame { fin: true, opcode: 10, payload: b"the end".to_vec() });
    }

    /// Nothing else comes until the server, which drains, closes the connection.
    fn expect_end(&mut self) {
        let mut heard = self.hear();
        if heard.kind() == "system" {
            heard = self.hear();
        }
        assert!(heard.fits(&Said::Close(1001, String::new())), "what comes is {heard}");
    }
}

/// A message or a close.
enum Said {
    /// Text that is a JSON object.
    Json(Value),
    Text(String),
    Binary(Vec<u8>),
    Close(u16, String),
}

impl Said {
    /// Reads it as the examples write it.
    fn parse(text: &str) -> Said {
        let words = |words: &str| words.split(' ').map(str::to_owned).collect::<Vec<_>>();
        if let Some(bytes) = text.strip_prefix("binary ") {
            let byte = |hex: String| u8::from_str_radix(&hex, 16).expect("a byte in hexadecimal");
            return Said::Binary(words(bytes).into_iter().map(byte).collect());
        }
        if let Some(close) = text.strip_prefix("close ") {
            let (code, reason) = close.split_once(' ').unwrap_or((close, ""));
            return Said::Close(code.parse().expect("a close code"), reason.to_owned());
        }
        Said::of(text.to_owned())
    }

    /// A text message.
    fn of(text: String) -> Said {
        json(&text).filter(Value::is_object).map_or(Said::Text(text), Said::Json)
    }

    /// What may not come in another order.
    fn kind(&self) -> &str {
        match self {
            Said::Json(value) => value["type"].as_str().unwrap_or_default(),
            Said::Text(_) | Said::Binary(_) => "raw",
            Said::Close(..) => "close",
        }
    }

    /// Whether this is what is expected.
    fn fits(&self, heard: &Said) -> bool {
        match (self, heard) {
            (Said::Json(expected), Said::Json(heard)) => fits(expected, heard),
            (Said::Text(expected), Said::Text(heard)) => expected == heard,
            (Said::Binary(expected), Said::Binary(heard)) => expected == heard,
            (Said::Close(code, reason), Said::Close(heard, why)) => {
                code == heard && (reason == why || reason == "..." && !why.is_empty())
            }
            _ => false,
        }
    }
}

impl Display for Said {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Said::Json(value) => write!(out, "{value}"),
            Said::Text(text) => write!(out, "{text}"),
            Said::Binary(bytes) => write!(out, "binary {bytes:02x?}"),
            Said::Close(code, reason) => write!(out, "close {code} {reason}"),
        }
    }
}

/// `NAME> WHAT`, with this arrow.
fn said(line: &str, arrow: char) -> Option<(&str, &str)> {
    let (name, what) = line.split_once(arrow)?;
    let is_name = !name.is_empty() && name.chars().all(|it| it.is_ascii_lowercase());
    Some((name, what.strip_prefix(' ')?)).filter(|_| is_name)
}

fn is_said(line: &str) -> bool {
    said(line, '>').is_some() || said(line, '<').is_some()
}

/// Reads JSON in which `N` may stand for a number.
pub(crate) fn json(text: &str) -> Option<Value> {
    let text = text.replace(":N,", ":\"N\",").replace(":N}", ":\"N\"}");
    serde_json::from_str(&text).ok()
}

/// Whether `heard` is as expected: the same fields with the same values, in any order, but where
/// the example leaves it open.
fn fits(expected: &Value, heard: &Value) -> bool {
    match (expected, heard) {
        (Value::String(expected), Value::Number(_)) => expected == "N",
        (Value::String(expected), Value::String(heard)) => expected == "..." || expected == heard,
        (Value::Array(expected), Value::Array(heard)) => {
            expected.len() == heard.len() && expected.iter().zip(heard).all(|(e, h)| fits(e, h))
        }
        (Value::Object(expected), Value::Object(heard)) => {
            let value = |(name, value)| heard.get(name).is_some_and(|heard| fits(value, heard));
            expected.len() == heard.len() && expected.iter().all(value)
        }
        _ => expected == heard,
    }
}
