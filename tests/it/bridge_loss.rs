//! The bridge may be killed at any moment: what it had not settled comes again, to the next bridge.

use std::collections::HashSet;

use crate::harness::{Fleet, Scene, Stream, eventually, free_port, line_of};

#[test]
fn a_bridge_killed_mid_stream_loses_no_command_and_repeats_only_those_in_hand() {
    const DEVICES: usize = 20;
    const PREFETCH: usize = 16;
    let scene = Scene::new("bridge-crash");
    scene.declare();
    let port = free_port();
    let setup = scene
        .setup()
        .set("MQ_PREFETCH", PREFETCH.to_string())
        .set("DEVICE_LISTEN", format!("127.0.0.1:{port}"));
    let mut bridge = setup.start();
    let fleet = Fleet::start(DEVICES, port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    // The bridge stands still while the commands are published, so that its end comes in the midst of them.
    bridge.program.signal("STOP");
    let stream = Stream::publish(&scene, DEVICES, 20_000);
    bridge.program.signal("CONT");
    eventually("a part has arrived", || fleet.has(stream.total() / 20));

    bridge.program.kill();
    let before = fleet.distinct();
    assert!(before < stream.total(), "it was killed too late to show anything");
    // The same port at once: devices know no other.
    let bridge = setup.start();
    let undelivered = scene.undelivered_inbox();

    // What the next bridge takes before a device is back is offline, and kept.
    let mut offline = HashSet::new();
    eventually("every command has arrived or is kept", || {
        offline.extend(undelivered.so_far().iter().map(|letter| {
            assert_eq!(letter.header("x-outcome"), "offline");
            line_of(&letter.json())
        }));
        let missing = stream
            .arrived(&fleet)
            .missing
            .into_iter()
            .filter(|line| !offline.contains(line))
            .count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are neither here nor there")) }
    });
    scene.until_drained(&bridge);
    let arrived = stream.arrived(&fleet);
    let twice =
        arrived.duplicates + offline.iter().filter(|line| !arrived.missing.contains(line)).count();
    assert!(twice <= PREFETCH, "{twice} commands came twice");
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
}
