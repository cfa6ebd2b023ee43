//! Devices behind a proxy that says where each connection comes from.

use serde_json::json;

use crate::harness::{Authority, Bridge, Device, Scene, Setup, TlsDevice, TlsFiles, command};

const PROXY: &str = "127.0.0.9";
const V1: &[u8] = b"PROXY TCP4 10.1.2.3 10.0.0.1 4711 8123\r\n";

fn setup(scene: &Scene) -> Setup {
    scene.setup().set("DEVICE_PROXY_FROM", "127.0.0.9/32")
}

/// A header of version 2 for a connection over IPv4; `more` are fields behind the addresses.
fn v2(source: [u8; 4], port: u16, more: &[u8]) -> Vec<u8> {
    let addresses = [&source[..], &[10, 0, 0, 1], &port.to_be_bytes(), &[0x1f, 0xbb]].concat();
    header(0x21, 0x11, &[&addresses, more].concat())
}

fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short");
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    [&signature[..], &[command, family], &length.to_be_bytes(), rest].concat()
}

/// A connection through the proxy that begins with these bytes.
#[track_caller]
fn through(bridge: &Bridge, bytes: &[u8]) -> Device {
    let mut device = Device::connect(PROXY, bridge.device_port);
    device.send(bytes);
    device
}

#[test]
fn a_device_behind_a_proxy_goes_by_its_own_address() {
    let scene = Scene::new("proxied");
    let presence = scene.presence();
    let bridge = setup(&scene).start();
    let v6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 8123\r\n";
    for (header, address, peer) in [
        (V1.to_vec(), "10.1.2.3", "10.1.2.3:4711"),
        (v2([10, 1, 2, 4], 4712, &[]), "10.1.2.4", "10.1.2.4:4712"),
        (v2([10, 1, 2, 5], 4713, &[4, 0, 100].repeat(11)), "10.1.2.5", "10.1.2.5:4713"),
        (v6.to_vec(), "2001:db8::7", "[2001:db8::7]:4711"),
    ] {
        let mut device = through(&bridge, &header);
        let event = presence.next().json();
        assert_eq!(
            (&event["address"], &event["online"], &event["peer"]),
            (&json!(address), &json!(true), &json!(peer))
        );
        assert_eq!(bridge.until_listed("address", address)["peer"], peer);
        scene.publish(&command(address, "ON"));
        assert_eq!(device.line(), "ON\r\n");
        drop(device);
        let event = presence.next().json();
        assert_eq!((&event["online"], &event["peer"]), (&json!(false), &json!(peer)));
    }
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let scene = Scene::new("proxied-bytes");
    let uplink = scene.uplink();
    let bridge = setup(&scene).start();
    for (header, key) in
        [(V1.to_vec(), "uplink.10.1.2.3"), (v2([10, 1, 2, 4], 4712, &[]), "uplink.10.1.2.4")]
    {
        let mut device = Device::connect(PROXY, bridge.device_port);
        device.send_bytewise(&header);
        device.send_bytewise(b"T=20\r\n");
        let event = uplink.next();
        assert_eq!((&*event.key, &event.json()["line"]), (key, &json!("T=20")));
    }
}

#[test]
fn what_comes_behind_the_header_in_the_same_packet_is_uplink() {
    let scene = Scene::new("proxied-rest");
    let uplink = scene.uplink();
    let bridge = setup(&scene).start();
    for (header, key) in
        [(V1.to_vec(), "uplink.10.1.2.3"), (v2([10, 1, 2, 4], 4712, &[]), "uplink.10.1.2.4")]
    {
        let mut device = through(&bridge, &[&header[..], b"T=20\r\nALARM 3\r\nHAL"].concat());
        device.send(b"F\n");
        for line in ["T=20", "ALARM 3", "HALF"] {
            let event = uplink.next();
            assert_eq!((&*event.key, &event.json()["line"]), (key, &json!(line)));
        }
        // A second header is none.
        device.send(V1);
        assert_eq!(uplink.next().json()["line"], "PROXY TCP4 10.1.2.3 10.0.0.1 4711 8123");
        // Nor is it lost if the device leaves at once.
        drop(through(&bridge, &[&header[..], b"BYE\r\n"].concat()));
        assert_eq!(uplink.next().json()["line"], "BYE");
    }
}

#[test]
fn a_proxy_that_does_not_say_where_a_connection_comes_from_is_refused() {
    let scene = Scene::new("proxied-wrong");
    let presence = scene.presence();
    let bridge = setup(&scene).set("DEVICE_HELLO_TIMEOUT", "2s").start();
    let endless_v1 = [b"PROXY TCP4 ", &[b'1'; 200][..]].concat();
    let endless_v2 = [&header(0x21, 0x11, &[])[..14], &[0xff, 0xff], &[0; 3_000]].concat();
    let no_version = header(0x31, 0x11, &[0; 12]);
    for (count, wrong) in (1..).zip([
        &b"T=20\r\n"[..],
        b"\r\n\r\nT=20\r\n",
        b"\0\xff\xfe\r\n",
        b"PROXY TCP4 10.1.2.3 nowhere 1 2\r\n",
        &endless_v1,
        &endless_v2,
        &no_version,
    ]) {
        let mut device = through(&bridge, wrong);
        assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new(), "{wrong:?}");
        bridge.until_refused("proxy", count);
    }
    let mut silent = Device::connect(PROXY, bridge.device_port);
    let mut half = through(&bridge, &V1[..20]);
    assert_eq!((silent.until_closed().len(), half.until_closed().len()), (0, 0));
    bridge.until_refused("timeout", 2);
    // A connection that ends in the midst of its header, or before it, is not waited for.
    drop(Device::connect(PROXY, bridge.device_port));
    bridge.until_refused("left", 1);
    drop(through(&bridge, &V1[..20]));
    bridge.until_refused("left", 2);
    assert_eq!(bridge.refused("timeout"), 2.0);

    let _right = through(&bridge, V1);
    assert_eq!(presence.next().json()["address"], "10.1.2.3", "nothing was told of the others");
    assert_eq!(bridge.metric("rabbitline_connections_total"), 1.0);
}

#[test]
fn a_proxy_that_looks_whether_anybody_listens_is_itself() {
    let scene = Scene::new("proxied-local");
    let bridge = setup(&scene).start();
    for header in [b"PROXY UNKNOWN\r\n".to_vec(), header(0x20, 0, &[])] {
        let mut device = bridge.knows(through(&bridge, &header));
        scene.publish(&command(PROXY, "ON"));
        assert_eq!(device.line(), "ON\r\n");
    }
}

#[test]
fn nobody_else_is_believed() {
    let scene = Scene::new("not-proxied");
    let uplink = scene.uplink();
    let bridge = setup(&scene).start();
    let mut device = bridge.device("127.0.0.8");
    assert_eq!(bridge.devices("")["devices"][0]["address"], "127.0.0.8");
    device.send(V1);
    let event = uplink.next();
    assert_eq!(
        (&*event.key, &event.json()["line"]),
        ("uplink.127.0.0.8", &json!("PROXY TCP4 10.1.2.3 10.0.0.1 4711 8123"))
    );
    assert_eq!(scene.receipt_of(&command("10.1.2.3", "ON"))["outcome"], "offline");
    scene.publish(&command("127.0.0.8", "ON"));
    assert_eq!(device.line(), "ON\r\n");
}

#[test]
fn the_header_comes_before_tls() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server());
    let scene = Scene::new("proxied-tls");
    let bridge = files.serve(setup(&scene)).start();
    for (header, address) in [(V1.to_vec(), "10.1.2.3"), (v2([10, 1, 2, 4], 4712, &[]), "10.1.2.4")]
    {
        let stream = through(&bridge, &header).into_stream();
        let mut device = TlsDevice::over(stream, &authority, None).expect("a handshake");
        scene.publish(&command(
            bridge.until_listed("address", address)["address"].as_str().expect("text"),
            "ON",
        ));
        assert_eq!(device.line(), "ON\r\n");
    }
    let mut plain = through(&bridge, &[V1, b"T=20\r\n"].concat());
    plain.until_closed();
    bridge.until_refused("tls", 1);
    let without = Device::connect(PROXY, bridge.device_port).into_stream();
    assert!(TlsDevice::over(without, &authority, None).is_err());
    bridge.until_refused("proxy", 1);
}

#[test]
fn the_header_comes_before_the_hello() {
    let scene = Scene::new("proxied-hello");
    let presence = scene.presence();
    let uplink = scene.uplink();
    let bridge = setup(&scene).set("DEVICE_IDENTITY", "hello").start();
    let bytes = [V1, b"HELLO pump-1\r\nT=20\r\n"].concat();
    let mut device = through(&bridge, &bytes);
    let event = presence.next().json();
    assert_eq!((&event["address"], &event["peer"]), (&json!("pump-1"), &json!("10.1.2.3:4711")));
    assert_eq!(uplink.next().json()["line"], "T=20");
    scene.publish(&command("pump-1", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    let mut direct = bridge.hello_device("127.0.0.8", "HELLO pump-2");
    scene.publish(&command("pump-2", "ON"));
    assert_eq!(direct.line(), "ON\r\n");
}

#[test]
fn limits_count_devices_and_not_their_proxy() {
    let scene = Scene::new("proxied-limits");
    let setup = setup(&scene).set("DEVICE_IDENTITY", "peer").set("DEVICE_CONNECTIONS_PER_IP", "2");
    let bridge = setup.start();
    let mut inside = Vec::new();
    for last in 1..=5 {
        for port in [1, 2] {
            inside.push(through(&bridge, &v2([10, 1, 2, last], port, &[])));
            bridge.until_listed("address", &format!("10.1.2.{last}:{port}"));
        }
    }
    let mut third = through(&bridge, &v2([10, 1, 2, 1], 3, &[]));
    assert_eq!(third.until_closed().len(), 0);
    bridge.until_refused("per_ip", 1);
    assert_eq!(bridge.metric("rabbitline_devices_connected"), 10.0);
}
