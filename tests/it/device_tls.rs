//! Devices that speak TLS: everything that is promised of a plain connection, and who may come in by its certificate.

use std::collections::BTreeSet;
use std::io;

use serde_json::{Value, json};

use crate::harness::{
    Authority, Bridge, Certificate, Device, STALL_LINE_MAX, Scene, TlsDevice, TlsFiles, command,
    eventually, stalling_line, stalling_number,
};

const DEVICE: &str = "127.0.0.2";

/// A device at `from`, if the bridge will have it as far as it knows.
fn attempt(
    bridge: &Bridge,
    from: &str,
    authority: &Authority,
    own: Option<&Certificate>,
) -> io::Result<TlsDevice> {
    let stream = Device::connect(from, bridge.device_port).into_stream();
    TlsDevice::over(stream, authority, own)
}

/// A device that is connected, and that the bridge knows to be.
#[track_caller]
fn connect(
    bridge: &Bridge,
    from: &str,
    authority: &Authority,
    own: Option<&Certificate>,
) -> TlsDevice {
    let device = attempt(bridge, from, authority, own).expect("a handshake");
    bridge.until_listed("peer", &device.local().to_string());
    device
}

/// A connection that the bridge refuses, whether that is known at once or when something is read.
#[track_caller]
fn assert_refused(bridge: &Bridge, authority: &Authority, own: Option<&Certificate>) {
    if let Ok(mut device) = attempt(bridge, DEVICE, authority, own) {
        assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn a_device_is_sent_commands_answers_and_speaks_over_tls() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("device-tls");
    let uplink = scene.uplink();
    let bridge = files.serve(scene.setup()).start();
    let mut device = connect(&bridge, DEVICE, &authority, None);

    for number in 0..200 {
        scene.publish(&command(DEVICE, &format!("NUMBER {number}")));
    }
    for number in 0..200 {
        assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
    }
    device.send(b"T=20\r\nALARM 3\r\nHAL");
    device.send(b"F\n");
    for line in ["T=20", "ALARM 3", "HALF"] {
        assert_eq!(uplink.next().json()["line"], line);
    }
    let asked = json!({"address": DEVICE, "cmd": "STATUS", "confirm": "answered"});
    let receipts = scene.receipts();
    scene.publish_with(asked.to_string().as_bytes(), crate::harness::reply_to(&receipts));
    assert_eq!(device.line(), "STATUS\r\n");
    device.send(b"FINE\n");
    let receipt = receipts.next().json();
    assert_eq!((&receipt["outcome"], &receipt["answer"]), (&json!("answered"), &json!("FINE")));
    scene.until_drained(&bridge);
    assert_eq!((bridge.outcomes("written"), bridge.outcomes("answered")), (200.0, 1.0));
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
}

#[test]
fn what_the_device_has_acknowledged_is_received_over_tls_too() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("tls-received");
    let bridge = files.serve(scene.setup()).start();
    let mut device = connect(&bridge, DEVICE, &authority, None);
    for number in 0..50 {
        if number % 10 == 5 {
            device.renew_keys();
        }
        let cmd = format!("NUMBER {number}");
        let receipt =
            scene.receipt_of(&json!({"address": DEVICE, "cmd": cmd, "confirm": "received"}));
        assert_eq!(receipt["outcome"], "received", "{receipt}");
        assert_eq!(device.line(), cmd + "\r\n");
    }
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!((bridge.outcomes("received"), bridge.outcomes("written")), (50.0, 0.0));
}

#[test]
fn a_large_command_arrives_whole_over_tls() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("tls-large");
    let uplink = scene.uplink();
    let setup = scene.setup().set("DEVICE_LINE_MAX", "1048576").set("COMMAND_TIMEOUT", "10m");
    let bridge = files.serve(setup).start();
    let mut device = connect(&bridge, DEVICE, &authority, None);
    let receipts = scene.receipts();
    let large = |number: usize| format!("{number} ") + &"0123456789".repeat(30_000);
    for (number, confirm) in ["written", "received", "written", "received"].iter().enumerate() {
        let command = json!({"address": DEVICE, "cmd": large(number), "confirm": confirm});
        let body = command.to_string();
        scene.publish_with(body.as_bytes(), crate::harness::reply_to(&receipts));
        scene.publish(&command_between(number));
    }
    for number in 0..4 {
        assert!(device.line() == large(number) + "\r\n", "{number}: each byte of it");
        assert_eq!(device.line(), format!("BETWEEN {number}\r\n"));
    }
    let mut outcomes: Vec<Value> =
        receipts.take(4).iter().map(|receipt| receipt.json()["outcome"].clone()).collect();
    outcomes.sort_by_key(Value::to_string);
    assert_eq!(outcomes, ["received", "received", "written", "written"]);
    scene.until_drained(&bridge);
    assert_eq!(bridge.outcomes("uncertain"), 0.0);
    device.send(format!("{}\nT=20\n", large(9)).as_bytes());
    assert!(uplink.next().json()["line"] == large(9), "the other way, too");
    assert_eq!(uplink.next().json()["line"], "T=20");
}

fn command_between(number: usize) -> Value {
    command(DEVICE, &format!("BETWEEN {number}"))
}

#[test]
fn a_tls_device_that_does_not_read_is_ended_and_its_commands_are_told() {
    const PUBLISHED: usize = 60;
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("tls-stuck");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "2s");
    let bridge = files.serve(setup).start();
    let undelivered = scene.undelivered_inbox();
    let presence = scene.presence();
    let stream = Device::narrow(DEVICE, bridge.device_port).into_stream();
    let mut device = TlsDevice::over(stream, &authority, None).expect("a handshake");
    assert_eq!(presence.next().json()["online"], true);
    let mut other = connect(&bridge, "127.0.0.3", &authority, None);
    assert_eq!(presence.next().json()["online"], true);

    for number in 0..PUBLISHED {
        scene.publish(&command(DEVICE, &stalling_line(number)));
    }
    scene.publish(&command("127.0.0.3", "BESIDE"));
    assert_eq!(other.line(), "BESIDE\r\n");

    let event = presence.next().json();
    assert_eq!(
        (&event["address"], &event["online"], &event["reason"]),
        (&json!(DEVICE), &json!(false), &json!("write_timeout"))
    );
    assert_eq!(bridge.ended("write_timeout"), 1.0);
    scene.until_drained(&bridge);
    let read: Vec<usize> = device.until_closed().iter().map(|line| stalling_number(line)).collect();
    assert_eq!(read, (0..read.len()).collect::<Vec<_>>(), "whole, in order, none twice");
    // What was settled as written and had not arrived is told as uncertain.
    let mut told = BTreeSet::new();
    while !told.contains(&(PUBLISHED - 1)) {
        let letter = undelivered.next();
        assert!(["uncertain", "offline"].contains(&&*letter.header("x-outcome")), "{letter:?}");
        let cmd = format!("{}\r\n", letter.json()["cmd"].as_str().expect("a text"));
        assert!(told.insert(stalling_number(cmd.as_bytes())), "none is told twice");
    }
    let first = *told.first().expect("some");
    assert_eq!(told.len(), PUBLISHED - first, "all from the first that was not delivered");
    assert!(first <= read.len(), "{first} were delivered and {} were read", read.len());
    assert_eq!(bridge.metric("rabbitline_settlements_forgotten_total"), 0.0);
}

#[test]
fn a_device_that_leaves_has_closed_the_connection_whether_or_not_it_says_goodbye() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("tls-leaves");
    let presence = scene.presence();
    let bridge = files.serve(scene.setup()).start();
    for leave in [drop as fn(TlsDevice), TlsDevice::say_goodbye] {
        let mut device = connect(&bridge, DEVICE, &authority, None);
        assert_eq!(presence.next().json()["online"], true);
        // A socket that is closed while something is unread is reset, and the bridge sends session tickets.
        scene.publish(&command(DEVICE, "ON"));
        assert_eq!(device.line(), "ON\r\n");
        leave(device);
        let event = presence.next().json();
        assert_eq!((&event["online"], &event["reason"]), (&json!(false), &json!("closed")));
    }
}

#[test]
fn who_does_not_agree_on_tls_in_time_is_closed() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("tls-timeout");
    let bridge = files.serve(scene.setup()).set("DEVICE_HELLO_TIMEOUT", "1s").start();
    let mut silent = Device::connect(DEVICE, bridge.device_port);
    let mut slow = Device::connect(DEVICE, bridge.device_port);
    // The beginning of a handshake record.
    slow.send(&[22, 3, 1, 1, 0, 1]);
    assert_eq!((silent.until_closed().len(), slow.until_closed().len()), (0, 0));
    bridge.until_refused("timeout", 2);
    assert_eq!(bridge.metric("rabbitline_connections_total"), 0.0);
}

#[test]
fn plain_text_to_the_tls_port_is_refused_and_harms_nobody() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("tls-plain");
    let presence = scene.presence();
    let bridge = files.serve(scene.setup()).start();
    let mut device = connect(&bridge, DEVICE, &authority, None);
    assert_eq!(presence.next().json()["online"], true);
    for (count, text) in (1..).zip(["T=20\r\n", "GET / HTTP/1.1\r\n\r\n"]) {
        let mut plain = Device::connect(DEVICE, bridge.device_port);
        plain.send(text.as_bytes());
        let alert: Vec<u8> = plain.until_closed().concat();
        assert!(!alert.is_ascii() || alert.is_empty(), "no text comes back: {alert:?}");
        bridge.until_refused("tls", count);
    }
    // One that knows the authority of another bridge, and one that goes away.
    assert!(attempt(&bridge, DEVICE, &Authority::new(), None).is_err());
    bridge.until_refused("tls", 3);
    drop(Device::connect(DEVICE, bridge.device_port));
    bridge.until_refused("left", 1);
    scene.publish(&command(DEVICE, "ON"));
    assert_eq!(device.line(), "ON\r\n", "not even of the device of the same address");
    assert_eq!(bridge.metric("rabbitline_connections_total"), 1.0);
    drop(device);
    assert_eq!(presence.next().json()["online"], false, "nothing was told of the others");
}

#[test]
fn a_device_is_named_by_its_certificate_and_without_a_trusted_one_it_is_nobody() {
    let (authority, vouches, stranger) = (Authority::new(), Authority::new(), Authority::new());
    let files = TlsFiles::new(&authority.server());
    for (name, address) in [("cn", "pump-1"), ("san", "pump-1.example")] {
        let scene = Scene::new("mutual-tls");
        let presence = scene.presence();
        let setup = scene.setup().set("DEVICE_IDENTITY", "certificate");
        let setup = setup.set("DEVICE_CERTIFICATE_NAME", name);
        let bridge = files.serve_those_of(&vouches, setup).start();

        assert_refused(&bridge, &authority, None);
        bridge.until_refused("tls", 1);
        assert_refused(&bridge, &authority, Some(&stranger.vouch("pump-1", "pump-1.example")));
        bridge.until_refused("tls", 2);
        assert_refused(&bridge, &authority, Some(&vouches.vouch("", "")));
        bridge.until_refused("hello", 1);
        assert_eq!(bridge.devices("")["total"], 0);

        let own = vouches.vouch("pump-1", "pump-1.example");
        let mut device = connect(&bridge, DEVICE, &authority, Some(&own));
        let mut other = vouches.vouch("pump-2", "pump-2.example");
        let mut neighbour = connect(&bridge, DEVICE, &authority, Some(&other));
        scene.publish(&command(address, "ON"));
        assert_eq!(device.line(), "ON\r\n");
        let event = presence.next().json();
        assert_eq!((&event["address"], &event["online"]), (&json!(address), &json!(true)));
        other = vouches.vouch("pump-1", "pump-1.example");
        let _again = connect(&bridge, DEVICE, &authority, Some(&other));
        assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new(), "it is the same device");
        scene.publish(&command(&address.replace('1', "2"), "OFF"));
        assert_eq!(neighbour.line(), "OFF\r\n");
    }
}

#[test]
fn a_certificate_that_is_required_need_not_name_the_device() {
    let (authority, vouches) = (Authority::new(), Authority::new());
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("mutual-ip");
    let bridge = files.serve_those_of(&vouches, scene.setup()).start();
    assert_refused(&bridge, &authority, None);
    bridge.until_refused("tls", 1);
    let own = vouches.vouch("pump-1", "pump-1.example");
    let mut device = connect(&bridge, DEVICE, &authority, Some(&own));
    scene.publish(&command(DEVICE, "ON"));
    assert_eq!(device.line(), "ON\r\n");
}

#[test]
fn devices_may_say_hello_over_tls() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("tls-hello");
    let uplink = scene.uplink();
    let bridge = files.serve(scene.setup().set("DEVICE_IDENTITY", "hello")).start();
    let mut device = attempt(&bridge, DEVICE, &authority, None).expect("a handshake");
    // Longer than what is read at a time before a device is known.
    let long = "x".repeat(3_000);
    device.send(format!("HELLO pump-1\r\nT=20\r\n{long}\r\n").as_bytes());
    for line in ["T=20", &*long] {
        let event = uplink.next();
        assert_eq!((&*event.key, &event.json()["line"]), ("uplink.pump-1", &json!(line)));
    }
    scene.publish(&command("pump-1", "ON"));
    assert_eq!(device.line(), "ON\r\n");
}

#[test]
fn a_certificate_replaced_on_disk_is_for_those_who_come_and_nobody_is_disconnected() {
    let authority = Authority::new();
    let (old, new) = (authority.server(), authority.server());
    let files = TlsFiles::new(&old);
    let scene = Scene::new("tls-replaced");
    let bridge = files.serve(scene.setup()).start();
    let mut before = connect(&bridge, DEVICE, &authority, None);
    assert!(old.is_shown_to(&before));

    files.replace(&new);

    let mut after = eventually("the new certificate is shown", || {
        let device = connect(&bridge, "127.0.0.3", &authority, None);
        if new.is_shown_to(&device) { Ok(device) } else { Err("the old one is") }
    });
    for (address, device) in [(DEVICE, &mut before), ("127.0.0.3", &mut after)] {
        scene.publish(&command(address, "ON"));
        assert_eq!(device.line(), "ON\r\n");
    }

    files.spoil();

    eventually("the bridge has looked at what is there now", || {
        drop(connect(&bridge, "127.0.0.4", &authority, None));
        let says = |line: &String| line.contains("what was read before stays in force");
        if bridge.log().all().iter().any(says) { Ok(()) } else { Err("not yet") }
    });
    assert!(new.is_shown_to(&connect(&bridge, "127.0.0.4", &authority, None)));
    scene.publish(&command(DEVICE, "STILL"));
    assert_eq!(before.line(), "STILL\r\n");
}
