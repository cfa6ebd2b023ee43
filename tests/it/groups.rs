//! Commands for several devices, for a group, for all: each recipient has its outcome, the delivery is settled once.

use serde_json::{Value, json};

use crate::harness::{Device, Scene, persistent, reply_to};

/// The receipts of one command: those of its recipients by their addresses, and the summary, which comes last.
fn receipts(scene: &Scene, command: &Value, members: usize) -> (Vec<(String, String)>, Value) {
    let inbox = scene.receipts();
    scene.publish_with(command.to_string().as_bytes(), reply_to(&inbox));
    let mut of_members: Vec<(String, String)> = (0..members)
        .map(|_| inbox.next().json())
        .map(|receipt| {
            let word = |name: &str| receipt[name].as_str().unwrap_or_default().to_owned();
            (word("address"), word("outcome"))
        })
        .collect();
    of_members.sort();
    (of_members, inbox.next().json())
}

#[test]
fn each_of_several_devices_has_its_command_and_its_receipt_and_the_sender_a_summary() {
    let scene = Scene::new("several");
    let bridge = scene.setup().start();
    let mut devices = ["127.0.0.2", "127.0.0.3"].map(|address| bridge.device(address));
    let undelivered = scene.undelivered_inbox();
    let to = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "::ffff:127.0.0.2"];
    let command = json!({"addresses": to, "cmd": "ALL STOP", "id": "c1"});

    let (of_members, summary) = receipts(&scene, &command, 3);

    let expected = [("127.0.0.2", "written"), ("127.0.0.3", "written"), ("127.0.0.4", "offline")];
    assert_eq!(of_members, expected.map(|(a, o)| (a.to_owned(), o.to_owned())));
    assert_eq!(summary["id"], "c1");
    assert_eq!(summary["members"], 3);
    assert_eq!(summary["outcomes"], json!({"written": 2, "offline": 1}));
    for device in &mut devices {
        assert_eq!(device.line(), "ALL STOP\r\n");
    }
    let letter = undelivered.next();
    assert_eq!(
        (letter.header("x-address"), letter.header("x-outcome")),
        ("127.0.0.4".into(), "offline".into())
    );
    assert_eq!(letter.json(), command);
    scene.until_drained(&bridge);
    assert_eq!(bridge.metric("rabbitline_settlements_forgotten_total"), 0.0);
}

#[test]
fn a_broadcast_reaches_all_that_are_connected_and_what_comes_next_comes_behind_it() {
    let scene = Scene::new("broadcast");
    let bridge = scene.setup().set("MQ_PREFETCH", "10").start();
    let mut devices: Vec<Device> =
        (2..102).map(|last| bridge.device(&format!("127.0.0.{last}"))).collect();
    let broadcast = json!({"broadcast": true, "cmd": "FIRST"});
    let second = |last| json!({"address": format!("127.0.0.{last}"), "cmd": "SECOND"});
    let bodies = [broadcast].into_iter().chain((2..102).map(second));
    let messages = bodies.map(|body| (body.to_string().into_bytes(), persistent()));

    scene.amqp.publish_all(&scene.exchange(), &scene.queue(), messages);

    for device in &mut devices {
        assert_eq!([device.line(), device.line()], ["FIRST\r\n", "SECOND\r\n"]);
    }
    scene.until_drained(&bridge);
    assert_eq!(bridge.outcomes("written"), 200.0);
}

#[test]
fn a_command_for_several_is_parked_for_those_who_are_away() {
    let scene = Scene::new("several-parked");
    let bridge = scene.setup().start();
    let mut here = bridge.device("127.0.0.2");
    let to = ["127.0.0.2", "127.0.0.3"];
    let command = json!({"addresses": to, "cmd": "LATER", "if_offline": "park", "id": "c2"});

    let (of_members, summary) = receipts(&scene, &command, 2);

    assert_eq!(of_members[1], ("127.0.0.3".to_owned(), "parked".to_owned()));
    assert_eq!(summary["outcomes"], json!({"written": 1, "parked": 1}));
    assert_eq!(here.line(), "LATER\r\n");
    let mut away = Device::connect("127.0.0.3", bridge.device_port);
    assert_eq!(away.line(), "LATER\r\n");
    scene.until_drained(&bridge);
}

#[test]
fn a_command_for_a_group_without_members_is_undelivered() {
    let scene = Scene::new("nobody");
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    for body in [json!({"group": "pumps", "cmd": "X"}), json!({"broadcast": true, "cmd": "X"})] {
        scene.publish(&body);
        let letter = undelivered.next();
        assert_eq!(letter.header("x-outcome"), "offline");
        assert_eq!(letter.header("x-reason"), "nobody is in the group, or connected");
    }
    scene.until_drained(&bridge);
}

#[test]
fn a_connection_lost_in_the_midst_of_a_command_for_many_writes_none_twice_that_is_known() {
    let mut scene = Scene::alone("many-cut");
    scene.declare();
    let bridge = scene.setup().set("COMMAND_CONFIRM", "answered").start();
    let mut devices: Vec<Device> =
        (2..22).map(|last| bridge.device(&format!("127.0.0.{last}"))).collect();
    let to: Vec<String> = (2..22).map(|last| format!("127.0.0.{last}")).collect();
    scene.publish(&json!({"addresses": to, "cmd": "ONCE", "id": "c3", "timeout_ms": 60_000}));
    for device in &mut devices {
        assert_eq!(device.line(), "ONCE\r\n");
    }
    for device in &mut devices[..10] {
        device.send(b"OK\n");
    }
    bridge.until_metric("rabbitline_commands_total{outcome=\"answered\"}", |count| count == 10.0);

    scene.broker.ctl(&["close_all_connections", "a test of the operator's hand"]);
    bridge.until_logged(&["retry_in_ms", "consumer"]);
    scene.amqp = crate::harness::Amqp::connect(scene.broker.port());
    // Those whose answer is known are told again.
    bridge.until_metric("rabbitline_commands_total{outcome=\"answered\"}", |count| count == 20.0);
    for device in &mut devices[10..] {
        device.send(b"OK\n");
    }

    scene.until_drained(&bridge);
    assert_eq!(bridge.outcomes("answered"), 30.0);
    scene.publish(&json!({"broadcast": true, "cmd": "END", "confirm": "written"}));
    for device in &mut devices {
        assert_eq!(device.line(), "END\r\n", "nothing came twice");
    }
}

#[test]
fn members_are_listed_in_a_file_and_over_http_and_stay_in_the_file() {
    let scene = Scene::new("listed");
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("groups.json");
    std::fs::write(&path, r#"{"pumps": ["127.0.0.2"]}"#).expect("written");
    let setup = scene.setup().set("GROUPS_FILE", &path);
    let bridge = setup.start();
    let mut devices = ["127.0.0.2", "127.0.0.3"].map(|address| bridge.device(address));
    let groups = |bridge: &crate::harness::Bridge| -> Value {
        serde_json::from_str(&bridge.get("/groups").body).expect("JSON")
    };
    assert_eq!(groups(&bridge), json!({"pumps": ["127.0.0.2"]}));

    assert_eq!(bridge.ask("PUT", "/groups/pumps/members/127.0.0.3").status, 204);
    scene.publish(&json!({"group": "pumps", "cmd": "BOTH"}));
    for device in &mut devices {
        assert_eq!(device.line(), "BOTH\r\n");
    }
    assert_eq!(bridge.ask("DELETE", "/groups/pumps/members/127.0.0.2").status, 204);
    assert_eq!(bridge.get("/groups/pumps").body, r#"["127.0.0.3"]"#);
    assert_eq!(bridge.get("/groups/valves").status, 404);
    assert_eq!(
        bridge.ask("PUT", &format!("/groups/pumps/members/{}", "x".repeat(201))).status,
        400
    );
    drop(bridge);

    let bridge = setup.start();
    assert_eq!(groups(&bridge), json!({"pumps": ["127.0.0.3"]}));
    // Somebody edits the file.
    std::fs::write(&path, r#"{"valves": ["127.0.0.4"]}"#).expect("written");
    crate::harness::eventually("the change is seen", || match groups(&bridge) {
        now if now == json!({"valves": ["127.0.0.4"]}) => Ok(()),
        now => Err(now.to_string()),
    });
}

#[test]
fn devices_that_take_each_others_place_behind_one_address_are_said_once() {
    let scene = Scene::new("fronted");
    let bridge = scene.setup().start();
    let connections: Vec<Device> = (0..10).map(|_| bridge.device("127.0.0.2")).collect();
    bridge.until_logged(&["WARN", "127.0.0.2", "DEVICE_PROXY_FROM"]);
    drop(connections);
    let said = bridge.log().all().iter().filter(|line| line.contains("DEVICE_PROXY_FROM")).count();
    assert_eq!(said, 1);
}
