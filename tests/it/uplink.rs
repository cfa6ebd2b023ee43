//! Lines that devices send, published as events.

use serde_json::json;

use crate::harness::{Scene, eventually};

#[test]
fn each_line_a_device_sends_is_an_event() {
    let scene = Scene::new("uplink");
    let uplink = scene.uplink();
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");

    // LF and CRLF, two lines in one piece, a line in two pieces, empty lines between.
    device.send(b"T=21.5\nALARM 3\r\n\n\r\nHAL");
    assert_eq!(
        uplink.take(2).iter().map(|event| event.json()["line"].clone()).collect::<Vec<_>>(),
        ["T=21.5", "ALARM 3"]
    );
    device.send("F ÜBER\r\n".as_bytes());

    let event = uplink.next();
    assert_eq!(event.key, "uplink.127.0.0.2");
    let event = event.json();
    let epoch = bridge.devices("")["devices"][0]["epoch"].clone();
    let expected = json!({
        "address": "127.0.0.2", "epoch": epoch, "bridge": "bridge-under-test", "run": event["run"], "number": event["number"],
        "at": event["at"], "line": "HALF ÜBER",
    });
    assert_eq!(event, expected, "these fields and no others");
    bridge.until_metric("rabbitline_uplink_lines_total", |count| count == 3.0);
}

#[test]
fn lines_of_one_device_keep_their_order() {
    const LINES: usize = 2_000;
    let scene = Scene::new("uplink-order");
    let uplink = scene.uplink();
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    for number in 0..LINES {
        device.send(format!("LINE {number}\n").as_bytes());
        // No more at a time than the bridge is bound to hold.
        if number % 100 == 99 {
            let lines: Vec<_> =
                uplink.take(100).iter().map(|event| event.json()["line"].clone()).collect();
            assert_eq!(
                lines,
                (number - 99..=number)
                    .map(|number| json!(format!("LINE {number}")))
                    .collect::<Vec<_>>()
            );
        }
    }
    assert_eq!(bridge.metric("rabbitline_uplink_dropped_total"), 0.0);
}

#[test]
fn a_line_that_is_not_utf8_is_carried_in_base64() {
    let scene = Scene::new("uplink-base64");
    let uplink = scene.uplink();
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    device.send(b"\xff\x00\xfeabc\r\n");
    let event = uplink.next().json();
    assert_eq!(event["line_base64"], "/wD+YWJj");
    assert_eq!(event.get("line"), None);
}

#[test]
fn a_device_that_sends_a_line_without_end_is_closed_with_that_reason() {
    let scene = Scene::new("uplink-long");
    let (uplink, presence) = (scene.uplink(), scene.presence());
    let bridge = scene.setup().set("DEVICE_LINE_MAX", "100").start();
    let mut device = bridge.device("127.0.0.2");
    assert_eq!(presence.next().json()["online"], true);

    device.send(format!("{}\r\n", "x".repeat(100)).as_bytes());
    assert_eq!(uplink.next().json()["line"], "x".repeat(100), "as long as allowed");
    device.send("y".repeat(200).as_bytes());

    assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
    let event = presence.next().json();
    assert_eq!((&event["online"], &event["reason"]), (&json!(false), &json!("line_too_long")));
    assert_eq!(bridge.metric("rabbitline_connections_ended_total{reason=\"line_too_long\"}"), 1.0);
    drop(device);
    // A long line that has an end is too long as well.
    let mut device = bridge.device("127.0.0.2");
    device.send(format!("{}\n", "z".repeat(101)).as_bytes());
    assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
}

#[test]
fn the_setting_turns_uplink_off_and_commands_go_on() {
    let scene = Scene::new("uplink-off");
    scene.presence();
    let bridge = scene.setup().set("DEVICE_UPLINK", "off").start();
    let events = scene.amqp.subscribe(&scene.events(), "#");
    let mut device = bridge.device("127.0.0.2");
    device.send(b"NOBODY LISTENS\r\n");
    scene.publish(&crate::harness::command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    drop(device);
    let keys = std::iter::from_fn(|| Some(events.next().key));
    let keys: Vec<String> = keys.filter(|key| !key.starts_with("bridge.")).take(2).collect();
    assert_eq!(
        keys,
        ["presence.127.0.0.2", "presence.127.0.0.2"],
        "it came and it left; nothing between"
    );
}

#[test]
fn lines_sent_while_the_broker_is_away_are_dropped_or_published_but_counted() {
    const LINES: usize = 20_000;
    let mut scene = Scene::alone("uplink-outage");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    scene.broker.kill();
    bridge.until_metric("rabbitline_broker_up{connection=\"publisher\"}", |up| up == 0.0);
    for number in 0..LINES {
        device.send(format!("LINE {number}\n").as_bytes());
    }
    bridge.until_metric("rabbitline_uplink_lines_total", |count| count == LINES as f64);
    scene.restart_broker();
    let uplink = eventually("the events exchange is there", || {
        scene
            .amqp
            .exchange(&scene.events())
            .map(|()| scene.amqp.subscribe(&scene.events(), "uplink.#"))
    });
    bridge.until_metric("rabbitline_broker_up{connection=\"publisher\"}", |up| up == 1.0);
    device.send(b"BACK AGAIN\n");
    let mut lines = std::iter::from_fn(|| {
        Some(uplink.next().json()["line"].as_str().expect("text").to_owned())
    });
    assert!(lines.any(|line| line == "BACK AGAIN"));
    assert!(bridge.metric("rabbitline_uplink_dropped_total") <= LINES as f64);
}
