//! What the broker cannot take now (here: a queue that is full and says so) is published again, on the same connection;
//! the rest does not wait for it.

use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::harness::{Bridge, Scene, command, park, persistent, reply_to};

/// A queue with room for one message, which refuses the next.
fn narrow(scene: &Scene, name: &str) {
    let arguments = [
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    scene.amqp.declare_queue(name, &arguments);
}

/// Checks that nothing of what was refused has cost a connection.
#[track_caller]
fn lost_no_connection(bridge: &Bridge) {
    let log = bridge.log().text();
    assert!(log.contains("the broker could not take a message"), "nothing was refused: {log}");
    assert!(!log.contains("retry_in_ms"), "a connection was given up: {log}");
}

#[test]
fn receipts_that_a_full_queue_refuses_hold_up_nobody_else() {
    const REFUSED: usize = 20;
    let scene = Scene::new("refused-receipts");
    let bridge = scene.setup().set("MQ_PREFETCH", "64").start();
    let full = scene.queue() + ".full";
    narrow(&scene, &full);
    let receipts = scene.receipts();
    let presence = scene.presence();
    let mut device = bridge.device("127.0.0.2");
    assert_eq!(presence.next().json()["address"], "127.0.0.2");

    for number in 0..=REFUSED {
        let properties = persistent().with_reply_to(full.as_str().into());
        let body = command("127.0.0.2", &format!("{number}")).to_string();
        scene.publish_with(body.as_bytes(), properties);
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == REFUSED as f64);
    bridge.until_logged(&["the broker could not take a message", "again_in_ms"]);

    let body = command("127.0.0.2", "OTHER").to_string();
    scene.publish_with(body.as_bytes(), reply_to(&receipts));
    assert_eq!(receipts.next().json()["outcome"], "written");
    let _other = bridge.device("127.0.0.3");
    assert_eq!(presence.next().json()["address"], "127.0.0.3");
    assert_eq!(bridge.metric("rabbitline_unsettled"), REFUSED as f64, "those are still owed");

    // Whoever reads makes room.
    let read = scene.amqp.consume(&full).take(REFUSED + 1);
    assert!(read.iter().all(|receipt| receipt.json()["outcome"] == "written"));
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    lost_no_connection(&bridge);
}

#[test]
fn events_that_a_full_queue_refuses_come_in_their_order_once_there_is_room() {
    const DEVICES: u8 = 10;
    let scene = Scene::new("refused-events");
    let bridge = scene.setup().start();
    let full = scene.queue() + ".full";
    narrow(&scene, &full);
    scene.amqp.bind(&full, &scene.events(), "presence.*.*.*.*");
    let devices: Vec<_> =
        (2..2 + DEVICES).map(|last| bridge.device(&format!("127.0.0.{last}"))).collect();
    bridge.until_logged(&["the broker could not take a message", "again_in_ms"]);
    drop(devices);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);

    let reader = scene.amqp.consume(&full);
    let mut seen: Vec<Value> = Vec::new();
    while seen.len() < 2 * usize::from(DEVICES) {
        let event = reader.next().json();
        let last = seen.last().map_or(0, |last| last["seq"].as_u64().expect("a number"));
        let seq = event["seq"].as_u64().expect("a number");
        assert!(seq <= last + 1, "{seq} came behind {last}: one is missing");
        if seq == last + 1 {
            seen.push(event);
        }
    }
    let is_last = |address: &str| {
        let of_it = seen.iter().filter(|event| event["address"] == address);
        of_it.map(|event| event["online"].clone()).collect::<Vec<_>>()
    };
    for last in 2..2 + DEVICES {
        assert_eq!(is_last(&format!("127.0.0.{last}")), [json!(true), json!(false)]);
    }
    lost_no_connection(&bridge);
}

#[test]
fn commands_that_a_full_queue_does_not_let_be_parked_keep_their_order_and_hold_up_nobody_else() {
    const PARKED: usize = 30;
    let scene = Scene::new("refused-parked");
    let setup = scene.setup().set("MQ_PREFETCH", "64").set("MQ_PARKED_PREFIX", scene.parked());
    let bridge = setup.start();
    narrow(&scene, &scene.parked_for("127.0.0.9"));
    let receipts = scene.receipts();

    scene.park_numbers("127.0.0.9", 0..PARKED);
    bridge.until_logged(&["the broker could not take a message", "again_in_ms", "127.0.0.9"]);

    let other = park("127.0.0.8", "OTHER").to_string();
    scene.publish_with(other.as_bytes(), reply_to(&receipts));
    assert_eq!(receipts.next().json()["outcome"], "parked");
    scene.publish_with(command("127.0.0.7", "GONE").to_string().as_bytes(), reply_to(&receipts));
    assert_eq!(receipts.next().json()["outcome"], "offline");
    assert_eq!(bridge.device("127.0.0.8").line(), "OTHER\r\n");

    // Whoever reads makes room.
    let parked = scene.amqp.consume(&scene.parked_for("127.0.0.9"));
    for number in 0..PARKED {
        assert_eq!(parked.next().json()["cmd"], number.to_string());
    }
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    lost_no_connection(&bridge);
}

#[test]
fn commands_that_the_inbox_of_another_bridge_refuses_arrive_once_and_in_their_order() {
    const COMMANDS: usize = 100;
    let scene = Scene::new("refused-inbox");
    let setup = |name| scene.setup().set("CLUSTER", "on").set("BRIDGE_NAME", name);
    let taker = setup("a").set("MQ_PREFETCH", "64").start();
    // It has commands of its own, so all of the others go by way of the first.
    let holder = setup("b").set("MQ_QUEUE", scene.queue() + ".b").start();
    let presence = scene.presence();
    let mut device = holder.device("127.0.0.2");
    assert_eq!(presence.next().json()["address"], "127.0.0.2");
    let (policy, inbox) = (scene.queue(), scene.routes() + ".b");
    let pattern = format!("^{}$", inbox.replace('.', "[.]"));
    let refuses = r#"{"max-length": 0, "overflow": "reject-publish"}"#;
    scene.broker.ctl(&["set_policy", &policy, &pattern, refuses, "--apply-to", "queues"]);

    for number in 0..COMMANDS {
        scene.publish(&command("127.0.0.2", &number.to_string()));
    }
    taker.until_logged(&["the broker could not take a message", "again_in_ms"]);
    scene.broker.ctl(&["clear_policy", &policy]);

    for number in 0..COMMANDS {
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    scene.until_drained(&taker);
    lost_no_connection(&taker);
    assert_eq!(holder.outcomes("written"), COMMANDS as f64);
    assert_eq!(device.so_far(), Vec::<String>::new());
}
