//! A storm of connects: devices that are connected, and not bound yet, are not offline.

use std::collections::HashMap;

use super::{setup, until_online};
use crate::harness::{Inbox, Proxy, Scene, command, reply_to};

/// The port from which the connection of this name has come to the broker.
fn port_of(scene: &Scene, name: &str) -> u16 {
    let all = scene.broker.ctl(&["list_connections", "-q", "peer_port", "client_properties"]);
    let line = all
        .lines()
        .find(|line| line.contains(&format!("\"{name}\"")))
        .unwrap_or_else(|| panic!("no connection is called {name}: {all}"));
    line.split('\t').next().and_then(|port| port.parse().ok()).expect("a port")
}

/// Of whom a receipt tells, and what.
fn outcome(receipts: &Inbox) -> (String, String) {
    let receipt = receipts.next().json();
    let [address, outcome] = ["address", "outcome"].map(|name| receipt[name].as_str());
    (address.expect("an address").to_owned(), outcome.expect("an outcome").to_owned())
}

#[test]
fn a_command_for_a_device_that_is_not_bound_yet_reaches_it_and_one_for_nobody_is_offline() {
    const DEVICES: u8 = 60;
    // Other tests have connections of that name.
    let scene = Scene::alone("cluster-arriving");
    let proxy = Proxy::start(scene.broker.port());
    let taker = setup(&scene, "a").set("LOG", "warn,rabbitline=debug").start();
    // It has commands of its own, so all of the others go by way of the first.
    let holder = setup(&scene, "b")
        .set("MQ_QUEUE", scene.queue() + ".b")
        .set("MQ_PORT", proxy.port().to_string())
        // For devices that do not read. These do.
        .set("MQ_STALLED_MAX", "1")
        .start();
    let (presence, receipts) = (scene.presence(), scene.receipts());
    for bridge in [&taker, &holder] {
        bridge.until_metric("rabbitline_route_bridges", |count| count == 1.0);
    }
    let _bound = holder.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "b");

    // From now on the broker's word that something is bound, or that nobody has a device, does not arrive.
    proxy.deafen_port(port_of(&scene, "rabbitline b routes publisher"));
    let mut devices: Vec<_> =
        (0..DEVICES).map(|last| holder.device(&format!("127.0.1.{last}"))).collect();
    taker.until_logged(&["another bridge has devices that are not bound yet"]);
    for last in [7, 8] {
        let body = command(&format!("127.0.1.{last}"), "ON").to_string();
        scene.publish_with(body.as_bytes(), reply_to(&receipts));
    }
    taker.until_metric("rabbitline_route_passed_on_total", |count| count == 2.0);
    let nobody = command("127.0.0.99", "ON").to_string();
    scene.publish_with(nobody.as_bytes(), reply_to(&receipts));
    // It may be told after those of the devices, which are written without an answer to their claims when five seconds
    // are over.
    let mut told = HashMap::new();
    while !told.contains_key("127.0.0.99") {
        told.extend([outcome(&receipts)]);
    }
    holder.until_metric("rabbitline_route_pending", |pending| pending == f64::from(DEVICES));

    proxy.heal();
    for last in [7, 8] {
        assert_eq!(devices[last].line(), "ON\r\n");
    }
    while told.len() < 3 {
        told.extend([outcome(&receipts)]);
    }
    let expected = [("127.0.0.99", "offline"), ("127.0.1.7", "written"), ("127.0.1.8", "written")];
    assert_eq!(told, expected.map(|(of, what)| (of.to_owned(), what.to_owned())).into());
    holder.until_metric("rabbitline_route_pending", |pending| pending == 0.0);
    assert_eq!(taker.outcomes("offline") + holder.outcomes("offline"), 1.0);
}
