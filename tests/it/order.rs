//! For each device, commands are written in the order of the queue, whatever the prefetch.

use crate::harness::{Fleet, Scene, Stream, eventually};

#[test]
fn each_device_receives_its_commands_in_the_order_of_the_queue() {
    const DEVICES: usize = 20;
    for (prefetch, threads) in [("1", "1"), ("16", "1"), ("256", "1"), ("256", "4")] {
        let scene = Scene::new("order");
        let bridge =
            scene.setup().set("MQ_PREFETCH", prefetch).set("RUNTIME_THREADS", threads).start();
        let fleet = Fleet::start(DEVICES, bridge.device_port);
        bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);

        let stream = Stream::publish(&scene, DEVICES, 2_000);

        eventually("every command has arrived", || fleet.has(stream.total()));
        let arrived = stream.arrived(&fleet);
        assert_eq!(
            (arrived.missing.len(), arrived.duplicates),
            (0, 0),
            "prefetch {prefetch}, threads {threads}: {arrived:?}"
        );
        assert_eq!(bridge.outcomes("written"), 2_000.0);
    }
}
