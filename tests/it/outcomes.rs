//! Each command ends in one outcome, and what was not delivered goes to the undelivered exchange as it came.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::harness::{
    Letter, STALL_LINE_MAX, Scene, command, eventually, persistent, reply_to, stall, stalling_line,
    stalling_number, stalling_numbers, table,
};

#[test]
fn a_written_command_is_acknowledged_and_counted() {
    let scene = Scene::new("written");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");

    let receipt = scene.receipt_of(&command("127.0.0.2", "ON"));

    assert_eq!(device.line(), "ON\r\n");
    assert_eq!(receipt["outcome"], "written");
    assert_eq!(receipt.get("reason"), None, "{receipt}");
    assert_eq!(bridge.outcomes("written"), 1.0);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.metric("rabbitline_undelivered_total"), 0.0);
}

#[test]
fn a_command_for_a_device_that_is_not_connected_is_offline_and_goes_to_undelivered_unchanged() {
    let scene = Scene::new("offline");
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let body = br#"{ "address": "127.0.0.9",  "cmd": "ON", "unknown": [1] }"#;
    let headers =
        table(&[("tenant", AMQPValue::LongString("north".into())), ("try", AMQPValue::LongInt(3))]);
    let properties = reply_to(&receipts)
        .with_headers(headers)
        .with_correlation_id("c-1".into())
        .with_message_id("m-1".into())
        .with_content_type("application/json".into())
        .with_app_id("backend".into())
        .with_type("command".into())
        .with_priority(4)
        .with_timestamp(now())
        .with_expiration("3600000".into());

    scene.publish_with(body, properties.clone());

    let letter = undelivered.next();
    assert_eq!(letter.body, body, "the body is not touched");
    assert_eq!(letter.key, scene.queue(), "the routing key is the command's");
    assert_eq!(letter.header("x-outcome"), "offline");
    assert!(!letter.header("x-reason").is_empty());
    assert_eq!(letter.header("tenant"), "north");
    let headers = letter.properties.headers().clone().expect("headers");
    assert_eq!(headers.inner().get("try"), Some(&AMQPValue::LongInt(3)));
    assert_eq!(headers.inner().len(), 5, "two of its own and three of ours: {headers:?}");
    assert_eq!(letter.properties.expiration(), &None, "it must not expire there too");
    let rest = |properties: &BasicProperties| {
        format!("{:?}", properties.clone().with_headers(table(&[])).with_expiration("".into()))
    };
    assert_eq!(
        rest(&letter.properties),
        rest(&properties),
        "every other property is the command's"
    );

    let receipt = receipts.next().json();
    assert_eq!(
        (&receipt["outcome"], &receipt["address"]),
        (&json!("offline"), &json!("127.0.0.9"))
    );
    assert!(receipt["reason"].is_string(), "{receipt}");
    bridge.until_metric("rabbitline_undelivered_total", |count| count == 1.0);
    assert_eq!(bridge.outcomes("offline"), 1.0);
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
}

#[test]
fn a_command_that_says_drop_is_forgotten_when_its_device_is_not_connected() {
    let scene = Scene::new("drop");
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();

    let dropped = json!({"address": "127.0.0.9", "cmd": "ON", "if_offline": "drop"});
    assert_eq!(scene.receipt_of(&dropped)["outcome"], "offline");
    scene.publish(&command("127.0.0.9", "KEEP"));

    assert_eq!(undelivered.next().json()["cmd"], "KEEP", "the dropped one did not come before");
    assert_eq!(bridge.outcomes("offline"), 2.0);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn the_setting_says_what_happens_when_the_command_does_not() {
    let scene = Scene::new("drop-by-default");
    let bridge = scene.setup().set("COMMAND_IF_OFFLINE", "drop").start();
    let undelivered = scene.undelivered_inbox();

    assert_eq!(scene.receipt_of(&command("127.0.0.9", "ON"))["outcome"], "offline");
    scene.publish(&json!({"address": "127.0.0.9", "cmd": "KEEP", "if_offline": "reject"}));

    assert_eq!(undelivered.next().json()["cmd"], "KEEP");
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn a_command_is_not_written_after_its_time() {
    let scene = Scene::new("expired");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let old = || reply_to(&receipts).with_timestamp(now() - 100);

    let ttl = |ttl_ms: u64| json!({"address": "127.0.0.2", "cmd": "LATE", "ttl_ms": ttl_ms});
    let cases: [(&str, Value, BasicProperties); 4] = [
        ("its ttl_ms, counted from its timestamp", ttl(5_000), old()),
        (
            "its AMQP expiration, counted from its timestamp",
            command("127.0.0.2", "LATE"),
            old().with_expiration("60000".into()),
        ),
        (
            "the expiration, which is smaller than the ttl_ms",
            ttl(3_600_000),
            old().with_expiration("60000".into()),
        ),
        (
            "the ttl_ms, which is smaller than the expiration",
            ttl(60_000),
            old().with_expiration("3600000".into()),
        ),
    ];
    for (why, command, properties) in cases {
        scene.publish_with(command.to_string().as_bytes(), properties);
        let letter = undelivered.next();
        assert_eq!(letter.header("x-outcome"), "expired", "{why}");
        assert_eq!(letter.json(), command, "{why}");
        assert_eq!(letter.properties.expiration(), &None, "{why}");
        assert_eq!(receipts.next().json()["outcome"], "expired", "{why}");
    }
    for (why, command, properties) in [
        ("its ttl_ms has not ended", ttl(3_600_000), old()),
        (
            "its expiration has not ended",
            command("127.0.0.2", "LATE"),
            old().with_expiration("3600000".into()),
        ),
        ("the default has not ended", command("127.0.0.2", "LATE"), old()),
        (
            "without a timestamp its ttl_ms counts from its arrival",
            ttl(60_000),
            reply_to(&receipts),
        ),
    ] {
        scene.publish_with(command.to_string().as_bytes(), properties);
        assert_eq!(receipts.next().json()["outcome"], "written", "{why}");
        assert_eq!(device.line(), "LATE\r\n", "{why}");
    }
    assert_eq!(bridge.outcomes("expired"), 4.0);
}

#[test]
fn the_setting_says_how_long_a_command_lives_when_it_does_not() {
    let scene = Scene::new("default-ttl");
    let bridge = scene.setup().set("COMMAND_TTL", "50s").start();
    let mut device = bridge.device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();

    let old = || persistent().with_timestamp(now() - 100);
    scene.publish_with(command("127.0.0.2", "LATE").to_string().as_bytes(), old());
    let own = json!({"address": "127.0.0.2", "cmd": "OWN TTL", "ttl_ms": 3_600_000});
    scene.publish_with(own.to_string().as_bytes(), old());

    assert_eq!(device.line(), "OWN TTL\r\n", "the late one did not come before");
    assert_eq!(undelivered.next().header("x-outcome"), "expired");
}

#[test]
fn a_command_that_waits_for_its_device_too_long_is_not_written_when_the_device_reads_again() {
    let scene = Scene::new("expired-in-lane");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "10m");
    let bridge = setup.start();
    let mut device = bridge.narrow_device("127.0.0.2");
    let receipts = scene.receipts();
    let published = stall(&scene, &bridge, "127.0.0.2", 2);

    let late = json!({"address": "127.0.0.2", "cmd": "LATE", "ttl_ms": 1});
    scene.publish_with(late.to_string().as_bytes(), reply_to(&receipts));
    scene.publish_with(command("127.0.0.2", "LAST").to_string().as_bytes(), reply_to(&receipts));
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled >= 3.0);

    for number in 0..published {
        assert_eq!(stalling_number(device.line().as_bytes()), number);
    }
    assert_eq!(device.line(), "LAST\r\n", "the expired one is not written");
    let mut outcomes: Vec<_> =
        receipts.take(2).iter().map(|receipt| receipt.json()["outcome"].to_string()).collect();
    outcomes.sort();
    assert_eq!(outcomes, ["\"expired\"", "\"written\""]);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn a_command_for_a_device_whose_lane_is_full_is_overloaded() {
    const PUBLISHED: usize = 150;
    let scene = Scene::new("overloaded");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "10m");
    let bridge = setup.set("DEVICE_LANE_MAX", "2").set("MQ_PREFETCH", "16").start();
    let mut device = bridge.narrow_device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();

    for number in 0..PUBLISHED {
        scene.publish(&command("127.0.0.2", &stalling_line(number)));
    }
    // One that waits in the lane may still be written; every other one has its fate.
    eventually("every command is written, overloaded or waits in the lane", || {
        let waiting = bridge.metric("rabbitline_lane_commands");
        let known = bridge.outcomes("written") + bridge.outcomes("overloaded") + waiting;
        if known == PUBLISHED as f64 { Ok(()) } else { Err(format!("{known} of {PUBLISHED}")) }
    });
    let overloaded = undelivered_numbers(
        &undelivered.take(bridge.outcomes("overloaded") as usize),
        "overloaded",
    );
    assert!(!overloaded.is_empty());

    let expected: Vec<usize> =
        (0..PUBLISHED).filter(|number| !overloaded.contains(number)).collect();
    let received = stalling_numbers(&mut device, expected.len());
    assert_eq!(received, expected, "every other one arrives, in order");
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.outcomes("written") as usize, expected.len());
}

#[test]
fn no_more_commands_wait_for_slow_devices_than_the_setting_allows() {
    const STALLED_MAX: f64 = 4.0;
    let scene = Scene::new("stalled-max");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "10m");
    let bridge = setup.set("MQ_STALLED_MAX", STALLED_MAX.to_string()).start();
    let mut device = bridge.narrow_device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();
    let published = stall(&scene, &bridge, "127.0.0.2", 2);

    for _ in 0..10 {
        scene.publish(&command("127.0.0.2", "MORE"));
    }
    let overloaded = undelivered.next();
    assert_eq!(
        (overloaded.header("x-outcome"), &overloaded.json()["cmd"]),
        ("overloaded".into(), &json!("MORE"))
    );
    assert!(bridge.metric("rabbitline_unsettled") <= STALLED_MAX + 1.0, "and the one in hand");

    for number in 0..published {
        assert_eq!(stalling_number(device.line().as_bytes()), number);
    }
    assert_eq!(device.line(), "MORE\r\n", "those that had room are written");
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.outcomes("overloaded") + bridge.outcomes("written"), published as f64 + 10.0);
}

fn undelivered_numbers(letters: &[Letter], outcome: &str) -> Vec<usize> {
    let number = |letter: &Letter| {
        assert_eq!(letter.header("x-outcome"), outcome);
        let cmd = letter.json()["cmd"].as_str().expect("a string").to_owned() + "\r\n";
        stalling_number(cmd.as_bytes())
    };
    letters.iter().map(number).collect()
}

/// Now as an AMQP timestamp.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}
