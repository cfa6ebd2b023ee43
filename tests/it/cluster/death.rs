//! A bridge that dies: what came for it reaches its devices where they are then.

use serde_json::json;

use super::{kill, setup, until_online};
use crate::harness::{Inbox, Scene, command, eventually, persistent, reply_to};

/// The inbox of a bridge.
fn inbox(scene: &Scene, name: &str) -> String {
    format!("{}.{name}", scene.routes())
}

/// Publishes to whoever has the device at 127.0.0.2: 0, 1, 2 and so on, with the ids m-0, m-1, m-2.
#[track_caller]
fn publish_numbers(scene: &Scene, receipts: &Inbox, count: usize) {
    let messages = (0..count).map(|number| {
        let body = command("127.0.0.2", &number.to_string()).to_string().into_bytes();
        (body, reply_to(receipts).with_message_id(format!("m-{number}").into()))
    });
    scene.amqp.publish_all(&scene.routes(), "127.0.0.2", messages);
}

/// Waits until nothing of a bridge is left at the broker.
#[track_caller]
fn until_gone(scene: &Scene, name: &str) {
    let inbox = inbox(scene, name);
    eventually("its queue is gone", || match scene.amqp.queue(&inbox) {
        Err(_) => Ok(()),
        Ok(depth) => Err(format!("{depth:?}")),
    });
    until_shut(scene, &inbox);
}

/// Waits until nothing but an empty queue of a bridge is left, which nobody reads.
#[track_caller]
fn until_left(scene: &Scene, name: &str) {
    let inbox = inbox(scene, name);
    eventually("its queue is empty, and nobody reads it", || match scene.amqp.queue(&inbox) {
        Ok((0, 0)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    until_shut(scene, &inbox);
}

#[track_caller]
fn until_shut(scene: &Scene, inbox: &str) {
    until_no_exchange(scene, &format!("{inbox}.gate.0"));
}

/// The exchange of one generation of a bridge's gate that is declared last and deleted last.
fn last_shard(scene: &Scene, name: &str, generation: usize) -> String {
    format!("{}.gate.{generation}.15", inbox(scene, name))
}

#[track_caller]
fn until_no_exchange(scene: &Scene, name: &str) {
    eventually("an exchange is gone", || {
        scene.amqp.exchange(name).is_err().then_some(()).ok_or_else(|| format!("{name} is there"))
    });
}

#[test]
fn commands_in_the_inbox_of_a_bridge_that_is_killed_reach_the_device_at_another() {
    const COMMANDS: usize = 30;
    let scene = Scene::new("cluster-killed");
    let presence = scene.presence();
    let start = |name| setup(&scene, name).set("CLUSTER_GONE_AFTER", "1s").start();
    let (first, second) = (start("a"), start("b"));
    second.until_metric("rabbitline_route_bridges", |known| known == 1.0);
    let old = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let receipts = scene.receipts();
    first.program.signal("STOP");
    publish_numbers(&scene, &receipts, COMMANDS);
    let mut device = second.device("127.0.0.2");

    kill(first);

    for number in 0..COMMANDS {
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    for (number, letter) in receipts.take(COMMANDS).iter().enumerate() {
        let receipt = letter.json();
        assert_eq!(receipt["id"], format!("m-{number}"));
        assert_eq!((&receipt["outcome"], &receipt["bridge"]), (&json!("written"), &json!("b")));
    }
    until_online(&presence, "127.0.0.2", "b");
    until_gone(&scene, "a");
    assert_eq!(second.metric("rabbitline_route_bridges_taken_over_total"), 1.0);
    drop(old);

    // It comes back, and its devices with it.
    let first = start("a");
    let mut back = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    scene.publish(&command("127.0.0.2", "BACK"));
    assert_eq!(back.line(), "BACK\r\n");
    assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
    assert_eq!(receipts.so_far().len(), 0, "each was told once");
}

#[test]
fn a_bridge_that_died_before_the_others_came_is_found_by_what_comes_for_it() {
    let scene = Scene::new("cluster-forgotten");
    let presence = scene.presence();
    let start = |name| setup(&scene, name).set("CLUSTER_GONE_AFTER", "1s").start();
    let first = start("a");
    let old = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    kill(first);
    drop(old);
    let second = start("b");
    let mut device = second.device("127.0.0.2");

    // Nobody takes it out of the queue of the first bridge, and the broker gives it to the second.
    let brief = command("127.0.0.2", "TOO LATE").to_string();
    let properties = persistent().with_expiration("500".into());
    scene.amqp.publish(&scene.routes(), "127.0.0.2", brief.as_bytes(), properties);

    until_online(&presence, "127.0.0.2", "b");
    until_gone(&scene, "a");
    let body = command("127.0.0.2", "NOW").to_string();
    scene.amqp.publish_until_taken(&scene.routes(), "127.0.0.2", body.as_bytes());
    assert_eq!(device.line(), "NOW\r\n");
    assert_eq!(second.outcomes("expired"), 1.0, "its time was over");
}

#[test]
fn a_bridge_that_is_told_to_end_leaves_nothing_behind() {
    const COMMANDS: usize = 50;
    let scene = Scene::new("cluster-ends");
    let presence = scene.presence();
    let start = |name| setup(&scene, name).set("CLUSTER_MOVING", "1s").start();
    let (first, second) = (start("a"), start("b"));
    let _device = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let receipts = scene.receipts();
    publish_numbers(&scene, &receipts, COMMANDS);

    let finished = first.terminate();

    assert_eq!(finished.code, Some(0), "nothing was cut short");
    until_gone(&scene, "a");
    until_no_exchange(&scene, &last_shard(&scene, "a", 0));
    for letter in receipts.take(COMMANDS) {
        let receipt = letter.json();
        let ends = ["written", "offline"].contains(&receipt["outcome"].as_str().unwrap_or(""));
        assert!(ends, "{receipt}");
    }
    assert_eq!(second.metric("rabbitline_route_bridges_taken_over_total"), 0.0);
    assert_eq!(presence.take(1)[0].json()["online"], false);
}

#[test]
fn a_bridge_without_time_leaves_what_waits_in_its_queue_to_another() {
    const COMMANDS: usize = 4_000;
    let scene = Scene::new("cluster-hurry");
    let presence = scene.presence();
    let setup = |name| setup(&scene, name).set("CLUSTER_GONE_AFTER", "1s");
    let setup = |name| setup(name).set("CLUSTER_MOVING", "0s").set("CLUSTER_DRAIN_SPREAD", "0s");
    // Time enough to end in order on a busy machine, and too little for all that waits.
    let (first, second) = (setup("a").set("SHUTDOWN_GRACE", "3s").start(), setup("b").start());
    second.until_metric("rabbitline_route_bridges", |known| known == 1.0);
    let _device = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let receipts = scene.receipts();
    first.program.signal("STOP");
    publish_numbers(&scene, &receipts, COMMANDS);

    first.program.signal("TERM");
    first.program.signal("CONT");

    assert_eq!(first.program.finish().code, Some(0), "all that it took had an outcome");
    let mut ids: Vec<String> = Vec::new();
    for letter in receipts.take(COMMANDS) {
        let receipt = letter.json();
        let ends = ["written", "offline"].contains(&receipt["outcome"].as_str().unwrap_or(""));
        assert!(ends, "{receipt}");
        ids.push(receipt["id"].as_str().expect("an id").to_owned());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), COMMANDS, "each has one");
    println!("{} were left to the other", second.outcomes("offline"));
    until_gone(&scene, "a");
}

#[test]
fn a_bridge_that_died_comes_back_before_its_old_bindings_are_deleted() {
    let scene = Scene::new("cluster-back");
    let presence = scene.presence();
    let start = |name| setup(&scene, name).set("CLUSTER_GONE_AFTER", "1s").start();
    let (first, second) = (start("a"), start("b"));
    second.until_metric("rabbitline_route_bridges", |known| known == 1.0);
    let _left = [first.device("127.0.0.2"), first.device("127.0.0.3")];
    until_online(&presence, "127.0.0.3", "a");
    kill(first);
    second.until_logged(&["what came for a bridge that is gone is taken on"]);
    let undelivered = scene.undelivered_inbox();

    let first = start("a");
    // By the binding that is left nothing comes to the bridge that is back.
    scene.publish(&command("127.0.0.2", "NOBODY THERE"));
    assert_eq!(undelivered.next().header("x-outcome"), "offline");
    let mut device = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    scene.publish(&command("127.0.0.2", "ONE"));
    assert_eq!(device.line(), "ONE\r\n");

    until_no_exchange(&scene, &last_shard(&scene, "a", 0));
    assert!(scene.amqp.exchange(&last_shard(&scene, "a", 1)).is_ok(), "it is in use");
    scene.publish(&command("127.0.0.2", "TWO"));
    assert_eq!(device.line(), "TWO\r\n", "its own binding is there still");
}

#[test]
fn a_bridge_that_dies_again_and_again_is_found_each_time() {
    /// More often than there are names for what it leaves behind.
    const DEATHS: usize = 10;
    let scene = Scene::new("cluster-again");
    let presence = scene.presence();
    for death in 0..DEATHS {
        let bridge = setup(&scene, "a").start();
        let mut device = bridge.device("127.0.0.2");
        until_online(&presence, "127.0.0.2", "a");
        let body = command("127.0.0.2", &death.to_string()).to_string();
        scene.amqp.publish(&scene.routes(), "127.0.0.2", body.as_bytes(), persistent());
        assert_eq!(device.line(), format!("{death}\r\n"));
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
        kill(bridge);
    }
}

#[test]
fn a_bridge_that_died_comes_back_while_a_device_has_not_answered_what_was_in_its_queue() {
    comes_back_while_one_is_unanswered("classic");
}

#[test]
fn the_same_with_a_quorum_queue_whose_reader_has_credit_left() {
    comes_back_while_one_is_unanswered("quorum");
}

fn comes_back_while_one_is_unanswered(queue_type: &str) {
    let scene = Scene::new(&format!("cluster-unanswered-{queue_type}"));
    let presence = scene.presence();
    let start = |name| {
        let setup = setup(&scene, name).set("CLUSTER_GONE_AFTER", "1s");
        setup.set("MQ_QUEUE_TYPE", queue_type).set("MQ_PREFETCH", "16").start()
    };
    let (first, second) = (start("a"), start("b"));
    second.until_metric("rabbitline_route_bridges", |known| known == 1.0);
    let _old = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let receipts = scene.receipts();
    first.program.signal("STOP");
    let mut ask = command("127.0.0.2", "STATUS");
    ask["confirm"] = json!("answered");
    ask["timeout_ms"] = json!(600_000);
    let body = ask.to_string();
    scene.amqp.publish(&scene.routes(), "127.0.0.2", body.as_bytes(), reply_to(&receipts));
    let mut device = second.device("127.0.0.2");
    kill(first);
    assert_eq!(device.line(), "STATUS\r\n");

    let first = start("a");
    let mut other = first.device("127.0.0.3");
    until_online(&presence, "127.0.0.3", "a");
    // Far more than the other bridge might still take.
    for number in 0..100 {
        let body = command("127.0.0.3", &number.to_string()).to_string();
        scene.amqp.publish_until_taken(&scene.routes(), "127.0.0.3", body.as_bytes());
        assert_eq!(other.line(), format!("{number}\r\n"));
    }
    device.send(b"FINE\n");
    assert_eq!(receipts.next().json()["answer"], "FINE");
    assert_eq!(second.terminate().code, Some(0));
    assert_eq!(first.terminate().code, Some(0));
    assert_eq!(scene.amqp.queue(&inbox(&scene, "a")).map_or(0, |(depth, _)| depth), 0);
}

#[test]
fn a_cluster_on_quorum_queues_takes_over_too_and_leaves_empty_queues_behind() {
    let scene = Scene::new("cluster-quorum");
    let presence = scene.presence();
    let start = |name| {
        let setup = setup(&scene, name).set("CLUSTER_GONE_AFTER", "1s");
        setup.set("MQ_QUEUE_TYPE", "quorum").start()
    };
    let (first, second) = (start("a"), start("b"));
    second.until_metric("rabbitline_route_bridges", |known| known == 1.0);
    let old = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    first.program.signal("STOP");
    for number in 0..3 {
        let body = command("127.0.0.2", &number.to_string()).to_string();
        scene.amqp.publish_until_taken(&scene.routes(), "127.0.0.2", body.as_bytes());
    }
    let mut device = second.device("127.0.0.2");

    kill(first);
    drop(old);

    let mut lines: Vec<String> = (0..3).map(|_| device.line()).collect();
    // A quorum queue puts what was in hand behind the others.
    lines.sort();
    assert_eq!(lines, ["0\r\n", "1\r\n", "2\r\n"]);
    until_left(&scene, "a");
    assert_eq!(second.terminate().code, Some(0));
    until_left(&scene, "b");

    // The next one of that name takes it up.
    let first = start("a");
    let mut device = first.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    scene.publish(&command("127.0.0.2", "BACK"));
    assert_eq!(device.line(), "BACK\r\n");
}
