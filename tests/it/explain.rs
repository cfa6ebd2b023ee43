//! What happened to a command, and to a device, can be asked of the bridge afterwards.

use serde_json::json;

use crate::harness::{Bridge, Device, Scene, command, reply_to};

/// The times of one command's steps, as far as they were taken, in the order of the contract.
#[track_caller]
fn steps(timeline: &serde_json::Value) -> Vec<String> {
    ["taken", "written", "acknowledged", "answered", "settled"]
        .into_iter()
        .filter_map(|step| Some(format!("{step} {}", timeline[step].as_str()?)))
        .collect()
}

#[track_caller]
fn json_at(bridge: &Bridge, path: &str) -> serde_json::Value {
    let answer = bridge.get(path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

#[test]
fn a_commands_steps_are_told_with_their_times() {
    let scene = Scene::new("explain-command");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    let asked =
        json!({"address": "127.0.0.2", "cmd": "STATE?", "id": "a/b 7", "confirm": "answered"});
    scene.publish_with(asked.to_string().as_bytes(), reply_to(&receipts));
    assert_eq!(device.line(), "STATE?\r\n");
    device.send(b"OPEN\r\n");
    assert_eq!(receipts.next().json()["outcome"], "answered");

    let history = json_at(&bridge, "/commands/a%2Fb%207");
    let timeline = &history["commands"][0];
    assert_eq!(
        (&timeline["outcome"], &timeline["line"], &timeline["address"]),
        (&json!("answered"), &json!("STATE?"), &json!("127.0.0.2"))
    );
    let steps = steps(timeline);
    let names: Vec<&str> = steps.iter().filter_map(|step| step.split(' ').next()).collect();
    assert_eq!(names, ["taken", "written", "answered", "settled"], "{history}");
    let times: Vec<&str> = steps.iter().filter_map(|step| step.split(' ').nth(1)).collect();
    assert!(times.is_sorted(), "{history}");

    let told = scene.setup().set("HTTP_LISTEN", bridge.http.to_string()).run(&["explain", "a/b 7"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    for word in ["command a/b 7 for 127.0.0.2: STATE?", "taken", "written", "answered"] {
        assert!(told.stdout.contains(word), "{word}: {told:?}");
    }
}

#[test]
fn a_device_that_is_gone_is_told_of_with_its_connections_and_commands() {
    let scene = Scene::new("explain-device");
    let bridge = scene.setup().start();
    for leave in [drop as fn(Device), Device::reset] {
        let mut device = bridge.device("127.0.0.2");
        assert_eq!(scene.receipt_of(&command("127.0.0.2", "ON"))["outcome"], "written");
        assert_eq!(device.line(), "ON\r\n");
        leave(device);
        bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
    }
    assert_eq!(scene.receipt_of(&command("127.0.0.2", "LATE"))["outcome"], "offline");

    let history = json_at(&bridge, "/devices/127.0.0.2");
    assert_eq!(history["connected"], json!(null));
    let reasons: Vec<_> = history["connections"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|connection| connection["reason"].clone())
        .collect();
    assert_eq!(reasons, ["reset", "closed"], "newest first");
    let outcomes: Vec<_> = history["commands"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|command| (command["line"].clone(), command["outcome"].clone()))
        .collect();
    let newest_first = [("LATE", "offline"), ("ON", "written"), ("ON", "written")];
    assert_eq!(outcomes, newest_first.map(|(line, outcome)| (json!(line), json!(outcome))));

    let _back = bridge.device("127.0.0.2");
    assert_eq!(json_at(&bridge, "/devices/127.0.0.2")["connected"]["address"], "127.0.0.2");
}

#[test]
fn what_is_not_remembered_is_said_to_be_unknown() {
    let scene = Scene::new("explain-unknown");
    let bridge = scene.setup().start();
    assert_eq!(bridge.get("/commands/nobody").status, 404);
    assert_eq!(bridge.get("/devices/10.9.9.9").status, 404);
    let setup = scene.setup().set("HTTP_LISTEN", bridge.http.to_string());
    let told = setup.run(&["explain", "nobody"]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(1), ""), "{told:?}");
    assert_eq!(bridge.terminate().code, Some(0));
    let told = setup.run(&["explain", "nobody"]);
    assert_eq!(told.code, Some(69), "{told:?}");
}
