//! The promise as a whole, at size.

use std::time::Duration;

use crate::harness::{Fleet, Scene, Stream, within};

/// With the broker's two restarts; far more than it takes.
const DRAIN: Duration = Duration::from_secs(180);

#[test]
fn a_hundred_thousand_commands_reach_a_thousand_devices_though_the_broker_crashes_twice() {
    const DEVICES: usize = 1_000;
    let mut scene = Scene::alone("hundred-thousand");
    scene.declare();
    let bridge = scene.setup().set("MQ_PREFETCH", "256").start();
    let fleet = Fleet::start(DEVICES, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    bridge.program.signal("STOP");
    let stream = Stream::publish(&scene, DEVICES, 100_000);
    bridge.program.signal("CONT");

    for part in [20_000, 60_000] {
        within(DRAIN, "a part has arrived", || fleet.has(part));
        scene.broker.kill();
        assert!(
            fleet.distinct() < stream.total(),
            "the broker was killed too late to show anything"
        );
        scene.restart_broker();
    }
    within(DRAIN, "every command has arrived", || fleet.has(stream.total()));

    let arrived = stream.arrived(&fleet);
    assert_eq!(arrived.missing, Vec::<String>::new());
    println!("{} commands came again after the crashes", arrived.duplicates);
    assert_eq!(fleet.connections(), DEVICES, "no device was cut off");
    // The broker may have forgotten acknowledgements: what it delivers again is written again, and then it is empty.
    scene.until_drained(&bridge);
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
}
