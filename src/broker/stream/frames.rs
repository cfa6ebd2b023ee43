//! `Frames`: what a broker sends, cut into AMQP frames; and a method as the bytes of its frame. Pure.
//!
//! The codec is amq-protocol's, but for what comes with each command: of a delivery three fields are wanted, and
//! its properties are looked at where they are needed (`Properties`).

use std::io;

use amq_protocol::frame::{AMQPFrame, gen_frame};
use amq_protocol::protocol::{AMQPClass, constants, parse_class};

/// Kind, channel and length come before a frame's payload, and one byte after it.
const HEAD: usize = 7;
const FRAME_OVERHEAD: usize = HEAD + 1;

/// Bytes taken from the socket at a time: some 300 short commands.
const READ_MAX: usize = 64 * 1024;

/// AMQP's numbers of the class of messages, and of its method that begins a delivery.
pub(super) const BASIC: u16 = 60;
const DELIVER: u16 = 60;

/// One frame on the way in.
#[derive(Debug, PartialEq)]
pub(super) enum Frame<'a> {
    Deliver(Deliver<'a>),
    Method(u16, AMQPClass),
    Header(Header<'a>),
    Body(&'a [u8]),
    Heartbeat,
}

/// The beginning of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deliver<'a> {
    pub(super) tag: u64,
    pub(super) redelivered: bool,
    pub(super) routing_key: &'a str,
}

/// What comes before a message's body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header<'a> {
    pub(super) body_size: u64,
    /// Its properties as they came.
    pub(super) properties: &'a [u8],
}

/// What has come and is not taken up yet.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// The part of it that has come and is not taken up.
    start: usize,
    end: usize,
    /// The longest frame that was agreed on.
    frame_max: usize,
}

impl Frames {
    pub(super) fn new() -> Self {
        // Before anything is agreed on, no frame is longer than this.
        let frame_max = constants::FRAME_MIN_SIZE as usize;
        Self { buffer: vec![0; READ_MAX], start: 0, end: 0, frame_max }
    }

    /// From now on frames are at most this long, all included.
    pub(super) fn agree(&mut self, frame_max: usize) {
        self.frame_max = frame_max;
    }

    /// The longest piece of a body that fits into a frame.
    pub(super) fn body_max(&self) -> usize {
        self.frame_max - FRAME_OVERHEAD
    }

    /// Room for what comes next, at least as much as the frame that has begun still needs.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            // One frame fills it; it is never longer than was agreed on.
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So much of the room was filled.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// The next frame, if all of it has come.
    pub(super) fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        let came = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((head, rest)) = came.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [kind, c1, c0, l3, l2, l1, l0] = *head;
        let channel = u16::from_be_bytes([c1, c0]);
        let length = u32::from_be_bytes([l3, l2, l1, l0]) as usize;
        if kind == b'A' {
            return Err(malformed("a version of AMQP other than 0-9-1"));
        }
        if length > self.frame_max - FRAME_OVERHEAD {
            return Err(malformed("a frame longer than was agreed on"));
        }
        let (Some(payload), Some(end)) = (rest.get(..length), rest.get(length)) else {
            return Ok(None);
        };
        if *end != constants::FRAME_END {
            return Err(malformed("a frame without an end"));
        }
        self.start += FRAME_OVERHEAD + length;
        match kind {
            constants::FRAME_METHOD => {
                if let Some(deliver) = Deliver::read(payload) {
                    return Ok(Some(Frame::Deliver(deliver)));
                }
                match parse_class(payload) {
                    Ok((_, method)) => Ok(Some(Frame::Method(channel, method))),
                    Err(_) => Err(malformed("a method that cannot be read")),
                }
            }
            constants::FRAME_HEADER => match Header::read(payload) {
                Some(header) => Ok(Some(Frame::Header(header))),
                None => Err(malformed("a header that cannot be read")),
            },
            constants::FRAME_BODY => Ok(Some(Frame::Body(payload))),
            constants::FRAME_HEARTBEAT => Ok(Some(Frame::Heartbeat)),
            _ => Err(malformed("a frame of an unknown kind")),
        }
    }
}

impl<'a> Deliver<'a> {
    /// Reads the method, if it is this one.
    fn read(method: &'a [u8]) -> Option<Self> {
        let mut rest = method;
        if (number(&mut rest)?, number(&mut rest)?) != (BASIC, DELIVER) {
            return None;
        }
        let _consumer = text(&mut rest)?;
        let (tag, after) = rest.split_first_chunk()?;
        let (bits, mut rest) = after.split_first()?;
        let _exchange = text(&mut rest)?;
        let routing_key = std::str::from_utf8(text(&mut rest)?).ok()?;
        Some(Self { tag: u64::from_be_bytes(*tag), redelivered: bits & 1 != 0, routing_key })
    }
}

impl<'a> Header<'a> {
    fn read(header: &'a [u8]) -> Option<Self> {
        let mut rest = header;
        let (_class, _weight) = (number(&mut rest)?, number(&mut rest)?);
        let (body_size, properties) = rest.split_first_chunk()?;
        Some(Self { body_size: u64::from_be_bytes(*body_size), properties })
    }
}

fn number(rest: &mut &[u8]) -> Option<u16> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u16::from_be_bytes(*number))
}

/// A text with its length before it.
fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first()?;
    let (text, after) = after.split_at_checked(usize::from(*length))?;
    *rest = after;
    Some(text)
}

/// Appends a frame to what is to be sent.
pub(super) fn put(frame: &AMQPFrame, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let bytes = gen_frame(frame)(Vec::new().into()).map_err(io::Error::other)?;
    outgoing.append(&mut bytes.into_inner().0);
    Ok(())
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the broker sent {what}"))
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::AMQPContentHeader;
    use amq_protocol::protocol::{BasicProperties, basic};
    use proptest::prelude::*;

    use super::*;

    fn deliver(tag: u64) -> AMQPClass {
        let deliver = basic::Deliver {
            consumer_tag: "c".into(),
            delivery_tag: tag,
            redelivered: tag == 7,
            exchange: "e".into(),
            routing_key: "k".into(),
        };
        AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))
    }

    /// A delivery with this body, in frames.
    fn delivery(tag: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = AMQPContentHeader {
            class_id: 60,
            body_size: body.len() as u64,
            properties: BasicProperties::default().with_message_id("m".into()),
        };
        put(&AMQPFrame::Method(1, deliver(tag)), &mut bytes).expect("a method");
        put(&AMQPFrame::Header(1, header), &mut bytes).expect("a header");
        put(&AMQPFrame::Body(1, body.to_vec()), &mut bytes).expect("a body");
        put(&AMQPFrame::Heartbeat, &mut bytes).expect("a heartbeat");
        bytes
    }

    /// What comes out when `pieces` come in, as text.
    fn taken<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let (mut frames, mut taken) = (Frames::new(), Vec::new());
        for mut piece in pieces {
            while !piece.is_empty() {
                let room = frames.room();
                let count = room.len().min(piece.len());
                room[..count].copy_from_slice(&piece[..count]);
                frames.filled(count);
                piece = &piece[count..];
                while let Some(frame) = frames.next().expect("frames") {
                    taken.push(format!("{frame:?}"));
                }
            }
        }
        taken
    }

    #[test]
    fn a_delivery_comes_out_as_it_went_in() {
        let frames = taken([&delivery(7, b"{}")[..]]);
        assert_eq!(frames.len(), 4, "{frames:?}");
        let begun = r#"Deliver(Deliver { tag: 7, redelivered: true, routing_key: "k" })"#;
        assert_eq!(frames[0], begun);
        assert!(frames[1].contains("body_size: 2"), "{frames:?}");
        assert_eq!(frames[2..], ["Body([123, 125])", "Heartbeat"]);
    }

    #[test]
    fn what_is_no_frame_is_an_error_that_says_so() {
        let check = |bytes: &[u8], said: &str| {
            let mut frames = Frames::new();
            frames.room()[..bytes.len()].copy_from_slice(bytes);
            frames.filled(bytes.len());
            let error = frames.next().expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        };
        check(b"AMQP\0\0\x09\x01", "a version of AMQP other than");
        check(&[1, 0, 1, 0, 1, 0, 0], "longer than was agreed on");
        check(&[8, 0, 0, 0, 0, 0, 0, 0], "a frame without an end");
        check(&[9, 0, 0, 0, 0, 0, 0, constants::FRAME_END], "unknown kind");
        check(&[1, 0, 1, 0, 0, 0, 1, 7, constants::FRAME_END], "a method that cannot be read");
        check(&[1, 0, 1, 0, 0, 0, 4, 0, 60, 0, 60, 206], "a method that cannot be read");
        check(&[2, 0, 1, 0, 0, 0, 1, 7, constants::FRAME_END], "a header that cannot be read");
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_how_they_are_split(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..40),
            cuts in prop::collection::vec(1usize..5000, 1..60),
        ) {
            let all: Vec<u8> = bodies.iter().zip(1..).flat_map(|(body, tag)| delivery(tag, body)).collect();
            let (mut pieces, mut rest) = (Vec::new(), &all[..]);
            for cut in cuts.iter().cycle() {
                let (piece, left) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = left;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(taken(pieces), taken([&all[..]]));
        }
    }
}
