use proptest::prelude::*;

use super::super::recorder::{Asked, Recorder, fed, in_pieces, pieces, replies};
use super::*;

const MAX: usize = 128;

/// What a device is told that asks this, the ends of frames taken off, and what else was done.
fn told(port: &mut Recorder, questions: &[&str]) -> Vec<String> {
    let mut channel = Channel::new(MAX);
    for question in questions {
        channel.feed(question.as_bytes(), port).expect(question);
        channel.feed(END.as_bytes(), port).expect(question);
    }
    assert!(!channel.partial.holds_memory());
    replies(&port.asked).into_iter().map(unframed).collect()
}

fn unframed(frame: &[u8]) -> String {
    let frame = std::str::from_utf8(frame).expect("UTF-8");
    frame.strip_suffix(END).expect(frame).to_owned()
}

fn publication(content: Content, channel: &str) -> Payload {
    Payload { content, group: Some(channel.into()), from: None, reach: Reach::Several }
}

#[test]
fn joining_and_leaving_tell_how_many_are_members() {
    let mut port = Recorder::default();
    port.groups.insert("b".into(), (4, false));
    let told = told(
        &mut port,
        &[
            r#"{"TYPE":"Q","COMMAND":"JC","CHANNEL":"a"}"#,
            r#"{"CHANNEL":"b","COMMAND":"JC","TYPE":"Q","MSG":null,"OTHER":[1]}"#,
            r#"{"TYPE":"Q","COMMAND":"LC","CHANNEL":"b"}"#,
            r#"{"TYPE":"Q","COMMAND":"LC","CHANNEL":"a"}"#,
        ],
    );
    assert_eq!(
        told,
        [
            r#"{"TYPE":"R","COMMAND":"JC","CHANNEL":"a","CNUM":1}"#,
            r#"{"TYPE":"R","COMMAND":"JC","CHANNEL":"b","CNUM":5}"#,
            r#"{"TYPE":"R","COMMAND":"LC","CHANNEL":"b","CNUM":4}"#,
            r#"{"TYPE":"R","COMMAND":"LC","CHANNEL":"a","CNUM":0}"#,
        ]
    );
}

#[test]
fn a_publication_is_answered_before_it_is_said_and_keeps_its_value() {
    let check = |message: &str, content: Content| {
        let mut port = Recorder::default();
        port.groups.insert("a".into(), (3, false));
        let question = format!(r#"{{"TYPE":"Q","COMMAND":"PUB","CHANNEL":"a","MSG":{message}}}"#);
        told(&mut port, &[&question]);
        let answer = r#"{"TYPE":"R","COMMAND":"PUB","CHANNEL":"a","CNUM":3}##END##"#;
        assert_eq!(
            port.asked,
            [
                Asked::Reply(answer.into()),
                Asked::Say(Audience::Group("a".into()), publication(content, "a")),
            ]
        );
    };
    check(r#""hi""#, Content::Text("hi".into()));
    check("null", Content::Json("null".into()));
    check(r#"{"z": 1.50, "a": [12345678901234567890123]}"#, {
        Content::Json(r#"{"z":1.50,"a":[12345678901234567890123]}"#.into())
    });
    check(r###""#\u0023END#\u0023""###, Content::Text("##END##".into()));
}

#[test]
fn what_cannot_be_done_is_told_and_the_connection_goes_on() {
    let check = |question: &str, refusal: &str| {
        let mut port = Recorder::default();
        port.groups.insert("others".into(), (1, false));
        let join = r#"{"TYPE":"Q","COMMAND":"JC","CHANNEL":"a"}"#;
        let told = told(&mut port, &[question, join]);
        assert!(told[0].starts_with(&refusal.replace('}', "")), "{question}: {}", told[0]);
        assert_eq!(told[1], r#"{"TYPE":"R","COMMAND":"JC","CHANNEL":"a","CNUM":1}"#);
    };
    let refusal = |channel: &str, command: &str, reason: &str| {
        format!(
            r#"{{"TYPE":"E","QTYPE":"Q","CHANNEL":{channel},"COMMAND":{command},"ERROR_MESSAGE":"{reason}}}"#
        )
    };
    check(
        r#"{"TYPE":"Q","COMMAND":"PUB","CHANNEL":"x","MSG":1}"#,
        &refusal(r#""x""#, r#""PUB""#, "CHANNEL: expected one that exists"),
    );
    check(
        r#"{"TYPE":"Q","COMMAND":"LC","CHANNEL":"x"}"#,
        &refusal(r#""x""#, r#""LC""#, "CHANNEL: expected one that exists"),
    );
    check(
        r#"{"TYPE":"Q","COMMAND":"LC","CHANNEL":"others"}"#,
        &refusal(r#""others""#, r#""LC""#, "CHANNEL: expected one that was joined"),
    );
    check(
        r#"{"TYPE":"Q","COMMAND":"XX","CHANNEL":"x"}"#,
        &refusal(r#""x""#, r#""XX""#, "COMMAND: expected JC, LC or PUB"),
    );
    check(r#"{"TYPE":"Q","COMMAND":"XX"}"#, &refusal("null", r#""XX""#, "COMMAND: expected JC"));
    check(r#"{"TYPE":"Q"}"#, &refusal("null", "null", "COMMAND: missing"));
    check(r#"{"TYPE":"Q","COMMAND":"JC"}"#, &refusal("null", r#""JC""#, "CHANNEL: missing"));
    check(
        r#"{"TYPE":"Q","COMMAND":"JC","CHANNEL":5}"#,
        &refusal("5", r#""JC""#, "CHANNEL: expected a string"),
    );
    check(
        r#"{"TYPE":"Q","COMMAND":"PUB","CHANNEL":"others"}"#,
        &refusal(r#""others""#, r#""PUB""#, "MSG: missing"),
    );
    check(
        r#"{"TYPE":"X","COMMAND":"JC","CHANNEL":"a"}"#,
        r#"{"TYPE":"E","QTYPE":"X","CHANNEL":"a","COMMAND":"JC","ERROR_MESSAGE":"TYPE: expected Q"#,
    );
    let nothing = r#"{"TYPE":"E","QTYPE":null,"CHANNEL":null,"COMMAND":null,"ERROR_MESSAGE":""#;
    check("{", &format!("{nothing}expected a JSON object"));
    check("[1]", &format!("{nothing}expected a JSON object"));
    check("{} {}", &format!("{nothing}expected a JSON object"));
}

#[test]
fn what_is_not_utf8_is_told_too() {
    let (asked, end) = fed(Channel::new(MAX), &[b"{\"TYPE\":\"\xff\"}##END##"]);
    assert_eq!(end, Ok(()));
    let [Asked::Reply(frame)] = asked.as_slice() else { panic!("{asked:?}") };
    let nothing = r#"{"TYPE":"E","QTYPE":null,"CHANNEL":null,"COMMAND":null,"ERROR_MESSAGE":""#;
    assert!(unframed(frame).starts_with(&format!("{nothing}expected UTF-8")));
}

#[test]
fn a_join_that_is_refused_is_told() {
    let mut port = Recorder { refusal: Some("too many".into()), ..Recorder::default() };
    let told = told(&mut port, &[r#"{"TYPE":"Q","COMMAND":"JC","CHANNEL":"a"}"#]);
    let refusal =
        r#"{"TYPE":"E","QTYPE":"Q","CHANNEL":"a","COMMAND":"JC","ERROR_MESSAGE":"too many"}"#;
    assert_eq!(told, [refusal]);
}

#[test]
fn an_end_cannot_stand_within_a_reply() {
    let mut port = Recorder::default();
    let escaped = r###""\u0023#END#\u0023""###;
    let told = told(&mut port, &[&format!(r#"{{"TYPE":"Q","COMMAND":"JC","CHANNEL":{escaped}}}"#)]);
    let answer = r###"{"TYPE":"R","COMMAND":"JC","CHANNEL":"##END#\u0023","CNUM":1}"###;
    assert_eq!(told, [answer]);
}

#[test]
fn blanks_between_frames_are_nothing_and_held_by_nobody() {
    let mut channel = Channel::new(8);
    let mut port = Recorder::default();
    for piece in ["\r\n", " ##END##", "\n", "##END####END##", &" ".repeat(100)] {
        channel.feed(piece.as_bytes(), &mut port).expect(piece);
        assert!(!channel.partial.holds_memory());
    }
    assert_eq!(port.asked, []);
    channel.feed(b"{", &mut port).expect("fed");
    assert!(channel.partial.holds_memory());
}

#[test]
fn an_end_may_be_cut_anywhere_and_follow_more_of_its_kind() {
    for text in ["{##END##", "{###END##", "{##END#END##END##", "{####END##"] {
        let whole = fed(Channel::new(MAX), &[text.as_bytes()]);
        assert_eq!((whole.0.len(), &whole.1), (1, &Ok(())), "{text}");
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(fed(Channel::new(MAX), &bytes), whole, "{text}");
    }
}

#[test]
fn the_limit_counts_a_frame_without_its_end() {
    let replies = |pieces: &[&[u8]]| {
        let (asked, end) = fed(Channel::new(3), pieces);
        (asked.len(), end)
    };
    assert_eq!(replies(&[b" \n123##END##"]), (1, Ok(())));
    assert_eq!(replies(&[b"123##EN", b"D", b"##"]), (1, Ok(())));
    assert_eq!(replies(&[b"1234##END##"]), (0, Err(Broken::TooLong)));
    assert_eq!(replies(&[b"1234", b"##END##"]), (0, Err(Broken::TooLong)));
    assert_eq!(replies(&[b"123456789"]), (0, Ok(())));
    assert_eq!(replies(&[b"1234567890"]), (0, Err(Broken::TooLong)));
    assert_eq!(replies(&[b"1##END##1234567890"]), (1, Err(Broken::TooLong)));
}

#[test]
fn a_publication_without_a_group_has_an_empty_channel() {
    let payload = Payload { group: None, ..publication(Content::Json("[1.0]".into()), "") };
    assert_eq!(
        encode(&payload).as_deref(),
        Ok(br#"{"TYPE":"PUB","CHANNEL":"","MSG":[1.0]}##END##"#.as_slice())
    );
    let garbled = Payload { content: Content::Json("[".into()), ..payload };
    assert!(encode(&garbled).is_err());
}

/// Text that is likely to hold ends and their beginnings.
fn hashes() -> impl Strategy<Value = String> {
    let part =
        prop_oneof![Just("#"), Just("END"), Just("##END##"), Just("\\"), Just("\""), Just("é")];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

fn something() -> impl Strategy<Value = Vec<u8>> {
    let question = |command: &str| {
        format!(r#"{{"TYPE":"Q","COMMAND":"{command}","CHANNEL":"a","MSG":[1 ]}}"#).into_bytes()
    };
    prop_oneof![
        Just(question("JC")),
        Just(question("LC")),
        Just(question("PUB")),
        Just(END.into()),
        Just(END.into()),
        hashes().prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn cutting_the_bytes_differently_changes_nothing((bytes, cuts) in in_pieces(something())) {
        let whole = fed(Channel::new(100), &[&bytes]);
        prop_assert_eq!(&fed(Channel::new(100), &pieces(&bytes, &cuts)), &whole);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&fed(Channel::new(100), &single), &whole);
    }

    #[test]
    fn a_frame_has_one_end_and_the_value_it_was_made_of(text in hashes(), group in hashes(), as_json: bool) {
        let content = if as_json {
            Content::Json(serde_json::json!({ text.clone(): [&text] }).to_string().into())
        } else {
            Content::Text(text.clone().into())
        };
        let frame = encode(&publication(content, &group)).expect("encoded");
        prop_assert_eq!(memmem::find(&frame, END.as_bytes()), Some(frame.len() - END.len()));
        let value: serde_json::Value = serde_json::from_str(&unframed(&frame)).expect("JSON");
        let message =
            if as_json { serde_json::json!({ text.clone(): [&text] }) } else { text.into() };
        prop_assert_eq!(value, serde_json::json!({ "TYPE": "PUB", "CHANNEL": group, "MSG": message }));
    }
}
