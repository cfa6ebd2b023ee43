//! Devices that are gone without a word: no power, out of radio range, a cable cut somewhere. Nothing arrives that says
//! so, and the bridge must find out by itself, for an idle link and for one with data on its way.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Inbox, Program, Scene, Site, command, eventually, reply_to};

/// The next event must say that `address` is online; its epoch.
#[track_caller]
fn online(presence: &Inbox, address: &str) -> u64 {
    let event = presence.next().json();
    assert_eq!((&event["address"], &event["online"]), (&json!(address), &json!(true)), "{event}");
    event["epoch"].as_u64().expect("an epoch")
}

/// The next event must say that `address` is offline, and be about the connection of this epoch; the reason.
#[track_caller]
fn offline(presence: &Inbox, address: &str, epoch: u64) -> Value {
    let event = presence.next().json();
    assert_eq!((&event["address"], &event["online"]), (&json!(address), &json!(false)), "{event}");
    assert_eq!(event["epoch"], epoch, "{event}");
    event["reason"].clone()
}

#[test]
fn a_device_that_vanishes_while_idle_is_found_by_keepalive() {
    let scene = Scene::new("vanishes-idle");
    let presence = scene.presence();
    let site = Site::new();
    let bridge = scene.setup().vigilant().start();
    let _device = site.device(&bridge, 0);
    let epoch = online(&presence, &site.address(0));

    site.vanish();

    assert_eq!(offline(&presence, &site.address(0), epoch), "timeout");
    bridge.until_metric("rabbitline_connections_ended_total{reason=\"timeout\"}", |n| n == 1.0);
    let receipt = scene.receipt_of(&command(&site.address(0), "ON"));
    assert_eq!(receipt["outcome"], "offline");
}

#[test]
fn a_device_that_vanishes_while_data_is_on_its_way_is_found_by_the_user_timeout() {
    const COMMANDS: usize = 10;
    let scene = Scene::new("vanishes-busy");
    let presence = scene.presence();
    let receipts = scene.receipts();
    let site = Site::new();
    let bridge = scene.setup().vigilant().start();
    let undelivered = scene.undelivered_inbox();
    let _device = site.device(&bridge, 0);
    let epoch = online(&presence, &site.address(0));

    site.vanish();
    for number in 0..COMMANDS {
        let command = command(&site.address(0), &format!("NUMBER {number}"));
        scene.publish_with(command.to_string().as_bytes(), reply_to(&receipts));
    }

    assert_eq!(offline(&presence, &site.address(0), epoch), "timeout");
    bridge.until_metric("rabbitline_connections_ended_total{reason=\"timeout\"}", |n| n == 1.0);
    // The kernel took them, and they went nowhere: both is said.
    for outcome in ["written", "uncertain"] {
        for receipt in receipts.take(COMMANDS) {
            assert_eq!(receipt.json()["outcome"], outcome);
        }
    }
    for (number, letter) in undelivered.take(COMMANDS).iter().enumerate() {
        assert_eq!(letter.header("x-outcome"), "uncertain");
        assert_eq!(letter.json()["cmd"], format!("NUMBER {number}"));
    }
}

#[test]
fn a_device_that_is_unreachable_while_data_is_on_its_way_has_timed_out_too() {
    let scene = Scene::new("unreachable-busy");
    let presence = scene.presence();
    let site = Site::new();
    // Long enough for the kernel to ask three times in vain who has the address: it then has an error of its own to tell.
    let bridge = scene.setup().vigilant().set("DEVICE_USER_TIMEOUT", "8s").start();
    let _device = site.device(&bridge, 0);
    let epoch = online(&presence, &site.address(0));

    site.unplug();
    scene.publish(&command(&site.address(0), "ON"));

    assert_eq!(offline(&presence, &site.address(0), epoch), "timeout");
}

#[test]
fn all_devices_of_a_site_that_vanishes_are_found_and_the_others_stay() {
    let scene = Scene::new("vanishes-site");
    let presence = scene.presence();
    let site = Site::new();
    let bridge = scene.setup().vigilant().start();
    let mut stays = bridge.device("127.0.0.2");
    online(&presence, "127.0.0.2");
    let _devices = [0, 1, 2, 3].map(|device| site.device(&bridge, device));
    let mut epochs: Vec<(String, u64)> = [0, 1, 2, 3]
        .map(|device| (site.address(device), online(&presence, &site.address(device))))
        .to_vec();

    site.vanish();

    for event in presence.take(4) {
        let event = event.json();
        assert_eq!((&event["online"], &event["reason"]), (&json!(false), &json!("timeout")));
        epochs.retain(|(address, epoch)| event["address"] != **address || event["epoch"] != *epoch);
    }
    assert_eq!(epochs, [], "each is reported once");
    scene.publish(&command("127.0.0.2", "STILL THERE"));
    assert_eq!(stays.line(), "STILL THERE\r\n");
    assert_eq!(bridge.metric("rabbitline_devices_connected"), 1.0);
}

#[test]
fn every_connection_has_the_options_that_find_dead_links_by_default_20s_5s_3_and_35s() {
    let scene = Scene::new("options");
    let bridge = scene.setup().start();
    let device = bridge.device("127.0.0.2");

    let socket = bridge.end_of(&device);

    assert!(socket.keepalive().expect("SO_KEEPALIVE"));
    assert_eq!(socket.tcp_keepalive_time().expect("TCP_KEEPIDLE"), Duration::from_secs(20));
    // Devices that come together are not probed together.
    let next = bridge.end_of(&bridge.device("127.0.0.3"));
    assert_eq!(next.tcp_keepalive_time().expect("TCP_KEEPIDLE"), Duration::from_secs(19));
    assert_eq!(socket.tcp_keepalive_interval().expect("TCP_KEEPINTVL"), Duration::from_secs(5));
    assert_eq!(socket.tcp_keepalive_retries().expect("TCP_KEEPCNT"), 3);
    let user_timeout = socket.tcp_user_timeout().expect("TCP_USER_TIMEOUT");
    assert_eq!(user_timeout, Some(Duration::from_secs(35)));
}

#[test]
fn an_outage_shorter_than_the_timeout_costs_nothing() {
    let scene = Scene::new("short-outage");
    let presence = scene.presence();
    let site = Site::new();
    let bridge = scene.setup().reachable().start();
    let mut device = site.device(&bridge, 0);
    let epoch = online(&presence, &site.address(0));

    site.vanish();
    for number in 0..10 {
        scene.publish(&command(&site.address(0), &format!("NUMBER {number}")));
    }
    scene.until_drained(&bridge);
    site.reappear();

    for number in 0..10 {
        assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
    }
    assert_eq!(bridge.devices("")["devices"][0]["epoch"], epoch, "on the same connection");
    assert_eq!(presence.so_far().len(), 0, "and nobody was told anything else");
}

#[test]
fn a_device_that_is_stopped_but_whose_kernel_answers_stays_online() {
    let scene = Scene::new("stopped");
    let presence = scene.presence();
    let site = Site::new();
    let bridge = scene.setup().vigilant().start();
    let connect = format!("127.0.0.1:{}", bridge.device_port);
    let stopped =
        Program::rabbitline(&["device", "--connect", &connect, "--bind", "127.0.0.2"], &[]);
    let epoch = online(&presence, "127.0.0.2");

    stopped.signal("STOP");
    // When others that vanished were found twice over, it has been silent for long enough to be found too.
    for _ in 0..2 {
        let _device = site.device(&bridge, 0);
        let epoch = online(&presence, &site.address(0));
        site.vanish();
        assert_eq!(offline(&presence, &site.address(0), epoch), "timeout");
        site.reappear();
    }
    let receipt = scene.receipt_of(&command("127.0.0.2", "WHILE IT IS STOPPED"));

    assert_eq!(receipt["outcome"], "written");
    assert_eq!(bridge.devices("")["devices"][0]["epoch"], epoch, "on the same connection");
    stopped.signal("CONT");
    eventually("the device has the line", || {
        let text = stopped.stdout.text();
        if text.contains("WHILE IT IS STOPPED") { Ok(()) } else { Err(text) }
    });
    assert_eq!(presence.so_far().len(), 0, "nothing else was told meanwhile");
}

#[test]
fn a_device_that_comes_back_after_it_was_found_gone_is_served_on_its_new_connection() {
    let scene = Scene::new("comes-back-late");
    let presence = scene.presence();
    let site = Site::new();
    let bridge = scene.setup().vigilant().start();
    let before = site.device(&bridge, 0);
    let old = online(&presence, &site.address(0));

    site.vanish();
    // What the device says when it loses its power is lost like everything else.
    before.reset();
    assert_eq!(offline(&presence, &site.address(0), old), "timeout");
    site.reappear();
    let mut after = site.device(&bridge, 0);

    let new = online(&presence, &site.address(0));
    assert!(new > old, "{old} then {new}");
    scene.publish(&command(&site.address(0), "WELCOME BACK"));
    assert_eq!(after.line(), "WELCOME BACK\r\n");
    assert_eq!(bridge.devices("")["devices"][0]["epoch"], new);
    assert_eq!(presence.so_far().len(), 0);
}

#[test]
fn a_device_that_comes_back_before_it_was_found_gone_is_served_on_its_new_connection() {
    let scene = Scene::new("comes-back-early");
    let presence = scene.presence();
    let site = Site::new();
    // Nothing finds the old connection but the new one.
    let setup = scene.setup().reachable().set("DEVICE_KEEPALIVE_IDLE", "1h");
    let bridge = setup.set("DEVICE_USER_TIMEOUT", "2h").start();
    let before = site.device(&bridge, 0);
    let old = online(&presence, &site.address(0));

    site.vanish();
    before.reset();
    site.reappear();
    let mut after = site.device(&bridge, 0);

    assert_eq!(offline(&presence, &site.address(0), old), "replaced");
    let new = online(&presence, &site.address(0));
    assert!(new > old, "{old} then {new}");
    scene.publish(&command(&site.address(0), "WELCOME BACK"));
    assert_eq!(after.line(), "WELCOME BACK\r\n");
    assert_eq!(bridge.devices("")["devices"][0]["epoch"], new);
    assert_eq!(presence.so_far().len(), 0);
}
