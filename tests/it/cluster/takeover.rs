//! A device that connects to another bridge: one bridge has it at a time, its commands keep their order, and readers
//! of presence are told the truth.

use std::time::UNIX_EPOCH;

use lapin::types::AMQPValue;
use serde_json::{Value, json};

use super::{outcomes, pair, setup, until_online};
use crate::harness::{
    Device, Inbox, STALL_LINE_MAX, Scene, command, eventually, goes_on_where_it_moved, persistent,
    reply_to, stall, table,
};

/// The next events of one device, each of which follows from the one before.
#[track_caller]
fn told(presence: &Inbox, count: usize) -> Vec<Value> {
    let events: Vec<Value> = presence.take(count).iter().map(|event| event.json()).collect();
    for pair in events.windows(2) {
        let epochs = [&pair[0], &pair[1]].map(|event| event["epoch"].as_u64().expect("an epoch"));
        let fits = match (pair[0]["online"] == true, pair[1]["online"] == true) {
            (true, false) => epochs[0] == epochs[1],
            (false, true) => epochs[0] < epochs[1],
            (true, true) | (false, false) => false,
        };
        assert!(fits, "{} and then {}", pair[0], pair[1]);
    }
    events
}

/// Waits until so many commands have come over these connections, one after the other: each once, in order.
#[track_caller]
fn arrived(mut connections: Vec<Device>, count: usize) {
    let mut lines: Vec<String> = Vec::new();
    let mut last = connections.pop().expect("at least one connection");
    for mut ended in connections {
        let ended = ended.until_closed();
        lines.extend(ended.into_iter().map(|line| String::from_utf8(line).expect("UTF-8")));
    }
    eventually("every command has arrived", || {
        lines.extend(last.so_far());
        if lines.len() >= count { Ok(()) } else { Err(format!("{} of {count}", lines.len())) }
    });
    let numbers: Vec<usize> =
        lines.iter().map(|line| line.trim_end().parse().expect("a number")).collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn a_device_that_moves_from_bridge_to_bridge_gets_each_command_once_and_in_order() {
    const MOVES: usize = 6;
    const COMMANDS: usize = 60;
    let scene = Scene::new("cluster-moves");
    // One bridge at a time takes commands off the queue: then the queue's order is that of the commands.
    scene.declare_with(&[("x-single-active-consumer", AMQPValue::Boolean(true))]);
    let presence = scene.presence();
    let bridges = ["a", "b"].map(|name| {
        let setup = setup(&scene, name).set("MQ_PREFETCH", "32").set("DEVICE_LANE_MAX", "1000");
        setup.start()
    });
    let mut connections = Vec::new();
    let mut published = 0;
    for at in 0..MOVES {
        connections.push(bridges[at % 2].device("127.0.0.2"));
        for _ in 0..COMMANDS {
            scene.publish(&command("127.0.0.2", &published.to_string()));
            published += 1;
        }
    }

    // Ends the last connection, too.
    arrived(connections, published);
    let events = told(&presence, 2 * MOVES);
    for (at, event) in events.iter().enumerate() {
        let bridge = ["a", "b"][(at / 2) % 2];
        assert_eq!((&event["bridge"], &event["online"]), (&json!(bridge), &json!(at % 2 == 0)));
        let end = if at == 2 * MOVES - 1 { "closed" } else { "replaced" };
        let reason = if at % 2 == 0 { "connected" } else { end };
        assert_eq!(event["reason"], reason, "{event}");
    }
    assert_eq!(outcomes(&bridges, "written"), published as f64);
    // What the device had not acknowledged when its connection was closed is told as uncertain besides.
    for outcome in ["offline", "overloaded", "expired"] {
        assert_eq!(outcomes(&bridges, outcome), 0.0, "{outcome}");
    }
}

#[test]
fn what_waits_for_a_device_that_does_not_read_arrives_first_where_it_connects_next() {
    let scene = Scene::new("cluster-inherit");
    let presence = scene.presence();
    let start = |name| {
        let setup = setup(&scene, name).set("DEVICE_LINE_MAX", STALL_LINE_MAX);
        setup.set("DEVICE_WRITE_TIMEOUT", "10m").set("MQ_PREFETCH", "4").start()
    };
    let first = start("a");
    let mut old = first.narrow_device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let published = stall(&scene, &first, "127.0.0.2", 5);
    let second = start("b");
    let undelivered = scene.undelivered_inbox();

    let mut new = second.device("127.0.0.2");

    goes_on_where_it_moved(&mut old, &mut new, published);
    let bridges = [first, second];
    for bridge in &bridges {
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    }
    let uncertain = outcomes(&bridges, "uncertain");
    assert!(uncertain <= 1.0, "only the one that was partly written: {uncertain}");
    assert_eq!(outcomes(&bridges, "written") + uncertain, published as f64);
    assert_eq!(undelivered.take(uncertain as usize).len() as f64, uncertain);
    assert_eq!(bridges[0].metric("rabbitline_route_devices_handed_over_total"), 1.0);
}

#[test]
fn commands_for_the_route_exchange_keep_their_order_while_the_device_moves() {
    const MOVES: usize = 6;
    const COMMANDS: usize = 60;
    let scene = Scene::new("cluster-direct-moves");
    let presence = scene.presence();
    let bridges = pair(&scene);
    let mut connections = vec![bridges[0].device("127.0.0.2")];
    until_online(&presence, "127.0.0.2", "a");
    let mut published = 0;
    for at in 0..MOVES {
        for _ in 0..COMMANDS {
            // In the moment of a move it comes back.
            let body = command("127.0.0.2", &published.to_string()).to_string();
            scene.amqp.publish_until_taken(&scene.routes(), "127.0.0.2", body.as_bytes());
            published += 1;
        }
        connections.push(bridges[(at + 1) % 2].device("127.0.0.2"));
    }

    arrived(connections, published);
    assert_eq!(outcomes(&bridges, "written"), published as f64);
    assert_eq!(outcomes(&bridges, "offline"), 0.0);
}

/// Microseconds since 1970, some two centuries from now: what a bridge gives out whose clock is far ahead.
const FAR_AHEAD: u64 = 8_000_000_000_000_000;

/// Tells what a bridge tells that is not there.
#[track_caller]
fn tell(scene: &Scene, address: &str, online: bool, epoch: u64) {
    let event =
        json!({"address": address, "online": online, "epoch": epoch, "bridge": "elsewhere"});
    let key = format!("presence.{address}");
    scene.amqp.publish(&scene.events(), &key, event.to_string().as_bytes(), persistent());
}

#[test]
fn epochs_grow_from_bridge_to_bridge_when_their_clocks_differ() {
    let scene = Scene::new("cluster-epochs");
    let presence = scene.presence();
    let ahead = setup(&scene, "a").start();
    tell(&scene, "127.0.0.9", false, FAR_AHEAD);
    let mut old = eventually("the bridge has heard of the epoch", || {
        let device = ahead.device("127.0.0.2");
        match until_online(&presence, "127.0.0.2", "a")["epoch"].as_u64() {
            Some(epoch) if epoch > FAR_AHEAD => Ok(device),
            other => Err(format!("{other:?}")),
        }
    });
    // This one was not there when that was told.
    let behind = setup(&scene, "b").start();
    behind.until_metric("rabbitline_route_bridges", |known| known == 1.0);
    let before = scene.presence();

    let _new = behind.device("127.0.0.2");

    assert_eq!(old.until_closed(), Vec::<Vec<u8>>::new());
    let events = told_of(&before, "127.0.0.2", 2);
    assert_eq!((&events[0]["bridge"], &events[0]["reason"]), (&json!("a"), &json!("replaced")));
    assert_eq!((&events[1]["bridge"], &events[1]["online"]), (&json!("b"), &json!(true)));
    assert!(events[1]["epoch"].as_u64() > events[0]["epoch"].as_u64(), "{events:?}");
    let listed = behind.until_listed("address", "127.0.0.2");
    assert_eq!(listed["epoch"], events[1]["epoch"], "the same everywhere");
}

/// The next events of one device.
#[track_caller]
fn told_of(presence: &Inbox, address: &str, count: usize) -> Vec<Value> {
    let mut events = std::iter::repeat_with(|| presence.next().json());
    events.by_ref().filter(|event| event["address"] == address).take(count).collect()
}

#[test]
fn of_two_bridges_that_a_device_came_to_at_once_the_one_with_the_lower_epoch_lets_it_go() {
    let scene = Scene::new("cluster-both");
    let presence = scene.presence();
    let bridge = setup(&scene, "a").start();
    let mut device = bridge.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");

    tell(&scene, "127.0.0.2", true, FAR_AHEAD);

    assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new());
    bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
    let mut other = bridge.device("127.0.0.3");
    let events = told(&presence, 1);
    assert_eq!(events[0]["bridge"], "elsewhere");
    let next = presence.next().json();
    assert_eq!(next["address"], "127.0.0.3", "nothing is said of the end of the other: {next}");
    assert_eq!(other.so_far(), Vec::<String>::new());
}

#[test]
fn what_may_be_a_copy_and_says_once_is_not_written_again() {
    let scene = Scene::new("cluster-copy");
    let presence = scene.presence();
    let bridge = setup(&scene, "a").start();
    let mut device = bridge.device("127.0.0.2");
    until_online(&presence, "127.0.0.2", "a");
    let receipts = scene.receipts();
    let now = UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let send = |id: &str, exchange: &str, key: &str, marks: &[(&str, AMQPValue)]| {
        let body = json!({ "address": "127.0.0.2", "cmd": id, "id": id, "once": true }).to_string();
        let properties = reply_to(&receipts).with_timestamp(now).with_headers(table(marks));
        scene.amqp.publish(exchange, key, body.as_bytes(), properties);
    };
    let copy = [
        ("x-route-address", AMQPValue::LongString("127.0.0.2".into())),
        ("x-route-hops", AMQPValue::LongInt(1)),
        ("x-route-redelivered", AMQPValue::Boolean(true)),
    ];
    let inbox = format!("{}.a", scene.routes());
    let outcome = || receipts.next().json()["outcome"].clone();

    for (exchange, key) in
        [(scene.routes(), "127.0.0.2".to_owned()), (String::new(), scene.queue())]
    {
        send(&key, &exchange, &key, &[]);
        assert_eq!((device.line(), outcome()), (format!("{key}\r\n"), json!("written")));
        send(&key, "", &inbox, &copy);
        assert_eq!(outcome(), "written", "as the first was");
    }
    send("unknown", "", &inbox, &copy);
    assert_eq!(outcome(), "uncertain");
    // As the broker says of what nobody took out of the inbox of a bridge that has died.
    let died = format!("{}.gone", scene.routes());
    let died = [("x-first-death-queue", AMQPValue::LongString(died.into()))];
    send("died", "", &scene.queue(), &died);
    assert_eq!(outcome(), "uncertain", "it may have been in hand there");
    send("last", &scene.routes(), "127.0.0.2", &[]);
    assert_eq!(device.line(), "last\r\n", "nothing came twice");
}
