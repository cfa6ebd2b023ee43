use std::io::{Cursor, Read, Result as IoResult, Write};

use proptest::prelude::*;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, error::ProtocolError};

use super::*;
use crate::protocol::recorder::{Asked, Recorder, pieces};

const MAX: usize = 64;
const FINAL: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A client's frame.
pub(in super::super) fn masked(head: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![head];
    match u16::try_from(payload.len()).expect("short") {
        length @ ..126 => frame.push(0x80 | length.to_be_bytes()[1]),
        length => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// What a connection says that sends these pieces: texts, and None for what is binary.
#[derive(Debug, PartialEq)]
struct Heard {
    messages: Vec<Option<String>>,
    asked: Vec<Asked>,
    end: Result<(), Broken>,
}

fn heard(pieces: &[&[u8]]) -> Heard {
    let mut websocket = WebSocket::new(MAX);
    let (mut port, mut messages) = (Recorder::default(), Vec::new());
    let end = pieces.iter().try_for_each(|piece| {
        websocket.feed(piece, &mut port, |message, _| {
            messages.push(match message {
                Message::Text(text) => Some(text.to_owned()),
                Message::Binary => None,
            });
        })
    });
    Heard { messages, asked: port.asked, end }
}

fn reply(frame: &[u8]) -> Vec<Asked> {
    vec![Asked::Reply(frame.to_vec())]
}

#[test]
fn an_idle_device_is_small_and_holds_no_memory() {
    assert_eq!(size_of::<WebSocket>(), 80);
    let (mut websocket, mut port) = (WebSocket::new(MAX), Recorder::default());
    let mut feed = |bytes: &[u8]| {
        websocket.feed(bytes, &mut port, |_, _| ()).expect("fed");
        websocket.partial.holds_memory() || websocket.begun.is_some()
    };
    let frame = masked(FINAL | TEXT, b"hi");
    assert!(!feed(&frame));
    assert!(feed(&frame[..3]));
    assert!(!feed(&frame[3..]));
    assert!(feed(&masked(TEXT, b"hi")));
    assert!(feed(&masked(FINAL | PING, b"hi")));
    assert!(!feed(&masked(FINAL | CONTINUATION, b"hi")));
}

#[test]
fn a_message_is_the_same_until_its_last_frame() {
    let (mut websocket, mut port) = (WebSocket::new(MAX), Recorder::default());
    let mut after = |bytes: &[u8]| {
        websocket.feed(bytes, &mut port, |_, _| ()).expect("fed");
        websocket.amid()
    };
    let frame = masked(FINAL | TEXT, b"hi");
    assert_eq!(after(&frame), None);
    assert_eq!(after(&frame[..3]), Some(1));
    assert_eq!(after(&[&frame[3..], &frame[..3]].concat()), Some(2), "another one");
    assert_eq!(after(&frame[3..]), None);
    assert_eq!(after(&masked(TEXT, b"hi")), Some(3));
    assert_eq!(after(&masked(FINAL | PING, b"hi")), Some(3));
    assert_eq!(after(&masked(FINAL | CONTINUATION, b"hi")), None);
}

#[test]
fn fragments_are_one_message_whatever_comes_between_them() {
    let bytes = [
        masked(TEXT, "é".as_bytes().split_at(1).0),
        masked(FINAL | PING, b"p"),
        masked(CONTINUATION, b""),
        masked(FINAL | PONG, b"unasked"),
        masked(FINAL | CONTINUATION, "é".as_bytes().split_at(1).1),
        masked(FINAL | BINARY, &[0xff]),
        masked(FINAL | TEXT, b""),
    ];
    let expected = Heard {
        messages: vec![Some("é".into()), None, Some(String::new())],
        asked: reply(b"\x8a\x01p"),
        end: Ok(()),
    };
    assert_eq!(heard(&[&bytes.concat()]), expected);
}

#[test]
fn a_close_is_answered_with_its_code() {
    let check = |payload: &[u8], answer: &[u8]| {
        // What follows it is nothing any more.
        let bytes = [masked(FINAL | CLOSE, payload), masked(FINAL | PING, b"")].concat();
        let expected = Heard { messages: vec![], asked: reply(answer), end: Err(Broken::Closed) };
        assert_eq!(heard(&[&bytes]), expected);
    };
    check(b"", b"\x88\x00");
    check(&1000u16.to_be_bytes(), b"\x88\x02\x03\xe8");
    check(b"\x0f\xa0bye", b"\x88\x02\x0f\xa0");
}

#[test]
fn what_breaks_the_rules_ends_the_connection_with_a_code() {
    let check = |bytes: &[u8], code: u16, broken: &str| {
        let heard = heard(&[bytes]);
        let [high, low] = code.to_be_bytes();
        assert_eq!(heard.asked, reply(&[0x88, 2, high, low]), "{bytes:?}");
        let end = format!("{:?}", heard.end.expect_err(broken));
        assert!(end.contains(broken), "{bytes:?}: {end}");
    };
    check(&masked(FINAL | TEXT, &[0xff]), 1007, "Malformed(\"expected UTF-8");
    check(&masked(FINAL | CLOSE, &[0x03, 0xe8, 0xff]), 1007, "Malformed(\"expected UTF-8");
    check(&masked(FINAL | TEXT, &[b' '; MAX + 1]), 1009, "TooLong");
    let half = masked(TEXT, &[b' '; MAX / 2]);
    let more = masked(FINAL | CONTINUATION, &[b' '; MAX / 2 + 1]);
    check(&[half, more].concat(), 1009, "TooLong");
    // The header tells it.
    check(b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009, "TooLong");
    check(b"\x81\x00", 1002, "a masked frame");
    for reserved in [0x40, 0x20, 0x10] {
        check(&masked(FINAL | reserved | TEXT, b""), 1002, "no extensions");
    }
    check(&masked(FINAL | 3, b""), 1002, "opcode");
    check(&masked(FINAL | 11, b""), 1002, "opcode");
    check(&masked(PING, b""), 1002, "a whole message");
    check(&masked(FINAL | PING, &[0; 126]), 1002, "at most 125");
    check(&masked(FINAL | CONTINUATION, b""), 1002, "the first frame");
    let begun = masked(TEXT, b"");
    check(&[begun.clone(), begun].concat(), 1002, "the next frame");
    check(&masked(FINAL | CLOSE, b"\x03"), 1002, "two bytes");
    check(&masked(FINAL | CLOSE, &1005u16.to_be_bytes()), 1002, "that can be sent");
}

#[test]
fn the_longest_message_and_the_longest_ping_are_read() {
    let bytes = [masked(FINAL | TEXT, &[b' '; MAX]), masked(FINAL | PING, &[0; 125])].concat();
    let heard = heard(&[&bytes]);
    assert_eq!((heard.messages, heard.end), (vec![Some(" ".repeat(MAX))], Ok(())));
    assert_eq!(heard.asked, reply(&[&[0x8a, 125], [0; 125].as_slice()].concat()));
}

/// The other side of a connection, which has sent these bytes and does not listen.
struct Sent(Cursor<Vec<u8>>);

impl Read for Sent {
    fn read(&mut self, into: &mut [u8]) -> IoResult<usize> {
        self.0.read(into)
    }
}

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}

/// What tungstenite hears in these bytes, and how it ends.
fn tungstenite_heard(bytes: &[u8]) -> (Vec<Option<String>>, Option<&'static str>) {
    let limits = WebSocketConfig::default().max_message_size(Some(MAX)).max_frame_size(Some(MAX));
    let sent = Sent(Cursor::new(bytes.to_vec()));
    let mut oracle = tungstenite::WebSocket::from_raw_socket(sent, Role::Server, Some(limits));
    let mut messages = Vec::new();
    loop {
        match oracle.read() {
            Ok(tungstenite::Message::Text(text)) => messages.push(Some(text.to_string())),
            Ok(tungstenite::Message::Binary(_)) => messages.push(None),
            Ok(tungstenite::Message::Close(_)) => return (messages, Some("closed")),
            Ok(_) => {}
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return (messages, None);
            }
            Err(Error::Capacity(_)) => return (messages, Some("too long")),
            Err(_) => return (messages, Some("malformed")),
        }
    }
}

fn head() -> impl Strategy<Value = u8> {
    let opcode = prop_oneof![
        4 => Just(CONTINUATION), 4 => Just(TEXT), 2 => Just(BINARY), 2 => Just(PING), 1 => 0u8..16
    ];
    let flags = prop_oneof![9 => Just(FINAL), 9 => Just(0), 1 => Just(FINAL | 0x20)];
    (flags, opcode).prop_map(|(flags, opcode)| flags | opcode)
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    // A close frame with a payload is read otherwise: its code is not text.
    (head(), "[a-z]{0,40}").prop_map(|(head, text)| {
        let text = if head & 15 == CLOSE { "" } else { text.as_str() };
        masked(head, text.as_bytes())
    })
}

proptest! {
    #[test]
    fn cutting_the_bytes_differently_changes_nothing(
        frames in prop::collection::vec(frame(), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..20),
        cuts in prop::collection::vec(0usize..300, 0..10),
    ) {
        let bytes = [frames.concat(), noise].concat();
        let whole = heard(&[&bytes]);
        prop_assert_eq!(&heard(&pieces(&bytes, &cuts)), &whole);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&heard(&single), &whole);
    }

    #[test]
    fn tungstenite_hears_the_same(frames in prop::collection::vec(frame(), 0..12)) {
        let bytes = frames.concat();
        let heard = heard(&[&bytes]);
        let end = heard.end.err().map(|broken| match broken {
            Broken::TooLong => "too long",
            Broken::Malformed(_) => "malformed",
            Broken::Closed => "closed",
        });
        prop_assert_eq!((heard.messages, end), tungstenite_heard(&bytes));
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        heard(&[&bytes]);
    }
}
