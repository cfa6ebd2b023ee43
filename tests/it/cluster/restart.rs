//! A bridge that is told to end: its devices were never offline if they come back in time, wherever that is.

use serde_json::json;

use super::{fleet_at, outcomes, setup, told, until_acquainted, until_none_is_held, until_online};
use crate::harness::{
    Bridge, Device, Fleet, Scene, address, command, eventually, persistent, reply_to,
};

/// Far longer than a device here takes to come back.
const LONG: &str = "10m";

const DEVICES: usize = 8;

fn device(index: usize) -> String {
    format!("127.0.0.{}", 10 + index)
}

fn start(scene: &Scene, name: &str, moving: &str) -> Bridge {
    setup(scene, name)
        .set("CLUSTER_MOVING", moving)
        .set("CLUSTER_DRAIN_SPREAD", "1s")
        .set("MQ_PREFETCH", "16")
        .start()
}

#[test]
fn many_devices_are_let_go_at_once_and_what_is_left_of_their_bindings_is_deleted_later() {
    const MANY: usize = 1_500;
    let scene = Scene::new("cluster-many-leave");
    let presence = scene.presence();
    let first = setup(&scene, "a").set("CLUSTER_DRAIN_SPREAD", "0s").start();
    let second = setup(&scene, "b").set("CLUSTER_GONE_AFTER", "1s").start();
    until_acquainted(&[&first, &second]);
    let fleet = fleet_at(&first, &presence, MANY);
    let shard = format!("{}.a.gate.0.15", scene.routes());

    assert_eq!(first.terminate().code, Some(0), "nothing was cut short");
    assert!(scene.amqp.exchange(&shard).is_ok(), "nobody has waited for that");
    drop(fleet);

    let fleet = Fleet::start(MANY, second.device_port);
    for device in 0..MANY {
        let body = command(&address(device), "ON").to_string();
        scene.amqp.publish_until_taken(&scene.routes(), &address(device), body.as_bytes());
    }
    eventually("each has its command", || fleet.has(MANY));
    assert_eq!(second.outcomes("written"), MANY as f64);
    eventually("its exchanges are deleted", || {
        scene.amqp.exchange(&shard).is_err().then_some(()).ok_or("they are there")
    });
}

#[test]
fn many_devices_are_cut_off_part_by_part_and_what_comes_for_them_meanwhile_waits() {
    const MANY: usize = 800;
    let scene = Scene::new("cluster-cut-off");
    let presence = scene.presence();
    let first = setup(&scene, "a").set("CLUSTER_DRAIN_SPREAD", "2s").set("CLUSTER_MOVING", LONG);
    let (first, second) = (first.start(), setup(&scene, "b").start());
    until_acquainted(&[&first, &second]);
    let before = fleet_at(&first, &presence, MANY);

    first.program.signal("TERM");
    first.until_logged(&["other bridges hold the devices"]);
    for device in 0..MANY {
        scene.publish(&command(&address(device), "ON"));
    }
    assert_eq!(first.program.finish().code, Some(0), "nothing was cut short");
    let shard = format!("{}.a.gate.0.15", scene.routes());
    assert!(scene.amqp.exchange(&shard).is_ok(), "nobody has waited for the end of each binding");
    let after = Fleet::start(MANY, second.device_port);
    eventually("each has its command", || {
        let came = before.distinct() + after.distinct();
        if came >= MANY { Ok(()) } else { Err(format!("{came} of {MANY}")) }
    });

    for device in 0..MANY {
        let lines = [before.lines(device), after.lines(device)].concat();
        assert_eq!(lines, ["ON"], "{}", address(device));
        assert_eq!(presence.next().json()["online"], true);
    }
    assert_eq!(outcomes(&[second], "offline"), 0.0);
}

#[test]
fn devices_that_come_back_while_one_bridge_after_the_other_is_restarted_were_never_offline() {
    let scene = Scene::new("cluster-rolling");
    let presence = scene.presence();
    let mut here = start(&scene, "a", LONG);
    let mut there = start(&scene, "b", LONG);
    until_acquainted(&[&here, &there]);
    let mut devices: Vec<Device> = (0..DEVICES).map(|index| here.device(&device(index))).collect();
    let mut epochs = [0; DEVICES];
    for _ in 0..DEVICES {
        let event = presence.next().json();
        let index = (0..DEVICES).find(|index| event["address"] == device(*index).as_str());
        epochs[index.expect("one of them")] = event["epoch"].as_u64().expect("an epoch");
    }
    let mut lines = vec![Vec::new(); DEVICES];
    let mut published = 0;
    for round in 0..2 {
        here.program.signal("TERM");
        here.until_logged(&["other bridges hold the devices"]);
        for index in 0..DEVICES {
            scene.publish(&command(&device(index), &published.to_string()));
        }
        published += 1;
        for (index, device_here) in devices.iter_mut().enumerate() {
            lines[index].extend(device_here.until_closed());
            // Nobody has the device now.
            scene.publish(&command(&device(index), &published.to_string()));
            *device_here = there.device(&device(index));
        }
        published += 1;
        assert_eq!(here.program.finish().code, Some(0), "round {round}");
        for (index, device) in devices.iter_mut().enumerate() {
            while lines[index].len() < published {
                lines[index].push(device.line().into_bytes());
            }
        }
        let again = start(&scene, if round == 0 { "a" } else { "b" }, LONG);
        until_acquainted(&[&there, &again]);
        here = there;
        there = again;
    }

    for (index, lines) in lines.iter().enumerate() {
        let mut lines: Vec<String> =
            lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        // Two bridges take commands off the queue.
        lines.sort();
        let expected: Vec<String> = (0..published).map(|number| format!("{number}\r\n")).collect();
        assert_eq!(lines, expected, "device {index} has each once");
    }
    let told = told(&presence, &[&here, &there]);
    for index in 0..DEVICES {
        let events = &told[&device(index)];
        assert_eq!(events.len(), 2, "{events:?}");
        for event in events {
            assert_eq!(event["online"], true, "{events:?}");
            let epoch = event["epoch"].as_u64().expect("an epoch");
            assert!(epoch > epochs[index], "{events:?}");
            epochs[index] = epoch;
        }
    }
    assert_eq!(outcomes(&[here, there], "offline"), 0.0);
}

#[test]
fn one_that_does_not_come_back_is_told_as_offline_once_by_a_bridge_that_is_left() {
    let scene = Scene::new("cluster-stays-away");
    let presence = scene.presence();
    let bridges = ["a", "b", "c"].map(|name| start(&scene, name, "2s"));
    until_acquainted(&bridges.each_ref());
    let receipts = scene.receipts();
    let [first, second, third] = bridges;
    let mut device = first.device("127.0.0.10");
    let online = until_online(&presence, "127.0.0.10", "a");

    first.program.signal("TERM");
    assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
    let body = command("127.0.0.10", "ON").to_string();
    scene.publish_with(body.as_bytes(), reply_to(&receipts));
    assert_eq!(first.program.finish().code, Some(0));

    let offline = presence.next().json();
    assert_eq!((&offline["address"], &offline["online"]), (&online["address"], &json!(false)));
    assert_eq!((&offline["epoch"], &offline["peer"]), (&online["epoch"], &online["peer"]));
    assert_eq!(offline["reason"], "shutdown");
    assert_ne!(offline["bridge"], "a");
    let receipt = receipts.next().json();
    assert_eq!(receipt["outcome"], "offline", "{receipt}");
    until_none_is_held(&[&second, &third]);
    let more = told(&presence, &[&second, &third]);
    assert!(!more.contains_key("127.0.0.10"), "{more:?}");
}

#[test]
fn what_a_bridge_holds_for_another_is_held_by_the_next_and_told_by_the_last() {
    let scene = Scene::new("cluster-last-one");
    let presence = scene.presence();
    let bridges = ["a", "b", "c"].map(|name| start(&scene, name, LONG));
    until_acquainted(&bridges.each_ref());
    let [first, second, third] = bridges;
    let device = first.device("127.0.0.10");
    let online = until_online(&presence, "127.0.0.10", "a");

    for bridge in [first, second] {
        assert_eq!(bridge.terminate().code, Some(0));
        assert_eq!(third.metric("rabbitline_route_moving"), 1.0);
    }
    drop(device);
    assert_eq!(third.terminate().code, Some(0));

    let offline = presence.next().json();
    assert_eq!((&offline["address"], &offline["online"]), (&online["address"], &json!(false)));
    assert_eq!((&offline["epoch"], &offline["bridge"]), (&online["epoch"], &json!("c")));
    assert_eq!(presence.so_far().len(), 0);
}

#[test]
fn a_bridge_that_is_alone_or_told_to_hold_nothing_tells_itself() {
    let scene = Scene::new("cluster-alone");
    let presence = scene.presence();
    let first = start(&scene, "a", "0s");
    let second = start(&scene, "b", LONG);
    until_acquainted(&[&first, &second]);
    let _one = first.device("127.0.0.10");
    until_online(&presence, "127.0.0.10", "a");
    let _other = second.device("127.0.0.11");
    until_online(&presence, "127.0.0.11", "b");

    for (bridge, name, address) in [(first, "a", "127.0.0.10"), (second, "b", "127.0.0.11")] {
        assert_eq!(bridge.terminate().code, Some(0));
        let event = presence.next().json();
        let said = (&event["address"], &event["online"], &event["bridge"]);
        assert_eq!(said, (&json!(address), &json!(false), &json!(name)));
    }
}

#[test]
fn one_that_is_at_a_bridge_which_was_not_heard_is_not_told_as_offline() {
    let scene = Scene::new("cluster-unheard");
    let presence = scene.presence();
    let (first, second) = (start(&scene, "a", "1s"), start(&scene, "b", "1s"));
    until_acquainted(&[&first, &second]);
    let device = first.device("127.0.0.10");
    let online = until_online(&presence, "127.0.0.10", "a");
    // As a bridge has it that was not heard.
    let elsewhere = scene.amqp.subscribe(&scene.routes(), "127.0.0.10");
    assert_eq!(first.terminate().code, Some(0));
    drop(device);

    let claim = elsewhere.next().json();
    assert_eq!((&claim["says"], &claim["bridge"]), (&json!("claim"), &json!("b")), "{claim}");
    assert_eq!(claim["epoch"], online["epoch"]);
    let later = online["epoch"].as_u64().expect("an epoch") + 1;
    let answer = json!({"says": "later", "address": "127.0.0.10", "epoch": later}).to_string();
    let properties = persistent().with_type("rabbitline.cluster".into());
    scene.amqp.publish("", &format!("{}.b", scene.routes()), answer.as_bytes(), properties);

    until_none_is_held(&[&second]);
    let told = told(&presence, &[&second]);
    assert!(told.is_empty(), "{told:?}");
}
