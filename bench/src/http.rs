//! A client of the server's HTTP API: requests over one connection, one after the other.
//!
//! Never: follows, retries or pipelines. What is not a 200 is an error, and so is a batch without
//! an offset for every item, or the figures would be those of refusals.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::cli::Target;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// An answer's head is small, and its headers are few.
const HEADERS_MAX: usize = 64;

/// Why a request was not answered, or a batch not published.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The connection, or its end before the answer's.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not HTTP, or not with a Content-Length.
    #[error("the answer is not HTTP with a Content-Length")]
    Response,
    /// An answer other than 200.
    #[error("status {status}: {body}")]
    Status {
        /// Its status.
        status: u16,
        /// What it says.
        body: String,
    },
    /// A 200 that is not about as many items, or in which one was refused.
    #[error("an item was not published: {0}")]
    Item(String),
}

/// A connection to the API.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    host: String,
    input: Vec<u8>,
}

/// The body of a batch.
#[derive(Debug, Serialize)]
struct Batch<'b> {
    items: Vec<Item<'b>>,
}

#[derive(Debug, Serialize)]
struct Item<'b> {
    room_id: &'b str,
    content: &'b str,
}

/// The answer to a batch.
#[derive(Debug, Deserialize)]
struct Answer {
    items: Vec<Value>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn connect(target: &Target) -> io::Result<Self> {
        let stream = TcpStream::connect(target.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(Self { stream, host: target.host.clone(), input: Vec::new() })
    }

    /// Publishes `contents` into a room and waits for the answer.
    ///
    /// # Errors
    /// [`HttpError`]; how many of them were published is then unknown.
    pub fn publish(&mut self, room_id: &str, contents: &[String]) -> Result<(), HttpError> {
        let answer = self.ask("POST", "/v1/publish/batch", &batch(room_id, contents))?;
        check(&answer, contents.len())
    }

    /// Makes a request, with a body of JSON or none, and returns the body of the answer.
    ///
    /// # Errors
    /// [`HttpError`]; an answer other than 200 is one.
    pub fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, HttpError> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body].concat())?;
        self.input.clear();
        loop {
            match read_response(&self.input)? {
                Some((200, body)) => return Ok(body.to_vec()),
                Some((status, body)) => {
                    let body = String::from_utf8_lossy(body).trim().to_owned();
                    return Err(HttpError::Status { status, body });
                }
                None => {}
            }
            let mut more = [0; 16 << 10];
            match self.stream.read(&mut more)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                len => self.input.extend_from_slice(&more[..len]),
            }
        }
    }
}

/// The body of a batch of `contents` for one room.
fn batch(room_id: &str, contents: &[String]) -> Vec<u8> {
    let items = contents.iter().map(|content| Item { room_id, content }).collect();
    serde_json::to_vec(&Batch { items }).expect("strings are JSON")
}

/// Status and body of the answer in `input`; `None` while it is incomplete.
fn read_response(input: &[u8]) -> Result<Option<(u16, &[u8])>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(input).map_err(|_| HttpError::Response)?;
    let httparse::Status::Complete(start) = parsed else { return Ok(None) };
    let is_length =
        |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("content-length");
    let length = response.headers.iter().find(is_length);
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    let (Some(status), Some(length)) = (response.code, length) else {
        return Err(HttpError::Response);
    };
    let body: Option<&[u8]> = input[start..].get(..length);
    Ok(body.map(|body| (status, body)))
}

/// Whether all of `count` items were published.
fn check(body: &[u8], count: usize) -> Result<(), HttpError> {
    let text = || String::from_utf8_lossy(body).trim().to_owned();
    let answer: Answer = serde_json::from_slice(body).map_err(|_| HttpError::Item(text()))?;
    match answer.items.iter().find(|item| !item["offset"].is_u64()) {
        Some(item) => Err(HttpError::Item(item.to_string())),
        None if answer.items.len() != count => Err(HttpError::Item(text())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_request_goes_out_whole_and_only_200_is_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let target =
            Target { host: "h:1".to_owned(), address: listener.local_addr().expect("an address") };
        let items = r#"{"items":[{"room_id":"r","content":"a"},{"room_id":"r","content":"\""}]}"#;
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut requests = String::new();
            for answer in [
                "200 OK\r\nContent-Length: 2\r\n\r\n{}",
                "429 Later\r\ncontent-length: 5\r\n\r\nlater",
            ] {
                let mut request = vec![0; 1024];
                let len = stream.read(&mut request).expect("a request");
                requests += str::from_utf8(&request[..len]).expect("text");
                write!(stream, "HTTP/1.1 {answer}").expect("a client");
            }
            requests
        });
        let mut client = Client::connect(&target).expect("it listens");
        let body = batch("r", &["a".to_owned(), "\"".to_owned()]);
        assert_eq!(client.ask("POST", "/x", &body).expect("200"), b"{}");
        let error = client.ask("GET", "/y", b"").expect_err("refused").to_string();
        assert_eq!(error, "status 429: later");
        let requests = server.join().expect("no panic");
        let head = "POST /x HTTP/1.1\r\nHost: h:1\r\n";
        assert!(requests.starts_with(head), "{requests}");
        let len = items.len();
        assert!(requests.contains(&format!("Content-Length: {len}\r\n\r\n{items}GET /y ")));
    }

    #[test]
    fn an_answer_may_trickle_and_must_have_an_offset_for_each() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{} ";
        for cut in 0..answer.len() {
            assert!(matches!(read_response(&answer[..cut]), Ok(None)), "cut at {cut}");
        }
        assert_eq!(read_response(answer).expect("good"), Some((200, &b"{} "[..])));
        for bad in [&b"SSH-2.0\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\n\r\n"] {
            assert!(matches!(read_response(bad), Err(HttpError::Response)));
        }
        let two = br#"{"items":[{"offset":1},{"offset":2}]}"#;
        check(two, 2).expect("both have one");
        assert!(matches!(check(two, 3), Err(HttpError::Item(_))), "one is missing");
        let nobody = br#"{"items":[{"offset":1},{"offset":null}]}"#;
        let error = check(nobody, 2).expect_err("nobody was there").to_string();
        assert!(error.contains(r#"{"offset":null}"#), "{error}");
    }
}
