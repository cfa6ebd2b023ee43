//! `DEVICE_GREETING`: a device that says hello first gets no command before it has.

use serde_json::json;

use crate::harness::{Scene, Setup, command, reply_to};

fn greeting(scene: &Scene) -> Setup {
    scene.setup().set("DEVICE_GREETING", "on")
}

#[test]
fn a_device_gets_no_command_before_its_first_line() {
    const COMMANDS: usize = 5;
    for prefetch in ["1", "16"] {
        let scene = Scene::new("greeting");
        let uplink = scene.uplink();
        // It is not the device that holds a command up: it has all the time it needs to say hello.
        let setup = greeting(&scene).set("DEVICE_WRITE_TIMEOUT", "1s");
        let bridge = setup.set("MQ_PREFETCH", prefetch).start();
        let mut device = bridge.device("127.0.0.2");
        let mut other = bridge.device("127.0.0.3");
        let receipts = scene.receipts();

        for number in 0..COMMANDS {
            let body = command("127.0.0.2", &format!("NUMBER {number}")).to_string();
            scene.publish_with(body.as_bytes(), reply_to(&receipts));
        }
        bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == COMMANDS as f64);
        // An empty line is a sign of life and no greeting; half a line is none yet.
        device.send(b"\r\nHEL");
        other.send(b"HELLO\n");
        assert_eq!(uplink.next().json()["address"], "127.0.0.3");
        scene.publish(&command("127.0.0.3", "GO ON"));
        assert_eq!(other.line(), "GO ON\r\n", "it holds up no other");
        assert_eq!(bridge.metric("rabbitline_lane_commands"), COMMANDS as f64);

        device.send(b"LO 7\r\n");
        let event = uplink.next().json();
        assert_eq!((&event["address"], &event["line"]), (&json!("127.0.0.2"), &json!("HELLO 7")));
        for number in 0..COMMANDS {
            assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
        }
        for receipt in receipts.take(COMMANDS) {
            assert_eq!(receipt.json()["outcome"], "written");
        }
        assert_eq!(scene.receipt_of(&command("127.0.0.2", "LATER"))["outcome"], "written");
        assert_eq!(device.line(), "LATER\r\n", "once is enough");
    }
}

#[test]
fn without_the_setting_a_device_that_says_nothing_gets_its_commands() {
    let scene = Scene::new("no-greeting");
    let bridge = scene.setup().set("DEVICE_GREETING", "off").start();
    let mut device = bridge.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
}

#[test]
fn a_greeting_is_no_answer() {
    let scene = Scene::new("greeting-no-answer");
    let uplink = scene.uplink();
    let bridge = greeting(&scene).start();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    let body = json!({"address": "127.0.0.2", "cmd": "STATUS", "confirm": "answered"}).to_string();
    scene.publish_with(body.as_bytes(), reply_to(&receipts));
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 1.0);

    device.send(b"HELLO\r\n");
    assert_eq!(uplink.next().json()["line"], "HELLO");
    assert_eq!(device.line(), "STATUS\r\n");
    device.send(b"FINE\r\n");
    assert_eq!(receipts.next().json()["answer"], "FINE");
}

#[test]
fn a_command_expires_while_its_device_does_not_say_hello() {
    let scene = Scene::new("greeting-expired");
    let bridge = greeting(&scene).start();
    let mut device = bridge.device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let body = json!({"address": "127.0.0.2", "cmd": "LATE", "ttl_ms": 300}).to_string();

    scene.publish_with(body.as_bytes(), reply_to(&receipts));

    assert_eq!(receipts.next().json()["outcome"], "expired");
    assert_eq!(undelivered.next().header("x-outcome"), "expired");
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.metric("rabbitline_devices_connected"), 1.0, "the device stays connected");
    device.send(b"HELLO\n");
    scene.publish(&command("127.0.0.2", "NEXT"));
    assert_eq!(device.line(), "NEXT\r\n", "the late one is not written");
}

#[test]
fn a_device_that_leaves_before_it_said_hello_was_written_nothing() {
    let scene = Scene::new("greeting-left");
    let bridge = greeting(&scene).start();
    let device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    let body = json!({"address": "127.0.0.2", "cmd": "ON", "once": true}).to_string();
    scene.publish_with(body.as_bytes(), reply_to(&receipts));
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 1.0);
    drop(device);
    assert_eq!(receipts.next().json()["outcome"], "offline");
}

#[test]
fn each_connection_of_a_device_begins_with_a_greeting_of_its_own() {
    let scene = Scene::new("greeting-again");
    let bridge = greeting(&scene).start();
    let mut old = bridge.device("127.0.0.2");
    old.send(b"HELLO\n");
    scene.publish(&command("127.0.0.2", "FIRST"));
    assert_eq!(old.line(), "FIRST\r\n");

    let mut new = bridge.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "SECOND"));
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 1.0);
    // What waited for one connection waits for the greeting of the next.
    let mut newest = bridge.device("127.0.0.2");
    assert_eq!(new.until_closed(), Vec::<Vec<u8>>::new());
    assert_eq!(bridge.metric("rabbitline_lane_commands"), 1.0);
    newest.send(b"HELLO\n");
    assert_eq!(newest.line(), "SECOND\r\n");
}
