use proptest::prelude::*;
use tungstenite::protocol::Role;

use super::super::recorder::{Asked, Recorder, fed, in_pieces, pieces, replies};
use super::websocket::tests::masked;
use super::*;

const MAX: usize = 128;
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;

fn asked(port: &mut Recorder, head: u8, message: &[u8]) -> Vec<Asked> {
    let end = Topic::new(MAX).feed(&masked(head, message), port);
    assert_eq!(end, Ok(()));
    std::mem::take(&mut port.asked)
}

fn publication(content: Content) -> Payload {
    Payload { content, group: Some("a".into()), from: None, reach: Reach::Several }
}

/// What a client makes of a frame.
fn read(frame: &[u8]) -> String {
    let stream = std::io::Cursor::new(frame.to_vec());
    let mut client = tungstenite::WebSocket::from_raw_socket(stream, Role::Client, None);
    let message = client.read().expect("a message");
    assert!(message.is_text());
    message.into_text().expect("UTF-8").to_string()
}

#[test]
fn subscribing_and_unsubscribing_have_no_answer() {
    let mut port = Recorder::default();
    assert_eq!(
        asked(&mut port, TEXT, br#"{"action":"subscribe","topic":"a"}"#),
        [Asked::Join("a".into())]
    );
    assert_eq!(
        asked(&mut port, TEXT, br#"{"topic":"a","action":"unsubscribe","message":1,"x":2}"#),
        [Asked::Leave("a".into())]
    );
}

#[test]
fn a_publication_keeps_its_value_and_needs_no_subscribers() {
    let check = |message: &str, content: Content| {
        let text = format!(r#"{{"action":"publish","topic":"a","message":{message}}}"#);
        assert_eq!(
            asked(&mut Recorder::default(), TEXT, text.as_bytes()),
            [Asked::Say(Audience::Group("a".into()), publication(content))]
        );
    };
    check(r#""hi""#, Content::Text("hi".into()));
    check("null", Content::Json("null".into()));
    check(r#"{ "z": 1.50, "a": [1] }"#, Content::Json(r#"{"z":1.50,"a":[1]}"#.into()));
}

#[test]
fn what_cannot_be_done_is_told() {
    let check = |head: u8, message: &[u8], topic: &str, error: &str| {
        let mut port = Recorder { refusal: Some("too many".into()), ..Recorder::default() };
        let asked = asked(&mut port, head, message);
        let told: Vec<String> = replies(&asked).into_iter().map(read).collect();
        assert_eq!(told.len(), asked.len());
        let expected = format!(r#"{{"action":"error","topic":{topic},"error":"{error}"#);
        assert!(told[0].starts_with(&expected), "{told:?}, not {expected}");
    };
    check(TEXT, b"{", "null", "expected a JSON object, got EOF");
    check(TEXT, b"[]", "null", "expected a JSON object");
    check(TEXT, b"", "null", "expected a JSON object");
    check(TEXT, b"{}", "null", "action: missing");
    check(TEXT, br#"{"action":1,"topic":"a"}"#, r#""a""#, "action: expected a string");
    check(TEXT, br#"{"action":"x","topic":"a"}"#, r#""a""#, "action: expected subscribe, ");
    check(TEXT, br#"{"action":"subscribe"}"#, "null", "topic: missing");
    check(TEXT, br#"{"action":"subscribe","topic":[1]}"#, "[1]", "topic: expected a string");
    check(TEXT, br#"{"action":"subscribe","topic":"a"}"#, r#""a""#, "too many");
    check(TEXT, br#"{"action":"unsubscribe","topic":"a"}"#, r#""a""#, "topic: expected one that");
    check(TEXT, br#"{"action":"publish","topic":"a"}"#, r#""a""#, "message: missing");
    check(BINARY, br#"{"action":"subscribe","topic":"a"}"#, "null", "expected a text message");
}

#[test]
fn a_publication_is_one_text_message() {
    let text = publication(Content::Text("a\"b".into()));
    let frame = encode(&text).expect("encoded");
    assert_eq!(read(&frame), r#"{"action":"publish","topic":"a","message":"a\"b"}"#);
    for length in [70, 200, 70_000] {
        let long = "x".repeat(length);
        let payload = Payload { group: None, ..publication(Content::Text(long.clone().into())) };
        let expected = format!(r#"{{"action":"publish","topic":"","message":"{long}"}}"#);
        assert_eq!(read(&encode(&payload).expect("encoded")), expected);
    }
    let garbled = Payload { content: Content::Json("{".into()), ..text };
    assert!(encode(&garbled).is_err());
}

#[test]
fn the_key_is_answered_as_in_rfc_6455() {
    assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

fn something() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        Just(br#"{"action":"subscribe","topic":"a"}"#.to_vec()),
        Just(br#"{"action":"unsubscribe","topic":"a"}"#.to_vec()),
        Just(br#"{"action":"publish","topic":"a","message":[1]}"#.to_vec()),
        Just(br#"{"action":"publish","topic":"a","message":}"#.to_vec()),
        "\\PC{0,20}".prop_map(String::into_bytes),
    ];
    prop_oneof![
        9 => text.prop_map(|text| masked(TEXT, &text)),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #[test]
    fn cutting_the_bytes_differently_changes_nothing((bytes, cuts) in in_pieces(something())) {
        let whole = fed(Topic::new(45), &[&bytes]);
        prop_assert_eq!(&fed(Topic::new(45), &pieces(&bytes, &cuts)), &whole);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&fed(Topic::new(45), &single), &whole);
    }
}
