//! What cannot be decoded, or cannot be one line, is never written: it goes to undelivered, and the reason says why.

use crate::harness::{Scene, command, reply_to};

/// A body and a word that its reason must have: the field at fault.
const INVALID: &[(&str, &[u8], &str)] = &[
    ("empty", b"", "JSON"),
    ("not JSON", b"SET OUT1 ON", "JSON"),
    ("cut off", br#"{"address":"127.0.0.2","cmd":"ON""#, "JSON"),
    ("two documents", br#"{"address":"127.0.0.2","cmd":"ON"}{}"#, "JSON"),
    ("not UTF-8", b"{\"address\":\"127.0.0.2\",\"cmd\":\"\xff\xfe\"}", ""),
    ("an array", b"[1]", "object"),
    ("a string", br#""ON""#, "object"),
    ("a number", b"17", "object"),
    ("no address", br#"{"cmd":"ON"}"#, "address"),
    ("address null", br#"{"address":null,"cmd":"ON"}"#, "address"),
    ("address a number", br#"{"address":17,"cmd":"ON"}"#, "address"),
    ("address empty", br#"{"address":"","cmd":"ON"}"#, "address"),
    ("no cmd", br#"{"address":"127.0.0.2"}"#, "cmd"),
    ("cmd null", br#"{"address":"127.0.0.2","cmd":null}"#, "cmd"),
    ("carriage return", br#"{"address":"127.0.0.2","cmd":"ON\rOFF"}"#, "cmd"),
    ("line feed", br#"{"address":"127.0.0.2","cmd":"ON\nOFF"}"#, "cmd"),
    ("line feed at the end", br#"{"address":"127.0.0.2","cmd":"ON\n"}"#, "cmd"),
    ("ends as a line would", br#"{"address":"127.0.0.2","cmd":"ON\r\n"}"#, "cmd"),
    ("NUL", br#"{"address":"127.0.0.2","cmd":"ON\u0000OFF"}"#, "cmd"),
    ("half a surrogate pair", br#"{"address":"127.0.0.2","cmd":"\ud800"}"#, ""),
    ("id a number", br#"{"address":"127.0.0.2","cmd":"ON","id":17}"#, "id"),
    ("ttl_ms a string", br#"{"address":"127.0.0.2","cmd":"ON","ttl_ms":"5"}"#, "ttl_ms"),
    ("ttl_ms negative", br#"{"address":"127.0.0.2","cmd":"ON","ttl_ms":-1}"#, "ttl_ms"),
    ("ttl_ms a fraction", br#"{"address":"127.0.0.2","cmd":"ON","ttl_ms":1.5}"#, "ttl_ms"),
    ("confirm unknown", br#"{"address":"127.0.0.2","cmd":"ON","confirm":"perhaps"}"#, "confirm"),
    ("confirm a number", br#"{"address":"127.0.0.2","cmd":"ON","confirm":1}"#, "confirm"),
    ("once a string", br#"{"address":"127.0.0.2","cmd":"ON","once":"yes"}"#, "once"),
    (
        "parked too long",
        br#"{"address":"127.0.0.2","cmd":"ON","if_offline":"park","ttl_ms":604800001}"#,
        "ttl_ms",
    ),
    (
        "if_offline unknown",
        br#"{"address":"127.0.0.2","cmd":"ON","if_offline":"wait"}"#,
        "if_offline",
    ),
    ("if_offline a bool", br#"{"address":"127.0.0.2","cmd":"ON","if_offline":true}"#, "if_offline"),
];

#[test]
fn what_is_invalid_goes_to_undelivered_with_a_reason_that_names_the_field() {
    let scene = Scene::new("invalid");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let (undelivered, receipts) = (scene.undelivered_inbox(), scene.receipts());

    for (name, body, word) in INVALID {
        scene.publish_with(body, reply_to(&receipts));
        let letter = undelivered.next();
        assert_eq!(letter.header("x-outcome"), "invalid", "{name}");
        assert_eq!(&letter.body, body, "{name}: the body is not touched");
        let reason = letter.header("x-reason");
        assert!(
            !reason.is_empty() && reason.contains(word),
            "{name}: {reason:?} does not name {word:?}"
        );
        let receipt = receipts.next().json();
        assert_eq!(
            (receipt["outcome"].as_str(), receipt["reason"].as_str()),
            (Some("invalid"), Some(&*reason)),
            "{name}"
        );
    }

    scene.publish(&command("127.0.0.2", "VALID"));
    assert_eq!(device.line(), "VALID\r\n", "none of them was written");
    assert_eq!(bridge.outcomes("invalid"), INVALID.len() as f64);
}

#[test]
fn a_command_longer_than_the_setting_is_invalid_and_one_as_long_is_written() {
    let scene = Scene::new("too-long");
    let bridge = scene.setup().set("DEVICE_LINE_MAX", "100").start();
    let mut device = bridge.device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();

    scene.publish(&command("127.0.0.2", &"x".repeat(101)));
    scene.publish(&command("127.0.0.2", &"y".repeat(100)));
    // Counted in bytes: 51 characters of two bytes each.
    scene.publish(&command("127.0.0.2", &"ü".repeat(51)));

    assert_eq!(device.line(), "y".repeat(100) + "\r\n");
    for letter in undelivered.take(2) {
        assert_eq!(letter.header("x-outcome"), "invalid");
        let reason = letter.header("x-reason");
        assert!(reason.contains("cmd") && reason.contains("100"), "{reason}");
    }
}

#[test]
fn json_that_is_nested_without_end_is_refused_like_any_other_nonsense() {
    let scene = Scene::new("nested");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();

    let deep = format!(r#"{{"address":"127.0.0.2","cmd":{}}}"#, "[".repeat(200_000));
    let closed = format!(
        r#"{{"address":"127.0.0.2","cmd":{}{}}}"#,
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    for body in [deep, closed] {
        scene.publish_with(body.as_bytes(), crate::harness::persistent());
        assert_eq!(undelivered.next().header("x-outcome"), "invalid");
    }
    scene.publish(&command("127.0.0.2", "VALID"));
    assert_eq!(device.line(), "VALID\r\n");
}

#[test]
fn a_body_of_many_frames_is_carried_to_undelivered_whole() {
    let scene = Scene::new("large-body");
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    let body = command("127.0.0.2", &"x".repeat(5_000_000)).to_string();
    scene.publish_with(body.as_bytes(), crate::harness::persistent());
    let letter = undelivered.next();
    assert_eq!(letter.header("x-outcome"), "invalid");
    assert!(
        letter.body == body.as_bytes(),
        "{} bytes came back of {}",
        letter.body.len(),
        body.len()
    );
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn unknown_fields_and_fields_that_say_the_default_are_no_obstacle() {
    let scene = Scene::new("tolerant");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");

    for body in [
        r#"{"address":"127.0.0.2","cmd":"OK","note":{"by":"me"},"priority":9}"#,
        r#"{"address":"127.0.0.2","cmd":"OK","confirm":"written","once":false,"if_offline":"reject"}"#,
        r#"{"address":"::ffff:127.0.0.2","cmd":"OK"}"#,
        " \n\t{ \"cmd\" : \"OK\" , \"address\" : \"127.0.0.2\" }\r\n",
    ] {
        scene.publish_with(body.as_bytes(), crate::harness::persistent());
        assert_eq!(device.line(), "OK\r\n", "{body}");
    }
    assert_eq!(bridge.outcomes("invalid"), 0.0);
}
