use proptest::prelude::*;

use super::super::recorder::{Asked, Recorder, fed, in_pieces, pieces};
use super::*;

const MAX: usize = 128;
const ID: &str = "138";

fn asked(about: u32, body: &str) -> Vec<Asked> {
    let (mut chat, mut port) = (Chat::new(ID, MAX), Recorder::default());
    chat.feed(&frame(about, body.as_bytes()), &mut port).expect(body);
    assert!(!chat.partial.holds_memory());
    port.asked
}

fn said(audience: Audience, reach: Reach, content: Content) -> Vec<Asked> {
    vec![Asked::Say(audience, Payload { content, group: None, from: Some("7".into()), reach })]
}

fn these(names: &[&str]) -> Audience {
    Audience::These(names.iter().map(|name| Address::parse(name).expect(name)).collect())
}

#[test]
fn the_wire_is_three_big_endian_numbers_and_json() {
    assert_eq!(verified(true), b"\0\0\0\x16\0\0\0\x01\0\0\0\x65{\"code\":1}");
    assert_eq!(verified(false), b"\0\0\0\x16\0\0\0\x01\0\0\0\x65{\"code\":0}");
    // The version is anything.
    let heartbeat = b"\0\0\0\x0c\xff\0\0\x09\0\0\0\x05";
    let (asked, end) = fed(Chat::new(ID, 0), &[heartbeat]);
    assert_eq!((asked, end), (vec![Asked::EndIfSilentFor(Duration::from_secs(4))], Ok(())));
}

#[test]
fn what_is_said_goes_to_one_several_or_all() {
    let text = Content::Text("hi".into());
    assert_eq!(
        asked(2, r#"{"chat_from":"7","chat_to":"139","chat_content":"hi"}"#),
        said(these(&["139"]), Reach::One, text.clone())
    );
    assert_eq!(
        asked(3, r#"{"chat_from":7,"chat_to":["139", 140],"chat_content":"hi"}"#),
        said(these(&["139", "140"]), Reach::Several, text.clone())
    );
    assert_eq!(
        asked(4, r#"{"chat_from":"7","chat_content":"hi"}"#),
        said(Audience::All(Format::Chat), Reach::All, text)
    );
    assert_eq!(
        asked(4, r#"{"chat_from":"7","chat_to":null,"chat_content":{ "b" : 1.0 }}"#),
        said(Audience::All(Format::Chat), Reach::All, Content::Json(r#"{"b":1.0}"#.into()))
    );
    assert_eq!(
        asked(4, r#"{"chat_from":"7","chat_content":null}"#),
        said(Audience::All(Format::Chat), Reach::All, Content::Json("null".into()))
    );
}

#[test]
fn who_has_no_valid_name_is_skipped() {
    assert_eq!(
        asked(3, r#"{"chat_from":"7","chat_to":["",5,"\n",{},"139"],"chat_content":1}"#),
        said(these(&["5", "139"]), Reach::Several, Content::Json("1".into()))
    );
    assert_eq!(asked(2, r#"{"chat_from":"7","chat_to":"","chat_content":1}"#), []);
    assert_eq!(asked(3, r#"{"chat_from":"7","chat_to":[""],"chat_content":1}"#), []);
}

#[test]
fn a_frame_that_is_not_understood_is_ignored() {
    for (about, body) in [
        (0, "{}"),
        (6, "{}"),
        (101, r#"{"code":1}"#),
        (1, ""),
        (1, "{}"),
        (1, r#"{"phone_number":[],"token":"t"}"#),
        (2, r#"{"chat_to":"1","chat_content":1}"#),
        (2, r#"{"chat_from":"7","chat_content":1}"#),
        (2, r#"{"chat_from":"7","chat_to":["1"],"chat_content":1}"#),
        (3, r#"{"chat_from":"7","chat_to":"1","chat_content":1}"#),
        (4, r#"{"chat_from":"7"}"#),
        (4, r#"{"chat_from":"7","chat_content":}"#),
        (4, r#"["7",null,1]"#),
    ] {
        assert_eq!(asked(about, body), [], "{body}");
    }
    let not_utf8 = frame(4, b"{\"chat_from\":\"\xff\",\"chat_content\":1}");
    assert_eq!(fed(Chat::new(ID, MAX), &[&not_utf8]), (vec![], Ok(())));
}

#[test]
fn a_heartbeat_may_say_anything() {
    for body in ["", "{}", "{"] {
        assert_eq!(asked(5, body), [Asked::EndIfSilentFor(HEARTBEAT_SILENCE)]);
    }
}

#[test]
fn verifying_again_succeeds_for_the_same_number_only() {
    let check = |number: &str, success: bool| {
        let body = format!(r#"{{"phone_number":{number},"token":"t"}}"#);
        assert_eq!(asked(1, &body), [Asked::Reply(verified(success))], "{number}");
    };
    check(r#""138""#, true);
    check("138", true);
    check(r#""139""#, false);
    check("138.0", false);
}

#[test]
fn lengths_that_cannot_be_end_the_connection() {
    let end = |bytes: &[u8]| fed(Chat::new(ID, 3), &[bytes]).1;
    assert_eq!(
        end(b"\0\0\0\x0b"),
        Err(Broken::Malformed("length: expected at least 12, got 11".into()))
    );
    assert_eq!(end(b"\0\0\0\x0c"), Ok(()));
    assert_eq!(end(b"\0\0\0\x0f"), Ok(()));
    assert_eq!(end(b"\0\0\0\x10"), Err(Broken::TooLong));
    assert_eq!(end(b"\xff\xff\xff\xff"), Err(Broken::TooLong));
    assert_eq!(verify(b"\0\0\0\x10", 3), Err(Broken::TooLong));
    assert!(matches!(verify(b"\0\0\0\0", 3), Err(Broken::Malformed(_))));
}

#[test]
fn the_first_frame_that_verifies_is_the_claim() {
    let hello = |about: u32, body: &str| verify(&frame(about, body.as_bytes()), MAX);
    let claim = |body: &str| {
        let claim = Hello::Claim {
            length: HEADER + body.len(),
            id: "138".into(),
            token: Some("secret".into()),
        };
        assert_eq!(hello(1, body), Ok(claim), "{body}");
    };
    claim(r#"{"phone_number":"138","token":"secret"}"#);
    claim(r#"{"token":"secret","phone_number":138,"other":{}}"#);
    for (about, body) in [
        (1, ""),
        (1, "{}"),
        (1, r#"{"phone_number":"138"}"#),
        (1, r#"{"phone_number":null,"token":"secret"}"#),
        (2, r#"{"phone_number":"138","token":"secret"}"#),
        (5, ""),
        (77, "{}"),
    ] {
        assert_eq!(hello(about, body), Ok(Hello::Ignore(HEADER + body.len())), "{body}");
    }
    let whole = frame(1, br#"{"phone_number":"138","token":"secret"}"#);
    for end in 0..whole.len() {
        assert_eq!(verify(&whole[..end], MAX), Ok(Hello::More));
    }
    let followed = [whole.as_slice(), b"\0\0"].concat();
    assert_eq!(verify(&followed, MAX), verify(&whole, MAX));
}

#[test]
fn what_a_device_reads_tells_who_said_it_and_to_how_many() {
    let check = |reach: Reach, about: u32| {
        let content = Content::Text("a\"b".into());
        let payload = Payload { content, group: None, from: Some("7".into()), reach };
        let body = br#"{"chat_from":"7","chat_content":"a\"b"}"#;
        assert_eq!(encode(&payload, "system"), Ok(frame(about, body)));
    };
    check(Reach::One, 102);
    check(Reach::Several, 103);
    check(Reach::All, 104);
    let content = Content::Json(r#"{"b":1.0}"#.into());
    let payload = Payload { content, group: None, from: None, reach: Reach::One };
    let body = br#"{"chat_from":"system","chat_content":{"b":1.0}}"#;
    assert_eq!(encode(&payload, "system"), Ok(frame(102, body)));
    assert!(encode(&Payload { content: Content::Json("".into()), ..payload }, "").is_err());
}

fn something() -> impl Strategy<Value = Vec<u8>> {
    let frames = prop_oneof![
        Just(frame(1, br#"{"phone_number":138,"token":""}"#)),
        Just(frame(3, br#"{"chat_from":"7","chat_to":["1"],"chat_content":[]}"#)),
        Just(frame(4, br#"{"chat_from":"7","chat_content":"x"}"#)),
        Just(frame(5, b"")),
        (0u32..8, prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(about, body)| frame(about, &body)),
    ];
    prop_oneof![9 => frames, 1 => prop::collection::vec(any::<u8>(), 0..40)]
}

proptest! {
    #[test]
    fn cutting_the_bytes_differently_changes_nothing((bytes, cuts) in in_pieces(something())) {
        let whole = fed(Chat::new(ID, 55), &[&bytes]);
        prop_assert_eq!(&fed(Chat::new(ID, 55), &pieces(&bytes, &cuts)), &whole);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&fed(Chat::new(ID, 55), &single), &whole);
    }

    #[test]
    fn no_beginning_is_taken_for_longer_than_it_is(bytes in something(), end in 0usize..80) {
        let bytes = &bytes[..end.min(bytes.len())];
        match verify(bytes, 55) {
            Ok(Hello::Ignore(length) | Hello::Claim { length, .. }) => {
                prop_assert!((HEADER..=bytes.len()).contains(&length));
            }
            Ok(Hello::More) | Err(_) => {}
        }
    }
}
