//! What those see who tap what happens, and what it costs when nobody does: nothing.

use serde_json::{Value, json};

use crate::harness::{Bridge, Device, Inbox, Program, Scene, command, eventually};

/// The events that a tap has printed as JSON.
fn printed(tap: &Program) -> Vec<Value> {
    tap.stdout.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Lets a device talk until the tap prints a line of it.
#[track_caller]
fn until_it_sees(tap: &Program, device: &mut Device) {
    eventually("the tap sees a line", || {
        device.send(b"PING\n");
        if tap.stdout.text().contains("PING") { Ok(()) } else { Err(tap.stderr.text()) }
    });
}

#[test]
fn a_tap_sees_every_kind_of_the_devices_it_asks_for_without_secrets() {
    let scene = Scene::new("tap");
    let bridge = scene.setup().start();
    let [mut device, mut other] = ["127.7.0.1", "127.70.0.1"].map(|from| bridge.device(from));
    let tap = scene.setup().command(&["tap", "--json", "--address", "127.7."]);
    until_it_sees(&tap, &mut device);

    other.send(b"OTHER\n");
    scene.publish(&command("127.7.0.1", "SET PASSWORD abc"));
    drop(bridge.device("127.7.0.2"));
    eventually("each kind is printed", || {
        let events = printed(&tap);
        let has = |kind: &str, field: &str, value: Value| {
            events.iter().any(|event| event["kind"] == kind && event[field] == value)
        };
        let all = has("command", "cmd", json!("SET PASSWORD ***"))
            && has("outcome", "outcome", json!("written"))
            && has("presence", "online", json!(true))
            && has("presence", "online", json!(false))
            && has("line", "line", json!("PING"));
        if all { Ok(()) } else { Err(tap.stdout.text()) }
    });
    let text = tap.stdout.text();
    assert!(!text.contains("abc") && !text.contains("127.70.0.1"), "{text}");

    let mut text = scene.setup().command(&["tap", "--kind", "line"]);
    until_it_sees(&text, &mut device);
    let shown = text.stdout.text();
    assert!(shown.lines().all(|line| line.ends_with("  line      127.7.0.1  PING")), "{shown}");
    text.signal("INT");
    assert_eq!(text.wait().code(), Some(0), "Ctrl-C is how it ends");
}

#[test]
fn nothing_is_published_while_nobody_listens() {
    let scene = Scene::new("tap-nobody");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    eventually("the exchange is there", || scene.amqp.exchange(&scene.tap()));
    let queue = scene.amqp.private_queue();
    scene.amqp.bind(&queue, &scene.tap(), "line.#");
    let lines = scene.amqp.consume(&queue);
    // What listens to another kind sees when it was asked who listens.
    let asked = scene.amqp.subscribe(&scene.tap(), "probe.command");

    asked.take(2);
    device.send(b"NOBODY LISTENS\n");
    bridge.until_metric("rabbitline_uplink_lines_total", |count| count == 1.0);
    asked.take(2);
    assert!(lines.so_far().is_empty(), "bound, but nobody has asked for it");

    scene.amqp.bind(&queue, &scene.tap(), "probe.line");
    let heard = eventually("lines come", || {
        device.send(b"HELLO\n");
        lines.so_far().into_iter().find(|letter| letter.key.starts_with("line.")).ok_or("none")
    });
    assert_eq!((heard.key.as_str(), &heard.json()["line"]), ("line.127.0.0.2", &json!("HELLO")));
    scene.amqp.delete_queue(&queue);
    until_unheard(&bridge, &scene, &mut device, &asked);
}

/// Waits until lines are published no more, which a queue bound to them without a probe shows.
#[track_caller]
fn until_unheard(bridge: &Bridge, scene: &Scene, device: &mut Device, asked: &Inbox) {
    let lines = scene.amqp.subscribe(&scene.tap(), "line.#");
    eventually("nothing is published any more", || {
        asked.take(2);
        drop(lines.so_far());
        let before = bridge.metric("rabbitline_uplink_lines_total");
        device.send(b"ANYBODY\n");
        bridge.until_metric("rabbitline_uplink_lines_total", |count| count > before);
        asked.take(2);
        let left = lines.so_far().len();
        if left == 0 { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_tap_that_is_too_slow_is_told_what_it_missed_and_the_bridge_goes_on() {
    const BATCH: usize = 500;
    const BATCHES: usize = 26;
    let scene = Scene::new("tap-slow");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let tap = scene.setup().set("MQ_HEARTBEAT", "60s").command(&["tap", "--kind", "line"]);
    until_it_sees(&tap, &mut device);
    let seen = scene.amqp.subscribe(&scene.tap(), "line.#");

    tap.signal("STOP");
    for batch in 0..BATCHES {
        for n in 0..BATCH {
            device.send(format!("LINE {batch} {n}\n").as_bytes());
        }
        let last = format!("LINE {batch} {}", BATCH - 1);
        while seen.next().json()["line"] != last.as_str() {}
    }
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    tap.signal("CONT");

    let end = tap.finish();
    assert_eq!(end.code, Some(1), "{}", end.stderr);
    let missed = end.stderr.split_whitespace().find_map(|word| word.parse::<usize>().ok());
    // Ten thousand wait for it at the broker, and what it had been sent.
    let expected = BATCH * BATCHES - 10_000 - 500..=BATCH * BATCHES - 10_000 + BATCH;
    assert!(missed.is_some_and(|missed| expected.contains(&missed)), "{}", end.stderr);
}

#[test]
fn a_tap_without_an_exchange_or_a_broker_says_so() {
    let scene = Scene::new("tap-none");
    let end = scene.setup().run(&["tap"]);
    assert_eq!(end.code, Some(69), "{end:?}");
    assert!(end.stderr.contains(&scene.tap()) && end.stderr.contains("MQ_TAP_EXCHANGE"), "{end:?}");
    let end = scene.setup().run(&["tap", "--kind", "lines"]);
    assert_eq!(end.code, Some(64), "{end:?}");
}

#[test]
fn what_a_bridge_cannot_publish_for_a_tap_is_counted_and_it_goes_on_behind_it() {
    const LINES: usize = 20_000;
    let scene = Scene::alone("tap-blocked");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    eventually("the exchange is there", || scene.amqp.exchange(&scene.tap()));
    let queue = scene.amqp.private_queue();
    for key in ["line.#", "missed.#", "probe.line"] {
        scene.amqp.bind(&queue, &scene.tap(), key);
    }
    let tapped = scene.amqp.consume(&queue);
    let until_seen = |device: &mut Device, line: &str| {
        eventually("a line is seen", || {
            device.send(format!("{line}\n").as_bytes());
            let seen = tapped.so_far();
            let line =
                seen.iter().any(|letter| String::from_utf8_lossy(&letter.body).contains(line));
            if line { Ok(()) } else { Err("none") }
        });
    };
    until_seen(&mut device, "BEFORE");

    scene.broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    bridge.until_metric("rabbitline_broker_blocked", |blocked| blocked == 1.0);
    let before = bridge.metric("rabbitline_uplink_lines_total");
    let line = format!("{}\n", "x".repeat(1_000));
    for _ in 0..LINES {
        device.send(line.as_bytes());
    }
    bridge.until_metric("rabbitline_uplink_lines_total", |count| count >= before + LINES as f64);
    scene.broker.ctl(&["set_vm_memory_high_watermark", "0.4"]);

    let missed = loop {
        let letter = tapped.next();
        if letter.key.starts_with("missed.") {
            break letter;
        }
    };
    assert_eq!(missed.key, "missed.bridge-under-test");
    let count = missed.json()["missed"].as_u64().expect("a number");
    assert!((1..=LINES as u64).contains(&count), "{count}");
    until_seen(&mut device, "BEHIND");
}
