//! A broadcast server on tokio-tungstenite.
//!
//! The path is the room; a room is a tokio broadcast channel. Every message goes verbatim, same
//! opcode, to all members of the room, the sender included. A connection is one task that writes
//! everything it is owed before it flushes, so messages that have come together leave together. Its
//! payload is shared, its header is its own. A connection that falls [`ROOM_QUEUE`] messages behind
//! is closed.
//!
//! usage: fanwire-peer-tungstenite HOST PORT

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_tungstenite::accept_hdr_async_with_config;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Messages a member may fall behind.
const ROOM_QUEUE: usize = 1024;
/// The default of 128 KiB is for few connections with large messages.
const READ_BUFFER_BYTES: usize = 4096;

type Rooms = Arc<Mutex<HashMap<String, broadcast::Sender<Message>>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port] = &arguments[..] else {
        return Err("usage: fanwire-peer-tungstenite HOST PORT".into());
    };
    let listener = TcpListener::bind((host.as_str(), port.parse()?)).await?;
    // SIGTERM ends a process that does not ask for it.
    println!("listening on {}", listener.local_addr()?);
    let rooms = Rooms::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let rooms = Arc::clone(&rooms);
        // How one connection ends is nobody else's business.
        tokio::spawn(async move { serve(stream, rooms).await.ok() });
    }
}

async fn serve(stream: TcpStream, rooms: Rooms) -> Result<(), Error> {
    let mut joined = None;
    // Before the 101 leaves, or the first messages could be missed.
    #[expect(clippy::result_large_err, reason = "tungstenite's callback returns it")]
    let join = |request: &Request, response: Response| {
        joined = Some(room(&rooms, request.uri().path()));
        Ok(response)
    };
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let mut socket = accept_hdr_async_with_config(stream, join, Some(config)).await?;
    let Some((room, mut owed)) = joined else { return Ok(()) };
    loop {
        tokio::select! {
            received = socket.next() => match received.transpose()? {
                Some(message @ (Message::Text(_) | Message::Binary(_))) => {
                    // Only fails without a receiver, and this task has one.
                    let _ = room.send(message);
                }
                // Pings and closes are answered by tungstenite as reading goes on.
                Some(_) => {}
                None => return Ok(()),
            },
            message = owed.recv() => {
                let Ok(message) = message else { return socket.close(None).await };
                socket.feed(message).await?;
                while let Ok(message) = owed.try_recv() {
                    socket.feed(message).await?;
                }
                socket.flush().await?;
            }
        }
    }
}

/// A sender to the room and a receiver of it. Rooms are never taken away: a load generator has few.
fn room(rooms: &Rooms, path: &str) -> (broadcast::Sender<Message>, broadcast::Receiver<Message>) {
    let mut rooms = rooms.lock().unwrap_or_else(PoisonError::into_inner);
    let new = || broadcast::channel(ROOM_QUEUE).0;
    let room = rooms.entry(path.to_owned()).or_insert_with(new);
    (room.clone(), room.subscribe())
}
