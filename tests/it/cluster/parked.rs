//! What is parked reaches its device wherever that connects, once, and asking for it leaves nothing behind.

use std::sync::Arc;

use super::{fleet_at, outcomes, pair, until_acquainted, until_online};
use crate::harness::{
    Broker, Cluster, Fleet, Scene, address, command, eventually, park, persistent,
};

/// Waits until nothing is in the queue in which commands for a device are parked.
#[track_caller]
fn until_empty(scene: &Scene, address: &str) {
    let queue = scene.parked_for(address);
    eventually("nothing is parked", || match scene.amqp.depth(&queue) {
        0 => Ok(()),
        depth => Err(depth),
    });
}

#[test]
fn what_is_parked_is_fetched_once_and_what_asks_for_it_reaches_no_device() {
    const COMMANDS: usize = 5;
    let scene = Scene::new("cluster-knock");
    let presence = scene.presence();
    let bridges = pair(&scene);
    scene.park_numbers("127.0.0.9", 0..1);
    scene.until_parked("127.0.0.9", 1);
    for number in 1..COMMANDS {
        scene.publish(&park("127.0.0.9", &number.to_string()));
        scene.until_parked("127.0.0.9", number + 1);
    }

    let mut first = bridges[0].device("127.0.0.9");
    for number in 0..COMMANDS {
        assert_eq!(first.line(), format!("{number}\r\n"));
    }
    until_empty(&scene, "127.0.0.9");
    until_online(&presence, "127.0.0.9", "a");

    // The queue is there now, with nothing in it.
    let mut second = bridges[1].device("127.0.0.9");
    until_online(&presence, "127.0.0.9", "b");
    scene.publish(&command("127.0.0.9", "NOW"));
    assert_eq!(second.line(), "NOW\r\n");
    until_empty(&scene, "127.0.0.9");
    assert_eq!(outcomes(&bridges, "written"), COMMANDS as f64 + 1.0);
    assert_eq!(first.until_closed(), Vec::<Vec<u8>>::new());
    assert_eq!(second.so_far(), Vec::<String>::new());
    assert_eq!(outcomes(&bridges, "invalid"), 0.0);
}

#[test]
fn what_is_parked_while_its_device_connects_arrives_once() {
    const DEVICES: usize = 300;
    let scene = Scene::new("cluster-park-race");
    let bridges = pair(&scene);

    let messages = (0..DEVICES).map(|device| {
        let body = park(&address(device), &device.to_string()).to_string().into_bytes();
        (body, persistent())
    });
    scene.amqp.publish_all(&scene.exchange(), &scene.queue(), messages);
    let fleet = Fleet::start(DEVICES, bridges[1].device_port);

    eventually("each has its command", || fleet.has(DEVICES));
    for device in 0..DEVICES {
        assert_eq!(fleet.lines(device), [device.to_string()]);
    }
    for bridge in &bridges {
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
        bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    }
    assert_eq!(outcomes(&bridges, "written"), DEVICES as f64);
    assert_eq!(outcomes(&bridges, "offline"), 0.0);
}

#[test]
fn a_device_for_which_nothing_was_parked_costs_the_broker_no_channel() {
    const DEVICES: usize = 50;
    let scene = Scene::alone("cluster-no-look");
    let presence = scene.presence();
    let bridges = pair(&scene);

    let _fleet = fleet_at(&bridges[0], &presence, DEVICES);
    // Behind all that was asked before.
    let mut last = bridges[0].device("127.0.0.250");
    until_online(&presence, "127.0.0.250", "a");
    scene.publish(&command("127.0.0.250", "ON"));
    assert_eq!(last.line(), "ON\r\n");

    let complaint = |name: &str| format!("no queue '{name}");
    assert!(scene.amqp.queue("the mark").is_err());
    let log = eventually("the node has logged all that was before the mark", || {
        let log = scene.broker.logged();
        if log.contains(&complaint("the mark")) { Ok(log) } else { Err("it has not") }
    });
    let complaint = complaint(&scene.parked_for("127."));
    assert!(!log.contains(&complaint), "{complaint}: {log}");
}

/// Ends the leader of a quorum queue and one of its followers. The other one goes on asking who leads: so it is with a
/// queue that RabbitMQ was declaring when a node died. Whoever publishes to it has no answer for half a minute.
#[track_caller]
fn behead(cluster: &Cluster, queue: &str) {
    let leads = format!(
        "case rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)) of \
         {{ok, Q}} -> element(2, amqqueue:get_pid(Q)) == node() end."
    );
    let is_leader = |node: &&Arc<Broker>| node.ctl(&["eval", &leads]).trim() == "true";
    let (leader, others): (Vec<_>, Vec<_>) = cluster.nodes().iter().partition(is_leader);
    assert_eq!((leader.len(), others.len()), (1, 2), "{queue}");
    let on = |node: &Broker, what: &str| {
        let member = format!("{{binary_to_atom(<<\"%2F_{queue}\">>), node()}}");
        let done = node.ctl(&["eval", &format!("ra:{what}_server(quorum_queues, {member}).")]);
        assert_eq!(done.trim(), "ok", "{what} {queue}");
    };
    others.into_iter().for_each(|node| on(node, "stop"));
    ["stop", "restart"].iter().for_each(|what| on(leader[0], what));
}

#[test]
fn a_queue_of_parked_commands_without_a_leader_holds_up_no_other_device_nor_its_own_for_ever() {
    const SICK: &str = "127.0.0.9";
    let cluster = Cluster::turn();
    let scene = cluster.scene("cluster-sick");
    let presence = scene.presence();
    let of_cluster =
        |name| cluster.setup(&scene).set("CLUSTER", "on").set("BRIDGE_NAME", name).start();
    let a = of_cluster("a");
    scene.publish(&park(SICK, "FOR LATER"));
    scene.until_parked(SICK, 1);
    behead(&cluster, &scene.parked_for(SICK));

    // Which does not know what the other has parked.
    let b = of_cluster("b");
    until_acquainted(&[&a, &b]);
    let mut sick = b.device(SICK);
    until_online(&presence, SICK, "b");
    // Each has to be bound, asked about, and found by the other bridge.
    for round in 0..10 {
        let [here, there] = [20, 40].map(|first| format!("127.0.0.{}", first + round));
        let devices = [(&a, &here, "a"), (&b, &there, "b")].map(|(bridge, address, name)| {
            let device = bridge.device(address);
            until_online(&presence, address, name);
            (device, address)
        });
        for (mut device, address) in devices {
            (0..4).for_each(|number| scene.publish(&command(address, &number.to_string())));
            // Two bridges take them off the queue, so in whatever order.
            let mut lines: Vec<_> = (0..4).map(|_| device.line()).collect();
            lines.sort();
            assert_eq!(lines, ["0\r\n", "1\r\n", "2\r\n", "3\r\n"]);
        }
    }
    scene.publish(&command(SICK, "NOW"));
    assert_eq!(sick.line(), "NOW\r\n");
}
