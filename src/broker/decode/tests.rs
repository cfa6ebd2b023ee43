use proptest::prelude::*;

use super::*;
use crate::settings::LineEnding;

pub(crate) fn defaults() -> Defaults {
    Defaults {
        ttl: Duration::from_secs(3600),
        if_offline: IfOffline::Reject,
        confirm: Confirm::Written,
        timeout: Duration::from_secs(10),
        answers_have_ids: false,
        wires: vec![Wire::Line { ending: LineEnding::Lf, max: 32 }],
    }
}

fn at(wall_ms: u64) -> Moment {
    Moment { wall_ms, mono: Instant::now() + Duration::from_secs(3600) }
}

fn line_of(body: &str) -> String {
    let decoded = decode(body.as_bytes(), &Stamps::default(), &defaults(), at(0)).expect(body);
    String::from_utf8(decoded.terms.spoken.in_wire(&defaults().wires[0]).expect("a line").to_vec())
        .expect("UTF-8")
}

#[test]
fn a_string_goes_out_as_it_is_and_anything_else_as_compact_json() {
    let check = |cmd: &str, line: &str| {
        let body = format!(r#"{{"address":"10.0.0.7","cmd":{cmd}, "unknown": [1]}}"#);
        assert_eq!(line_of(&body), format!("{line}\n"));
    };
    check(r#""SET OUT1 ON""#, "SET OUT1 ON");
    check(r#""tab\t \u00e9""#, "tab\t é");
    check(r#"{ "z" : 1.50, "a" : [ true , "x \" y" ] }"#, r#"{"z":1.50,"a":[true,"x \" y"]}"#);
    check("12345678901234567890123", "12345678901234567890123");
    check("false", "false");
}

#[test]
fn what_is_wrong_is_named() {
    let check = |body: &str, expected: &str| {
        let result = decode(body.as_bytes(), &Stamps::default(), &defaults(), at(0));
        let reason = result.expect_err(body).reason;
        assert!(reason.starts_with(expected), "{body}: {reason}");
    };
    check("", "body: expected a JSON object, got ");
    check("[\"10.0.0.7\",\"X\"]", "body: expected a JSON object, got [");
    check("{\"address\":", "body: expected a JSON object, got EOF");
    check("{} {}", "body: expected a JSON object, got trailing");
    check("{}", "address: missing");
    check(r#"{"address":5,"cmd":"x"}"#, "address: expected a string, got 5");
    check(r#"{"address":"","cmd":"x"}"#, "address: expected the name of a device");
    check(r#"{"address":"a"}"#, "cmd: missing");
    check(r#"{"address":"a","cmd":null}"#, "cmd: missing");
    check(r#"{"address":"a","cmd":"a\nb"}"#, "cmd: expected one line");
    check(r#"{"address":"a","cmd":"x","id":7}"#, "id: expected a string, got 7");
    check(r#"{"address":"a","cmd":"x","ttl_ms":"5"}"#, "ttl_ms: expected a whole number");
    check(r#"{"address":"a","cmd":"x","ttl_ms":-1}"#, "ttl_ms: expected a whole number");
    check(r#"{"address":"a","cmd":"x","timeout_ms":1.5}"#, "timeout_ms: expected a whole");
    check(r#"{"address":"a","cmd":"x","confirm":"maybe"}"#, "confirm: expected `written`");
    check(r#"{"address":"a","cmd":"x","once":1}"#, "once: expected true or false, got 1");
    check(r#"{"address":"a","cmd":"x","if_offline":"wait"}"#, "if_offline: expected `reject`");
    check(
        r#"{"address":"a","cmd":"x","if_offline":"park","ttl_ms":604800001}"#,
        "ttl_ms: expected at most 604800000 for a command that may be parked, got 604800001",
    );
    check(r#"{"address":"a","address":"b","cmd":"x"}"#, "body: expected a JSON object, got dup");
    let not_utf8 = decode(b"{\"address\":\"\xff\"}", &Stamps::default(), &defaults(), at(0));
    assert!(not_utf8.expect_err("not UTF-8").reason.starts_with("body: expected UTF-8"));
}

#[test]
fn what_a_command_asks_for_is_read_and_the_rest_is_the_default() {
    let read = |body: &str| {
        let decoded = decode(body.as_bytes(), &Stamps::default(), &defaults(), at(0));
        decoded.expect(body).terms
    };
    let command = read(r#"{"address":"a","cmd":"x"}"#);
    assert_eq!(command.confirm, Confirm::Written);
    assert_eq!(command.timeout, Duration::from_secs(10));
    assert!(!command.once);
    let command = read(
        r#"{"address":"a","cmd":"x","confirm":"answered","timeout_ms":5,"once":true,"if_offline":"park"}"#,
    );
    assert_eq!(command.confirm, Confirm::Answered);
    assert_eq!(command.timeout, Duration::from_millis(5));
    assert!(command.once);
    assert_eq!(command.if_offline, IfOffline::Park);
}

#[test]
fn where_answers_have_ids_a_command_that_wants_one_has_an_id() {
    let defaults = Defaults { answers_have_ids: true, ..defaults() };
    let reason = |stamps: Stamps<'_>| {
        let body = br#"{"address":"a","cmd":"x","confirm":"answered"}"#;
        decode(body, &stamps, &defaults, at(0)).err().map(|invalid| invalid.reason)
    };
    let missing = "id: missing; devices name the command they answer by its id";
    assert_eq!(reason(Stamps::default()), Some(missing.into()));
    assert_eq!(reason(Stamps { has_id: true, ..Stamps::default() }), None);
}

#[test]
fn an_invalid_command_keeps_what_could_be_read() {
    let body = br#"{"address":"10.0.0.7","id":"7","cmd":null}"#;
    let invalid = decode(body, &Stamps::default(), &defaults(), at(0)).expect_err("no cmd");
    assert_eq!(invalid.id.as_deref(), Some("7"));
    assert_eq!(invalid.address.map(|a| a.to_string()).as_deref(), Some("10.0.0.7"));
}

#[test]
fn the_soonest_end_counts_from_publication() {
    let now = at(100_000);
    let left = |ttl: &str, stamps: Stamps<'_>| {
        let body = format!(r#"{{"address":"a","cmd":"x"{ttl}}}"#);
        let decoded = decode(body.as_bytes(), &stamps, &defaults(), now).expect("valid");
        decoded.terms.expires.duration_since(now.mono).as_millis()
    };
    let none = Stamps::default();
    assert_eq!(left("", none), 3_600_000);
    assert_eq!(left(r#","ttl_ms":500"#, none), 500);
    assert_eq!(left(r#","ttl_ms":500"#, Stamps { expiration: Some("200"), ..none }), 200);
    assert_eq!(left("", Stamps { expiration: Some("200"), ..none }), 200);
    let precise = Stamps { timestamp_ms: Some(99_900), ..none };
    assert_eq!(left(r#","ttl_ms":500"#, precise), 400);
    assert_eq!(left(r#","ttl_ms":50"#, precise), 0);
    // Published in second 98, at 98.999 at the latest.
    let coarse = Stamps { timestamp_s: Some(98), ..none };
    assert_eq!(left(r#","ttl_ms":5000"#, coarse), 3_999);
    // Published within this second: not a millisecond is lost.
    assert_eq!(left(r#","ttl_ms":500"#, Stamps { timestamp_s: Some(100), ..none }), 500);
    assert_eq!(left(r#","ttl_ms":500"#, Stamps { timestamp_s: Some(9_999_999), ..none }), 500);
    assert!(left(r#","ttl_ms":18446744073709551615"#, none) > 1_000_000_000_000);
}

proptest! {
    #[test]
    fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(invalid) = decode(&body, &Stamps::default(), &defaults(), at(0)) {
            prop_assert!(!invalid.reason.is_empty());
        }
    }

    #[test]
    fn every_string_that_is_a_line_arrives_unchanged(cmd in "[^\r\n\0]{1,8}") {
        let body = serde_json::json!({ "address": "a", "cmd": cmd }).to_string();
        prop_assert_eq!(line_of(&body), format!("{cmd}\n"));
    }
}

#[test]
fn a_command_is_for_one_for_several_for_a_group_or_for_all() {
    let recipients = |body: &str| {
        let decoded = decode(body.as_bytes(), &Stamps::default(), &defaults(), at(0));
        decoded.map(|decoded| decoded.recipients).map_err(|invalid| invalid.reason.into_owned())
    };
    let address = |text: &str| Address::parse(text).expect(text);
    let check = |to: &str, expected: Recipients| {
        assert_eq!(recipients(&format!(r#"{{{to},"cmd":"X"}}"#)), Ok(expected));
    };
    check(r#""address":"p1""#, Recipients::One(address("p1")));
    let several = vec![address("p1"), address("10.0.0.7")];
    check(r#""addresses":["p1","10.0.0.7","::ffff:10.0.0.7"]"#, Recipients::These(several));
    check(r#""group":"pumps""#, Recipients::Members(Whom::Group("pumps".into())));
    check(r#""broadcast":true"#, Recipients::Members(Whom::All));
    check(r#""broadcast":false,"address":"p1""#, Recipients::One(address("p1")));

    let wrong = |to: &str, expected: &str| {
        let reason = recipients(&format!(r#"{{{to}"cmd":"X"}}"#)).expect_err(to);
        assert!(reason.starts_with(expected), "{reason}");
    };
    wrong("", "address: missing");
    wrong(r#""address":"p1","group":"g","#, "address: expected one of");
    wrong(r#""addresses":[],"#, "addresses: expected 1 to 10000 devices, got 0");
    wrong(r#""addresses":["p1",7.5],"#, "addresses: expected a string");
    wrong(r#""addresses":"p1","#, "addresses: expected a list");
    wrong(r#""group":"","#, "group: expected a name of 1 to 200 bytes");
    wrong(r#""broadcast":1,"#, "broadcast: expected true or false");
}

#[test]
fn a_backend_may_write_chat_messages_as_they_are() {
    let decoded = |body: &str| {
        decode(body.as_bytes(), &Stamps::default(), &defaults(), at(0))
            .map_err(|invalid| invalid.reason.into_owned())
    };
    let address = |text: &str| Address::parse(text).expect(text);
    let rest = r#""chat_from":"shop","chat_content":"hi"}"#;
    let one =
        decoded(&format!(r#"{{"command_id":102,"chat_to":"5551",{rest}"#)).expect("a message");
    assert_eq!(one.recipients, Recipients::One(address("5551")));
    let payload = one.terms.spoken.payload();
    assert_eq!((payload.content.text(), payload.from.as_deref()), ("hi", Some("shop")));
    let several = decoded(&format!(r#"{{"command_id":103,"chat_to":["5551",5552],{rest}"#))
        .expect("a message");
    assert_eq!(several.recipients, Recipients::These(vec![address("5551"), address("5552")]));
    let all = decoded(&format!(r#"{{"command_id":104,{rest}"#)).expect("a message");
    assert_eq!(
        (all.recipients, all.terms.spoken.payload().reach),
        (Recipients::Members(Whom::AllInChat), Reach::All)
    );
    let wrong = decoded(&format!(r#"{{"command_id":105,{rest}"#)).expect_err("no such command");
    assert_eq!(wrong, "command_id: expected 102, 103 or 104, got 105");
    let wrong = decoded(&format!(r#"{{"command_id":102,{rest}"#)).expect_err("for nobody");
    assert_eq!(wrong, "chat_to: missing");
}
