//! Device connections: many at once, two from one address, some that break, some that do not read.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{
    Device, Fleet, STALL_LINE_MAX, Scene, address, command, eventually, goes_on_where_it_moved,
    persistent, reply_to, stall, stalling_line, stalling_number,
};

#[test]
fn a_thousand_devices_connect_at_once_and_each_is_registered() {
    const DEVICES: usize = 1_000;
    let scene = Scene::new("thousand");
    let presence = scene.presence();
    let bridge = scene.setup().start();

    let fleet = Fleet::start(DEVICES, bridge.device_port);

    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    assert_eq!(bridge.devices("?limit=1")["total"], DEVICES);
    let online: BTreeSet<String> = presence
        .take(DEVICES)
        .iter()
        .map(|event| {
            assert_eq!(event.json()["online"], true);
            event.json()["address"].as_str().expect("an address").to_owned()
        })
        .collect();
    assert_eq!(online, (0..DEVICES).map(address).collect());
    assert_eq!(fleet.connections(), DEVICES, "none was turned away and none came twice");
    assert_eq!(bridge.metric("rabbitline_connections_total"), DEVICES as f64);
}

#[test]
fn a_newer_connection_from_the_same_address_takes_the_place_of_the_older() {
    let scene = Scene::new("twin");
    let presence = scene.presence();
    let bridge = scene.setup().start();
    let mut old = bridge.device("127.0.0.2");
    let mut new = bridge.device("127.0.0.2");

    assert_eq!(old.until_closed(), Vec::<Vec<u8>>::new(), "the bridge closes the older one");
    scene.publish(&command("127.0.0.2", "FOR THE NEWER"));
    assert_eq!(new.line(), "FOR THE NEWER\r\n");

    let events: Vec<_> = presence.take(3).iter().map(|event| event.json()).collect();
    let states: Vec<_> = events.iter().map(|event| (&event["online"], &event["reason"])).collect();
    let (connected, replaced) = (json!("connected"), json!("replaced"));
    assert_eq!(
        states,
        [(&json!(true), &connected), (&json!(false), &replaced), (&json!(true), &connected)]
    );
    let epochs: Vec<u64> =
        events.iter().map(|event| event["epoch"].as_u64().expect("an epoch")).collect();
    assert_eq!(epochs[0], epochs[1], "the older one goes offline");
    assert!(epochs[2] > epochs[1], "{epochs:?}");
    assert_eq!(events[2]["peer"], new.local().to_string());
    assert_eq!(bridge.metric("rabbitline_devices_connected"), 1.0);
    assert_eq!(bridge.metric("rabbitline_connections_ended_total{reason=\"replaced\"}"), 1.0);
}

#[test]
fn a_newer_connection_inherits_the_commands_that_waited_for_the_older() {
    let scene = Scene::new("inherit");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "10m");
    let bridge = setup.set("MQ_PREFETCH", "4").start();
    let undelivered = scene.undelivered_inbox();
    let mut old = bridge.narrow_device("127.0.0.2");
    let published = stall(&scene, &bridge, "127.0.0.2", 5);

    let mut new = bridge.device("127.0.0.2");

    goes_on_where_it_moved(&mut old, &mut new, published);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.outcomes("offline"), 0.0);
    let uncertain = bridge.outcomes("uncertain");
    assert!(uncertain <= 1.0, "only the one that was partly written: {uncertain}");
    assert_eq!(bridge.outcomes("written") + uncertain, published as f64);
    for letter in undelivered.take(uncertain as usize) {
        assert_eq!(letter.header("x-outcome"), "uncertain");
    }
}

#[test]
fn a_command_whose_line_was_cut_off_by_the_end_of_the_link_is_uncertain() {
    let scene = Scene::new("mid-line");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "10m");
    let bridge = setup.start();
    let undelivered = scene.undelivered_inbox();
    let presence = scene.presence();
    let device = bridge.narrow_device("127.0.0.2");
    assert_eq!(presence.next().json()["online"], true);
    let published = stall(&scene, &bridge, "127.0.0.2", 1);
    let receipts = scene.receipts();
    let behind = command("127.0.0.2", "BEHIND IT").to_string();
    scene.publish_with(behind.as_bytes(), reply_to(&receipts));
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 2.0);

    device.reset();

    let cut = undelivered.next();
    assert_eq!(cut.header("x-outcome"), "uncertain");
    assert!(!cut.header("x-reason").is_empty());
    assert_eq!(cut.json()["cmd"], stalling_line(published - 1));
    let rest = undelivered.next();
    assert_eq!(
        (rest.header("x-outcome"), &rest.json()["cmd"]),
        ("offline".into(), &json!("BEHIND IT"))
    );
    assert_eq!(receipts.next().json()["outcome"], "offline");
    let event = presence.next().json();
    assert_eq!((&event["online"], &event["reason"]), (&json!(false), &json!("reset")));
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.outcomes("uncertain"), 1.0);
}

#[test]
fn a_device_that_does_not_read_holds_up_no_other_at_prefetch_1() {
    let scene = Scene::new("slow-beside-fast");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "10m");
    let bridge = setup.start();
    let mut slow = bridge.narrow_device("127.0.0.2");
    let mut fast = [bridge.device("127.0.0.3"), bridge.device("127.0.0.4")];
    let stalled = stall(&scene, &bridge, "127.0.0.2", 3);

    for number in 0..60 {
        let for_slow = number % 10 == 0;
        let address =
            if for_slow { "127.0.0.2".to_owned() } else { format!("127.0.0.{}", 3 + number % 2) };
        scene.publish(&command(&address, &format!("NUMBER {number}")));
    }
    for number in (0..60).filter(|number| number % 10 != 0) {
        assert_eq!(fast[number % 2].line(), format!("NUMBER {number}\r\n"));
    }
    let waiting = bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled >= 9.0);
    assert_eq!(waiting, 9.0, "the slow one's commands wait meanwhile");

    for number in 0..stalled {
        assert_eq!(stalling_number(slow.line().as_bytes()), number);
    }
    for number in [0, 10, 20, 30, 40, 50] {
        assert_eq!(
            slow.line(),
            format!("NUMBER {number}\r\n"),
            "it gets them all when it reads again"
        );
    }
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.outcomes("written"), (stalled + 60) as f64);
}

#[test]
fn a_device_that_does_not_read_for_too_long_is_closed_and_its_commands_get_their_outcome() {
    let scene = Scene::new("write-timeout");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "2s");
    // Some lines fit into the socket.
    let bridge = setup.set("DEVICE_SEND_BUFFER", (4 * 1024 * 1024).to_string()).start();
    let undelivered = scene.undelivered_inbox();
    let presence = scene.presence();
    let device = bridge.narrow_device("127.0.0.2");
    assert_eq!(presence.next().json()["online"], true);

    const PUBLISHED: usize = 60;
    for number in 0..PUBLISHED {
        scene.publish(&command("127.0.0.2", &stalling_line(number)));
    }

    let event = presence.next().json();
    assert_eq!((&event["online"], &event["reason"]), (&json!(false), &json!("write_timeout")));
    assert_eq!(bridge.metric("rabbitline_connections_ended_total{reason=\"write_timeout\"}"), 1.0);
    scene.until_drained(&bridge);
    let all_settled = || {
        let of = |outcome| bridge.outcomes(outcome);
        (of("written"), of("uncertain"), of("offline"), bridge.metric("rabbitline_unsettled"))
    };
    let (written, uncertain, offline, _) = eventually("each command has its outcome", || {
        let counts = all_settled();
        let (written, uncertain, offline, unsettled) = counts;
        // What was written and had not arrived when the connection was closed is counted twice.
        let undelivered = bridge.metric("rabbitline_undelivered_total");
        let done = unsettled == 0.0
            && written + uncertain + offline >= PUBLISHED as f64
            && undelivered == uncertain + offline;
        if done { Ok(counts) } else { Err(format!("{counts:?}")) }
    });
    assert!(
        written >= 1.0 && uncertain >= 1.0 && offline >= 1.0,
        "{written} {uncertain} {offline}"
    );
    let mut lost = Vec::new();
    for letter in undelivered.take((uncertain + offline) as usize) {
        assert!(["uncertain", "offline"].contains(&&*letter.header("x-outcome")), "{letter:?}");
        let cmd = format!("{}\r\n", letter.json()["cmd"].as_str().expect("a text"));
        lost.push(stalling_number(cmd.as_bytes()));
    }
    let last = PUBLISHED - lost.len()..PUBLISHED;
    assert_eq!(lost, last.collect::<Vec<_>>(), "in their order, each once, up to the last");
    drop(device);
    let mut again = bridge.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "WELCOME BACK"));
    assert_eq!(again.line(), "WELCOME BACK\r\n");
}

#[test]
fn a_device_that_leaves_is_offline_and_can_come_back() {
    let scene = Scene::new("leaves");
    let presence = scene.presence();
    let bridge = scene.setup().start();
    for (leave, reason) in [(drop as fn(Device), "closed"), (Device::reset, "reset")] {
        let device = bridge.device("127.0.0.2");
        assert_eq!(presence.next().json()["online"], true);
        leave(device);
        let event = presence.next().json();
        assert_eq!((&event["online"], &event["reason"]), (&json!(false), &json!(reason)));
        assert_eq!(scene.receipt_of(&command("127.0.0.2", "ON"))["outcome"], "offline");
    }
    let mut device = bridge.device("127.0.0.2");
    scene.publish_with(command("127.0.0.2", "ON").to_string().as_bytes(), persistent());
    assert_eq!(device.line(), "ON\r\n");
}

#[test]
fn a_listener_for_both_families_knows_a_device_by_its_ipv4_address() {
    let scene = Scene::new("dual-stack");
    let bridge = scene.setup().set("DEVICE_LISTEN", "[::]:0").start();
    let mut device = Device::connect("127.0.0.2", bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
    assert_eq!(bridge.devices("")["devices"][0]["address"], "127.0.0.2");
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
}

#[test]
fn a_device_that_talks_without_end_holds_up_no_other() {
    let scene = Scene::new("babbling");
    let bridge = scene.setup().start();
    bridge.device("127.0.0.2").talk_without_end();
    let mut quiet = bridge.device("127.0.0.3");
    bridge.until_metric("rabbitline_uplink_lines_total", |count| count >= 1_000.0);
    for number in 0..100 {
        scene.publish(&command("127.0.0.3", &format!("NUMBER {number}")));
        assert_eq!(quiet.line(), format!("NUMBER {number}\r\n"));
    }
    assert_eq!(bridge.metric("rabbitline_devices_connected"), 2.0);
}
