//! What a service manager and an operator's log see of a bridge.

use serde_json::Value;

use crate::harness::{Bridge, Manager, Scene, command};

#[test]
fn systemd_is_told_when_the_bridge_is_ready_that_it_lives_and_when_it_stops() {
    let manager = Manager::start();
    let scene = Scene::new("systemd");
    let setup =
        manager.settings().iter().fold(scene.setup(), |it, (name, value)| it.set(name, value));
    let bridge = setup.start();
    for word in ["READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
        manager.hears(word);
    }
    bridge.program.signal("TERM");
    manager.hears("STOPPING=1");
    let Bridge { program, .. } = bridge;
    assert_eq!(program.finish().code, Some(0));
}

#[test]
fn the_log_has_a_line_for_each_device_that_comes_or_goes_and_each_command_not_delivered() {
    let scene = Scene::new("log");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    scene.receipt_of(&command("127.0.0.2", "WRITTEN"));
    assert_eq!(device.line(), "WRITTEN\r\n");
    let lost = serde_json::json!({"address": "127.0.0.9", "cmd": "LOST", "id": "lost-1"});
    scene.receipt_of(&lost);
    drop(device);
    bridge.until_logged(&["disconnected"]);

    let log: Vec<Value> = lines(&bridge);
    let one = |word: &str| {
        let found: Vec<&Value> = log
            .iter()
            .filter(|line| line["message"].as_str().is_some_and(|text| text.contains(word)))
            .collect();
        assert_eq!(found.len(), 1, "{word:?} in {log:#?}");
        found[0].clone()
    };
    assert_eq!(one("device connected")["address"], "127.0.0.2");
    let gone = one("device disconnected");
    assert_eq!((&gone["address"], &gone["reason"]), (&"127.0.0.2".into(), &"closed".into()));
    let lost = one("not delivered");
    assert_eq!(
        (&lost["id"], &lost["address"], &lost["outcome"]),
        (&"lost-1".into(), &"127.0.0.9".into(), &"offline".into())
    );
    assert!(lost["reason"].is_string(), "{lost}");
    assert!(!bridge.log().text().contains("written"), "delivered commands are for debug");
    for line in &log {
        for field in ["timestamp", "level", "message", "target"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
    }
}

#[test]
fn at_debug_the_log_has_delivered_commands_too_and_text_is_for_people() {
    let scene = Scene::new("log-debug");
    let bridge = scene.setup().set("LOG", "debug").start();
    let _device = bridge.device("127.0.0.2");
    let known = serde_json::json!({"address": "127.0.0.2", "cmd": "ON", "id": "known-1"});
    scene.receipt_of(&known);
    bridge.until_logged(&["known-1", "written"]);

    let text =
        scene.setup().set("LOG_FORMAT", "text").set("DEVICE_LISTEN", "nonsense").run(&["serve"]);
    assert_eq!(text.code, Some(64));
    assert!(text.stderr.lines().all(|line| !line.starts_with('{')), "{}", text.stderr);
}

#[track_caller]
fn lines(bridge: &Bridge) -> Vec<Value> {
    let parse = |line: &String| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    bridge.log().all().iter().map(parse).collect()
}
