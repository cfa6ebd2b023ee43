//! The last line of each device, for those who ask for the state.

use serde_json::{Value, json};

use crate::harness::{Bridge, Events, Scene, eventually};

/// What the snapshot says of a device.
#[track_caller]
fn shown(bridge: &Bridge, address: &str) -> Option<Value> {
    let snapshot = bridge.devices("?snapshot");
    let listed = snapshot["devices"].as_array().expect("an array").clone();
    listed.into_iter().find(|device| device["address"] == address)
}

#[track_caller]
fn history(bridge: &Bridge, address: &str) -> Value {
    let answer = bridge.get(&format!("/devices/{address}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).expect("JSON")
}

#[test]
fn the_last_line_of_a_device_is_shown_also_when_it_is_gone() {
    let scene = Scene::new("last");
    let uplink = scene.uplink();
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let _quiet = bridge.device("127.0.0.3");
    device.send(b"T=20\nT=21 pwd=x\n");
    let line = uplink.take(2).pop().expect("two").json();

    let now = shown(&bridge, "127.0.0.2").expect("listed");
    assert_eq!((&now["last"]["line"], &now["last"]["at"]), (&json!("T=21 pwd=x"), &line["at"]));
    assert!(now["last"]["age_ms"].is_u64(), "{now}");
    assert_eq!(history(&bridge, "127.0.0.2")["last"]["line"], "T=21 pwd=x");
    assert!(shown(&bridge, "127.0.0.3").expect("listed").get("last").is_none());
    assert!(history(&bridge, "127.0.0.3").get("last").is_none());

    device.send(b"\xff\n");
    drop(device);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
    let gone = shown(&bridge, "127.0.0.2").expect("listed");
    assert_eq!((&gone["online"], &gone["last"]["line_base64"]), (&json!(false), &json!("/w==")));
    assert_eq!(gone["epoch"], line["epoch"]);
    assert!(bridge.devices("?snapshot&prefix=127.0.0.3")["devices"][1].is_null());

    let explained = scene.setup().set("HTTP_LISTEN", bridge.http.to_string());
    let explained = explained.run(&["explain", "127.0.0.2"]);
    assert!(explained.stdout.contains("last line, at"), "{explained:?}");
}

#[test]
fn who_begins_to_look_on_hears_the_last_lines_first() {
    let scene = Scene::new("last-events");
    let uplink = scene.uplink();
    let bridge = scene.setup().start();
    let mut devices = ["127.7.0.1", "127.7.0.2", "127.8.0.1"].map(|from| bridge.device(from));
    for device in &mut devices {
        device.send(b"OLD\nLAST token=x\n");
    }
    let before = uplink.take(6);
    let mut events = Events::follow(bridge.http, "/events?kind=line,presence&prefix=127.7.");
    let mut heard = [events.next(), events.next()];
    devices[0].send(b"NEW\n");
    heard.sort_by_key(|(_, data)| data["address"].to_string());
    for (n, (kind, data)) in heard.iter().enumerate() {
        assert_eq!((kind.as_str(), &data["line"]), ("line", &json!("LAST token=***")));
        assert_eq!(
            (&data["last"], &data["address"]),
            (&json!(true), &json!(format!("127.7.0.{}", n + 1)))
        );
        assert!(data["age_ms"].is_u64() && data["run"] == before[0].json()["run"], "{data}");
    }
    let (_, new) = events.next();
    assert_eq!((&new["line"], new.get("last")), (&json!("NEW"), None));
    let mut others = Events::follow(bridge.http, "/events?kind=presence");
    drop(devices);
    assert_eq!(others.next().0, "presence", "who does not want lines hears none");
}

#[test]
fn a_last_line_whose_time_has_come_is_removed_and_that_is_told() {
    let scene = Scene::new("last-ttl");
    let uplink = scene.uplink();
    let bridge = scene.setup().set("LAST_VALUE_TTL", "1s").start();
    let ends = scene.amqp.subscribe(&scene.events(), "last.#");
    let mut device = bridge.device("127.0.0.2");
    device.send(b"T=20\n");
    let line = uplink.next().json();
    let end = ends.next();
    assert_eq!(end.key, "last.127.0.0.2");
    let end = end.json();
    let expected = json!({
        "address": "127.0.0.2", "bridge": "bridge-under-test", "run": line["run"], "at": end["at"], "expired": true,
    });
    assert_eq!(end, expected);
    assert!(end["at"].as_str() > line["at"].as_str());
    assert!(shown(&bridge, "127.0.0.2").expect("listed").get("last").is_none());
}

#[test]
fn memory_for_last_lines_is_bounded_and_may_be_none() {
    let scene = Scene::new("last-max");
    let uplink = scene.uplink();
    let bridge = scene.setup().set("LAST_VALUE_MAX", "1000").start();
    for n in 2..12 {
        let mut device = bridge.device(&format!("127.0.0.{n}"));
        device.send(b"HELLO\n");
        uplink.next();
    }
    bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
    let kept = bridge.devices("?snapshot")["devices"].as_array().expect("an array").len();
    assert!((1..=3).contains(&kept), "{kept}");
    assert!(shown(&bridge, "127.0.0.11").is_some(), "the newest");
    drop(bridge);

    let bridge = scene.setup().set("LAST_VALUE_MAX", "0").start();
    let mut device = bridge.device("127.0.0.2");
    device.send(b"HELLO\n");
    uplink.next();
    assert!(shown(&bridge, "127.0.0.2").expect("listed").get("last").is_none());
    drop(device);
    eventually("nothing is left of it", || {
        let left = bridge.devices("?snapshot")["devices"].clone();
        if left == json!([]) { Ok(()) } else { Err(left.to_string()) }
    });
}
