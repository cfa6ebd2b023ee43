//! RabbitMQ as a cluster of three nodes: one after the other is lost, and nothing else is.

use std::collections::{HashMap, HashSet};
use std::net::TcpListener;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::harness::{
    Cluster, Device, Fleet, Flow, Inbox, Scene, Setup, address, command, eventually, flow_id,
    free_port,
};

const DEVICES: usize = 100;
const PREFETCH: usize = 64;
/// Commands that have to arrive before the next thing happens.
const SOME: usize = 1_000;

#[test]
fn commands_receipts_and_presence_outlive_one_node_after_the_other() {
    let cluster = Cluster::turn();
    let mut scene = cluster.scene("cluster-loss");
    let (receipts, presence) =
        (format!("{}.receipts", scene.queue()), format!("{}.presence", scene.queue()));
    declare_quorum(&scene, &receipts);
    declare_quorum(&scene, &presence);
    scene.amqp.declare_exchange(&scene.events(), ExchangeKind::Topic);
    scene.amqp.bind(&presence, &scene.events(), "presence.#");
    let bridge = cluster.setup(&scene).set("MQ_PREFETCH", PREFETCH.to_string()).start();
    let fleet = Fleet::start(DEVICES, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == DEVICES as f64);
    let leaves = bridge.device("127.0.0.2");
    let flow = Flow::start(&scene, cluster.ports(), DEVICES, &receipts);
    let more_arrive = || {
        let goal = flow.confirmed() + SOME;
        eventually("commands flow", || fleet.has(goal));
    };
    more_arrive();

    let first = cluster.node_of(&bridge, None);
    first.kill();
    drop(leaves);
    let _comes = Device::connect("127.0.0.3", bridge.device_port);
    let second = cluster.node_of(&bridge, Some(first));
    more_arrive();
    first.start();
    more_arrive();
    second.kill();
    cluster.node_of(&bridge, Some(second));
    more_arrive();
    second.start();
    more_arrive();

    let stream = flow.stop();
    eventually("every command has arrived", || fleet.has(stream.total()));
    scene.amqp = cluster.client(second);
    scene.until_drained(&bridge);
    let arrived = stream.arrived_in_any_order(&fleet);
    assert_eq!(arrived.missing, Vec::<String>::new());
    // Each time, what was in hand, and what the client had published without a confirm.
    let again_max = 2 * (PREFETCH + DEVICES);
    assert!(arrived.duplicates <= again_max, "{} commands came twice", arrived.duplicates);
    // What was in hand at each loss, unread, comes again when the queue has noticed; the bridge may be back before.
    let overtaken = &arrived.overtaken;
    println!("{} came again, {overtaken:?} late", arrived.duplicates);
    assert!(overtaken.len() <= 2 * PREFETCH, "{} came late: {overtaken:?}", overtaken.len());
    assert_eq!(fleet.connections(), DEVICES, "no device was cut off");
    all_are_told(&scene.amqp.consume(&receipts), stream.total() / DEVICES);
    ends_in_the_truth(&scene.amqp.consume(&presence));
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
}

/// Each command of the flow has a receipt, which says that it was written.
#[track_caller]
fn all_are_told(receipts: &Inbox, rounds: usize) {
    let ids =
        (0..DEVICES).flat_map(|device| (0..rounds).map(move |number| flow_id(device, number)));
    let mut untold: HashSet<String> = ids.collect();
    while !untold.is_empty() {
        let receipt = receipts.next().json();
        assert_eq!(receipt["outcome"], "written", "{receipt}");
        untold.remove(receipt["id"].as_str().expect("an id"));
    }
}

/// What is told last of each device is how it is.
#[track_caller]
fn ends_in_the_truth(presence: &Inbox) {
    let fleet = (0..DEVICES).map(address);
    let mut truth: HashMap<String, bool> = fleet.map(|address| (address, true)).collect();
    truth.extend([("127.0.0.2".to_owned(), false), ("127.0.0.3".to_owned(), true)]);
    let mut last: HashMap<String, Value> = HashMap::new();
    eventually("presence ends in the truth", || {
        for letter in presence.so_far() {
            let event = letter.json();
            let known =
                last.entry(event["address"].as_str().expect("an address").to_owned()).or_default();
            if event["seq"].as_u64() >= known["seq"].as_u64() {
                *known = event;
            }
        }
        let told: HashMap<String, bool> = last
            .iter()
            .map(|(address, event)| (address.clone(), event["online"] == true))
            .collect();
        if told == truth { Ok(()) } else { Err(format!("{told:?}")) }
    });
}

#[test]
fn parked_and_undelivered_commands_are_there_while_their_node_is_not() {
    const PARKED: usize = 50;
    let cluster = Cluster::turn();
    let mut scene = cluster.scene("cluster-parked");
    let bridge = cluster.setup(&scene).start();
    scene.park_numbers("127.0.0.9", 0..PARKED);
    scene.publish(&command("127.0.0.8", "FOR NOBODY"));
    scene.until_parked("127.0.0.9", PARKED);
    scene.until_drained(&bridge);

    // It is where their queues were declared, so where their leaders are.
    let lost = cluster.node_of(&bridge, None);
    lost.kill();
    let mut device = bridge.device("127.0.0.9");

    for number in 0..PARKED {
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    cluster.node_of(&bridge, Some(lost));
    scene.amqp = cluster.client(lost);
    let undelivered = scene.undelivered_inbox().next();
    assert_eq!(undelivered.json()["cmd"], "FOR NOBODY");
    assert_eq!(undelivered.header("x-outcome"), "offline");
    // There is one node less, and all goes on: also what needs a queue that is not there yet.
    scene.park_numbers("127.0.0.10", 0..PARKED);
    scene.until_parked("127.0.0.10", PARKED);
    let mut other = bridge.device("127.0.0.10");
    for number in 0..PARKED {
        assert_eq!(other.line(), format!("{number}\r\n"));
    }
    assert_eq!(bridge.terminate().code, Some(0));
}

#[test]
fn commands_parked_in_a_classic_queue_wait_for_its_node_and_stay_before_newer_ones() {
    const PARKED: usize = 20;
    let cluster = Cluster::turn();
    let mut scene = cluster.scene("cluster-classic");
    // Commands go on; the bridge's own queues do not.
    scene.declare_with(&[("x-queue-type", AMQPValue::LongString("quorum".into()))]);
    let bridge = scene.setup().set("MQ_HOST", cluster.hosts()).start();
    scene.park_numbers("127.0.0.9", 0..PARKED);
    scene.until_parked("127.0.0.9", PARKED);
    scene.until_drained(&bridge);

    let lost = cluster.node_of(&bridge, None);
    lost.kill();
    cluster.node_of(&bridge, Some(lost));
    scene.amqp = cluster.client(lost);
    let mut device = bridge.device("127.0.0.9");
    scene.publish(&command("127.0.0.9", "NEWER"));
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 1.0);
    lost.start();

    for number in 0..PARKED {
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    assert_eq!(device.line(), "NEWER\r\n");
    assert_eq!(bridge.terminate().code, Some(0));
}

#[test]
fn a_node_that_hangs_is_left_within_two_heartbeats() {
    let cluster = Cluster::turn();
    let mut scene = cluster.scene("cluster-hang");
    let bridge =
        cluster.setup(&scene).set("MQ_HEARTBEAT", "1s").set("MQ_CONNECT_TIMEOUT", "1s").start();
    let mut device = bridge.device("127.0.0.2");
    let node = cluster.node_of(&bridge, None);
    let _hangs = cluster.hang(node);
    let began = std::time::Instant::now();

    bridge.until_not_ready();

    let noticed = began.elapsed();
    assert!(noticed.as_secs() < 4, "noticed after {noticed:?}");
    cluster.node_of(&bridge, Some(node));
    scene.amqp = cluster.client(node);
    scene.publish(&command("127.0.0.2", "GO ON"));
    assert_eq!(device.line(), "GO ON\r\n");
}

#[test]
fn what_no_device_has_answered_comes_again_when_the_node_is_lost_from_which_it_came() {
    const ASKED: usize = 40;
    let cluster = Cluster::turn();
    let scene = cluster.scene("cluster-unanswered");
    let bridge = beside_the_leader(&cluster, &scene).start();
    let mut device = bridge.device("127.0.0.2");
    let all_wait = || bridge.until_metric("rabbitline_unsettled", |count| count == ASKED as f64);
    ask(&scene, ASKED);
    // Of consumers that were renewed, too: that is five times the prefetch.
    all_wait();

    let node = cluster.node_of(&bridge, None);
    node.kill();
    cluster.node_of(&bridge, Some(node));
    all_wait();

    answer_all(&mut device, ASKED);
    scene.until_drained(&bridge);
    assert_eq!(bridge.outcomes("answered"), ASKED as f64);
}

#[test]
fn what_a_bridge_that_ends_has_in_hand_comes_again_when_its_node_is_lost_meanwhile() {
    const ASKED: usize = 16;
    let cluster = Cluster::turn();
    let scene = cluster.scene("cluster-ending");
    let setup = beside_the_leader(&cluster, &scene);
    let bridge = setup.start();
    let device = bridge.device("127.0.0.2");
    ask(&scene, ASKED);
    bridge.until_metric("rabbitline_unsettled", |count| count == ASKED as f64);
    let node = cluster.node_of(&bridge, None);

    bridge.program.signal("TERM");
    let consumes = "rabbitline_broker_up{connection=\"consumer\"}";
    bridge.until_metric(consumes, |up| up == 0.0);
    node.kill();
    let _ = bridge.program.finish();
    drop(device);

    let bridge = setup.start();
    let offline = "rabbitline_commands_total{outcome=\"offline\"}";
    bridge.until_metric(offline, |count| count == ASKED as f64);
}

/// A bridge that takes eight commands at a time off a quorum queue whose leader is on another node than it is.
fn beside_the_leader(cluster: &Cluster, scene: &Scene) -> Setup {
    // The leader is where the queue is declared.
    declare_quorum(scene, &scene.queue());
    let others: Vec<String> =
        cluster.ports()[1..].iter().map(|port| format!("127.0.0.1:{port}")).collect();
    cluster.setup(scene).set("MQ_HOST", others.join(",")).set("MQ_PREFETCH", "8")
}

/// Publishes commands to which the device at 127.0.0.2 has to answer.
fn ask(scene: &Scene, count: usize) {
    scene.amqp.declare_exchange(&scene.exchange(), ExchangeKind::Direct);
    scene.amqp.bind(&scene.queue(), &scene.exchange(), &scene.queue());
    for number in 0..count {
        let mut asked = command("127.0.0.2", &number.to_string());
        asked["id"] = json!(number.to_string());
        asked["confirm"] = json!("answered");
        asked["timeout_ms"] = json!(600_000);
        scene.publish(&asked);
    }
}

/// Each of them comes once, in whatever order, and is answered.
#[track_caller]
fn answer_all(device: &mut Device, count: usize) {
    let answer = |_| {
        let line = device.line();
        device.send(b"OK\n");
        line.trim_end().parse().expect("a number")
    };
    let mut lines: Vec<usize> = (0..count).map(answer).collect();
    lines.sort_unstable();
    assert_eq!(lines, (0..count).collect::<Vec<_>>());
}

#[test]
fn a_node_in_maintenance_is_left() {
    let cluster = Cluster::turn();
    let mut scene = cluster.scene("cluster-maintenance");
    let bridge = cluster.setup(&scene).start();
    let mut device = bridge.device("127.0.0.2");
    let node = cluster.node_of(&bridge, None);

    // What `rabbitmq-upgrade drain` does, which itself fails if a connection ends before it comes to it.
    node.ctl(&["eval", "rabbit_maintenance:suspend_all_client_listeners()."]);
    let close = "rabbit_networking:close_connection(Pid, \"Node was put into maintenance mode\")";
    let each = format!("[catch {close} || Pid <- rabbit_networking:local_connections()].");
    node.ctl(&["eval", &each]);
    cluster.node_of(&bridge, Some(node));
    node.ctl(&["eval", "rabbit_maintenance:resume_all_client_listeners()."]);

    let line = bridge.until_logged(&["maintenance mode", &node.port().to_string()]);
    assert!(line.contains("WARN"), "{line}");
    scene.amqp = cluster.client(node);
    scene.publish(&command("127.0.0.2", "GO ON"));
    assert_eq!(device.line(), "GO ON\r\n");
}

#[test]
fn of_several_hosts_those_that_cannot_be_used_are_passed_over() {
    let scene = Scene::new("several-hosts");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (refuses, silent) = (free_port(), silent.local_addr().expect("bound").port());
    let [refuses, silent, usable] =
        [refuses, silent, scene.broker.port()].map(|port| format!("127.0.0.1:{port}"));
    let setup = scene.setup().set("MQ_CONNECT_TIMEOUT", "1s");
    let setup = setup.set("MQ_HOST", [&*refuses, &*silent, &*usable].join(","));

    let bridge = setup.start();

    bridge.until_logged(&["consuming commands", &usable]);
    let mut device = bridge.device("127.0.0.2");
    // In whatever order the hosts are drawn, one attempt tries all.
    for number in 0..4 {
        let sent = setup.run(&["send", "127.0.0.2", &format!("NUMBER {number}")]);
        assert_eq!(sent.code, Some(0), "{sent:?}");
        assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
    }
    let check = setup.run(&["check"]);
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(check.stdout.contains(&format!("{usable} can be used")), "{check:?}");
    assert!(check.stderr.contains(&refuses) && check.stderr.contains(&silent), "{check:?}");
    let none = setup.set("MQ_HOST", [refuses, silent].join(",")).run(&["check"]);
    assert_eq!(none.code, Some(69), "{none:?}");
}

#[track_caller]
fn declare_quorum(scene: &Scene, queue: &str) {
    scene.amqp.declare_queue(queue, &[("x-queue-type", AMQPValue::LongString("quorum".into()))]);
}
