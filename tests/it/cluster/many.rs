//! A command for a group, or for all: whichever bridge takes it, the devices of all bridges have it, each once.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{fleet_at, kill, setup, until_acquainted, until_online};
use crate::harness::{Inbox, Scene, address, eventually, reply_to};

/// The receipts of one command, by device, and its summary. They come from several bridges, in any order.
#[track_caller]
fn gather(receipts: &Inbox, id: &str) -> (BTreeMap<String, String>, Value) {
    let (mut told, mut summary) = (BTreeMap::new(), None::<Value>);
    loop {
        let count = summary.as_ref().map(|summary| summary["members"].as_u64());
        if let Some(count) = count
            && count == u64::try_from(told.len()).ok()
        {
            return (told, summary.unwrap_or_default());
        }
        let one = receipts.next().json();
        assert_eq!(one["id"], id);
        let word = |name: &str| one[name].as_str().map(str::to_owned);
        match (word("address"), word("outcome")) {
            (Some(address), Some(outcome)) => {
                let again = told.insert(address, outcome);
                assert_eq!(again, None, "told twice: {one}");
            }
            _ => summary = Some(one),
        }
    }
}

/// How many the summary counts, those told by other bridges too.
fn counted(summary: &Value) -> u64 {
    let here: u64 = summary["outcomes"]
        .as_object()
        .map_or(0, |outcomes| outcomes.values().filter_map(Value::as_u64).sum());
    here + summary["passed_on"].as_u64().unwrap_or_default()
}

fn written<const N: usize>(addresses: [&str; N]) -> BTreeMap<String, String> {
    addresses.map(|address| (address.to_owned(), "written".to_owned())).into()
}

#[test]
fn a_group_and_all_are_those_of_all_bridges() {
    let scene = Scene::new("cluster-groups");
    let presence = scene.presence();
    let bridges = ["a", "b", "c"].map(|name| setup(&scene, name).start());
    let at = [("127.0.0.2", 0), ("127.0.0.3", 0), ("127.0.0.4", 1), ("127.0.0.5", 2)];
    let mut devices = at.map(|(address, bridge)| bridges[bridge].device(address));
    for _ in at {
        assert_eq!(presence.next().json()["online"], true);
    }
    // Each bridge has its own list; one device is on two of them, one is away.
    for (bridge, address) in
        [(0, "127.0.0.2"), (0, "127.0.0.4"), (1, "127.0.0.4"), (1, "127.0.0.9")]
    {
        let member = format!("/groups/pumps/members/{address}");
        assert_eq!(bridges[bridge].ask("PUT", &member).status, 204);
    }
    let receipts = scene.receipts();

    // The broker serves the bridges in turn.
    for round in 0..3 {
        let id = format!("g{round}");
        let command = json!({"group": "pumps", "cmd": format!("GROUP {round}"), "id": id});
        scene.publish_with(command.to_string().as_bytes(), reply_to(&receipts));
        let (told, summary) = gather(&receipts, &id);
        let mut expected = written(["127.0.0.2", "127.0.0.4"]);
        expected.insert("127.0.0.9".to_owned(), "offline".to_owned());
        assert_eq!(told, expected);
        assert_eq!(
            (counted(&summary), &summary["missing_bridges"]),
            (3, &Value::Null),
            "{summary}"
        );
        for member in [0, 2] {
            assert_eq!(devices[member].line(), format!("GROUP {round}\r\n"));
        }
    }
    for round in 0..3 {
        let id = format!("all{round}");
        let command = json!({"broadcast": true, "cmd": format!("ALL {round}"), "id": id});
        scene.publish_with(command.to_string().as_bytes(), reply_to(&receipts));
        let (told, summary) = gather(&receipts, &id);
        assert_eq!(told, written(at.map(|(address, _)| address)));
        assert_eq!(counted(&summary), 4, "{summary}");
        for device in &mut devices {
            assert_eq!(device.line(), format!("ALL {round}\r\n"), "once, and behind the others");
        }
    }
    scene.until_drained(&bridges[0]);
}

#[test]
fn who_waits_over_http_is_told_of_all_and_who_names_nobody_that() {
    let scene = Scene::new("cluster-broadcast-http");
    let presence = scene.presence();
    let bridges = ["a", "b"].map(|name| setup(&scene, name).start());
    let json = [("content-type", "application/json")];
    let undelivered = scene.undelivered_inbox();
    scene.publish(&json!({"broadcast": true, "cmd": "ON"}));
    let letter = undelivered.next();
    assert_eq!(letter.header("x-reason"), "nobody is in the group, or connected");

    let _devices = [("127.0.0.2", 0), ("127.0.0.3", 1)].map(|(address, bridge)| {
        let device = bridges[bridge].device(address);
        until_online(&presence, address, ["a", "b"][bridge]);
        device
    });
    for _ in 0..2 {
        let body = json!({"broadcast": true, "cmd": "ON"}).to_string();
        let answer = bridges[0].send("POST", "/commands?wait=30s", &json, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        let known: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(known["receipts"].as_array().map(Vec::len), Some(2), "{known}");
        assert_eq!(known["summary"]["members"], 2, "{known}");
    }
}

#[test]
fn many_devices_of_another_bridge_each_have_it_and_what_comes_next_comes_behind_it() {
    const MANY: usize = 1_200;
    let scene = Scene::new("cluster-broadcast");
    let presence = scene.presence();
    let far = setup(&scene, "far").start();
    let fleet = fleet_at(&far, &presence, MANY);
    let near = setup(&scene, "near").start();
    until_acquainted(&[&far, &near]);
    // The broker serves the bridges in turn: one of the two goes from one to the other.
    let receipts = scene.receipts();
    let first = json!({"broadcast": true, "cmd": "FIRST", "id": "first"});
    scene.publish_with(first.to_string().as_bytes(), reply_to(&receipts));
    let (told, summary) = gather(&receipts, "first");
    assert_eq!((told.len(), counted(&summary)), (MANY, MANY as u64), "{summary}");
    let second = json!({"broadcast": true, "cmd": "SECOND", "id": "second"});
    scene.publish_with(second.to_string().as_bytes(), reply_to(&receipts));
    let (told, _) = gather(&receipts, "second");
    assert!(told.values().all(|outcome| outcome == "written"));
    eventually("each has both", || {
        let missing = (0..MANY).find(|index| fleet.lines(*index) != ["FIRST", "SECOND"]);
        missing.map_or(Ok(()), |index| Err(format!("{}: {:?}", address(index), fleet.lines(index))))
    });
}

#[test]
fn a_bridge_that_does_not_answer_is_named_and_its_devices_have_it_once_it_does() {
    let scene = Scene::new("cluster-broadcast-silent");
    let presence = scene.presence();
    let bridges = ["a", "b"].map(|name| setup(&scene, name).start());
    let mut here = bridges[0].device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let mut there = bridges[1].device("127.0.0.3");
    until_online(&presence, "127.0.0.3", "b");
    bridges[0].until_metric("rabbitline_route_devices_elsewhere", |known| known == 1.0);
    let receipts = scene.receipts();

    // As one whose machine hangs.
    bridges[1].program.signal("STOP");
    // One for each bridge: the broker serves them in turn, and that of the other waits there.
    for _ in 0..2 {
        let command = json!({"broadcast": true, "cmd": "ON", "id": "c"});
        scene.publish_with(command.to_string().as_bytes(), reply_to(&receipts));
    }
    let receipt = receipts.next().json();
    assert_eq!((&receipt["address"], &receipt["bridge"]), (&json!("127.0.0.2"), &json!("a")));
    let summary = receipts.next().json();
    assert_eq!(summary["missing_bridges"], json!(["b"]), "{summary}");
    assert_eq!((&summary["members"], &summary["passed_on"]), (&json!(2), &json!(1)), "{summary}");
    bridges[0].until_logged(&["does not say which of its devices"]);

    bridges[1].program.signal("CONT");
    for _ in 0..2 {
        assert_eq!((here.line(), there.line()), ("ON\r\n".to_owned(), "ON\r\n".to_owned()));
    }
    let last = (0..4).map(|_| receipts.next().json()).find(|last| last["members"] == 2);
    let last = last.expect("a summary of the other");
    assert_eq!((&last["bridge"], &last["missing_bridges"]), (&json!("b"), &Value::Null), "{last}");
}

#[test]
fn a_bridge_that_is_dead_is_not_waited_for_for_ever() {
    let scene = Scene::new("cluster-broadcast-killed");
    let presence = scene.presence();
    let first = setup(&scene, "a").set("CLUSTER_GONE_AFTER", "1s").start();
    let second = setup(&scene, "b").start();
    let mut here = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    until_acquainted(&[&first, &second]);
    kill(second);

    scene.publish(&json!({"broadcast": true, "cmd": "ON"}));

    assert_eq!(here.line(), "ON\r\n");
    scene.until_drained(&first);
    assert_eq!(first.metric("rabbitline_settlements_forgotten_total"), 0.0);
}
