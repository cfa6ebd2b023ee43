//! What readers begin with: all devices of one moment, and which events are behind it; and that the bridge is there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Bridge, Device, Dice, Inbox, Scene, eventually};

/// Devices by their address, as a snapshot shows them or as a copy has them.
type Devices = BTreeMap<String, u64>;

#[track_caller]
fn snapshot(bridge: &Bridge) -> Value {
    bridge.devices("?snapshot")
}

#[track_caller]
fn devices(snapshot: &Value) -> Devices {
    let listed = snapshot["devices"].as_array().expect("an array of devices");
    let online = listed.iter().filter(|device| device["online"] == true);
    online
        .map(|device| {
            let address = device["address"].as_str().expect("an address");
            (address.to_owned(), device["epoch"].as_u64().expect("an epoch"))
        })
        .collect()
}

/// A reader that took a snapshot and follows events.
struct Copy {
    run: Value,
    seq: u64,
    devices: Devices,
}

impl Copy {
    #[track_caller]
    fn begin(bridge: &Bridge) -> Self {
        let snapshot = snapshot(bridge);
        let seq = snapshot["seq"].as_u64().expect("a seq");
        Self { run: snapshot["run"].clone(), seq, devices: devices(&snapshot) }
    }

    fn hear(&mut self, event: &Value) {
        let (address, epoch) =
            (event["address"].as_str().expect("text"), event["epoch"].as_u64().expect("a number"));
        let known = self.devices.get(address).copied().unwrap_or(0);
        if event["run"] != self.run || event["seq"].as_u64() <= Some(self.seq) || epoch < known {
            return;
        }
        if event["online"] == true {
            self.devices.insert(address.to_owned(), epoch);
        } else {
            self.devices.remove(address);
        }
    }
}

#[test]
fn a_snapshot_has_all_devices_and_says_which_events_are_behind_it() {
    let scene = Scene::new("snapshot");
    let (presence, uplink) = (scene.presence(), scene.uplink());
    let bridge = scene.setup().start();
    let mut connected = ["127.5.0.2", "127.5.1.3", "127.50.0.4"].map(|from| bridge.device(from));
    let last = presence.take(3).pop().expect("three").json();
    connected[0].send(b"HELLO\n");

    let all = snapshot(&bridge);

    assert_eq!((&all["bridge"], &all["run"]), (&json!("bridge-under-test"), &last["run"]));
    assert_eq!((&all["seq"], &all["expires_ms"]), (&json!(3), &json!(10_000)));
    assert_eq!(uplink.next().json()["run"], last["run"], "one run, one name");
    let listed = all["devices"].as_array().expect("an array");
    assert_eq!(listed.len(), 3);
    let first = listed.iter().find(|device| device["address"] == "127.5.0.2").expect("listed");
    assert_eq!(first["peer"], connected[0].local().to_string());
    assert_eq!((&first["online"], &first["silent"]), (&json!(true), &json!(false)));
    for field in ["epoch", "since", "last_seen"] {
        assert!(!first[field].is_null(), "{field} in {first}");
    }
    let some = bridge.devices("?snapshot&prefix=127.5.");
    assert_eq!(devices(&some).into_keys().collect::<Vec<_>>(), ["127.5.0.2", "127.5.1.3"]);
    assert_eq!(bridge.devices("?snapshot&prefix=128.")["devices"], json!([]));
}

#[test]
fn a_silent_device_is_shown_as_silent_until_it_is_heard() {
    let scene = Scene::new("snapshot-silent");
    let presence = scene.presence();
    let bridge = scene.setup().set("DEVICE_SILENCE_LIMIT", "300ms").start();
    let mut device = bridge.device("127.0.0.2");
    assert_eq!(presence.take(2)[1].json()["silent"], true);
    assert_eq!(snapshot(&bridge)["devices"][0]["silent"], true);
    device.send(b"HERE\n");
    assert_eq!(presence.next().json()["reason"], "heard");
    // It may have fallen silent again.
    eventually("the device was heard", || {
        device.send(b"HERE\n");
        let shown = snapshot(&bridge);
        if shown["devices"][0]["silent"] == false { Ok(()) } else { Err(shown.to_string()) }
    });
}

#[test]
fn a_snapshot_of_hundreds_of_devices_comes_whole() {
    let scene = Scene::new("snapshot-many");
    let bridge = scene.setup().start();
    let fleet: Vec<Device> = (0..600u16)
        .map(|n| Device::connect(&format!("127.9.{}.{}", n / 250, n % 250 + 1), bridge.device_port))
        .collect();
    bridge.until_metric("rabbitline_devices_connected", |count| count == 600.0);
    assert_eq!(devices(&snapshot(&bridge)).len(), fleet.len());
}

#[test]
fn whoever_begins_with_a_snapshot_and_follows_events_ends_in_the_truth() {
    const ROUNDS: usize = 200;
    let mut dice = Dice::new();
    let scene = Scene::new("snapshot-copies");
    let presence = scene.presence();
    let bridge = scene.setup().start();
    let mut connected: BTreeMap<usize, Device> = BTreeMap::new();
    let mut copies = Vec::new();
    for _ in 0..ROUNDS {
        let n = dice.below(6);
        match (connected.remove(&n), dice.below(4)) {
            (Some(device), 0) => device.reset(),
            (Some(device), 1) => drop(device),
            (replaced, _) => {
                // Nobody waits until the bridge knows it.
                let from = format!("127.0.0.{}", n + 2);
                connected.insert(n, Device::connect(&from, bridge.device_port));
                drop(replaced);
            }
        }
        if dice.once_in(5) {
            copies.push(Copy::begin(&bridge));
        }
    }
    until_true(&bridge, &presence, &mut copies, connected.len());
}

/// Waits until each copy has heard what makes it equal to what the bridge itself shows.
#[track_caller]
fn until_true(bridge: &Bridge, presence: &Inbox, copies: &mut [Copy], count: usize) {
    eventually("each copy is the truth", || {
        for event in presence.so_far() {
            copies.iter_mut().for_each(|copy| copy.hear(&event.json()));
        }
        let truth = devices(&snapshot(bridge));
        let wrong = copies.iter().position(|copy| copy.devices != truth);
        match wrong {
            None if truth.len() == count => Ok(()),
            wrong => Err(format!(
                "{count} expected, truth {truth:?}, copy {:?}",
                wrong.map(|at| (&copies[at].devices, copies[at].seq))
            )),
        }
    });
}

#[test]
fn a_bridge_says_that_it_is_there_and_at_its_end_that_it_is_not() {
    let scene = Scene::new("heartbeat");
    let events = scene.presence();
    let beats = scene.amqp.subscribe(&scene.events(), "bridge.bridge-under-test");
    let all = scene.amqp.subscribe(&scene.events(), "#");
    let bridge = scene.setup().set("BRIDGE_HEARTBEAT", "200ms").start();
    let first = beats.next().json();
    let expected = json!({
        "bridge": "bridge-under-test", "run": first["run"], "seq": 0, "online": true, "devices": 0,
        "at": first["at"], "expires_ms": 10_000,
    });
    assert_eq!(first, expected);
    let _devices = ["127.0.0.2", "127.0.0.3"].map(|from| bridge.device(from));
    let run = events.take(2)[1].json()["run"].clone();
    assert_eq!(first["run"], run);
    eventually("it counts the devices and the events", || {
        let beat = beats.next().json();
        let seen = (beat["devices"] == 2, beat["seq"] == 2);
        if seen == (true, true) { Ok(()) } else { Err(beat.to_string()) }
    });

    assert_eq!(bridge.terminate().code, Some(0));

    let mut before = Vec::new();
    let last = loop {
        let event = all.next();
        let body = event.json();
        if event.key.starts_with("bridge.") && body["online"] == false {
            break body;
        }
        before.push(event.key);
    };
    assert_eq!((&last["seq"], &last["devices"], &last["run"]), (&json!(4), &json!(0), &run));
    let offline = before.iter().filter(|key| key.starts_with("presence.")).count();
    assert_eq!(offline, 4, "each device came and went before: {before:?}");
    assert!(all.so_far().is_empty(), "nothing behind it");
}

#[test]
fn another_run_has_another_name_and_a_slow_heartbeat_counts_longer() {
    let scene = Scene::new("heartbeat-run");
    scene.presence();
    let beats = scene.amqp.subscribe(&scene.events(), "bridge.#");
    let setup = scene.setup().set("BRIDGE_HEARTBEAT", "7s");
    let mut bridge = setup.start();
    let first = beats.next().json();
    bridge.program.kill();
    let bridge = setup.start();
    let second = beats.next().json();
    assert_ne!(first["run"], second["run"]);
    assert_eq!((&second["run"], &second["seq"]), (&snapshot(&bridge)["run"], &json!(0)));
    assert_eq!(second["expires_ms"], 22_000);
}
