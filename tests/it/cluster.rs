//! Several bridges, one address space: a command reaches its device wherever that is connected, and ends once.

mod arriving;
mod death;
mod lost;
mod many;
mod parked;
mod restart;
mod takeover;
mod talk;

use std::collections::HashMap;

use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::harness::{
    Amqp, Bridge, Fleet, Inbox, Scene, Setup, address, command, eventually, park, persistent,
    reply_to, table,
};

/// A bridge of a cluster.
fn setup(scene: &Scene, name: &str) -> Setup {
    scene.setup().set("CLUSTER", "on").set("BRIDGE_NAME", name)
}

/// Two of them.
fn pair(scene: &Scene) -> [Bridge; 2] {
    ["a", "b"].map(|name| setup(scene, name).start())
}

/// Ends a bridge as a crash would.
fn kill(bridge: Bridge) {
    bridge.program.signal("KILL");
    let _ = bridge.program.finish();
}

/// What is told next of a device.
#[track_caller]
fn next_of(presence: &Inbox, address: &str) -> Value {
    loop {
        let event = presence.next().json();
        if event["address"] == address {
            return event;
        }
    }
}

/// Waits until a bridge has told that a device is connected to it: the others find it now.
#[track_caller]
fn until_online(presence: &Inbox, address: &str, bridge: &str) -> Value {
    loop {
        let event = next_of(presence, address);
        if event["online"] == true && event["bridge"] == bridge {
            return event;
        }
    }
}

/// So many devices at a bridge, of which it has told.
#[track_caller]
fn fleet_at(bridge: &Bridge, presence: &Inbox, count: usize) -> Fleet {
    let fleet = Fleet::start(count, bridge.device_port);
    for _ in 0..count {
        assert_eq!(presence.next().json()["online"], true);
    }
    fleet
}

/// Waits until each of these bridges knows the others.
#[track_caller]
fn until_acquainted(bridges: &[&Bridge]) {
    for bridge in bridges {
        let others = bridges.len() - 1;
        bridge.until_metric("rabbitline_route_bridges", |known| known == others as f64);
    }
}

/// What was told so far, by address; and of the bridge that connects last, that nothing is on its way any more.
#[track_caller]
fn told(presence: &Inbox, last: &[&Bridge]) -> HashMap<String, Vec<Value>> {
    let mut told: HashMap<String, Vec<Value>> = HashMap::new();
    for (number, bridge) in last.iter().enumerate() {
        let address = format!("127.0.1.{}", 1 + number);
        let _marker = bridge.device(&address);
        loop {
            let event = presence.next().json();
            if event["address"] == address.as_str() {
                break;
            }
            let of = event["address"].as_str().expect("an address").to_owned();
            told.entry(of).or_default().push(event);
        }
    }
    told
}

/// Waits until no bridge holds a device of another.
#[track_caller]
fn until_none_is_held(bridges: &[&Bridge]) {
    for bridge in bridges {
        bridge.until_metric("rabbitline_route_moving", |held| held == 0.0);
    }
}

/// The exchange to which a device is bound, of whichever bridge.
fn bound_to(scene: &Scene, address: &str) -> Option<String> {
    let columns = ["list_bindings", "source_name", "routing_key", "destination_name", "-q"];
    let bound = format!("{}\t{address}\t", scene.routes());
    let all = scene.broker.ctl(&columns);
    all.lines().find_map(|line| line.strip_prefix(&bound)).map(str::to_owned)
}

/// How often both bridges together have counted an outcome.
fn outcomes(bridges: &[Bridge], outcome: &str) -> f64 {
    bridges.iter().map(|bridge| bridge.outcomes(outcome)).sum()
}

#[test]
fn a_command_reaches_its_device_whichever_bridge_takes_it_off_the_queue() {
    const COMMANDS: usize = 40;
    let scene = Scene::new("cluster-queue");
    let presence = scene.presence();
    let bridges = pair(&scene);
    let mut device = bridges[1].device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "b");
    let receipts = scene.receipts();

    for number in 0..COMMANDS {
        let headers = table(&[("tenant", AMQPValue::LongString("north".into()))]);
        let properties = reply_to(&receipts)
            .with_headers(headers)
            .with_correlation_id(format!("c-{number}").into());
        let body = command("127.0.0.2", &number.to_string()).to_string();
        scene.publish_with(body.as_bytes(), properties);
    }

    let mut lines: Vec<String> =
        (0..COMMANDS).map(|_| device.line().trim_end().to_owned()).collect();
    let mut ids: Vec<String> = Vec::new();
    for letter in receipts.take(COMMANDS) {
        assert_eq!(letter.header("tenant"), "north");
        let headers = letter.properties.headers().clone().expect("headers");
        assert_eq!(headers.inner().len(), 1, "nothing of ours is left: {headers:?}");
        let receipt = letter.json();
        assert_eq!((&receipt["outcome"], &receipt["bridge"]), (&json!("written"), &json!("b")));
        ids.push(letter.correlation_id().expect("a correlation id").to_owned());
    }
    lines.sort_by_key(|line| line.parse::<usize>().expect("a number"));
    assert_eq!(lines, (0..COMMANDS).map(|number| number.to_string()).collect::<Vec<_>>());
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), COMMANDS, "one receipt each");
    let passed = bridges[0].metric("rabbitline_route_passed_on_total");
    assert!(passed > 0.0, "the broker serves both bridges in turn");
    assert_eq!(outcomes(&bridges, "written"), COMMANDS as f64, "each is counted once");
    assert_eq!(device.so_far(), Vec::<String>::new());
}

#[test]
fn a_command_is_offline_when_no_bridge_has_its_device_and_is_undelivered_as_it_came() {
    let scene = Scene::new("cluster-offline");
    let bridges = pair(&scene);
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let body = br#"{ "address": "127.0.0.9",  "cmd": "ON" }"#;
    let headers = table(&[("tenant", AMQPValue::LongString("north".into()))]);

    scene.publish_with(
        body,
        reply_to(&receipts).with_headers(headers).with_message_id("m-1".into()),
    );

    let letter = undelivered.next();
    assert_eq!((letter.body.as_slice(), &*letter.key), (&body[..], &*scene.queue()));
    assert_eq!(letter.header("x-outcome"), "offline");
    assert_eq!(letter.header("x-reason"), "the device is not connected to any bridge");
    let headers = letter.properties.headers().clone().expect("headers");
    assert_eq!(headers.inner().len(), 4, "its own and three of ours: {headers:?}");
    let receipt = receipts.next().json();
    assert_eq!((&receipt["outcome"], &receipt["id"]), (&json!("offline"), &json!("m-1")));
    assert_eq!(outcomes(&bridges, "offline"), 1.0);
    assert_eq!(receipts.so_far().len(), 0);
}

#[test]
fn what_is_parked_by_one_bridge_arrives_when_its_device_connects_to_another() {
    const COMMANDS: usize = 20;
    let scene = Scene::new("cluster-parked");
    let bridges = pair(&scene);
    scene.park_numbers("127.0.0.9", 0..COMMANDS);
    scene.until_parked("127.0.0.9", COMMANDS);

    // Some of them were parked by the other one.
    let mut device = bridges[1].device("127.0.0.9");

    let mut lines: Vec<usize> =
        (0..COMMANDS).map(|_| device.line().trim_end().parse().expect("a number")).collect();
    lines.sort_unstable();
    assert_eq!(lines, (0..COMMANDS).collect::<Vec<_>>());
    assert_eq!(outcomes(&bridges, "parked"), COMMANDS as f64);
    eventually("all are written", || match outcomes(&bridges, "written") {
        written if written == COMMANDS as f64 => Ok(()),
        other => Err(other),
    });
    for bridge in &bridges {
        bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    }
    assert_eq!(outcomes(&bridges, "expired"), 0.0);
    assert_eq!(scene.amqp.depth(&scene.parked_for("127.0.0.9")), 0);
}

#[test]
fn senders_may_publish_to_the_route_exchange_and_keep_their_order() {
    const COMMANDS: usize = 200;
    let scene = Scene::new("cluster-direct");
    let presence = scene.presence();
    let bridges = pair(&scene);
    let mut device = bridges[0].device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");

    let messages = (0..COMMANDS).map(|number| {
        (command("127.0.0.2", &number.to_string()).to_string().into_bytes(), persistent())
    });
    scene.amqp.publish_all(&scene.routes(), "127.0.0.2", messages);

    for number in 0..COMMANDS {
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    assert_eq!(bridges[1].metric("rabbitline_route_passed_on_total"), 0.0);
    let undelivered = scene.undelivered_inbox();
    let several = json!({"addresses": ["127.0.0.2"], "cmd": "ON"}).to_string();
    scene.amqp.publish(&scene.routes(), "127.0.0.2", several.as_bytes(), persistent());
    let letter = undelivered.next();
    assert_eq!(letter.header("x-outcome"), "invalid");
    assert_eq!(letter.key, scene.queue(), "whoever tries it again finds the command queue");
}

#[test]
fn each_of_several_devices_is_found() {
    let scene = Scene::new("cluster-several");
    let presence = scene.presence();
    let bridges = pair(&scene);
    let mut here = bridges[0].device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let mut there = bridges[1].device("127.0.0.3");
    until_online(&presence, "127.0.0.3", "b");
    let undelivered = scene.undelivered_inbox();

    let addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];
    scene.publish(&json!({"addresses": addresses, "cmd": "ON"}));

    assert_eq!((here.line(), there.line()), ("ON\r\n".to_owned(), "ON\r\n".to_owned()));
    let letter = undelivered.next();
    assert_eq!(
        (&*letter.header("x-outcome"), &*letter.header("x-address")),
        ("offline", "127.0.0.4")
    );
    assert_eq!(outcomes(&bridges, "written"), 2.0);
}

#[test]
fn a_binding_that_no_bridge_stands_behind_is_no_circle() {
    let scene = Scene::new("cluster-stale");
    let bridges = [setup(&scene, "a").start()];
    let undelivered = scene.undelivered_inbox();
    // As a bug, or somebody's hand, might leave one behind.
    let device = bridges[0].device("127.0.0.9");
    let bound = eventually("it is bound", || bound_to(&scene, "127.0.0.9").ok_or("it is not"));
    drop(device);
    eventually("it is unbound", || bound_to(&scene, "127.0.0.9").map_or(Ok(()), Err));
    scene.amqp.bind_exchange(&scene.routes(), &bound, "127.0.0.9");

    scene.publish(&command("127.0.0.9", "ON"));
    assert_eq!(undelivered.next().header("x-outcome"), "offline");

    // And of a command that has been around.
    let headers = table(&[("x-route-hops", AMQPValue::LongInt(8))]);
    let tired = command("127.0.0.9", "ON").to_string();
    scene.publish_with(tired.as_bytes(), persistent().with_headers(headers));
    let letter = undelivered.next();
    assert_eq!(letter.header("x-outcome"), "offline");
    assert_eq!(bridges[0].metric("rabbitline_route_loops_total"), 1.0);
    bridges[0].until_logged(&["passed on from bridge to bridge too often"]);

    let mut device = bridges[0].device("127.0.0.9");
    scene.publish(&park("127.0.0.9", "NOW"));
    assert_eq!(device.line(), "NOW\r\n");
}

#[test]
fn who_asks_one_bridge_over_http_hears_from_the_bridge_that_has_the_device() {
    let scene = Scene::new("cluster-http");
    let presence = scene.presence();
    let bridges = pair(&scene);
    let mut device = bridges[1].device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "b");

    // The broker serves both bridges in turn.
    for number in 0..4 {
        let body = command("127.0.0.2", &number.to_string()).to_string();
        let json = [("content-type", "application/json")];
        let answer = bridges[0].send("POST", "/commands?wait=30s", &json, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.contains("\"written\""), "{answer:?}");
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    assert_eq!(bridges[1].outcomes("written"), 4.0);
    let steps = bridges.each_ref().map(|bridge| bridge.get("/commands?limit=10").body);
    assert!(steps.iter().any(|steps| steps.contains("\"passed_on\":\"20")), "{steps:?}");
}

#[test]
fn a_bridge_that_loses_its_connections_binds_its_devices_anew() {
    let mut scene = Scene::alone("cluster-lost");
    let presence = scene.presence();
    let mut bridges = pair(&scene);
    let mut devices = ["127.0.0.2", "127.0.0.3"].map(|address| bridges[0].device(address));
    for address in ["127.0.0.2", "127.0.0.3"] {
        until_online(&presence, address, "a");
    }

    scene.broker.ctl(&["close_all_connections", "a test of the operator's hand"]);
    scene.amqp = Amqp::connect(scene.broker.port());
    for bridge in &mut bridges {
        bridge.until_logged(&["retry_in_ms", "routes"]);
        bridge.until_ready();
    }

    for (device, address) in devices.iter_mut().zip(["127.0.0.2", "127.0.0.3"]) {
        let body = command(address, "ON").to_string();
        scene.amqp.publish_until_taken(&scene.routes(), address, body.as_bytes());
        assert_eq!(device.line(), "ON\r\n");
    }
    assert_eq!(outcomes(&bridges, "offline"), 0.0);
}

#[test]
fn bindings_outlast_a_connection_but_for_those_of_devices_that_left_meanwhile() {
    let mut scene = Scene::alone("cluster-kept");
    let presence = scene.presence();
    let bridge = setup(&scene, "a").start();
    let mut stays = bridge.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let leaves = bridge.device("127.0.0.3");
    until_online(&presence, "127.0.0.3", "a");

    bridge.program.signal("STOP");
    scene.broker.ctl(&["close_all_connections", "a test of the operator's hand"]);
    scene.amqp = Amqp::connect(scene.broker.port());
    drop(leaves);
    let body = command("127.0.0.2", "MEANWHILE").to_string();
    scene.amqp.publish_until_taken(&scene.routes(), "127.0.0.2", body.as_bytes());
    bridge.program.signal("CONT");

    assert_eq!(stays.line(), "MEANWHILE\r\n");
    eventually("only the device that stays is bound", || {
        let bound = scene.broker.ctl(&["list_bindings", "source_name", "routing_key", "-q"]);
        let from = format!("{}\t", scene.routes());
        let keys: Vec<_> = bound.lines().filter_map(|line| line.strip_prefix(&from)).collect();
        if keys == ["127.0.0.2"] { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    scene.publish(&command("127.0.0.2", "AFTER"));
    assert_eq!(stays.line(), "AFTER\r\n");
}

#[test]
fn a_second_bridge_of_the_same_name_says_so_and_takes_its_turn() {
    let scene = Scene::new("cluster-twin");
    let presence = scene.presence();
    let first = setup(&scene, "a").start();
    let second = setup(&scene, "a").launch();

    second.until_logged(&["another bridge has the same name"]);
    assert!(second.until_not_ready().contains("other bridges"));
    let mut device = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    scene.amqp.publish_until_taken(
        &scene.routes(),
        "127.0.0.2",
        command("127.0.0.2", "ON").to_string().as_bytes(),
    );
    assert_eq!(device.line(), "ON\r\n");

    assert_eq!(first.terminate().code, Some(0));
    let mut second = second;
    second.until_ready();
    let mut device = second.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "TOO"));
    assert_eq!(device.line(), "TOO\r\n");
}

#[test]
fn many_devices_that_connect_at_once_are_all_bound() {
    const DEVICES: usize = 2_000;
    let scene = Scene::new("cluster-storm");
    let bridges = pair(&scene);

    let fleet = Fleet::start(DEVICES, bridges[0].device_port);

    bridges[0].until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    for device in 0..DEVICES {
        let (device, routes) = (address(device), scene.routes());
        let body = command(&device, "ON").to_string();
        scene.amqp.publish_until_taken(&routes, &device, body.as_bytes());
    }
    eventually("each has its command", || fleet.has(DEVICES));
    bridges[0].until_metric("rabbitline_route_pending", |pending| pending == 0.0);
    assert_eq!(outcomes(&bridges, "written"), DEVICES as f64);
}
