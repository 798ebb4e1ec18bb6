//! A bare TCP connection with a small HTTP response and frame reader.
//!
//! Shares nothing with the server's codec: what it accepts is written down here again, from RFC
//! 6455 and RFC 9112, and it is strict: a masked or non-minimal frame from the server is a failure.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use serde_json::Value;

use super::PATIENCE;

/// The masking key of every frame made here. Any key would do; this one is RFC 6455 §5.7's.
const MASKING_KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// One connection, and the bytes read ahead from it.
pub struct Wire {
    stream: TcpStream,
    ahead: Vec<u8>,
    ended: bool,
}

/// An HTTP response.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields in order, names in lower case.
    pub fields: Vec<(String, String)>,
    /// The body, as long as Content-Length said.
    pub body: Vec<u8>,
}

/// The code of an answer of the admin interface that must be an error with a message.
pub fn error_code(answer: &Value) -> &str {
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.len() > 10), "{answer}");
    answer["error"]["code"].as_str().expect("an error has a code")
}

impl Response {
    /// The value of a field that may be there once; names in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(field, _)| field == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "the field {name} is there twice: {self:?}");
        value
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error} in {:?}", String::from_utf8_lossy(&self.body));
        })
    }
}

/// One frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Final fragment of its message.
    pub fin: bool,
    /// The four opcode bits.
    pub opcode: u8,
    /// Payload, as it came.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a close frame; `None` when the frame carries none.
    pub fn close_code(&self) -> Option<u16> {
        assert_eq!(self.opcode, 8, "not a close frame: {self:?}");
        let code = self.payload.first_chunk::<2>()?;
        Some(u16::from_be_bytes(*code))
    }
}

impl Wire {
    /// Connects, and sends nothing.
    pub fn connect(address: SocketAddr) -> Wire {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        Wire::from_stream(stream)
    }

    /// Takes over a connected stream.
    pub fn from_stream(stream: TcpStream) -> Wire {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        // Small writes leave as they are made, so that a split is a split on the wire too.
        stream.set_nodelay(true).expect("the option can be set");
        Wire { stream, ahead: Vec::new(), ended: false }
    }

    /// Connects and does the opening handshake on `path`.
    pub fn open(address: SocketAddr, path: &str) -> Wire {
        let mut wire = Wire::connect(address);
        wire.send(&upgrade_request(path));
        let response = wire.response();
        assert_eq!(response.status, 101, "the upgrade on {path}: {response:?}");
        wire
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends these bytes; any error is a failure.
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap_or_else(|error| panic!("send {} bytes: {error}", bytes.len()));
    }

    /// Sends these bytes, to a server that may have hung up.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends as far as the server takes it: it may answer and hang up before the end.
    pub fn send_pieces(&mut self, bytes: &[u8], piece: usize) {
        for chunk in bytes.chunks(piece) {
            if self.try_send(chunk).is_err() {
                return;
            }
            // Gives the server's thread a chance to see this piece on its own.
            std::thread::yield_now();
        }
    }

    /// Ends our direction of the connection.
    pub fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection is open");
    }

    /// The next byte without taking it in, or `None` if none has come yet.
    pub fn has_input(&mut self) -> bool {
        if !self.ahead.is_empty() {
            return true;
        }
        self.stream.set_nonblocking(true).expect("the option can be set");
        let mut byte = [0];
        let peeked = self.stream.peek(&mut byte);
        self.stream.set_nonblocking(false).expect("the option can be set");
        match peeked {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("peek: {error}"),
        }
    }

    /// Reads a response whose request was not HEAD.
    pub fn response(&mut self) -> Response {
        let mut response = self.response_head();
        let length = response.field("content-length").map_or(0, |length| {
            length.parse().unwrap_or_else(|_| panic!("Content-Length \"{length}\""))
        });
        self.fill(length, "the body of a response");
        response.body = self.ahead.drain(..length).collect();
        response
    }

    /// Reads the status line and the fields of a response.
    pub fn response_head(&mut self) -> Response {
        loop {
            if let Some(end) = self.ahead.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.ahead.drain(..end + 4).collect();
                return parse_head(&head);
            }
            let seen = String::from_utf8_lossy(&self.ahead).into_owned();
            assert!(self.read_more(), "the connection ended inside a response head: {seen:?}");
        }
    }

    /// Reads the next frame; `None` at the end of the stream.
    pub fn frame(&mut self) -> Option<Frame> {
        if self.ahead.is_empty() && !self.read_more() {
            return None;
        }
        self.fill(2, "a frame header");
        let (first, second) = (self.ahead[0], self.ahead[1]);
        assert_eq!(first & 0x70, 0, "the server set RSV bits: {first:#04x}");
        assert_eq!(second & 0x80, 0, "the server masked a frame");
        let (header_len, payload_len) = match second {
            126 => {
                self.fill(4, "a 16-bit length");
                let len = u64::from(u16::from_be_bytes([self.ahead[2], self.ahead[3]]));
                assert!(len > 125, "the server sent a non-minimal length {len}");
                (4, len)
            }
            127 => {
                self.fill(10, "a 64-bit length");
                let len = self.ahead[2..10].iter().fold(0, |len, byte| len << 8 | u64::from(*byte));
                assert!(len > 65_535, "the server sent a non-minimal length {len}");
                (10, len)
            }
            len => (2, u64::from(len)),
        };
        let payload_len = usize::try_from(payload_len).expect("it fits in memory");
        self.fill(header_len + payload_len, "a frame's payload");
        self.ahead.drain(..header_len);
        let payload = self.ahead.drain(..payload_len).collect();
        Some(Frame { fin: first & 0x80 != 0, opcode: first & 0x0f, payload })
    }

    /// Reads the next frame, which must be there.
    pub fn expect_frame(&mut self) -> Frame {
        self.frame().expect("a frame, and not the end of the stream")
    }

    /// Reads up to the close frame, passes over data, and gives its code.
    pub fn expect_close(&mut self) -> Option<u16> {
        loop {
            let frame = self.expect_frame();
            if frame.opcode == 8 {
                return frame.close_code();
            }
        }
    }

    /// Checks that the stream ends here: no further byte, no reset.
    pub fn expect_eof(&mut self) {
        let more = self.ahead.is_empty() && !self.read_more();
        assert!(more, "bytes after the end: {:?}", String::from_utf8_lossy(&self.ahead));
    }

    /// Reads to the end and throws it away; a reset counts as an end.
    pub fn read_to_end_of_life(&mut self) -> usize {
        let mut total = self.ahead.len();
        self.ahead.clear();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return total,
                Ok(count) => total += count,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return total,
                Err(error) => panic!("read: {error}"),
            }
        }
    }

    fn fill(&mut self, count: usize, what: &str) {
        while self.ahead.len() < count {
            let have = self.ahead.len();
            assert!(self.read_more(), "the stream ended inside {what}: {have} of {count} bytes");
        }
    }

    fn read_more(&mut self) -> bool {
        if self.ended {
            return false;
        }
        let mut buffer = [0; 16 * 1024];
        let count = self.stream.read(&mut buffer).unwrap_or_else(|error| match error.kind() {
            ErrorKind::WouldBlock => panic!("nothing came for {PATIENCE:?}"),
            _ => panic!("read: {error}"),
        });
        self.ahead.extend_from_slice(&buffer[..count]);
        self.ended = count == 0;
        !self.ended
    }
}

/// A well formed upgrade request for `path`.
pub fn upgrade_request(path: &str) -> Vec<u8> {
    head_of(&format!("GET {path} HTTP/1.1"), &[])
}

/// A request head with the fields of a good upgrade, each replaced (or with `""` left out) by one
/// of `changes` of the same name; changes of other names, and repeated ones, are added.
pub fn head_of(request_line: &str, changes: &[(&str, &str)]) -> Vec<u8> {
    let good = [
        ("Host", "localhost"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
    ];
    let mut head = format!("{request_line}\r\n");
    let kept = good
        .iter()
        .filter(|(name, _)| !changes.iter().any(|(changed, _)| changed.eq_ignore_ascii_case(name)));
    for (name, value) in kept.chain(changes.iter().filter(|(_, value)| !value.is_empty())) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// A masked frame with the shortest length encoding; `first` is FIN, RSV and the opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(0x80 | u8::try_from(len).expect("at most 125")),
        len @ 126..=65_535 => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(len).expect("16 bits").to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&masked(payload));
    bytes
}

/// The masking key and the payload masked with it.
pub fn masked(payload: &[u8]) -> Vec<u8> {
    let key = MASKING_KEY.iter().cycle();
    let payload = payload.iter().zip(key).map(|(byte, key)| byte ^ key);
    MASKING_KEY.iter().copied().chain(payload).collect()
}

/// A masked close frame.
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    frame(0x88, &payload)
}

fn parse_head(head: &[u8]) -> Response {
    let head = std::str::from_utf8(head).expect("response heads are ASCII");
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().expect("a head has a first line");
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
    let fields = lines
        .map(|line| {
            let (name, value) =
                line.split_once(':').unwrap_or_else(|| panic!("not a field: {line:?}"));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    Response { status, fields, body: Vec::new() }
}
