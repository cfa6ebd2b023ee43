//! `WebSocket`: the frames of RFC 6455, after the upgrade, on the server's side.
//!
//! tungstenite reads and writes their headers. Its `WebSocketContext` would do the rest, too, but not
//! for thousands of subscribers that are mostly idle: it is 256 bytes, keeps a buffer as large as the
//! largest frame it has read (60 054 bytes after one of 60 000), and allocates all a header announces
//! before any of it has come. Here an idle device is 64 bytes, and a frame takes room as it comes.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::command::Reason;
use crate::protocol::partial::Partial;
use crate::protocol::{Broken, Port};

/// The longest payload of a control frame, which must fit in a header that has no more than one
/// byte for its length (RFC 6455, 5.5).
const CONTROL_MAX: u64 = 125;

/// Joins a connection's frames to messages.
#[derive(Debug)]
pub(super) struct WebSocket {
    partial: Partial,
    /// The message whose last frame has not come yet.
    begun: Option<Begun>,
    /// Messages that have ended, and control frames between them.
    ended: u64,
    max: usize,
}

/// The beginning of a message.
#[derive(Debug)]
struct Begun {
    is_text: bool,
    bytes: Vec<u8>,
}

/// What a device says.
pub(super) enum Message<'a> {
    Text(&'a str),
    Binary,
}

/// How a connection ends, and the code the device is told.
struct End {
    code: Option<CloseCode>,
    broken: Broken,
}

impl WebSocket {
    /// Reads messages of at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { partial: Partial::default(), begun: None, ended: 0, max }
    }

    /// If a message has begun whose end has not come: how many came before it.
    pub(super) fn amid(&self) -> Option<u64> {
        (self.begun.is_some() || self.partial.len() > 0).then_some(self.ended)
    }

    /// Takes up bytes as they come and gives every message they complete to `message`. What is no
    /// message it answers itself.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        port: &mut dyn Port,
        mut message: impl FnMut(Message<'_>, &mut dyn Port),
    ) -> Result<(), Broken> {
        let Self { partial, begun, ended, max } = self;
        let fed = partial.feed(bytes, |bytes| {
            let Some(frame) = first(bytes, begun.as_ref(), *max)? else { return Ok(0) };
            match frame.opcode {
                OpCode::Control(Control::Ping) => {
                    let payload: Vec<u8> = frame.payload().collect();
                    port.reply(&wire(OpCode::Control(Control::Pong), &payload));
                }
                OpCode::Control(Control::Close) => {
                    let payload: Vec<u8> = frame.payload().collect();
                    return Err(closing(&payload));
                }
                OpCode::Control(Control::Pong | Control::Reserved(_)) => {}
                OpCode::Data(data) => {
                    let is_text = data == Data::Text;
                    let mut now = begun.take().unwrap_or(Begun { is_text, bytes: Vec::new() });
                    now.bytes.extend(frame.payload());
                    if frame.is_final {
                        message(now.message()?, port);
                    } else {
                        *begun = Some(now);
                    }
                }
            }
            // A control frame does not end the message in the midst of which it comes.
            *ended += u64::from(begun.is_none());
            Ok(frame.length)
        });
        fed.map_err(|End { code, broken }| {
            let code = code.map(|code| u16::from(code).to_be_bytes());
            let code = code.as_ref().map(<[u8; 2]>::as_slice).unwrap_or_default();
            port.reply(&wire(OpCode::Control(Control::Close), code));
            broken
        })
    }
}

impl Begun {
    fn message(&self) -> Result<Message<'_>, End> {
        if !self.is_text {
            return Ok(Message::Binary);
        }
        std::str::from_utf8(&self.bytes).map(Message::Text).map_err(|_| not_utf8())
    }
}

struct Frame<'a> {
    opcode: OpCode,
    is_final: bool,
    mask: [u8; 4],
    masked: &'a [u8],
    /// Header and payload.
    length: usize,
}

impl Frame<'_> {
    fn payload(&self) -> impl Iterator<Item = u8> {
        self.masked.iter().zip(self.mask.iter().cycle()).map(|(byte, mask)| byte ^ mask)
    }
}

/// The frame that `bytes` begin with, once it is whole. One that cannot be is refused by its header.
fn first<'a>(bytes: &'a [u8], begun: Option<&Begun>, max: usize) -> Result<Option<Frame<'a>>, End> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor);
    let Some((header, length)) = parsed.map_err(|error| violation(error.to_string()))? else {
        return Ok(None);
    };
    let FrameHeader { is_final, opcode, mask, rsv1, rsv2, rsv3 } = header;
    if rsv1 || rsv2 || rsv3 {
        return Err(violation("expected no extensions"));
    }
    let Some(mask) = mask else { return Err(violation("expected a masked frame")) };
    let room = max.saturating_sub(begun.map_or(0, |begun| begun.bytes.len()));
    match opcode {
        OpCode::Control(_) if !is_final => {
            return Err(violation("expected a control frame to be a whole message"));
        }
        OpCode::Control(_) if length > CONTROL_MAX => {
            let expected = format!("expected at most {CONTROL_MAX} bytes in a control frame");
            return Err(violation(expected));
        }
        OpCode::Data(Data::Continue) if begun.is_none() => {
            return Err(violation("expected the first frame of a message"));
        }
        OpCode::Data(Data::Text | Data::Binary) if begun.is_some() => {
            return Err(violation("expected the next frame of a message"));
        }
        OpCode::Data(_) if length > room as u64 => {
            return Err(End { code: Some(CloseCode::Size), broken: Broken::TooLong });
        }
        OpCode::Control(_) | OpCode::Data(_) => {}
    }
    let header = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
    let masked = bytes.get(header..).zip(usize::try_from(length).ok());
    let masked = masked.and_then(|(payload, length)| payload.get(..length));
    Ok(masked.map(|masked| {
        let length = header + masked.len();
        Frame { opcode, is_final, mask, masked, length }
    }))
}

/// How a connection ends that the device closes with this payload.
fn closing(payload: &[u8]) -> End {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => End { code: None, broken: Broken::Closed },
            _ => violation("expected a code of two bytes in a close frame"),
        };
    };
    let code = CloseCode::from(u16::from_be_bytes(*code));
    if !code.is_allowed() {
        return violation(format!("expected a code that can be sent, got {code}"));
    }
    match std::str::from_utf8(reason) {
        Ok(_) => End { code: Some(code), broken: Broken::Closed },
        Err(_) => not_utf8(),
    }
}

fn violation(reason: impl Into<Reason>) -> End {
    End { code: Some(CloseCode::Protocol), broken: Broken::Malformed(reason.into()) }
}

fn not_utf8() -> End {
    End { code: Some(CloseCode::Invalid), broken: Broken::Malformed("expected UTF-8".into()) }
}

/// A text message, on the wire.
pub(super) fn text(text: &str) -> Vec<u8> {
    wire(OpCode::Data(Data::Text), text.as_bytes())
}

/// A message in one frame, unmasked, as a server sends it.
fn wire(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    let length = payload.len() as u64;
    let mut wire = Vec::with_capacity(header.len(length) + payload.len());
    // Writing to memory does not fail.
    if header.format(length, &mut wire).is_ok() {
        wire.extend_from_slice(payload);
    }
    wire
}

#[cfg(test)]
pub(super) mod tests;
