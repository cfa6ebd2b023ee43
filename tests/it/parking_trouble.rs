//! What is parked survives the bridge, the broker and the connections between them, and keeps its order.

use std::collections::HashSet;

use lapin::types::AMQPValue;
use serde_json::json;

use crate::harness::{
    Amqp, Bridge, Device, Fleet, Proxy, STALL_LINE_MAX, Scene, Setup, Stream, address, command,
    eventually, free_port, park, reply_to, stalling_line, stalling_number,
};

const ADDRESS: &str = "127.0.0.9";
/// Parked commands of one device that the bridge has in hand at a time, and so the most that come twice.
const IN_HAND: usize = 32;
const DEVICES: usize = 10;
const PREFETCH: usize = 64;

#[test]
fn a_bridge_that_is_killed_leaves_what_is_parked_to_the_next() {
    let scene = Scene::new("parked-killed");
    let setup = midway(&scene);
    let mut bridge = setup.start();
    let stream = Stream::publish(&scene, DEVICES, 1_000);
    scene.until_drained(&bridge);
    bridge.program.kill();

    let bridge = setup.start();
    let fleet = Fleet::start(DEVICES, bridge.device_port);

    until_all_arrived(&scene, &bridge, &stream, &fleet, PREFETCH);
}

#[test]
fn a_bridge_killed_in_the_midst_of_parked_commands_repeats_only_those_in_hand() {
    let scene = Scene::new("parked-killed-midway");
    let port = free_port();
    let setup = midway(&scene).set("DEVICE_LISTEN", format!("127.0.0.1:{port}"));
    let mut bridge = setup.start();
    let stream = Stream::publish(&scene, DEVICES, 10_000);
    scene.until_drained(&bridge);

    let fleet = Fleet::start(DEVICES, port);
    eventually("a part has arrived", || fleet.has(stream.total() / 20));
    bridge.program.kill();
    let before = fleet.distinct();
    assert!(before < stream.total(), "it was killed too late to show anything");
    let bridge = setup.start();

    until_all_arrived(&scene, &bridge, &stream, &fleet, DEVICES * IN_HAND);
    assert_eq!(bridge.outcomes("offline") + bridge.outcomes("uncertain"), 0.0);
}

#[test]
fn a_bridge_told_to_end_in_the_midst_of_parked_commands_leaves_the_rest_to_the_next() {
    let scene = Scene::new("parked-terminated");
    let port = free_port();
    let setup = midway(&scene).set("DEVICE_LISTEN", format!("127.0.0.1:{port}"));
    let bridge = setup.start();
    let stream = Stream::publish(&scene, DEVICES, 10_000);
    scene.until_drained(&bridge);

    let fleet = Fleet::start(DEVICES, port);
    eventually("a part has arrived", || fleet.has(stream.total() / 20));
    let end = bridge.terminate();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert!(fleet.distinct() < stream.total(), "it ended too late to show anything");
    let bridge = setup.start();

    until_all_arrived(&scene, &bridge, &stream, &fleet, DEVICES * IN_HAND);
}

#[test]
fn a_broker_that_crashes_and_returns_has_what_was_parked() {
    let mut scene = Scene::alone("parked-broker-crash");
    scene.declare();
    let bridge = midway(&scene).start();
    let stream = Stream::publish(&scene, DEVICES, 500);
    scene.until_drained(&bridge);
    scene.broker.sync();

    scene.broker.kill();
    bridge.until_not_ready();
    let fleet = Fleet::start(DEVICES, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    scene.restart_broker();

    // The broker may have forgotten that they were acknowledged in the command queue, and then they are new as well.
    until_all_arrived(&scene, &bridge, &stream, &fleet, stream.total());
    assert_eq!(fleet.connections(), DEVICES, "no device was cut off");
}

#[test]
fn connections_cut_in_the_midst_of_parked_commands_cost_only_repeats_of_those_in_hand() {
    let mut scene = Scene::alone("parked-cut");
    scene.declare();
    let bridge = midway(&scene).start();
    let stream = Stream::publish(&scene, DEVICES, 10_000);
    scene.until_drained(&bridge);

    let fleet = Fleet::start(DEVICES, bridge.device_port);
    eventually("a part has arrived", || fleet.has(stream.total() / 20));
    // The bridge stands still while the operator's tool starts, so that the cut comes in the midst of the commands.
    bridge.program.signal("STOP");
    scene.broker.ctl(&["close_all_connections", "a test of the operator's hand"]);
    assert!(fleet.distinct() < stream.total(), "they were cut too late to show anything");
    bridge.program.signal("CONT");
    scene.amqp = Amqp::connect(scene.broker.port());

    until_all_arrived(&scene, &bridge, &stream, &fleet, DEVICES * IN_HAND);
    assert_eq!(fleet.connections(), DEVICES, "no device was cut off");
}

#[test]
fn a_parked_command_that_says_once_is_written_once_though_its_link_breaks() {
    let scene = Scene::new("parked-once");
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    for cmd in ["FIRST", "SECOND"] {
        let command = json!({
            "address": ADDRESS, "cmd": cmd, "if_offline": "park", "once": true, "confirm": "answered",
        });
        let properties = reply_to(&receipts).with_correlation_id(cmd.into());
        scene.publish_with(command.to_string().as_bytes(), properties);
        assert_eq!(receipts.next().json()["outcome"], "parked");
    }
    let mut device = bridge.device(ADDRESS);
    assert_eq!(device.line(), "FIRST\r\n");

    device.reset();

    let letter = undelivered.next();
    assert_eq!(
        (letter.header("x-outcome"), &letter.json()["cmd"]),
        ("uncertain".into(), &json!("FIRST"))
    );
    let receipt = receipts.next();
    assert_eq!(receipt.json()["outcome"], "uncertain");
    assert_eq!(receipt.correlation_id(), Some("FIRST"));
    let mut device = bridge.device(ADDRESS);
    assert_eq!(device.line(), "SECOND\r\n", "the first is not written again");
    device.send(b"DONE\n");
    assert_eq!(receipts.next().json()["outcome"], "answered");
    until_nothing_is_parked(&scene, &bridge);
}

#[test]
fn a_parked_command_that_says_once_is_written_once_though_the_broker_is_lost() {
    // One is written in part, and others wait behind it.
    once_each_and_in_order("classic", 2.0);
}

#[test]
fn commands_parked_in_a_quorum_queue_keep_their_order_though_the_broker_is_lost() {
    // It would give back several in the order of their tags as text: 1, 10, 11, …, 2.
    once_each_and_in_order("quorum", 1.0);
}

/// Cuts the bridge off while `waiting` parked commands are in hand.
fn once_each_and_in_order(queue_type: &str, waiting: f64) {
    let mut scene = Scene::alone("parked-once-cut");
    let bridge = scene
        .setup()
        .set("MQ_QUEUE_TYPE", queue_type)
        .set("DEVICE_LINE_MAX", STALL_LINE_MAX)
        .set("DEVICE_WRITE_TIMEOUT", "10m")
        .set("DEVICE_USER_TIMEOUT", "10m")
        .start();
    const COMMANDS: usize = 60;
    for number in 0..COMMANDS {
        scene.publish(&json!({
            "address": ADDRESS, "cmd": stalling_line(number), "if_offline": "park", "once": true,
            "id": number.to_string(),
        }));
    }
    scene.until_drained(&bridge);
    let mut device = bridge.narrow_device(ADDRESS);
    bridge.until_metric("rabbitline_lane_commands", |in_lane| in_lane >= waiting);

    scene.broker.ctl(&["close_all_connections", "a test of the operator's hand"]);
    bridge.until_metric("rabbitline_lane_commands", |in_lane| in_lane >= waiting);
    scene.amqp = Amqp::connect(scene.broker.port());

    scene.publish(&command(ADDRESS, "END"));
    let mut numbers = Vec::new();
    loop {
        let line = device.line();
        if line == "END\r\n" {
            break;
        }
        numbers.push(stalling_number(line.as_bytes()));
    }
    assert_eq!(numbers, (0..COMMANDS).collect::<Vec<_>>(), "each once");
    until_nothing_is_parked(&scene, &bridge);
}

#[test]
fn commands_parked_by_an_earlier_bridge_go_before_new_ones() {
    const PARKED: usize = 200;
    let scene = Scene::new("parked-earlier");
    let bridge = midway(&scene).start();
    scene.park_numbers(ADDRESS, 0..PARKED);
    scene.until_parked(ADDRESS, PARKED);
    // Not killed: none may be delivered again.
    assert_eq!(bridge.terminate().code, Some(0));
    let bridge = midway(&scene).start();

    let mut device = Device::connect(ADDRESS, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
    scene.publish_mixed(ADDRESS, PARKED..2 * PARKED, |number| number.to_string());

    for number in 0..2 * PARKED {
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    until_nothing_is_parked(&scene, &bridge);
}

#[test]
fn what_was_in_hand_on_a_connection_that_went_half_open_is_waited_for() {
    let scene = Scene::new("parked-half-open");
    let proxy = Proxy::start(scene.broker.port());
    let setup = scene.setup().set("MQ_PORT", proxy.port().to_string()).set("MQ_HEARTBEAT", "1s");
    let bridge = setup.set("COMMAND_CONFIRM", "answered").start();
    scene.park_numbers(ADDRESS, 0..IN_HAND);
    scene.until_parked(ADDRESS, IN_HAND);
    let mut device = Device::connect(ADDRESS, bridge.device_port);
    assert_eq!(device.line(), "0\r\n");

    // The broker takes what the bridge has in hand to be there still, until it misses the heartbeats.
    proxy.cut_half(usize::MAX);
    bridge.until_logged(&["retry_in_ms", "consumer"]);
    device.send(b"OK\n");

    for number in 1..IN_HAND {
        assert_eq!(device.line(), format!("{number}\r\n"));
        device.send(b"OK\n");
    }
    until_nothing_is_parked(&scene, &bridge);
}

#[test]
fn a_command_parked_by_an_earlier_bridge_expires_in_the_broker_all_the_same() {
    let scene = Scene::new("parked-orphan");
    let mut bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    let late = json!({"address": ADDRESS, "cmd": "LATE", "if_offline": "park", "ttl_ms": 3_000});
    scene.publish(&late);
    scene.publish(&park(ADDRESS, "ON TIME"));
    scene.until_parked(ADDRESS, 2);
    bridge.program.kill();

    let letter = undelivered.next();
    assert_eq!((letter.header("x-outcome"), letter.json()), ("expired".into(), late));
    let bridge = scene.setup().start();
    let mut device = bridge.device(ADDRESS);
    assert_eq!(device.line(), "ON TIME\r\n");
    until_nothing_is_parked(&scene, &bridge);
}

#[test]
fn a_queue_of_parked_commands_that_is_sick_stops_no_other_command() {
    let scene = Scene::alone("parked-sick");
    scene.declare();
    let bridge = midway(&scene).start();
    // So the bridge knows that something was parked once.
    let others: Vec<String> = (11..=18).map(|last| format!("127.0.0.{last}")).collect();
    others.iter().for_each(|other| scene.publish(&command(other, "FOR LATER")));
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == others.len() as f64);
    // The broker closes the whole connection of who fetches a message from a stream.
    let stream = AMQPValue::LongString("stream".into());
    scene.amqp.declare_queue(&scene.parked_for(ADDRESS), &[("x-queue-type", stream)]);

    let mut sick = bridge.device(ADDRESS);
    let said = bridge.until_logged(&["NOT_IMPLEMENTED", "\"connection\":\"parked\""]);
    assert!(said.contains("fetching parked commands"), "{said}");

    let devices: Vec<_> = others.iter().map(|other| bridge.device(other)).collect();
    for mut other in devices {
        assert_eq!(other.line(), "FOR LATER\r\n", "they are fetched between two tries");
    }
    let mut well = bridge.device("127.0.0.10");
    scene.publish(&command("127.0.0.10", "ON TIME"));
    assert_eq!(well.line(), "ON TIME\r\n");
    scene.publish(&command(ADDRESS, "BEHIND"));
    bridge.until_logged(&["not as the bridge declares it"]);

    bridge.until_logged(&["the broker does not say what is parked", ADDRESS]);
    scene.publish(&command(ADDRESS, "BEFORE"));
    assert_eq!(sick.line(), "BEFORE\r\n", "nothing waits for ever");
    // What is on its way to a queue that is deleted meanwhile is parked in the next one.
    scene.until_drained(&bridge);
    scene.amqp.delete_queue(&scene.parked_for(ADDRESS));
    scene.publish(&command(ADDRESS, "MENDED"));
    assert_eq!(sick.line(), "MENDED\r\n", "the other went the way of the queue");
    let times = bridge.log().text().matches("consuming commands").count();
    assert_eq!(times, 1, "commands came on one connection all the while");
}

/// A bridge that parks what says nothing of it.
fn midway(scene: &Scene) -> Setup {
    scene
        .setup()
        .set("COMMAND_IF_OFFLINE", "park")
        .set("COMMAND_PARKED_MAX", "10000")
        .set("MQ_PREFETCH", PREFETCH.to_string())
        .set("MQ_STALLED_MAX", "2000")
        .set("DEVICE_LANE_MAX", "2000")
}

/// Waits until every command has arrived and none is parked, and checks that at most `again` came twice.
#[track_caller]
fn until_all_arrived(scene: &Scene, bridge: &Bridge, stream: &Stream, fleet: &Fleet, again: usize) {
    eventually("every command has arrived", || fleet.has(stream.total()));
    until_nothing_is_parked(scene, bridge);
    let arrived = stream.arrived(fleet);
    assert_eq!(arrived.missing, Vec::<String>::new());
    assert!(arrived.duplicates <= again, "{} came twice", arrived.duplicates);
}

/// Waits until all commands have their fate, and looks into every queue for parked ones.
#[track_caller]
fn until_nothing_is_parked(scene: &Scene, bridge: &Bridge) {
    scene.until_drained(bridge);
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    let addresses: HashSet<String> =
        (0..DEVICES).map(address).chain([ADDRESS.to_owned()]).collect();
    for address in addresses {
        let queue = scene.parked_for(&address);
        eventually(&format!("nothing is left in {queue}"), || match scene.amqp.queue(&queue) {
            Ok((0, _)) => Ok(()),
            Ok((left, _)) => Err(format!("{left} are left")),
            // None was parked for this one.
            Err(_) => Ok(()),
        });
    }
    assert_eq!(bridge.metric("rabbitline_settlements_forgotten_total"), 0.0);
}
