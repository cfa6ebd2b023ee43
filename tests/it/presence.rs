//! What readers of presence are told: each connection's beginning and end, in order, and in the end the truth.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use crate::harness::{Device, Dice, Letter, Scene, eventually, persistent};

#[test]
fn an_event_says_who_where_when_and_why() {
    let scene = Scene::new("presence-fields");
    let presence = scene.presence();
    let bridge = scene.setup().start();
    let device = bridge.device("127.0.0.2");
    let peer = device.local().to_string();
    drop(device);

    let (online, offline) = (presence.next(), presence.next());

    assert_eq!((&*online.key, &*offline.key), ("presence.127.0.0.2", "presence.127.0.0.2"));
    let (online, offline) = (online.json(), offline.json());
    let expected = |event: &Value, is_online: bool, reason: &str| {
        json!({
            "address": "127.0.0.2", "online": is_online, "reason": reason, "peer": peer,
            "bridge": "bridge-under-test", "epoch": event["epoch"], "run": event["run"], "seq": event["seq"], "at": event["at"],
        })
    };
    assert_eq!(online, expected(&online, true, "connected"));
    assert_eq!(offline, expected(&offline, false, "closed"));
    assert_eq!(online["epoch"], offline["epoch"]);
    assert!(
        online["epoch"].as_u64().expect("an epoch") > 1_000_000_000_000_000,
        "microseconds since 1970: {online}"
    );
    assert_eq!(offline["seq"].as_u64(), online["seq"].as_u64().map(|seq| seq + 1));
    assert!(offline["at"].as_str() >= online["at"].as_str(), "{online} {offline}");
}

#[test]
fn a_reader_can_follow_a_subnet() {
    let scene = Scene::new("presence-subnet");
    let bridge = scene.setup().start();
    let subnet = scene.amqp.subscribe(&scene.events(), "presence.127.5.#");
    let _devices =
        ["127.4.0.1", "127.5.0.1", "127.50.0.1", "127.5.1.2"].map(|from| bridge.device(from));
    assert_eq!(subnet.next().json()["address"], "127.5.0.1");
    assert_eq!(subnet.next().json()["address"], "127.5.1.2");
}

#[test]
fn each_device_alternates_between_online_and_offline_and_ends_in_the_truth() {
    const ROUNDS: usize = 300;
    let mut dice = Dice::new();
    let scene = Scene::new("alternation");
    let presence = scene.presence();
    let bridge = scene.setup().start();
    let addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"];
    // Devices come, leave in either way, and are replaced while they are there.
    let mut devices: HashMap<&str, Device> = HashMap::new();
    for _ in 0..ROUNDS {
        let address = addresses[dice.below(addresses.len())];
        match (devices.remove(address), dice.below(3)) {
            (Some(device), 0) => device.reset(),
            (Some(device), 1) => drop(device),
            (replaced, _) => {
                devices.insert(address, bridge.device(address));
                drop(replaced);
            }
        }
    }

    let mut state: BTreeMap<String, (u64, bool)> = BTreeMap::new();
    let mut last_seq = None;
    eventually("presence tells the truth", || {
        for event in presence.so_far() {
            let event = event.json();
            alternates(&mut state, &event);
            let seq = event["seq"].as_u64().expect("a seq");
            assert!(
                last_seq.is_none_or(|last| seq == last + 1),
                "seq grows by one: {last_seq:?} then {event}"
            );
            last_seq = Some(seq);
        }
        let truth: Vec<bool> =
            addresses.iter().map(|address| devices.contains_key(address)).collect();
        let told: Vec<bool> = addresses
            .iter()
            .map(|address| state.get(*address).is_some_and(|state| state.1))
            .collect();
        if told == truth { Ok(()) } else { Err(format!("told {told:?}, truth {truth:?}")) }
    });
}

#[test]
fn after_an_outage_of_the_broker_the_truth_is_published() {
    let mut scene = Scene::alone("presence-outage");
    let bridge = scene.setup().start();
    scene.amqp.declare_queue("kept events", &[]);
    scene.amqp.bind("kept events", &scene.events(), "presence.#");
    scene.broker.sync();
    let (stays, leaves, returns) =
        (bridge.device("127.0.0.2"), bridge.device("127.0.0.3"), bridge.device("127.0.0.4"));
    let before = scene.amqp.consume("kept events");
    let mut state = BTreeMap::new();
    for event in before.take(3) {
        alternates(&mut state, &event.json());
    }

    scene.broker.kill();
    bridge.until_metric("rabbitline_broker_up{connection=\"publisher\"}", |up| up == 0.0);
    drop(leaves);
    drop(returns);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
    let returned = bridge.device("127.0.0.4");
    let _comes = bridge.device("127.0.0.5");
    drop(bridge.device("127.0.0.6"));
    bridge.until_metric("rabbitline_devices_connected", |count| count == 3.0);
    scene.restart_broker();

    // What the broker routes now comes to the reader, whoever publishes it.
    let after = scene.amqp.consume("kept events");
    scene.amqp.publish(&scene.events(), "presence.probe", b"", persistent());
    loop {
        let event = after.next();
        if event.key == "presence.probe" {
            break;
        }
        follows(&mut state, &event.json());
    }
    bridge.until_metric("rabbitline_broker_up{connection=\"publisher\"}", |up| up == 1.0);
    let expected =
        [("127.0.0.2", true), ("127.0.0.3", false), ("127.0.0.4", true), ("127.0.0.5", true)];
    eventually("presence tells the truth", || {
        for event in after.so_far() {
            follows(&mut state, &event.json());
        }
        let told: Vec<(&str, bool)> =
            expected.iter().map(|(address, _)| (*address, is_online(&state, address))).collect();
        let never_seen = is_online(&state, "127.0.0.6");
        if told == expected && !never_seen { Ok(()) } else { Err(format!("{state:?}")) }
    });
    let epoch = |address: &str| state[address].0;
    let page = bridge.devices("");
    for device in page["devices"].as_array().expect("an array") {
        let address = device["address"].as_str().expect("an address");
        assert_eq!(
            device["epoch"].as_u64(),
            Some(epoch(address)),
            "the epoch told is that of the connection"
        );
    }
    drop((stays, returned));
}

#[test]
fn a_bridge_that_shuts_down_reports_every_device_offline_first() {
    let scene = Scene::new("presence-shutdown");
    let presence = scene.presence();
    let bridge = scene.setup().start();
    let mut devices = ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(|from| bridge.device(from));
    let online = presence.take(3);

    assert_eq!(bridge.terminate().code, Some(0));

    let who = |event: &Letter| {
        let event = event.json();
        (event["address"].to_string(), event["epoch"].to_string())
    };
    let offline = presence.take(3);
    for event in &offline {
        let event = event.json();
        assert_eq!((&event["online"], &event["reason"]), (&json!(false), &json!("shutdown")));
    }
    assert_eq!(
        offline.iter().map(who).collect::<BTreeSet<_>>(),
        online.iter().map(who).collect::<BTreeSet<_>>()
    );
    for device in &mut devices {
        assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
    }
}

/// Takes an event of a bridge whose broker was there all the time: each address goes online with a new, higher epoch
/// and offline with the same.
#[track_caller]
fn alternates(state: &mut BTreeMap<String, (u64, bool)>, event: &Value) {
    let (address, epoch, online) = fields(event);
    let before = state.insert(address, (epoch, online));
    let fits = match before {
        None => online,
        Some((before, false)) => online && epoch > before,
        Some((before, true)) => !online && epoch == before,
    };
    assert!(fits, "{before:?} and then {event}");
}

/// Takes an event of a bridge that lost its broker: what was over before it returned may be left out, what is told
/// never goes back.
#[track_caller]
fn follows(state: &mut BTreeMap<String, (u64, bool)>, event: &Value) {
    let (address, epoch, online) = fields(event);
    let before = state.insert(address, (epoch, online));
    let fits = match before {
        None => true,
        Some((before, false)) => epoch > before || (epoch == before && !online),
        Some((before, true)) => epoch >= before,
    };
    assert!(fits, "{before:?} and then {event}");
}

fn is_online(state: &BTreeMap<String, (u64, bool)>, address: &str) -> bool {
    state.get(address).is_some_and(|(_, online)| *online)
}

fn fields(event: &Value) -> (String, u64, bool) {
    let address = event["address"].as_str().expect("an address").to_owned();
    (
        address,
        event["epoch"].as_u64().expect("an epoch"),
        event["online"].as_bool().expect("a bool"),
    )
}
