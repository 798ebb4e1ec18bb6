//! The admin interface for fuzzing: HTTP as it comes from a socket, the real guard, router and
//! handlers, and behind them real shards without a kernel, with members in a room.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use monoio::io::IntoPollIo;
use monoio::net::UnixStream;
use monoio::time::TimeDriver;
use monoio::{LegacyDriver, Runtime, RuntimeBuilder};
use serde_json::Value;

use super::admin::{Site, serve};
use super::api::{Api, Health, LiveLimits};
use super::desk::Desk;
use super::guard::Guard;
use super::keys::Keys;
use super::monitor::Monitor;
use super::questions::Questions;
use super::refusal::Refusals;
use super::reload::{Reloader, SharedReloader};
use crate::config::{ConfigError, Limits, Loaded, LogFormat, LogLevel, Switch};
use crate::dialect::is_json;
use crate::fuzz::connection::{Path, Room, Rules, Said, Transcript, User};
use crate::fuzz::wire::{Client, Wires};
use crate::io::uring::Bells;
use crate::logging::{self, Threshold};
use crate::shard::thread::{Controls, Observed};

/// Requests, with a line `%%` between them: the first line is method and target, then come fields,
/// then, behind an empty line, the body. What HTTP wants beside that is added.
///
/// Two bytes that are in no text may stand before them: with [`LOCKED`] a key is wanted, and behind
/// [`RAW`] comes what is sent byte for byte.
///
/// # Panics
/// When a request is not answered, or with something that is no answer, a member of a room is sent
/// something else than messages in order, or anything by somebody who has not the key.
pub fn fuzz_admin(data: &[u8]) {
    let (is_locked, data) = strip(data, LOCKED);
    let (is_raw, data) = strip(data, RAW);
    // A profile takes its time: seconds.
    let holds = |what: &[u8]| data.windows(what.len()).any(|it| it.eq_ignore_ascii_case(what));
    if holds(b"/debug/profile") {
        return;
    }
    let mut asked = None;
    let requests = if is_raw {
        data.to_vec()
    } else {
        let Ok(text) = std::str::from_utf8(data) else { return };
        // Where a request ends is said here, and nowhere else.
        if ["\r", "content-length", "transfer-encoding"].iter().any(|what| holds(what.as_bytes())) {
            return;
        }
        let requests: Vec<&str> = text.split("\n%%\n").take(REQUESTS_MAX).collect();
        asked.insert(requests).iter().flat_map(|request| write(request)).collect()
    };
    let mut server = Server::new(is_locked);
    let heard = server.heard();
    let answers = server.answer(&requests);
    check_answers(&answers, asked.as_deref(), &requests, is_locked);
    if is_locked && !holds(KEY.trim_ascii().as_bytes()) {
        assert!(server.heard() == heard, "who has no key is heard by members");
    }
    for ((_, path), received) in server.members.iter().zip(server.heard()) {
        Transcript::read(&received, path, Rules::default());
    }
}

/// Stands before requests to a server that wants a key: [`KEY`].
const LOCKED: u8 = 0xfe;
/// Stands before what is sent as it is.
const RAW: u8 = 0xff;

/// What is in the file with keys.
const KEY: &str = include_str!("../../tests/keys/secret");
const KEY_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys/secret");

/// Whether `data` begins with `first`, and what is behind it.
fn strip(data: &[u8], first: u8) -> (bool, &[u8]) {
    data.strip_prefix(&[first]).map_or((false, data), |rest| (true, rest))
}

const REQUESTS_MAX: usize = 8;

/// The bytes of a request on the wire.
fn write(request: &str) -> Vec<u8> {
    let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
    let (start, fields) = head.split_once('\n').unwrap_or((head, ""));
    let mut out = format!("{start} HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
    for (field, usual) in
        [("host:", "Host: localhost"), ("content-type:", "Content-Type: application/json")]
    {
        if !fields.to_ascii_lowercase().contains(field) {
            out += usual;
            out += "\r\n";
        }
    }
    for field in fields.lines() {
        out += field;
        out += "\r\n";
    }
    out += "\r\n";
    out += body;
    out.into_bytes()
}

/// A server of two shards.
struct Server {
    wires: Wires,
    /// Of the lobby, the native and the raw one.
    members: [(Client, Path); 2],
    api: Api,
    guard: Guard,
}

impl Server {
    fn new(is_locked: bool) -> Self {
        static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
            publish_bytes_max: 4096,
            ws_message_bytes_max: 300,
            raw_message_bytes_max: 300,
            ..Limits::default()
        });
        static LOG: LazyLock<Threshold> = LazyLock::new(|| {
            // Nobody reads the lines.
            let nobody = tracing::subscriber::NoSubscriber::default();
            let _ = tracing::subscriber::set_global_default(nobody);
            logging::start(LogFormat::Text, LogLevel::Error)
        });
        LOG.set(LogLevel::Info);
        let (mut wires, control) = Wires::new(2, &LIMITS);
        let members = [Path::Native, Path::Raw(Room::Lobby)].map(|path| {
            let member = wires.connect(0, usize::MAX);
            wires.send(member, &path.request(), usize::MAX);
            (member, path)
        });
        let mut join = BytesMut::new();
        Said::Join(Room::Lobby, Some(User::Alice)).put("", &mut join);
        wires.send(members[0].0, &join, usize::MAX);
        wires.settle();
        let (bells, _) = Bells::new(2).expect("descriptors");
        let limits = LiveLimits::new(LIMITS.clone());
        let load = if is_locked { load_locked } else { load };
        let file = if is_locked { Switch::On(KEY_FILE.into()) } else { Switch::Off };
        let keys = Keys::read(&file).expect("there is a key, if there must be");
        let reloader = SharedReloader::new(Reloader {
            load,
            loaded: load().expect("the defaults are valid"),
            log: LOG.clone(),
            keys: keys.clone(),
            controls: Controls::new(control.controls, bells.clone()),
            shards: 2,
            limits: limits.clone(),
        });
        let observed = |metrics: Arc<_>| Observed { cpu: 0, metrics, clock: None };
        let api = Api {
            health: Health::default(),
            desk: Desk::new(control.publisher, bells.clone(), Duration::from_secs(1)),
            questions: Questions::new(control.inquirer, bells),
            limits,
            monitor: Monitor::new(wires.metrics().map(observed).collect()),
            reloader,
            log: LOG.clone(),
            refusals: Refusals::default(),
        };
        let guard = Guard::new(keys, ([127, 0, 0, 1], 8081).into());
        Self { wires, members, api, guard }
    }

    /// Everything that each member was sent so far.
    fn heard(&self) -> [Vec<u8>; 2] {
        [0, 1].map(|member| self.wires.received(self.members[member].0).0)
    }

    /// What is sent back for `requests`, after which their sender sends nothing more.
    fn answer(&mut self, requests: &[u8]) -> Vec<u8> {
        let (mut client, server) = StdUnixStream::pair().expect("descriptors");
        client.set_nonblocking(true).expect("a socket");
        server.set_nonblocking(true).expect("a socket");
        let api = self.api.clone();
        let site = Site::new(self.guard.clone(), self.api.clone());
        // One for all inputs: what waits for a time, such as who gives up, ends later.
        thread_local! {
            static RUNTIME: RefCell<Runtime<TimeDriver<LegacyDriver>>> = RefCell::new({
                let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build();
                runtime.expect("descriptors")
            });
        }
        let exchange = async {
            let server = UnixStream::from_std(server).and_then(UnixStream::into_poll_io);
            let mut served = pin!(serve(server.expect("a socket"), site));
            let (mut sent, mut answers) = (0, Vec::new());
            let mut turns = 0;
            std::future::poll_fn(|context| {
                sent += write_some(&mut client, &requests[sent..]);
                read_some(&mut client, &mut answers);
                let ended = served.as_mut().poll(context).is_ready();
                self.wires.wake_all();
                self.wires.settle();
                api.desk.take_answers();
                api.questions.take_answers();
                turns += 1;
                assert!(turns < TURNS_MAX, "a request is never answered");
                context.waker().wake_by_ref();
                if ended { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            read_some(&mut client, &mut answers);
            answers
        };
        RUNTIME.with_borrow_mut(|runtime| runtime.block_on(exchange))
    }
}

/// Far more than any request needs.
const TURNS_MAX: usize = 100_000;

fn load() -> Result<Loaded, ConfigError> {
    crate::config::load(["fanwire", "serve"].map(Into::into), [])
}

fn load_locked() -> Result<Loaded, ConfigError> {
    crate::config::load(["fanwire", "serve", "--admin-key-file", KEY_FILE].map(Into::into), [])
}

/// Sends what the socket takes, and half-closes it behind the last byte.
fn write_some(client: &mut StdUnixStream, bytes: &[u8]) -> usize {
    if bytes.is_empty() {
        // It fails when this was said before, or the server is gone.
        let _ = client.shutdown(Shutdown::Write);
        return 0;
    }
    match client.write(bytes) {
        Ok(len) => len,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        // The server takes no more.
        Err(_) => bytes.len(),
    }
}

fn read_some(client: &mut StdUnixStream, answers: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = client.read(&mut buffer) {
        answers.extend_from_slice(&buffer[..len]);
    }
}

/// Checks that `answers` are well-formed, and where it is known what was `asked`, no more than that
/// and as such a request is answered.
fn check_answers(answers: &[u8], asked: Option<&[&str]>, requests: &[u8], is_locked: bool) {
    let mut rest = answers;
    let mut all_asked = asked.map(|asked| asked.iter());
    // An answer to HEAD has the length of a body that does not come.
    let may_be_head = asked.is_none() && requests.windows(4).any(|bytes| bytes == b"HEAD");
    while !rest.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(head)) = response.parse(rest) else {
            panic!("no response: {}", rest.escape_ascii());
        };
        let status = response.code.unwrap_or_default();
        rest = &rest[head..];
        if status == 100 {
            continue;
        }
        let asked = all_asked.as_mut().map(|it| *it.next().expect("as many answers as requests"));
        assert!(STATUSES.contains(&status) || status == 401 && is_locked, "{status} for {asked:?}");
        let field = |name: &str| {
            let field = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            field.map(|field| String::from_utf8_lossy(field.value).into_owned())
        };
        assert!(status != 200 || field("content-type").is_some(), "{asked:?}");
        if may_be_head {
            return;
        }
        let length = field("content-length").map_or(0, |length| length.parse().expect("a number"));
        let (body, behind) = match asked.is_some_and(|asked| asked.starts_with("HEAD ")) {
            true => (&[][..], rest),
            false => rest.split_at_checked(length).expect("a whole body"),
        };
        rest = behind;
        if field("content-type").as_deref() != Some("application/json") || body.is_empty() {
            continue;
        }
        let body: Value = serde_json::from_slice(body).expect("JSON");
        let Some(asked) = asked else { continue };
        if status >= 400 && !asked.contains("/ready") && !asked.contains("/batch") {
            let error = &body["error"];
            assert!(error["code"].is_string() && error["message"].is_string(), "{body}");
            let sent = asked.split_once("\n\n").map_or("", |(_, body)| body);
            assert!(error["code"] != "invalid_json" || !is_json(sent.as_bytes()), "{asked}");
        }
    }
}

/// What a server in health answers to who may ask.
const STATUSES: [u16; 13] = [200, 400, 403, 404, 405, 413, 414, 415, 417, 421, 422, 429, 431];
