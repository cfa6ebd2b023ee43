//! The devices of a bridge that has died: another bridge tells of those that do not come back.

use serde_json::json;

use super::{kill, next_of, setup, told, until_acquainted, until_none_is_held, until_online};
use crate::harness::{Bridge, Scene, Setup, command};

fn lost_soon(scene: &Scene, name: &str) -> Setup {
    setup(scene, name).set("CLUSTER_GONE_AFTER", "1s").set("CLUSTER_MOVING", "1s")
}

/// Waits until a bridge knows of so many devices of others.
#[track_caller]
fn until_known(bridge: &Bridge, count: usize) {
    bridge.until_metric("rabbitline_route_devices_elsewhere", |known| known == count as f64);
}

#[test]
fn a_device_that_does_not_come_back_from_a_bridge_that_was_killed_is_told_as_gone_once() {
    let scene = Scene::new("cluster-lost");
    let presence = scene.presence();
    let [first, second, third] = ["a", "b", "c"].map(|name| lost_soon(&scene, name).start());
    until_acquainted(&[&first, &second, &third]);
    let _devices = [first.device("127.0.0.2"), first.device("127.0.0.3")];
    let came = [presence.next().json(), presence.next().json()];
    let came = came.iter().find(|event| event["address"] == "127.0.0.3").expect("one of both");
    [&second, &third].into_iter().for_each(|bridge| until_known(bridge, 2));

    kill(first);
    let _back = third.device("127.0.0.2");

    let mut events = [presence.next().json(), presence.next().json()];
    events.sort_by_key(|event| event["address"].to_string());
    assert_eq!((&events[0]["online"], &events[0]["bridge"]), (&json!(true), &json!("c")));
    let gone = &events[1];
    assert_eq!(
        (&gone["address"], &gone["online"], &gone["reason"], &gone["epoch"], &gone["peer"]),
        (&json!("127.0.0.3"), &json!(false), &json!("bridge_lost"), &came["epoch"], &came["peer"])
    );
    assert_eq!(gone["bridge"], "b", "its turn is first");
    until_none_is_held(&[&second, &third]);
    let told = told(&presence, &[&second, &third]);
    assert!(!told.contains_key("127.0.0.2") && !told.contains_key("127.0.0.3"), "{told:?}");
}

#[test]
fn a_bridge_that_is_started_again_at_once_has_lost_its_devices_all_the_same() {
    let scene = Scene::new("cluster-lost-again");
    let presence = scene.presence();
    let start = |name| lost_soon(&scene, name).set("CLUSTER_GONE_AFTER", "10m").start();
    let (first, second) = (start("a"), start("b"));
    until_acquainted(&[&first, &second]);
    let _device = first.device("127.0.0.2");
    let came = until_online(&presence, "127.0.0.2", "a");
    until_known(&second, 1);

    kill(first);
    let _first = start("a");

    let gone = next_of(&presence, "127.0.0.2");
    assert_eq!(
        (&gone["online"], &gone["reason"], &gone["bridge"], &gone["epoch"]),
        (&json!(false), &json!("bridge_lost"), &json!("b"), &came["epoch"])
    );
}

#[test]
fn a_bridge_that_has_come_later_knows_of_the_devices_that_are_there() {
    let scene = Scene::new("cluster-lost-later");
    let presence = scene.presence();
    let first = lost_soon(&scene, "a").start();
    let _device = first.device("127.0.0.2");
    let came = until_online(&presence, "127.0.0.2", "a");
    let second = lost_soon(&scene, "b").start();
    until_known(&second, 1);

    kill(first);

    let gone = next_of(&presence, "127.0.0.2");
    assert_eq!((&gone["online"], &gone["epoch"]), (&json!(false), &came["epoch"]));
}

#[test]
fn devices_of_a_bridge_that_was_only_taken_for_dead_are_told_anew() {
    let scene = Scene::new("cluster-lost-in-vain");
    let presence = scene.presence();
    let start = |name| lost_soon(&scene, name).set("MQ_HEARTBEAT", "1s").start();
    let (first, second) = (start("a"), start("b"));
    until_acquainted(&[&first, &second]);
    let mut device = first.device("127.0.0.2");
    let came = until_online(&presence, "127.0.0.2", "a");
    until_known(&second, 1);

    first.program.signal("STOP");
    let gone = next_of(&presence, "127.0.0.2");
    assert_eq!((&gone["online"], &gone["bridge"]), (&json!(false), &json!("b")));
    first.program.signal("CONT");

    let back = next_of(&presence, "127.0.0.2");
    assert_eq!((&back["online"], &back["bridge"]), (&json!(true), &json!("a")));
    assert!(back["epoch"].as_u64() > came["epoch"].as_u64(), "{back} behind {came}");
    until_known(&second, 1);
    until_none_is_held(&[&second]);
    let told = told(&presence, &[&first, &second]);
    assert!(!told.contains_key("127.0.0.2"), "that is all: {told:?}");
    let body = command("127.0.0.2", "ON").to_string();
    scene.amqp.publish_until_taken(&scene.routes(), "127.0.0.2", body.as_bytes());
    assert_eq!(device.line(), "ON\r\n", "the connection has been the same all the time");
    drop(device);
    let gone = next_of(&presence, "127.0.0.2");
    assert_eq!((&gone["online"], &gone["epoch"]), (&json!(false), &back["epoch"]));
}
