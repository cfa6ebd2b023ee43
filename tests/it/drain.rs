//! The end of a bridge: it stops taking commands, writes those it has, hands back the rest, and says how it went.

use std::collections::BTreeSet;

use lapin::types::AMQPValue;

use crate::harness::{
    Bridge, Device, STALL_LINE_MAX, Scene, Setup, command, eventually, persistent, stall,
    stalling_number,
};

fn patient(scene: &Scene) -> Setup {
    scene
        .setup()
        .set("DEVICE_LINE_MAX", STALL_LINE_MAX)
        .set("DEVICE_WRITE_TIMEOUT", "10m")
        .set("MQ_PREFETCH", "4")
}

#[test]
fn commands_that_wait_are_written_before_the_end() {
    let scene = Scene::new("drain");
    let mut bridge = patient(&scene).set("SHUTDOWN_GRACE", "10m").start();
    let mut device = bridge.narrow_device("127.0.0.2");
    let published = stall(&scene, &bridge, "127.0.0.2", 3);

    bridge.program.signal("TERM");
    let why = bridge.until_not_ready();
    assert!(why.contains("drain"), "{why}");
    assert_eq!(bridge.get("/livez").status, 200, "it lives while it drains");
    assert_eq!(bridge.program.ended(), None);
    scene.publish(&command("127.0.0.2", "FOR THE NEXT BRIDGE"));

    let lines = device.until_closed();
    let numbers: Vec<usize> = lines.iter().map(|line| stalling_number(line)).collect();
    assert_eq!(numbers, (0..published).collect::<Vec<_>>());
    let end = bridge.program.finish();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    let left = scene.amqp.consume(&scene.queue()).next();
    assert_eq!(left.json()["cmd"], "FOR THE NEXT BRIDGE", "only what came later is left");
    assert_eq!(scene.amqp.depth(&scene.undelivered()), 0);
}

#[test]
fn commands_that_cannot_be_written_in_time_are_in_the_queue_again() {
    let scene = Scene::new("hand-back");
    let bridge = patient(&scene).set("SHUTDOWN_GRACE", "1s").start();
    let mut device = bridge.narrow_device("127.0.0.2");
    let published = stall(&scene, &bridge, "127.0.0.2", 4);

    let end = bridge.terminate();

    assert_eq!(end.code, Some(1), "something was left: {}", end.stderr);
    let received: Vec<usize> =
        device.until_closed().iter().map(|line| stalling_number(line)).collect();
    let in_queue = depth_of(&scene, &scene.queue(), 3);
    let returned: Vec<usize> =
        scene.amqp.consume(&scene.queue()).take(in_queue).iter().map(number).collect();
    let undelivered = scene.amqp.depth(&scene.undelivered()) as usize;
    let uncertain: Vec<usize> =
        scene.amqp.consume(&scene.undelivered()).take(undelivered).iter().map(number).collect();
    assert!(uncertain.len() <= 1, "at most the one that was partly written: {uncertain:?}");
    assert!(returned.windows(2).all(|pair| pair[0] < pair[1]), "in their old order: {returned:?}");
    let all: BTreeSet<usize> =
        received.iter().chain(&returned).chain(&uncertain).copied().collect();
    assert_eq!(all, (0..published).collect(), "none is lost");
    assert!(
        received.iter().all(|number| !returned.contains(number)),
        "what was written was acknowledged"
    );
}

#[test]
fn what_is_acknowledged_at_the_very_end_is_not_delivered_again() {
    const DEVICES: u8 = 200;
    let scene = Scene::new("last-acks");
    // A bridge that is not told the type finds it out.
    let quorum = [("x-queue-type", AMQPValue::LongString("quorum".into()))];
    scene.amqp.declare_queue(&scene.queue(), &quorum);
    let bridge = scene.setup().set("MQ_PREFETCH", "256").set("COMMAND_CONFIRM", "answered").start();
    let mut devices: Vec<Device> =
        (2..2 + DEVICES).map(|last| bridge.device(&format!("127.0.0.{last}"))).collect();
    let bodies = (2..2 + DEVICES).map(|last| command(&format!("127.0.0.{last}"), "ON").to_string());
    let messages = bodies.map(|body| (body.into_bytes(), persistent()));
    scene.amqp.publish_all(&scene.exchange(), &scene.queue(), messages);
    for device in &mut devices {
        assert_eq!(device.line(), "ON\r\n");
    }
    bridge.program.signal("TERM");
    bridge.until_not_ready();

    // As the first is not, none of the others can be acknowledged together with those before it.
    for device in devices.iter_mut().rev() {
        device.send(b"OK\n");
    }

    let end = bridge.program.finish();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert_eq!(depth_of(&scene, &scene.queue(), 0), 0);
}

#[test]
fn a_bridge_with_nothing_to_do_ends_at_once_on_either_signal() {
    for signal in ["TERM", "INT"] {
        let scene = Scene::new("idle-end");
        let bridge = scene.setup().set("SHUTDOWN_GRACE", "10m").start();
        let mut device = bridge.device("127.0.0.2");
        bridge.program.signal(signal);
        let Bridge { program, .. } = bridge;
        assert_eq!(program.finish().code, Some(0));
        assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn a_bridge_without_a_broker_ends_within_its_grace() {
    let scene = Scene::alone("end-without-broker");
    let bridge = scene.setup().set("SHUTDOWN_GRACE", "2s").start();
    let _device = bridge.device("127.0.0.2");
    scene.broker.kill();
    bridge.until_metric("rabbitline_broker_up{connection=\"publisher\"}", |up| up == 0.0);
    // The offline event of its device has nowhere to go: the end comes all the same, and says so.
    assert_eq!(bridge.terminate().code, Some(1));
}

#[test]
fn a_stream_cut_by_the_end_of_the_bridge_goes_on_where_it_was() {
    const COMMANDS: usize = 3_000;
    let scene = Scene::new("handover");
    let first = scene.setup().set("MQ_PREFETCH", "64").start();
    let mut device = first.device("127.0.0.2");
    first.program.signal("STOP");
    let body = |number| command("127.0.0.2", &format!("NUMBER {number}")).to_string().into_bytes();
    let messages = (0..COMMANDS).map(|number| (body(number), persistent()));
    scene.amqp.publish_all(&scene.exchange(), &scene.queue(), messages);
    first.program.signal("CONT");
    assert_eq!(device.line(), "NUMBER 0\r\n");

    assert_eq!(first.terminate().code, Some(0));
    let mut received = 1 + device.until_closed().len();
    let left = depth_of(&scene, &scene.queue(), 0);
    assert_eq!(received + left, COMMANDS, "each is either written or left");

    let keep = scene.setup().set("COMMAND_IF_OFFLINE", "reject");
    let second = keep.start();
    let undelivered = scene.undelivered_inbox();
    let mut device = second.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "END"));
    while device.line() != "END\r\n" {
        received += 1;
    }
    received += undelivered.so_far().len();
    assert_eq!(received, COMMANDS, "none is lost and none comes twice");
}

/// The depth of a queue once the broker has noticed that its consumers are gone.
fn depth_of(scene: &Scene, queue: &str, at_least: usize) -> usize {
    eventually("the broker has taken the commands back", || match scene.amqp.queue(queue) {
        Ok((depth, 0)) if depth as usize >= at_least => Ok(depth as usize),
        other => Err(format!("{other:?}")),
    })
}

fn number(letter: &crate::harness::Letter) -> usize {
    stalling_number(
        (letter.json()["cmd"].as_str().expect("a string").to_owned() + "\r\n").as_bytes(),
    )
}
