//! The peers' own reading of RFC 6455: frames out, masked; frames and HTTP answers in.
//!
//! Nothing here is shared with [`crate::protocol`]: a mistake there must not cancel out here.

/// Opcodes (RFC 6455 §5.2).
pub(super) const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// A frame from the server.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) opcode: u8,
    pub(super) payload: Vec<u8>,
}

/// A masked frame (RFC 6455 §5.2, §5.3).
pub(super) fn frame(fin: bool, opcode: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut out = vec![u8::from(fin) << 7 | opcode];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

/// Takes one whole frame off the front of `input`.
pub(super) fn take_frame(input: &mut Vec<u8>) -> Option<Frame> {
    let (&[first, second], _) = input.split_first_chunk()?;
    assert_eq!(first & 0x70, 0, "reserved bits: the stream is corrupt");
    assert_eq!(second & 0x80, 0, "a server masks: the stream is corrupt");
    let opcode = first & 0x0F;
    assert!(
        matches!(opcode, TEXT | BINARY | CLOSE | PING | PONG),
        "opcode {opcode}: the stream is corrupt"
    );
    assert_eq!(first & 0x80, 0x80, "this server sends no fragments: the stream is corrupt");
    let (len, header_len) = match second & 0x7F {
        126 => (u64::from(u16::from_be_bytes(*input[2..].first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*input[2..].first_chunk()?), 10),
        len => (u64::from(len), 2),
    };
    let len_of_len = match len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    assert_eq!(header_len, len_of_len, "a length in too many bytes: the stream is corrupt");
    assert!(opcode < CLOSE || len <= 125, "a long control frame: the stream is corrupt");
    let end = header_len + len as usize;
    if input.len() < end {
        return None;
    }
    let payload = input[header_len..end].to_vec();
    input.drain(..end);
    Some(Frame { opcode, payload })
}

/// The head of an HTTP answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    fields: Vec<(String, String)>,
}

impl Head {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

/// Takes the head of an HTTP answer off the front of `input`.
pub(super) fn take_head(input: &mut Vec<u8>) -> Option<Head> {
    let end = input.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8(input.drain(..end + 4).collect()).expect("an ASCII head");
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().expect("a status line");
    let status = status.strip_prefix("HTTP/1.1 ").expect("HTTP/1.1")[..3].parse();
    let fields = lines.map(|line| {
        let (name, value) = line.split_once(": ").expect("a field");
        (name.to_ascii_lowercase(), value.to_owned())
    });
    Some(Head { status: status.expect("a status"), fields: fields.collect() })
}
