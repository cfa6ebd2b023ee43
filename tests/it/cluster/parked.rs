//! What is parked reaches its device wherever that connects, once, and asking for it leaves nothing behind.

use super::{fleet_at, outcomes, pair, until_online};
use crate::harness::{Fleet, Scene, address, command, eventually, park, persistent};

/// Waits until nothing is in the queue in which commands for a device are parked.
#[track_caller]
fn until_empty(scene: &Scene, address: &str) {
    let queue = scene.parked_for(address);
    eventually("nothing is parked", || match scene.amqp.depth(&queue) {
        0 => Ok(()),
        depth => Err(depth),
    });
}

#[test]
fn what_is_parked_is_fetched_once_and_what_asks_for_it_reaches_no_device() {
    const COMMANDS: usize = 5;
    let scene = Scene::new("cluster-knock");
    let presence = scene.presence();
    let bridges = pair(&scene);
    scene.park_numbers("127.0.0.9", 0..1);
    scene.until_parked("127.0.0.9", 1);
    for number in 1..COMMANDS {
        scene.publish(&park("127.0.0.9", &number.to_string()));
        scene.until_parked("127.0.0.9", number + 1);
    }

    let mut first = bridges[0].device("127.0.0.9");
    for number in 0..COMMANDS {
        assert_eq!(first.line(), format!("{number}\r\n"));
    }
    until_empty(&scene, "127.0.0.9");
    until_online(&presence, "127.0.0.9", "a");

    // The queue is there now, with nothing in it.
    let mut second = bridges[1].device("127.0.0.9");
    until_online(&presence, "127.0.0.9", "b");
    scene.publish(&command("127.0.0.9", "NOW"));
    assert_eq!(second.line(), "NOW\r\n");
    until_empty(&scene, "127.0.0.9");
    assert_eq!(outcomes(&bridges, "written"), COMMANDS as f64 + 1.0);
    assert_eq!(first.until_closed(), Vec::<Vec<u8>>::new());
    assert_eq!(second.so_far(), Vec::<String>::new());
    assert_eq!(outcomes(&bridges, "invalid"), 0.0);
}

#[test]
fn what_is_parked_while_its_device_connects_arrives_once() {
    const DEVICES: usize = 300;
    let scene = Scene::new("cluster-park-race");
    let bridges = pair(&scene);

    let messages = (0..DEVICES).map(|device| {
        let body = park(&address(device), &device.to_string()).to_string().into_bytes();
        (body, persistent())
    });
    scene.amqp.publish_all(&scene.exchange(), &scene.queue(), messages);
    let fleet = Fleet::start(DEVICES, bridges[1].device_port);

    eventually("each has its command", || fleet.has(DEVICES));
    for device in 0..DEVICES {
        assert_eq!(fleet.lines(device), [device.to_string()]);
    }
    for bridge in &bridges {
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
        bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    }
    assert_eq!(outcomes(&bridges, "written"), DEVICES as f64);
    assert_eq!(outcomes(&bridges, "offline"), 0.0);
}

#[test]
fn a_device_for_which_nothing_was_parked_costs_the_broker_no_channel() {
    const DEVICES: usize = 50;
    let scene = Scene::alone("cluster-no-look");
    let presence = scene.presence();
    let bridges = pair(&scene);

    let _fleet = fleet_at(&bridges[0], &presence, DEVICES);
    // Behind all that was asked before.
    let mut last = bridges[0].device("127.0.0.250");
    until_online(&presence, "127.0.0.250", "a");
    scene.publish(&command("127.0.0.250", "ON"));
    assert_eq!(last.line(), "ON\r\n");

    let complaint = |name: &str| format!("no queue '{name}");
    assert!(scene.amqp.queue("the mark").is_err());
    let log = eventually("the node has logged all that was before the mark", || {
        let log = scene.broker.logged();
        if log.contains(&complaint("the mark")) { Ok(log) } else { Err("it has not") }
    });
    let complaint = complaint(&scene.parked_for("127."));
    assert!(!log.contains(&complaint), "{complaint}: {log}");
}
