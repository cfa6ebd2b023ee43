//! `once`: never written twice. And commands with an id, whose fate the bridge remembers when the broker delivers them
//! again, are not repeated without need.

use serde_json::{Value, json};

use crate::harness::{Amqp, Bridge, Device, Inbox, Scene, Setup, command, eventually, persistent};

fn asked(id: &str) -> Value {
    json!({"address": "127.0.0.2", "cmd": id, "id": id, "confirm": "answered"})
}

fn once(mut command: Value) -> Value {
    command["once"] = json!(true);
    command
}

/// A queue for receipts that outlives the test's own connection.
#[track_caller]
fn lasting_receipts(scene: &Scene) -> String {
    let name = scene.queue() + ".receipts";
    scene.amqp.declare_queue(&name, &[]);
    name
}

#[track_caller]
fn publish(scene: &Scene, receipts: &str, command: &Value) {
    let properties = persistent().with_reply_to(receipts.into());
    scene.publish_with(command.to_string().as_bytes(), properties);
}

/// The next receipt: which command, what became of it, and the answer.
#[track_caller]
fn next(receipts: &Inbox) -> (String, String, Value) {
    let receipt = receipts.next().json();
    let text = |field: &str| receipt[field].as_str().expect("a text").to_owned();
    (text("id"), text("outcome"), receipt["answer"].clone())
}

fn fate(id: &str, outcome: &str) -> (String, String, Value) {
    (id.into(), outcome.into(), Value::Null)
}

fn answered(id: &str, answer: &str) -> (String, String, Value) {
    (id.into(), "answered".into(), answer.into())
}

/// Cuts the bridge off its broker for as long as the broker lets nobody in.
#[track_caller]
fn cut(scene: &Scene, bridge: &Bridge) {
    shut_out(scene);
    until_cut(bridge);
}

#[track_caller]
fn shut_out(scene: &Scene) {
    scene.broker.ctl(&["suspend_listeners"]);
    scene.broker.ctl(&["close_all_connections", "a test of the operator's hand"]);
}

#[track_caller]
fn until_cut(bridge: &Bridge) {
    for connection in ["consumer", "publisher"] {
        let series = format!("rabbitline_broker_up{{connection=\"{connection}\"}}");
        bridge.until_metric(&series, |up| up == 0.0);
    }
}

/// Lets the bridge in again and waits until it has taken up what the broker delivers again.
#[track_caller]
fn mend(scene: &mut Scene, bridge: &mut Bridge, other: &mut Device) {
    scene.broker.ctl(&["resume_listeners"]);
    scene.amqp = Amqp::connect(scene.broker.port());
    bridge.until_ready();
    // It stands behind all of that in the queue.
    scene.publish(&command("127.0.0.3", "TAKEN UP"));
    assert_eq!(other.line(), "TAKEN UP\r\n");
}

/// Checks that a device has been written nothing else.
#[track_caller]
fn expect_nothing_more(scene: &Scene, bridge: &Bridge, device: &mut Device) {
    scene.publish(&command("127.0.0.2", "END"));
    assert_eq!(device.line(), "END\r\n");
    scene.until_drained(bridge);
    assert_eq!(bridge.metric("rabbitline_settlements_forgotten_total"), 0.0);
}

/// A broker of its own, a bridge on it that has several commands in hand, and two devices.
fn stage(name: &str, set: impl Fn(Setup) -> Setup) -> (Scene, Bridge, Device, Device) {
    let scene = Scene::alone(name);
    scene.declare();
    let setup = scene.setup().set("MQ_PREFETCH", "16").set("COMMAND_TIMEOUT", "10m");
    let bridge = set(setup).start();
    let (device, other) = (bridge.device("127.0.0.2"), bridge.device("127.0.0.3"));
    (scene, bridge, device, other)
}

#[test]
fn a_command_that_somebody_else_may_have_written_is_tried_again_unless_it_says_once() {
    let scene = Scene::new("redelivered");
    let bridge = scene.setup().set("MQ_PREFETCH", "16").start();
    let mut device = bridge.device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let kept = ["reject", "park", "drop"].map(|if_offline| {
        json!({"address": "127.0.0.2", "cmd": "NO", "id": if_offline, "once": true, "if_offline": if_offline})
    });
    let nameless = once(command("127.0.0.2", "NO"));

    let elsewhere = scene.amqp.intercept(&scene.queue(), 5);
    publish(
        &scene,
        &receipts.queue,
        &json!({"address": "127.0.0.2", "cmd": "AGAIN", "id": "again"}),
    );
    for command in kept.iter().chain([&nameless]) {
        publish(&scene, &receipts.queue, command);
    }
    elsewhere.give_back();

    assert_eq!(device.line(), "AGAIN\r\n");
    let mut fates: Vec<Value> = receipts.take(5).iter().map(|receipt| receipt.json()).collect();
    let written = fates.remove(0);
    assert_eq!((&written["id"], &written["outcome"]), (&json!("again"), &json!("written")));
    for receipt in fates {
        assert_eq!(receipt["outcome"], "uncertain", "{receipt}");
        assert!(receipt["reason"].is_string(), "{receipt}");
    }
    for command in kept.iter().chain([&nameless]) {
        let letter = undelivered.next();
        assert_eq!((letter.header("x-outcome"), &letter.json()), ("uncertain".into(), command));
    }
    expect_nothing_more(&scene, &bridge, &mut device);
}

#[test]
fn a_command_that_comes_for_the_first_time_is_written_and_may_say_once() {
    let scene = Scene::new("once");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let receipt = scene.receipt_of(&once(command("127.0.0.2", "ON")));
    assert_eq!(receipt["outcome"], "written", "{receipt}");
    assert_eq!(device.line(), "ON\r\n");
    let receipt = scene.receipt_of(&once(command("127.0.0.9", "ON")));
    assert_eq!(receipt["outcome"], "offline", "{receipt}");
    expect_nothing_more(&scene, &bridge, &mut device);
}

#[test]
fn a_command_in_hand_of_a_bridge_that_is_killed_is_not_written_by_the_next_if_it_says_once() {
    let scene = Scene::new("once-killed");
    let mut first = scene.setup().set("MQ_PREFETCH", "16").set("COMMAND_TIMEOUT", "10m").start();
    let receipts = scene.receipts();
    let mut device = first.device("127.0.0.2");
    publish(&scene, &receipts.queue, &once(asked("WRITTEN")));
    publish(&scene, &receipts.queue, &once(asked("WAITING")));
    assert_eq!(device.line(), "WRITTEN\r\n");
    first.until_metric("rabbitline_unsettled", |unsettled| unsettled == 2.0);

    first.program.kill();
    let second = scene.setup().start();
    let mut device = second.device("127.0.0.2");

    // Nobody can know any more that the second one was not written.
    assert_eq!(next(&receipts), fate("WRITTEN", "uncertain"));
    assert_eq!(next(&receipts), fate("WAITING", "uncertain"));
    expect_nothing_more(&scene, &second, &mut device);
}

#[test]
fn a_command_in_hand_of_a_bridge_that_ends_is_not_written_by_the_next_if_it_says_once() {
    let scene = Scene::new("once-ended");
    let setup = scene.setup().set("COMMAND_TIMEOUT", "10m").set("SHUTDOWN_GRACE", "1s");
    let first = setup.start();
    let receipts = scene.receipts();
    let mut device = first.device("127.0.0.2");
    publish(&scene, &receipts.queue, &once(asked("WRITTEN")));
    assert_eq!(device.line(), "WRITTEN\r\n");

    assert_eq!(first.terminate().code, Some(1), "its fate was not known in time");
    let second = setup.start();
    let mut device = second.device("127.0.0.2");

    // Said by the one, by the other, or by both.
    assert_eq!(next(&receipts), fate("WRITTEN", "uncertain"));
    expect_nothing_more(&scene, &second, &mut device);
    let again = receipts.so_far();
    assert!(again.iter().all(|receipt| receipt.json()["outcome"] == "uncertain"), "{again:?}");
}

#[test]
fn commands_that_wait_for_their_answer_are_not_written_again_when_the_broker_delivers_them_again() {
    let with_ids = |setup: Setup| {
        setup.set("DEVICE_ANSWER_PATTERN", r"^ACK (?<id>\w+)").set("DEVICE_ANSWER_ID", "id")
    };
    let (mut scene, mut bridge, mut device, mut other) = stage("adopted", with_ids);
    let receipts = lasting_receipts(&scene);
    let commands = [asked("C1"), once(asked("C2")), asked("C3"), once(asked("C4"))];
    for command in &commands {
        publish(&scene, &receipts, command);
        assert_eq!(device.line(), format!("{}\r\n", command["cmd"].as_str().expect("a text")));
    }

    cut(&scene, &bridge);
    // Two are answered while nobody can be told.
    device.send(b"ACK C1 EARLY\nACK C2 EARLY\n");
    bridge.until_metric("rabbitline_uplink_lines_total", |lines| lines == 2.0);
    mend(&mut scene, &mut bridge, &mut other);
    device.send(b"ACK C4\nACK C3\n");

    let receipts = scene.amqp.consume(&receipts);
    let mut fates: Vec<_> = (0..commands.len()).map(|_| next(&receipts)).collect();
    fates.sort_by_key(|(id, ..)| id.clone());
    let answers = ["ACK C1 EARLY", "ACK C2 EARLY", "ACK C3", "ACK C4"];
    let expected = ["C1", "C2", "C3", "C4"].iter().zip(answers);
    assert_eq!(fates, expected.map(|(id, answer)| answered(id, answer)).collect::<Vec<_>>());
    expect_nothing_more(&scene, &bridge, &mut device);
    assert_eq!(scene.amqp.depth(&scene.undelivered()), 0);
}

#[test]
fn commands_that_wait_in_a_lane_are_written_once_when_the_broker_delivers_them_again() {
    let (mut scene, mut bridge, mut device, mut other) = stage("lane-again", |setup| setup);
    let receipts = lasting_receipts(&scene);
    let commands = ["C1", "C2", "C3", "C4"];
    for (number, id) in commands.iter().enumerate() {
        let command = asked(id);
        publish(&scene, &receipts, &if number % 2 == 0 { once(command) } else { command });
    }
    assert_eq!(device.line(), "C1\r\n");
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 3.0);

    cut(&scene, &bridge);
    mend(&mut scene, &mut bridge, &mut other);
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 3.0);

    let receipts = scene.amqp.consume(&receipts);
    for (number, id) in commands.iter().enumerate() {
        if number > 0 {
            assert_eq!(device.line(), format!("{id}\r\n"), "in their order");
        }
        device.send(format!("ANSWER TO {id}\n").as_bytes());
        assert_eq!(next(&receipts), answered(id, &format!("ANSWER TO {id}")));
    }
    expect_nothing_more(&scene, &bridge, &mut device);
}

#[test]
fn commands_that_wait_to_be_acknowledged_are_not_written_again_when_the_broker_delivers_them_again()
{
    let (mut scene, mut bridge, device, mut other) = stage("received-again", |setup| {
        setup.set("DEVICE_WRITE_TIMEOUT", "10m").set("DEVICE_USER_TIMEOUT", "10m")
    });
    let mut device = {
        drop(device);
        bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
        bridge.narrow_device("127.0.0.2")
    };
    let receipts = lasting_receipts(&scene);
    // More than the device's window takes, so that it is not acknowledged before the device reads.
    let wide = "x".repeat(8_000);
    let first = json!({"address": "127.0.0.2", "cmd": wide, "id": "C1", "confirm": "received"});
    let second = json!({"address": "127.0.0.2", "cmd": "C2", "id": "C2", "confirm": "received"});
    publish(&scene, &receipts, &once(first));
    publish(&scene, &receipts, &second);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 2.0);
    assert_eq!(bridge.metric("rabbitline_lane_commands"), 0.0, "both are written");

    cut(&scene, &bridge);
    mend(&mut scene, &mut bridge, &mut other);

    assert_eq!((device.line(), device.line()), (wide + "\r\n", "C2\r\n".into()));
    let receipts = scene.amqp.consume(&receipts);
    assert_eq!([next(&receipts), next(&receipts)], ["C1", "C2"].map(|id| fate(id, "received")));
    expect_nothing_more(&scene, &bridge, &mut device);
}

#[test]
fn a_command_whose_link_or_time_ends_while_the_broker_is_away_gets_its_outcome_afterwards() {
    let (mut scene, mut bridge, mut device, mut other) = stage("ended-meanwhile", |setup| setup);
    let receipts = lasting_receipts(&scene);
    let mut late = asked("LATE");
    late["address"] = json!("127.0.0.4");
    late["timeout_ms"] = json!(1_000);
    let mut mute = bridge.device("127.0.0.4");
    publish(&scene, &receipts, &once(asked("LOST")));
    publish(&scene, &receipts, &late);
    assert_eq!((device.line(), mute.line()), ("LOST\r\n".into(), "LATE\r\n".into()));

    // The bridge stands still, so that it notices the end of that time together with the cut.
    bridge.program.signal("STOP");
    shut_out(&scene);
    bridge.program.signal("CONT");
    until_cut(&bridge);
    drop(device);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 2.0);
    bridge.until_metric("rabbitline_commands_total{outcome=\"unanswered\"}", |count| count == 1.0);
    let mut device = bridge.device("127.0.0.2");
    mend(&mut scene, &mut bridge, &mut other);

    let receipts = scene.amqp.consume(&receipts);
    let mut fates = [next(&receipts), next(&receipts)];
    fates.sort_by_key(|(id, ..)| id.clone());
    assert_eq!(fates, [fate("LATE", "unanswered"), fate("LOST", "uncertain")]);
    expect_nothing_more(&scene, &bridge, &mut device);
    scene.publish(&json!({"address": "127.0.0.4", "cmd": "END"}));
    assert_eq!(mute.line(), "END\r\n");
}

#[test]
fn a_command_without_an_id_is_not_recognized_when_the_broker_delivers_it_again() {
    let (mut scene, mut bridge, mut device, mut other) = stage("nameless", |setup| setup);
    let undelivered = scene.undelivered();
    let nameless = |cmd| json!({"address": "127.0.0.2", "cmd": cmd, "confirm": "answered"});
    scene.publish(&once(nameless("ONCE")));
    scene.publish(&nameless("AGAIN"));
    assert_eq!(device.line(), "ONCE\r\n");
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 1.0);

    cut(&scene, &bridge);
    mend(&mut scene, &mut bridge, &mut other);

    let letter = scene.amqp.consume(&undelivered).next();
    assert_eq!(
        (letter.header("x-outcome"), letter.json()),
        ("uncertain".into(), once(nameless("ONCE")))
    );
    // The device still owes an answer to the first, which is nobody's now.
    device.send(b"ANSWER TO ONCE\n");
    assert_eq!(device.line(), "AGAIN\r\n");
    device.send(b"ANSWER TO AGAIN\n");
    eventually("the queue is empty", || match scene.amqp.queue(&scene.queue()) {
        Ok((0, 1)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    expect_nothing_more(&scene, &bridge, &mut device);
}
