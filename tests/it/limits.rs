//! How many connections there may be, from where, how often and how fast; and that those who keep to it are not harmed
//! by those who do not.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Bridge, Device, Fleet, Scene, Setup, command, eventually};

const GATEWAY: &str = "127.0.0.2";

fn hello(scene: &Scene) -> Setup {
    scene.setup().set("DEVICE_IDENTITY", "hello")
}

/// A device that is refused for this reason, as the `count`th.
#[track_caller]
fn assert_refused(bridge: &Bridge, mut device: Device, reason: &str, count: usize) {
    assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
    bridge.until_refused(reason, count);
}

/// One more gets in once the place of one that has left is free.
#[track_caller]
fn assert_gets_in(scene: &Scene, bridge: &Bridge, address: &str, connect: impl Fn() -> Device) {
    let mut device = eventually("a place is free", || bridge.takes(connect()).ok_or("refused"));
    scene.publish(&command(address, "WELCOME"));
    assert_eq!(device.line(), "WELCOME\r\n");
}

#[test]
fn there_are_no_more_connections_than_so_many() {
    let scene = Scene::new("connections-max");
    let setup = scene.setup().set("DEVICE_CONNECTIONS_MAX", "3").set("LISTEN_PUMPS", "127.0.0.1:0");
    let bridge = setup.start();
    let pumps = bridge.port_of("pumps");
    let mut devices = vec![
        bridge.device("127.0.0.2"),
        bridge.device("127.0.0.3"),
        bridge.knows(Device::connect("127.0.0.4", pumps)),
    ];
    for (count, port) in (1..).zip([bridge.device_port, pumps]) {
        assert_refused(&bridge, Device::connect("127.0.0.5", port), "total", count);
    }
    for (last, device) in (2..).zip(&mut devices) {
        scene.publish(&command(&format!("127.0.0.{last}"), "ON"));
        assert_eq!(device.line(), "ON\r\n", "those who are in stay");
    }
    devices.pop();
    assert_gets_in(&scene, &bridge, "127.0.0.5", || {
        Device::connect("127.0.0.5", bridge.device_port)
    });
}

#[test]
fn there_are_no_more_connections_from_one_address_than_so_many() {
    let scene = Scene::new("per-ip");
    let bridge = hello(&scene).set("DEVICE_CONNECTIONS_PER_IP", "2").start();
    let first = bridge.hello_device(GATEWAY, "HELLO pump-1");
    let mut second = bridge.hello_device(GATEWAY, "HELLO pump-2");
    assert_refused(&bridge, Device::connect(GATEWAY, bridge.device_port), "per_ip", 1);
    let _elsewhere = bridge.hello_device("127.0.0.3", "HELLO pump-3");
    drop(first);
    assert_gets_in(&scene, &bridge, "pump-4", || bridge.saying(GATEWAY, "HELLO pump-4"));
    scene.publish(&command("pump-2", "ON"));
    assert_eq!(second.line(), "ON\r\n");
    // One of which it is not known yet who it is counts, too.
    let _fifth = Device::connect("127.0.0.4", bridge.device_port);
    let _sixth = Device::connect("127.0.0.4", bridge.device_port);
    let refused = bridge.refused("per_ip") as usize;
    assert_refused(
        &bridge,
        Device::connect("127.0.0.4", bridge.device_port),
        "per_ip",
        refused + 1,
    );
}

#[test]
fn there_are_no_more_connections_from_one_network_than_so_many() {
    let scene = Scene::new("per-net");
    let bridge = scene.setup().set("DEVICE_CONNECTIONS_PER_NET", "3").start();
    let mut devices = ["127.7.1.2", "127.7.1.3", "127.7.1.254"].map(|from| bridge.device(from));
    assert_refused(&bridge, Device::connect("127.7.1.4", bridge.device_port), "per_net", 1);
    let _neighbours = ["127.7.0.4", "127.7.2.4"].map(|from| bridge.device(from));
    scene.publish(&command("127.7.1.254", "ON"));
    assert_eq!(devices[2].line(), "ON\r\n");
    let [first, ..] = devices;
    drop(first);
    assert_gets_in(&scene, &bridge, "127.7.1.4", || {
        Device::connect("127.7.1.4", bridge.device_port)
    });
}

#[test]
fn a_device_that_connects_again_and_again_is_refused_for_a_while() {
    let scene = Scene::new("flapping");
    let presence = scene.presence();
    let setup = scene.setup().set("DEVICE_FLAP_MAX", "3").set("DEVICE_FLAP_WINDOW", "10m");
    let bridge = setup.set("DEVICE_FLAP_PAUSE", "3s").start();
    for _ in 0..3 {
        drop(bridge.device("127.0.0.2"));
        assert_eq!(presence.next().json()["online"], true);
        assert_eq!(presence.next().json()["online"], false);
    }
    assert_refused(&bridge, Device::connect("127.0.0.2", bridge.device_port), "flapping", 1);
    let mut calm = bridge.device("127.0.0.3");
    scene.publish(&command("127.0.0.3", "ON"));
    assert_eq!(calm.line(), "ON\r\n", "another device");
    assert_eq!(presence.next().json()["address"], "127.0.0.3", "nothing was told of the other");
    assert_gets_in(&scene, &bridge, "127.0.0.2", || {
        Device::connect("127.0.0.2", bridge.device_port)
    });
}

#[test]
fn silent_connections_push_out_the_oldest_of_them_and_an_honest_device_gets_in() {
    const MAX: usize = 5;
    const SILENT: usize = 20;
    let scene = Scene::new("unknown-max");
    let setup = hello(&scene).set("DEVICE_UNKNOWN_MAX", MAX.to_string());
    let bridge = setup.set("DEVICE_HELLO_TIMEOUT", "10m").start();
    let mut known = bridge.hello_device(GATEWAY, "HELLO pump-1");
    let mut silent: Vec<Device> =
        (0..SILENT).map(|_| Device::connect("127.0.0.3", bridge.device_port)).collect();
    bridge.until_refused("pushed_out", SILENT - MAX);

    let mut honest = bridge.hello_device(GATEWAY, "HELLO pump-2");

    bridge.until_refused("pushed_out", SILENT - MAX + 1);
    let left = silent.split_off(SILENT - MAX + 1);
    for device in &mut silent {
        assert_eq!(device.until_closed().len(), 0, "the oldest");
    }
    for (address, device) in [("pump-1", &mut known), ("pump-2", &mut honest)] {
        scene.publish(&command(address, "ON"));
        assert_eq!(device.line(), "ON\r\n");
    }
    for (number, mut device) in left.into_iter().enumerate() {
        assert!(!device.is_closed(), "it may say still who it is");
        device.send(format!("HELLO late-{number}\r\n").as_bytes());
        bridge.knows(device);
    }
    assert_eq!(bridge.metric("rabbitline_connections_total"), (2 + MAX - 1) as f64);
}

#[test]
fn a_burst_faster_than_connections_are_taken_up_is_taken_up_in_the_end() {
    const DEVICES: usize = 60;
    let scene = Scene::new("accept-rate");
    let bridge = scene.setup().set("DEVICE_ACCEPT_RATE", "20").start();
    let fleet = Fleet::start(DEVICES, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    assert_eq!(fleet.connections(), DEVICES, "none was turned away");
    assert_eq!(bridge.metric("rabbitline_connections_total"), DEVICES as f64);
    scene.publish(&json!({"broadcast": true, "cmd": "ON"}));
    eventually("each has its command", || fleet.has(DEVICES));
}

#[test]
fn a_line_that_is_begun_and_not_ended_in_time_ends_the_connection() {
    let scene = Scene::new("line-timeout");
    let presence = scene.presence();
    let bridge = scene.setup().set("DEVICE_LINE_TIMEOUT", "1s").start();
    let mut quiet = bridge.device("127.0.0.3");
    let mut device = bridge.device("127.0.0.2");
    for address in ["127.0.0.3", "127.0.0.2"] {
        assert_eq!(presence.next().json()["address"], address);
    }
    device.send(b"T=20\r\nHALF A LI");
    let event = presence.next().json();
    assert_eq!(
        (&event["address"], &event["reason"]),
        (&json!("127.0.0.2"), &json!("line_timeout"))
    );
    assert_eq!(device.until_closed().len(), 0);
    assert_eq!(bridge.ended("line_timeout"), 1.0);
    scene.publish(&command("127.0.0.3", "ON"));
    assert_eq!(quiet.line(), "ON\r\n", "who says nothing has begun nothing");
}

#[test]
fn a_line_begun_in_the_packet_of_the_hello_must_end_in_time_too() {
    let scene = Scene::new("line-timeout-hello");
    let presence = scene.presence();
    let bridge = hello(&scene).set("DEVICE_LINE_TIMEOUT", "1s").start();
    let mut device = Device::connect(GATEWAY, bridge.device_port);
    device.send(b"HELLO pump-1\r\nHALF A LI");
    assert_eq!(presence.next().json()["online"], true);
    assert_eq!(presence.next().json()["reason"], "line_timeout");
}

#[test]
fn a_slow_line_that_ends_in_time_does_no_harm_even_if_the_next_has_begun() {
    const LIMIT: Duration = Duration::from_secs(3);
    let scene = Scene::new("line-slow");
    let uplink = scene.uplink();
    let bridge = scene.setup().set("DEVICE_LINE_TIMEOUT", "3s").start();
    let mut device = bridge.device("127.0.0.2");
    // A device that begins each line with a line end is always in the midst of one.
    let (start, mut number) = (Instant::now(), 0);
    device.send(b"LINE 0");
    while start.elapsed() < 2 * LIMIT {
        number += 1;
        for piece in ["\r", "\nLI", "NE ", &number.to_string()] {
            device.send(piece.as_bytes());
        }
        assert_eq!(uplink.next().json()["line"], format!("LINE {}", number - 1));
    }
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    assert_eq!(bridge.ended("line_timeout"), 0.0);
}
