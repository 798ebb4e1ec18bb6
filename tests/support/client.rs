//! The independent client: tungstenite with a deadline on every wait.

use std::net::{SocketAddr, TcpStream};

use serde::Deserialize;
use serde_json::value::RawValue;
use tungstenite::{
    Bytes, Message, WebSocket, client::IntoClientRequest, handshake::client::Response,
    http::HeaderValue, protocol::WebSocketConfig,
};

use super::PATIENCE;

/// One WebSocket connection.
pub struct Client {
    socket: WebSocket<TcpStream>,
}

/// Any text frame of the native protocol, fields as they came.
#[derive(Debug, Default, PartialEq)]
pub struct Reply {
    /// `type`.
    pub kind: String,
    /// `room_id`, decoded.
    pub room_id: Option<String>,
    /// `offset`.
    pub offset: Option<u64>,
    /// `from`, of a gap.
    pub from: Option<u64>,
    /// `to`, of a gap.
    pub to: Option<u64>,
    /// `id`, byte for byte.
    pub id: Option<String>,
    /// `code` of an error.
    pub code: Option<String>,
    /// `message` of an error.
    pub message: Option<String>,
    /// `sender`, decoded.
    pub sender: Option<String>,
    /// `content`, byte for byte.
    pub content: Option<String>,
}

/// The hot fields of a broadcast, borrowed from the text.
#[derive(Debug, Deserialize)]
pub struct Broadcast<'t> {
    /// `room_id`; the tests that use this have rooms without escapes.
    pub room_id: &'t str,
    /// `offset`.
    pub offset: u64,
    /// `content`, a number in those tests.
    pub content: u32,
}

/// As [`Reply`], as serde wants it.
#[derive(Deserialize)]
struct Fields<'t> {
    #[serde(rename = "type")]
    kind: String,
    room_id: Option<String>,
    offset: Option<u64>,
    from: Option<u64>,
    to: Option<u64>,
    #[serde(borrow, default)]
    id: Present<'t>,
    code: Option<String>,
    message: Option<String>,
    sender: Option<String>,
    #[serde(borrow, default)]
    content: Present<'t>,
}

/// A raw value that is there, even when it is `null` (which `Option` would take for absent).
#[derive(Default)]
struct Present<'t>(Option<&'t RawValue>);

impl<'de: 't, 't> Deserialize<'de> for Present<'t> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|value| Present(Some(value)))
    }
}

impl Reply {
    /// Reads a text frame of the native protocol; it must be valid JSON with a `type`.
    pub fn parse(text: &str) -> Reply {
        let fields: Fields<'_> = serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("not a server message: {text:?}: {error}"));
        Reply {
            kind: fields.kind,
            room_id: fields.room_id,
            offset: fields.offset,
            from: fields.from,
            to: fields.to,
            id: fields.id.0.map(|id| id.get().to_owned()),
            code: fields.code,
            message: fields.message,
            sender: fields.sender,
            content: fields.content.0.map(|content| content.get().to_owned()),
        }
    }
}

impl Client {
    /// Connects to `path` and does the opening handshake.
    pub fn connect(address: SocketAddr, path: &str) -> Client {
        Client::connect_offering(address, path, None).0
    }

    /// The same, offering subprotocols.
    pub fn connect_offering(
        address: SocketAddr,
        path: &str,
        subprotocols: Option<&str>,
    ) -> (Client, Response) {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("the option can be set");
        let mut request =
            format!("ws://{address}{path}").into_client_request().expect("a good request");
        if let Some(offer) = subprotocols {
            let offer = HeaderValue::from_str(offer).expect("an ASCII offer");
            request.headers_mut().insert("sec-websocket-protocol", offer);
        }
        // The client's own limits must not hide what the server sends.
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, response) =
            tungstenite::client::client_with_config(request, stream, Some(config))
                .unwrap_or_else(|error| panic!("the upgrade on {path}: {error}"));
        (Client { socket }, response)
    }

    /// Connects to `/ws` and joins a room.
    pub fn join(address: SocketAddr, room_id: &str, user_id: &str) -> Client {
        let mut client = Client::connect(address, "/ws");
        client.join_room(room_id, user_id);
        client
    }

    /// Joins one more room; gives its offset.
    pub fn join_room(&mut self, room_id: &str, user_id: &str) -> u64 {
        let message = serde_json::json!({"type": "join", "room_id": room_id, "user_id": user_id});
        let reply = self.ask(&message.to_string());
        assert_eq!(reply.kind, "joined", "{reply:?}");
        assert_eq!(reply.room_id.as_deref(), Some(room_id), "{reply:?}");
        reply.offset.expect("joined carries the offset")
    }

    /// Sends a text message.
    pub fn send_text(&mut self, text: &str) {
        self.send(Message::text(text));
    }

    /// Sends a binary message.
    pub fn send_binary(&mut self, payload: &[u8]) {
        self.send(Message::binary(Bytes::copy_from_slice(payload)));
    }

    /// Sends any message.
    pub fn send(&mut self, message: Message) {
        self.socket.send(message).unwrap_or_else(|error| panic!("send: {error}"));
    }

    /// Queues a message without flushing it; the next [`Client::flush`] sends all of them.
    pub fn queue(&mut self, message: Message) {
        self.socket.write(message).unwrap_or_else(|error| panic!("write: {error}"));
    }

    /// Sends what is queued.
    pub fn flush(&mut self) {
        self.socket.flush().unwrap_or_else(|error| panic!("flush: {error}"));
    }

    /// The next message of any kind.
    pub fn receive(&mut self) -> Message {
        loop {
            match self.socket.read() {
                // The system call has not begun: a debugger, or a stop of the process.
                Err(tungstenite::Error::Io(e)) if e.kind() == std::io::ErrorKind::Interrupted => {}
                read => return read.unwrap_or_else(|error| panic!("receive: {error}")),
            }
        }
    }

    /// The next message of any kind; `None` when the connection has ended.
    pub fn try_receive(&mut self) -> Option<Message> {
        self.socket.read().ok()
    }

    /// The next message, which must be text.
    pub fn receive_text(&mut self) -> String {
        match self.receive() {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("expected text, got {other:?}"),
        }
    }

    /// The next message, which must be of the native protocol.
    pub fn receive_reply(&mut self) -> Reply {
        Reply::parse(&self.receive_text())
    }

    /// Sends a text message and gives the next reply.
    pub fn ask(&mut self, text: &str) -> Reply {
        self.send_text(text);
        self.receive_reply()
    }

    /// Checks that nothing else is on its way: a native ping is answered by a pong next.
    ///
    /// Answers of one connection come in order, so anything owed before would come first.
    pub fn expect_silence(&mut self) {
        let reply = self.ask(r#"{"type":"ping","id":"silence"}"#);
        assert_eq!(reply.kind, "pong", "expected nothing but the pong: {reply:?}");
        assert_eq!(reply.id.as_deref(), Some("\"silence\""), "{reply:?}");
    }

    /// Asks for `count` pongs at once, and takes them.
    pub fn expect_pongs(&mut self, count: usize) {
        for _ in 0..count {
            self.queue(Message::text(r#"{"type":"ping"}"#));
        }
        self.flush();
        (0..count).for_each(|_| assert_eq!(self.receive_reply().kind, "pong"));
    }

    /// Reads up to the server's close frame, answers it, and gives its code.
    pub fn expect_close(&mut self) -> Option<u16> {
        self.expect_close_frame().map(|(code, _)| code)
    }

    /// The same, with the reason.
    pub fn expect_close_frame(&mut self) -> Option<(u16, String)> {
        loop {
            if let Message::Close(close) = self.receive() {
                // Sends tungstenite's answer; the server may hang up at the same moment.
                let _ = self.socket.flush();
                return close.map(|close| (u16::from(close.code), close.reason.to_string()));
            }
        }
    }

    /// Closes with 1000 and waits for the server's answer.
    pub fn close(mut self) {
        self.socket.close(None).unwrap_or_else(|error| panic!("close: {error}"));
        while self.socket.read().is_ok() {}
    }
}
