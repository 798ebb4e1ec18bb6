//! A small broadcast server on tungstenite and blocking sockets that lies on demand.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::http::StatusCode;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::{Message, WebSocket, accept_hdr};

/// What the hub does wrong, once on each connection: to its delivery number `at`, from 0; or to
/// whole connections, in the order it accepts them, from 0.
#[derive(Debug, Clone, Copy)]
pub enum Lie {
    None,
    /// Does not send it.
    Drop {
        at: usize,
    },
    /// Sends it twice.
    Duplicate {
        at: usize,
    },
    /// Sends it after the one that follows.
    Swap {
        at: usize,
    },
    /// Waits before it sends it.
    Delay {
        at: usize,
        by: Duration,
    },
    /// Waits before the first one, on each connection this much longer than on the one before.
    Stagger {
        by: Duration,
    },
    /// Ends the connection in its place, with this close code.
    Close {
        at: usize,
        code: u16,
    },
    /// Answers with 503 instead of 101.
    Refuse {
        from: usize,
        until: usize,
    },
}

/// Members by path: where to hand each a message.
type Rooms = HashMap<String, Vec<Sender<Message>>>;

/// The server; its threads end with the test process.
pub struct Hub {
    address: SocketAddr,
    rooms: Arc<Mutex<Rooms>>,
}

impl Hub {
    pub fn start(lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let rooms = Arc::new(Mutex::new(Rooms::new()));
        let shared = Arc::clone(&rooms);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let rooms = Arc::clone(&shared);
                thread::spawn(move || serve(stream, number, &rooms, lie));
            }
        });
        Self { address, rooms }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn wait_for_connections(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while lock(&self.rooms).values().map(Vec::len).sum::<usize>() < count {
            assert!(Instant::now() < deadline, "{count} connections never came");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn lock(rooms: &Mutex<Rooms>) -> MutexGuard<'_, Rooms> {
    rooms.lock().expect("no thread panics while it holds this")
}

/// Reads what one member sends; another thread writes what it is owed.
fn serve(stream: TcpStream, number: usize, rooms: &Mutex<Rooms>, lie: Lie) {
    stream.set_nodelay(true).expect("an option");
    let (sender, receiver) = channel();
    let mut path = String::new();
    // It joins before the 101 leaves, or it would miss what the first member publishes.
    #[expect(clippy::result_large_err, reason = "tungstenite's callback returns it")]
    let join = |request: &Request, response: Response| {
        if let Lie::Refuse { from, until } = lie
            && (from..until).contains(&number)
        {
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Err(refusal);
        }
        path = request.uri().path().to_owned();
        lock(rooms).entry(path.clone()).or_default().push(sender.clone());
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr(stream, join) else { return };
    let writer = socket.get_ref().try_clone().expect("a second handle");
    let lie = match lie {
        Lie::Stagger { by } => Lie::Delay { at: 0, by: by * number as u32 },
        other => other,
    };
    thread::spawn(move || write(writer, &receiver, lie));
    while let Ok(message) = socket.read() {
        match message {
            // Under the lock, so that all members get all messages in one order.
            Message::Text(_) => {
                for member in &lock(rooms)[&path] {
                    let _ = member.send(message.clone());
                }
            }
            // tungstenite answers it with the next flush.
            Message::Close(_) => {
                let _ = socket.flush();
                return;
            }
            _ => {}
        }
    }
}

fn write(stream: TcpStream, receiver: &Receiver<Message>, lie: Lie) {
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
    let mut held = None;
    for (number, message) in receiver.iter().enumerate() {
        let mut send = |message: Message| socket.send(message).is_ok();
        let goes_on = match lie {
            Lie::Drop { at } if at == number => true,
            Lie::Duplicate { at } if at == number => send(message.clone()) && send(message),
            Lie::Swap { at } if at == number => {
                held = Some(message);
                true
            }
            Lie::Close { at, code } if at == number => {
                let close = CloseFrame { code: code.into(), reason: "".into() };
                send(Message::Close(Some(close)));
                false
            }
            Lie::Delay { at, by } if at == number => {
                thread::sleep(by);
                send(message)
            }
            _ => send(message) && held.take().is_none_or(&mut send),
        };
        if !goes_on {
            return;
        }
    }
}
