//! A command published to the queue arrives as one line at the device it names, and nowhere else.

use serde_json::json;

use crate::harness::{Scene, command, eventually, persistent};

#[test]
fn a_command_reaches_the_device_it_names_and_only_that_one() {
    let scene = Scene::new("main-path");
    let bridge = scene.setup().start();
    let (mut named, mut other) = (bridge.device("127.0.0.2"), bridge.device("127.0.0.3"));

    let body = br#"{"address":"127.0.0.2","cmd":"SET OUT1 ON"}"#;
    scene.publish_with(body, persistent());

    assert_eq!(named.line(), "SET OUT1 ON\r\n");
    // What the other one receives next is its own: nothing came before.
    scene.publish(&command("127.0.0.3", "STATUS"));
    assert_eq!(other.line(), "STATUS\r\n");
    assert_eq!(bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0), 0.0);

    let end = bridge.terminate();
    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(scene.amqp.depth(&scene.queue()), 0, "what was written was acknowledged");
    assert_eq!(named.until_closed(), Vec::<Vec<u8>>::new(), "one line and no more");
}

#[test]
fn a_command_published_straight_to_the_queue_arrives_too() {
    let scene = Scene::new("straight");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");

    scene.amqp.publish(
        "",
        &scene.queue(),
        command("127.0.0.2", "REBOOT").to_string().as_bytes(),
        persistent(),
    );

    assert_eq!(device.line(), "REBOOT\r\n");
}

#[test]
fn the_line_ending_can_be_a_bare_line_feed() {
    let scene = Scene::new("line-feed");
    let bridge = scene.setup().set("DEVICE_LINE_ENDING", "lf").start();
    let mut device = bridge.device("127.0.0.2");

    scene.publish(&command("127.0.0.2", "SET OUT1 ON"));

    assert_eq!(device.line(), "SET OUT1 ON\n");
}

#[test]
fn a_command_that_is_not_a_string_arrives_as_compact_json_with_its_keys_in_order() {
    let scene = Scene::new("json-command");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");

    for (cmd, line) in [
        (
            r#"{ "zone" : 2,  "set":{"b": true , "a":[1, 2.5, null]} }"#,
            r#"{"zone":2,"set":{"b":true,"a":[1,2.5,null]}}"#,
        ),
        ("[ ]", "[]"),
        (" 17 ", "17"),
        ("false", "false"),
        (
            r#"{"text": "two  spaces, a \" and a \\ stay"}"#,
            r#"{"text":"two  spaces, a \" and a \\ stay"}"#,
        ),
    ] {
        scene.publish_with(
            format!(r#"{{"cmd": {cmd}, "address": "127.0.0.2"}}"#).as_bytes(),
            persistent(),
        );
        assert_eq!(device.line(), format!("{line}\r\n"));
    }
}

#[test]
fn commands_wait_in_the_queue_until_the_bridge_comes() {
    let scene = Scene::new("backlog");
    scene.declare();
    let presence = scene.presence();
    // The device is not there when the bridge takes the first command: that one is offline, the queue goes on.
    scene.publish(&command("127.0.0.2", "EARLY"));
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    assert_eq!(undelivered.next().json(), command("127.0.0.2", "EARLY"));

    let mut device = bridge.device("127.0.0.2");
    assert_eq!(presence.next().json()["online"], json!(true));
    scene.publish(&command("127.0.0.2", "LATE"));
    assert_eq!(device.line(), "LATE\r\n");
    eventually("both have an outcome", || {
        let counts = (bridge.outcomes("offline"), bridge.outcomes("written"));
        if counts == (1.0, 1.0) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
}
