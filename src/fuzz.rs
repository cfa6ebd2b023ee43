//! What fuzzing asserts of every decoder of bytes from outside, one function each; built with
//! `--cfg fuzzing` only. `fuzz/` calls them, docs/testing.md says how they are run.
//!
//! The first two bytes of what comes over a connection say where the rest is cut in two: however
//! bytes arrive, they mean the same.

use std::collections::HashSet;
use std::io::Cursor;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use memchr::memmem;
use regex::bytes::Regex;
use serde_json::Value;
use tungstenite::protocol::frame::FrameHeader;

use crate::access::{hello, proxy};
use crate::broker::Recipients;
use crate::broker::decode::{self, Defaults, PARK_TTL_MAX, Stamps};
use crate::clock::Moment;
use crate::command::{ADDRESS_MAX, Confirm, IfOffline, Reason, Whom};
use crate::protocol::recorder::{Asked, Recorder, replies};
use crate::protocol::{Audience, Broken, Content, Hello, Payload, Wire, chat as chat_format};
use crate::settings::LineEnding;

/// The longest frame that a device may send: short, so that longer ones are soon found.
const MAX: usize = 256;

/// The longest frame of those that devices read.
const READ_MAX: usize = 1 << 20;

/// What a device goes by that does not say so.
const NOBODY: &str = "nobody";

/// The longest reason for which something is refused: what a sender wrote is only shown in part.
const REASON_MAX: usize = 512;

/// Lines, as devices send them.
pub fn line(input: &[u8]) {
    let (bytes, cut) = cut(input);
    let (asked, end) = fed(&line_wire(MAX), NOBODY, bytes, cut);
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let rest = lines.pop().unwrap_or_default();
    let lines = lines.into_iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let short: Vec<Asked> = lines
        .clone()
        .take_while(|line| line.len() <= MAX)
        .map(|line| Asked::Line(line.to_vec()))
        .collect();
    // One byte more may be a CR whose LF is still to come.
    let is_too_long = short.len() < lines.len() || rest.len() > MAX + 1;
    assert_eq!(asked, short);
    assert_eq!(end, if is_too_long { Err(Broken::TooLong) } else { Ok(()) });
}

/// Frames of `channel`.
pub fn channel(input: &[u8]) {
    let (bytes, cut) = cut(input);
    let wire = Wire::Channel { max: MAX };
    let (asked, _) = fed(&wire, NOBODY, bytes, cut);
    check_asked(&wire, &asked);
}

/// Frames of `chat`: those that say who the device is, and those that come then.
pub fn chat(input: &[u8]) {
    let (bytes, cut) = cut(input);
    // Who has not said who it is goes on as somebody all the same: what is read is of interest.
    let (id, used) = match heard(|bytes| chat_format::verify(bytes, MAX), bytes, cut) {
        Ok(Some(Claim { id, end, .. })) => (id, end),
        Ok(None) | Err(_) => (NOBODY.to_owned(), 0),
    };
    let wire = Wire::Chat { max: MAX, from: "system".into() };
    let (asked, _) = fed(&wire, &id, &bytes[used..], cut.saturating_sub(used));
    check_asked(&wire, &asked);
    for verified in [true, false] {
        assert!(is_one_frame(&wire, &chat_format::verified(verified)));
    }
}

/// WebSocket frames, and what `topic` says in them.
pub fn topic(input: &[u8]) {
    let (bytes, cut) = cut(input);
    let wire = Wire::Topic { max: MAX };
    let (asked, _) = fed(&wire, NOBODY, bytes, cut);
    check_asked(&wire, &asked);
}

/// The PROXY header that a connection may begin with, version 1 or 2.
pub fn proxy(input: &[u8]) {
    let (bytes, cut) = cut(input);
    let beginning = proxy::look(&bytes[..cut]);
    match proxy::look(bytes) {
        Ok(proxy::Look::Header { length, source }) => {
            assert!((1..=proxy::HEADER_MAX.min(bytes.len())).contains(&length), "{length}");
            let header = &bytes[..length];
            let read = if header.starts_with(b"PROXY ") { line_source } else { binary_source };
            assert_eq!(source, read(header));
            let expected = if cut < length {
                proxy::Look::More
            } else {
                proxy::Look::Header { length, source }
            };
            assert_eq!(beginning, Ok(expected));
        }
        Ok(proxy::Look::More) => {
            assert!(bytes.len() < proxy::HEADER_MAX, "it would wait for ever");
            assert_eq!(beginning, Ok(proxy::Look::More));
        }
        Err(reason) => {
            check_reason(&reason);
            assert!(matches!(beginning, Ok(proxy::Look::More) | Err(_)), "{beginning:?}");
        }
    }
}

/// Where a connection comes from by a PROXY header of version 1.
fn line_source(header: &[u8]) -> Option<SocketAddr> {
    let Some(line) = header.strip_suffix(b"\r\n") else { panic!("no CR LF") };
    assert!(!line.iter().any(|byte| matches!(byte, b'\r' | b'\n')));
    let fields: Vec<&str> = str::from_utf8(line).ok()?.split(' ').collect();
    let [_, "TCP4" | "TCP6", ip, _, port, _] = fields[..] else { return None };
    Some((ip.parse::<IpAddr>().ok()?, port.parse().ok()?).into())
}

/// Where a connection comes from by a PROXY header of version 2.
fn binary_source(header: &[u8]) -> Option<SocketAddr> {
    let (head, rest) = header.split_at(16);
    assert_eq!(usize::from(u16::from_be_bytes([head[14], head[15]])), rest.len());
    // Only a proxy that hands a connection on says where it comes from.
    if head[12] != 0x21 {
        return None;
    }
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match head[13] >> 4 {
        1 => Some((<[u8; 4]>::try_from(&rest[..4]).ok()?, port(8)).into()),
        2 => Some((<[u8; 16]>::try_from(&rest[..16]).ok()?, port(32)).into()),
        _ => None,
    }
}

/// The first line of a device that says there who it is.
pub fn hello(input: &[u8]) {
    static PATTERN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^HELLO (?<id>[^ ]+)(?: (?-u:(?<token>.+)))?$").ok());
    let Some(pattern) = PATTERN.as_ref() else { panic!("the pattern is none") };
    let (bytes, cut) = cut(input);
    let Ok(Some(claim)) = heard(|bytes| hello::look(bytes, pattern, MAX), bytes, cut) else {
        return;
    };
    let Claim { id, token, begin, end } = claim;
    let said = &bytes[begin..end];
    assert_eq!(memchr::memchr(b'\n', said), Some(said.len() - 1));
    assert!(said.len() <= MAX + 2, "{} bytes", said.len());
    let line = said.strip_suffix(b"\r\n").or_else(|| said.strip_suffix(b"\n")).unwrap_or(said);
    let token = token.map(|token| format!(" {token}")).unwrap_or_default();
    assert_eq!(line, format!("HELLO {id}{token}").as_bytes());
}

/// A command, as a backend publishes it. The bits of the first byte are what else there is to a
/// message and to the settings.
pub fn command(input: &[u8]) {
    let Some((flags, body)) = input.split_first() else { return };
    let is_set = |bit: u8| flags & (1 << bit) != 0;
    let now = Moment::now();
    let stamps = Stamps {
        timestamp_ms: is_set(0).then(|| now.wall_ms.saturating_sub(500)),
        timestamp_s: is_set(1).then_some(u64::MAX),
        expiration: is_set(2).then_some("1000"),
        has_id: is_set(3),
    };
    let all = [
        line_wire(READ_MAX),
        Wire::Channel { max: READ_MAX },
        Wire::Chat { max: READ_MAX, from: "system".into() },
        Wire::Topic { max: READ_MAX },
    ];
    let defaults = Defaults {
        ttl: Duration::from_secs(60),
        if_offline: if is_set(4) { IfOffline::Park } else { IfOffline::Reject },
        confirm: if is_set(5) { Confirm::Answered } else { Confirm::Written },
        timeout: Duration::from_secs(10),
        answers_have_ids: is_set(7),
        wires: if is_set(6) { all.to_vec() } else { vec![line_wire(MAX)] },
    };
    let decoded = match decode::decode(body, &stamps, &defaults, now) {
        Ok(decoded) => decoded,
        Err(invalid) => return check_reason(&invalid.reason),
    };
    check_recipients(&decoded.recipients);
    let terms = &decoded.terms;
    assert!(terms.expires >= now.mono);
    if terms.if_offline == IfOffline::Park {
        assert!(terms.expires - now.mono <= PARK_TTL_MAX);
    }
    let said = terms.spoken.payload().content.clone();
    check_content(&said, body);
    for wire in &all {
        if let Ok(frame) = terms.spoken.in_wire(wire) {
            assert!(is_one_frame(wire, &frame), "{wire:?}: {}", frame.escape_ascii());
        }
    }
    assert!(defaults.wires.iter().any(|wire| terms.spoken.in_wire(wire).is_ok()));
}

/// What comes over a connection, and where it is cut in two.
fn cut(input: &[u8]) -> (&[u8], usize) {
    let Some((cut, bytes)) = input.split_first_chunk() else { return (&[], 0) };
    (bytes, usize::from(u16::from_be_bytes(*cut)) % (bytes.len() + 1))
}

/// Lines of at most `max` bytes.
fn line_wire(max: usize) -> Wire {
    Wire::Line { ending: LineEnding::Crlf, max }
}

/// What a device asks for that sends this, in one piece or in two, and how that ends.
fn fed(wire: &Wire, id: &str, bytes: &[u8], cut: usize) -> (Vec<Asked>, Result<(), Broken>) {
    let (head, tail) = bytes.split_at(cut.min(bytes.len()));
    let [whole, halves] = [&[bytes][..], &[head, tail]].map(|pieces| {
        let (mut protocol, mut port) = (wire.begin(id), Recorder::default());
        port.groups.insert("a".into(), (3, false));
        let end = pieces.iter().try_for_each(|piece| protocol.feed(piece, &mut port));
        let is_amid = end.is_ok() && protocol.amid().is_some();
        (port.asked, end, is_amid)
    });
    assert_eq!(whole, halves, "cut after {} bytes", head.len());
    (whole.0, whole.1)
}

/// Who a device says it is, and which bytes say so.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    id: String,
    token: Option<String>,
    begin: usize,
    end: usize,
}

/// What `look` finds as bytes come, in one piece or in two, as a connection's first bytes do.
fn heard(
    look: impl Fn(&[u8]) -> Result<Hello, Broken>,
    bytes: &[u8],
    cut: usize,
) -> Result<Option<Claim>, Broken> {
    let [whole, halves] = [&[bytes.len()][..], &[cut, bytes.len()]].map(|arrivals| {
        let mut begin = 0;
        for come in arrivals {
            loop {
                let here = &bytes[begin..*come];
                match look(here)? {
                    Hello::More => break,
                    Hello::Ignore(length) => {
                        assert!((1..=here.len()).contains(&length), "{length} are ignored");
                        begin += length;
                    }
                    Hello::Claim { length, id, token } => {
                        assert!((1..=here.len()).contains(&length), "{length} are a claim");
                        return Ok(Some(Claim { id, token, begin, end: begin + length }));
                    }
                }
            }
        }
        assert!(bytes.len() - begin <= MAX + 12, "it would wait for ever");
        Ok(None)
    });
    assert_eq!(whole, halves, "cut after {cut} bytes");
    whole
}

/// Checks that what a device is answered are frames, and that what it says to others can be said.
fn check_asked(wire: &Wire, asked: &[Asked]) {
    for reply in replies(asked) {
        assert!(is_one_frame(wire, reply), "{}", reply.escape_ascii());
    }
    for asked in asked {
        let Asked::Say(audience, payload) = asked else { continue };
        if let Audience::These(devices) = audience {
            assert!(!devices.is_empty());
        }
        check_payload(payload);
    }
}

/// Checks that every device can be told this in one frame; but for what is no line.
fn check_payload(payload: &Payload) {
    for wire in [
        Wire::Channel { max: READ_MAX },
        Wire::Chat { max: READ_MAX, from: "system".into() },
        Wire::Topic { max: READ_MAX },
    ] {
        let Ok(frame) = wire.encode(payload) else { panic!("{wire:?} cannot say {payload:?}") };
        assert!(is_one_frame(&wire, &frame), "{wire:?}: {}", frame.escape_ascii());
    }
    let wire = line_wire(READ_MAX);
    if let Ok(frame) = wire.encode(payload) {
        assert!(is_one_frame(&wire, &frame), "{}", frame.escape_ascii());
    }
}

/// Whether a device that reads this reads exactly one frame.
fn is_one_frame(wire: &Wire, frame: &[u8]) -> bool {
    match wire {
        Wire::Line { ending, .. } => frame.strip_suffix(ending.bytes()).is_some_and(|line| {
            !line.is_empty() && !line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
        }),
        Wire::Channel { .. } => {
            let end = b"##END##";
            memmem::find(frame, end).is_some_and(|at| at > 0 && at + end.len() == frame.len())
        }
        Wire::Chat { .. } => frame.split_first_chunk().is_some_and(|(length, _)| {
            frame.len() >= 12 && u32::from_be_bytes(*length) as usize == frame.len()
        }),
        Wire::Topic { .. } => {
            let mut cursor = Cursor::new(frame);
            let Ok(Some((header, length))) = FrameHeader::parse(&mut cursor) else { return false };
            let is_whole = cursor.position() + length == frame.len() as u64;
            is_whole && header.is_final && header.mask.is_none()
        }
    }
}

/// Checks that this is what `body` says, as another reader of JSON understands it.
fn check_content(content: &Content, body: &[u8]) {
    // Numbers and depths that are too much for it are not for a bridge that passes them on.
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return };
    let said = ["cmd", "chat_content"].map(|name| body.get(name).filter(|it| !it.is_null()));
    let Some(said) = said.into_iter().flatten().next() else { panic!("nobody said {content:?}") };
    match content {
        Content::Text(text) => assert_eq!(said.as_str(), Some(&**text)),
        Content::Json(json) => {
            assert_eq!(serde_json::from_str::<Value>(json).ok().as_ref(), Some(said));
        }
    }
}

fn check_recipients(recipients: &Recipients) {
    match recipients {
        Recipients::These(devices) => {
            assert!(!devices.is_empty());
            assert_eq!(devices.iter().collect::<HashSet<_>>().len(), devices.len());
        }
        Recipients::Members(Whom::Group(name)) => assert!((1..=ADDRESS_MAX).contains(&name.len())),
        Recipients::One(_) | Recipients::Members(Whom::All | Whom::AllInChat) => {}
    }
}

fn check_reason(reason: &Reason) {
    assert!(!reason.is_empty());
    assert!(reason.len() <= REASON_MAX, "{} bytes: {reason}", reason.len());
}
