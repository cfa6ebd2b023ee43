//! What those see who look on at `/events`.

use serde_json::{Value, json};

use crate::harness::{Events, Scene, command, eventually, park, persistent, table};

/// Fields of an event that a test cannot know.
fn without(mut event: Value, fields: &[&str]) -> Value {
    let object = event.as_object_mut().expect("an object");
    for field in fields {
        assert!(object.remove(*field).is_some(), "{field} in {object:?}");
    }
    event
}

#[test]
fn a_reader_sees_each_kind_of_thing_as_it_happens() {
    let scene = Scene::new("events");
    let presence = scene.presence();
    let bridge = scene.setup().start();
    let mut events = Events::follow(bridge.http, "/events");
    let mut device = bridge.device("127.0.0.2");

    let (kind, came) = events.next();
    assert_eq!(kind, "presence");
    let told = presence.next().json();
    let run = told["run"].clone();
    assert_eq!(came, without(told, &["seq"]), "the same, but for its place among those published");

    let headers = [("traceparent", lapin::types::AMQPValue::LongString("00-1-2-01".into()))];
    let properties = persistent()
        .with_timestamp(1_795_271_400)
        .with_headers(table(&headers))
        .with_message_id("i7".into());
    let body = json!({"address": "127.0.0.2", "cmd": "SET PASSWORD abc", "confirm": "answered", "ttl_ms": 1_000_000_000_000u64});
    scene.publish_with(body.to_string().as_bytes(), properties);
    assert_eq!(device.line(), "SET PASSWORD abc\r\n");
    let (kind, taken) = events.next();
    assert_eq!(kind, "command");
    let expected = json!({
        "id": "i7", "address": "127.0.0.2", "cmd": "SET PASSWORD ***", "confirm": "answered",
        "bridge": "bridge-under-test", "run": run, "number": 1,
    });
    assert_eq!(without(taken, &["taken"]), expected);

    device.send(b"OK token=xyz\r\n");
    let (kind, ended) = events.next();
    assert_eq!(kind, "outcome");
    let expected = json!({
        "id": "i7", "address": "127.0.0.2", "outcome": "answered", "answer": "OK token=***",
        "cmd": "SET PASSWORD ***", "confirm": "answered", "bridge": "bridge-under-test", "run": run,
        "number": 1, "published": "2026-11-21T14:30:00.999Z", "trace": "00-1-2-01",
    });
    assert_eq!(without(ended, &["taken", "written", "at"]), expected);

    device.send(b"pwd=1 T=21\r\n\xff\r\n");
    let (kind, line) = events.next();
    assert_eq!((kind.as_str(), &line["line"]), ("line", &json!("pwd=*** T=21")));
    assert_eq!(events.next().1["line_base64"], "/w==");

    drop(device);
    let (kind, went) = events.next();
    assert_eq!((kind.as_str(), &went["online"]), ("presence", &json!(false)));
}

#[test]
fn a_reader_sees_only_what_it_asks_for() {
    let scene = Scene::new("events-some");
    let bridge = scene.setup().start();
    let mut lines = Events::follow(bridge.http, "/events?kind=line&prefix=127.7.");
    let mut ends = Events::follow(bridge.http, "/events?kind=outcome,presence&prefix=127.8.0.1");
    let mut devices = ["127.7.0.1", "127.70.0.1", "127.8.0.1"].map(|from| bridge.device(from));
    for (n, device) in devices.iter_mut().enumerate().rev() {
        device.send(format!("LINE {n}\n").as_bytes());
    }
    assert_eq!(lines.next().1["line"], "LINE 0");
    scene.publish(&command("127.7.0.1", "ON"));
    scene.publish(&command("127.8.0.1", "ON"));
    assert_eq!(ends.next().0, "presence");
    let (kind, outcome) = ends.next();
    assert_eq!((kind.as_str(), &outcome["address"]), ("outcome", &json!("127.8.0.1")));
    for wrong in ["/events?kind=", "/events?kind=lines", "/events?kind=line,"] {
        let answer = bridge.get(wrong);
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.contains("expected presence, outcome, line or command"), "{answer:?}");
    }
}

#[test]
fn what_is_no_command_or_not_delivered_is_told_with_its_reason() {
    let scene = Scene::new("events-undelivered");
    let bridge = scene.setup().start();
    let mut events = Events::follow(bridge.http, "/events?kind=outcome");
    scene.publish_with(b"{", persistent());
    let (_, invalid) = events.next();
    assert_eq!((&invalid["outcome"], invalid.get("cmd")), (&json!("invalid"), None));
    scene.publish(&command("127.0.0.9", "ON"));
    let (_, offline) = events.next();
    assert_eq!((&offline["outcome"], &offline["cmd"]), (&json!("offline"), &json!("ON")));
    assert!(offline["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    assert!(offline.get("written").is_none());
    scene.publish(&park("127.0.0.9", "LATER"));
    let (_, parked) = events.next();
    assert_eq!(parked["outcome"], "parked");
    let mut device = bridge.device("127.0.0.9");
    assert_eq!(device.line(), "LATER\r\n");
    let (_, written) = events.next();
    assert_eq!(written["outcome"], "written");
    assert_eq!(written["number"], parked["number"], "the same command");
}

#[test]
fn an_expression_of_ones_own_says_what_is_masked() {
    let scene = Scene::new("events-mask");
    let bridge = scene.setup().set("LIVE_MASK", "PIN=(?<secret>[0-9]+)").start();
    let mut events = Events::follow(bridge.http, "/events?kind=line");
    let mut device = bridge.device("127.0.0.2");
    device.send(b"PIN=1234 token=x\n");
    assert_eq!(events.next().1["line"], "PIN=*** token=x");
}

#[test]
fn presence_is_seen_while_the_broker_is_away() {
    let scene = Scene::alone("events-outage");
    let bridge = scene.setup().start();
    scene.broker.kill();
    bridge.until_metric("rabbitline_broker_up{connection=\"publisher\"}", |up| up == 0.0);
    let mut events = Events::follow(bridge.http, "/events?kind=presence");
    let device = bridge.device("127.0.0.2");
    assert_eq!(events.next().1["online"], true);
    drop(device);
    assert_eq!(events.next().1["online"], false);
}

#[test]
fn a_reader_that_is_too_slow_is_told_what_it_missed_and_the_bridge_goes_on() {
    const LINES: usize = 4_000;
    let scene = Scene::new("events-slow");
    let bridge = scene.setup().start();
    let mut slow = Events::unread(bridge.http, "/events?kind=line");
    let mut device = bridge.device("127.0.0.2");
    let line = format!("{}\n", "x".repeat(8_000));
    for _ in 0..LINES {
        device.send(line.as_bytes());
    }
    // Nobody waits for the slow one.
    bridge.until_metric("rabbitline_uplink_lines_total", |count| count == LINES as f64);
    assert_eq!(scene.receipt_of(&command("127.0.0.2", "ON"))["outcome"], "written");
    let mut seen = 0;
    let missed = loop {
        let (kind, data) = slow.next();
        if kind == "missed" {
            break data["missed"].as_u64().expect("a number") as usize;
        }
        seen += 1;
    };
    assert!(missed > 0);
    assert_eq!(seen + missed, LINES, "each was seen or counted");
    assert!(slow.next_or_end().is_none(), "the stream has ended");
}

#[test]
fn there_is_room_for_only_so_many_readers_and_one_that_leaves_makes_room() {
    const READERS_MAX: usize = 64;
    let scene = Scene::new("events-many");
    let bridge = scene.setup().start();
    let mut readers: Vec<Events> =
        (0..READERS_MAX).map(|_| Events::follow(bridge.http, "/events?kind=presence")).collect();
    assert_eq!(bridge.get("/events").status, 503);
    let device = bridge.device("127.0.0.2");
    for reader in &mut readers {
        assert_eq!(reader.next().1["online"], true);
    }
    drop(readers.pop());
    drop(device);
    // The bridge learns that a reader is gone when it has something for it.
    eventually("there is room again", || {
        drop(bridge.device("127.0.0.3"));
        let status = Events::status(bridge.http, "/events?kind=presence");
        if status.contains(" 200 ") { Ok(()) } else { Err(status) }
    });
}
