//! The broker may crash, cut connections, close channels, lose queues: no command is lost and no device is cut off.
//!
//! How many commands come twice depends on who forgot what. A connection that is cut costs at most the commands in
//! hand, and so does the crash of a broker with a quorum queue. A broker that crashes with a classic queue also forgets
//! the acknowledgements it had not put on disk, which can be all since its start, and delivers those commands again.

use std::sync::Arc;

use lapin::types::AMQPValue;

use crate::harness::{
    Amqp, Arrived, Broker, Fleet, STALL_LINE_MAX, Scene, Stream, command, eventually, persistent,
    stall, stalling_number,
};

#[test]
fn a_broker_that_crashes_and_returns_loses_no_command_and_no_device() {
    assert_eq!(crash_mid_stream("classic").overtaken, Vec::<String>::new());
}

#[test]
fn a_broker_that_crashes_with_a_quorum_queue_repeats_only_commands_in_hand() {
    let Arrived { duplicates, overtaken, .. } = crash_mid_stream("quorum");
    assert!(duplicates <= PREFETCH, "{duplicates} commands came twice");
    // What was in hand, unread, comes again when the queue has noticed; the bridge may be back before.
    assert!(overtaken.len() <= PREFETCH, "{} came late: {overtaken:?}", overtaken.len());
}

const PREFETCH: usize = 16;

/// Kills the broker in the midst of a stream and checks that all arrives.
fn crash_mid_stream(queue_type: &str) -> Arrived {
    const DEVICES: usize = 50;
    let mut scene = Scene::alone("broker-crash");
    scene.declare_with(&[("x-queue-type", AMQPValue::LongString(queue_type.into()))]);
    let bridge = scene.setup().set("MQ_PREFETCH", PREFETCH.to_string()).start();
    let fleet = Fleet::start(DEVICES, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    let stream = Stream::publish(&scene, DEVICES, 10_000);

    eventually("a part has arrived", || fleet.has(stream.total() / 10));
    scene.broker.kill();
    bridge.until_not_ready();
    bridge.until_metric("rabbitline_broker_up{connection=\"consumer\"}", |up| up == 0.0);
    scene.restart_broker();
    eventually("every command has arrived", || fleet.has(stream.total()));

    scene.until_drained(&bridge);
    bridge.until_metric("rabbitline_broker_up{connection=\"publisher\"}", |up| up == 1.0);
    assert_eq!(fleet.connections(), DEVICES, "no device was cut off");
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
    let arrived = stream.arrived_in_any_order(&fleet);
    assert_eq!(arrived.missing, Vec::<String>::new());
    arrived
}

#[test]
fn a_receipt_in_a_durable_queue_outlives_a_crash_of_the_broker() {
    let mut scene = Scene::alone("receipt-crash");
    let receipts = format!("{}.receipts", scene.queue());
    scene.declare();
    scene.amqp.declare_queue(&receipts, &[]);
    let bridge = scene.setup().start();
    let _device = bridge.device("127.0.0.2");
    let properties = persistent().with_reply_to(receipts.as_str().into());
    scene.publish_with(command("127.0.0.2", "ON").to_string().as_bytes(), properties);
    // The command is acknowledged once its receipt is confirmed.
    scene.until_drained(&bridge);
    bridge.until_metric("rabbitline_commands_total{outcome=\"written\"}", |count| count == 1.0);
    // Nobody may be there to tell it once more.
    assert_eq!(bridge.terminate().code, Some(0));

    scene.broker.sync();
    scene.broker.kill();
    scene.restart_broker();

    assert_eq!(scene.amqp.consume(&receipts).next().json()["outcome"], "written");
}

#[test]
fn connections_cut_by_the_operator_cost_only_repeats_of_commands_in_hand() {
    const DEVICES: usize = 20;
    let mut scene = Scene::alone("cut");
    scene.declare();
    let bridge = scene.setup().set("MQ_PREFETCH", PREFETCH.to_string()).start();
    let fleet = Fleet::start(DEVICES, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    // The bridge stands still while the commands are published, so that the cut comes in the midst of them.
    bridge.program.signal("STOP");
    let stream = Stream::publish(&scene, DEVICES, 20_000);
    bridge.program.signal("CONT");

    scene.broker.ctl(&["close_all_connections", "a test of the operator's hand"]);
    scene.amqp = Amqp::connect(scene.broker.port());
    eventually("every command has arrived", || fleet.has(stream.total()));

    scene.until_drained(&bridge);
    let arrived = stream.arrived(&fleet);
    assert_eq!(arrived.missing, Vec::<String>::new());
    assert!(arrived.duplicates <= PREFETCH, "{} commands came twice", arrived.duplicates);
    assert_eq!(fleet.connections(), DEVICES, "no device was cut off");
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
}

#[test]
fn a_queue_deleted_under_the_bridge_is_declared_again() {
    let scene = Scene::new("queue-deleted");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "BEFORE"));
    assert_eq!(device.line(), "BEFORE\r\n");

    scene.amqp.delete_queue(&scene.queue());

    eventually("the queue is there again and consumed", || {
        match scene.amqp.queue(&scene.queue()) {
            Ok((_, 1)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // Through the exchange: it is bound again as well.
    scene.publish(&command("127.0.0.2", "AFTER"));
    assert_eq!(device.line(), "AFTER\r\n", "the device was not cut off");
}

#[test]
fn a_channel_closed_by_the_broker_is_opened_again_and_the_commands_on_it_come_again() {
    // A broker that closes a channel which has not acknowledged for two seconds, and looks every second.
    let broker =
        Broker::prepared(&[("consumer_timeout", "2000"), ("channel_tick_interval", "1000")]);
    let scene = Scene::on(Arc::new(broker), "channel-error");
    let setup =
        scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).set("DEVICE_WRITE_TIMEOUT", "10m");
    let bridge = setup.start();
    let mut slow = bridge.narrow_device("127.0.0.2");
    let mut fast = bridge.device("127.0.0.3");
    let published = stall(&scene, &bridge, "127.0.0.2", 1);

    // The stalled command stays unacknowledged, so the broker closes the channel.
    eventually("the broker has closed the channel", || {
        let log = bridge.log().text().to_lowercase();
        if log.contains("precondition") || log.contains("406") { Ok(()) } else { Err(log) }
    });
    scene.publish(&command("127.0.0.3", "GO ON"));
    assert_eq!(fast.line(), "GO ON\r\n", "the bridge consumes again");

    scene.publish(&command("127.0.0.2", "END"));
    let mut numbers = Vec::new();
    loop {
        let line = slow.line();
        if line == "END\r\n" {
            break;
        }
        numbers.push(stalling_number(line.as_bytes()));
    }
    // The one in hand may come again; first receipts are whole and in order.
    numbers.dedup();
    assert_eq!(numbers, (0..published).collect::<Vec<_>>());
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn exchanges_deleted_under_the_bridge_cost_no_undelivered_command_and_no_presence() {
    let scene = Scene::new("exchange-deleted");
    let bridge = scene.setup().start();
    scene.amqp.delete_exchange(&scene.undelivered());
    scene.amqp.delete_exchange(&scene.events());

    scene.publish(&command("127.0.0.9", "KEEP ME"));

    // The publisher learns of it by an error on its channel, declares again and publishes what it still holds.
    let undelivered = scene.undelivered_inbox();
    assert_eq!(undelivered.next().json()["cmd"], "KEEP ME");
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    let _first = bridge.device("127.0.0.2");
    // Whether it was declared again at once or for that event, it is there in the end, and events come through it.
    eventually("the events exchange is there again", || scene.amqp.exchange(&scene.events()));
    let presence = scene.amqp.subscribe(&scene.events(), "presence.127.0.0.3");
    let _second = bridge.device("127.0.0.3");
    assert_eq!(presence.next().json()["online"], true);
}

#[test]
fn while_the_broker_blocks_publishers_commands_still_reach_devices() {
    const COMMANDS: usize = 200;
    let scene = Scene::alone("alarm");
    let bridge = scene.setup().set("MQ_HEARTBEAT", "60s").start();
    let presence = scene.presence();
    let undelivered = scene.undelivered_inbox();
    let mut device = bridge.device("127.0.0.2");
    assert_eq!(presence.next().json()["address"], "127.0.0.2");

    // The bridge stands still while the commands are put in the queue and the alarm goes off.
    bridge.program.signal("STOP");
    for number in 0..COMMANDS {
        scene.publish(&command("127.0.0.2", &format!("COMMAND {number}")));
    }
    scene.publish(&command("127.0.0.9", "FOR NOBODY"));
    scene.broker.ctl(&["set_vm_memory_high_watermark", "0.000001"]);
    bridge.program.signal("CONT");

    for number in 0..COMMANDS {
        assert_eq!(device.line(), format!("COMMAND {number}\r\n"));
    }
    bridge.until_metric("rabbitline_broker_blocked", |blocked| blocked == 1.0);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 1.0);
    assert_eq!(scene.amqp.depth(&scene.queue()), 0, "what was written was acknowledged");
    let _second = bridge.device("127.0.0.3");

    scene.broker.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    assert_eq!(
        undelivered.next().json()["cmd"],
        "FOR NOBODY",
        "it was held until it could be published"
    );
    assert_eq!(presence.next().json()["address"], "127.0.0.3");
    bridge.until_metric("rabbitline_broker_blocked", |blocked| blocked == 0.0);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.terminate().code, Some(0));
}

#[test]
fn a_bridge_started_before_its_broker_waits_for_it_and_serves() {
    let mut scene = Scene::alone("late-broker");
    scene.broker.kill();
    let mut bridge = scene.setup().launch();
    assert_eq!(bridge.get("/livez").status, 200);
    bridge.until_not_ready();
    let mut device = bridge.device("127.0.0.2");

    scene.restart_broker();
    bridge.until_ready();
    scene.amqp.publish(
        &scene.exchange(),
        &scene.queue(),
        command("127.0.0.2", "ON").to_string().as_bytes(),
        persistent(),
    );
    assert_eq!(device.line(), "ON\r\n", "the device waited for the broker too");
}

#[test]
fn a_frozen_broker_is_given_up_after_two_heartbeats_and_found_again() {
    let mut scene = Scene::alone("frozen-broker");
    let mut bridge =
        scene.setup().set("MQ_HEARTBEAT", "1s").set("MQ_CONNECT_TIMEOUT", "1s").start();
    let mut device = bridge.device("127.0.0.2");

    scene.broker.signal("STOP");
    bridge.until_not_ready();
    scene.broker.signal("CONT");

    bridge.until_ready();
    scene.amqp = Amqp::connect(scene.broker.port());
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
}
