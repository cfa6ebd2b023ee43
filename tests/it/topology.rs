//! What exists on the broker is used as it is; what is missing is declared.

use lapin::ExchangeKind;
use lapin::types::AMQPValue;

use crate::harness::{Scene, command, eventually, persistent};

#[test]
fn everything_missing_is_declared_durable() {
    let mut scene = Scene::alone("declared");
    drop(scene.setup().start());
    scene.broker.sync();
    scene.broker.kill();
    scene.restart_broker();
    // All that survives was durable; the binding too.
    scene.publish(&command("127.0.0.2", "KEPT"));
    assert_eq!(scene.amqp.depth(&scene.queue()), 1);
    assert_eq!(scene.amqp.exchange(&scene.events()), Ok(()));
    scene.amqp.publish(&scene.undelivered(), "any", b"kept", persistent());
    assert_eq!(scene.amqp.depth(&scene.undelivered()), 1);
}

#[test]
fn a_queue_with_arguments_of_its_own_and_a_topic_exchange_are_used_as_they_are() {
    let scene = Scene::new("existing");
    let arguments = [
        ("x-max-length", AMQPValue::LongInt(1_000)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    scene.amqp.declare_queue(&scene.queue(), &arguments);
    scene.amqp.declare_exchange(&scene.exchange(), ExchangeKind::Topic);
    let bridge = scene.setup().set("MQ_ROUTING_KEY", "site.north.#").start();
    let mut device = bridge.device("127.0.0.2");

    let body = command("127.0.0.2", "ON").to_string();
    scene.amqp.publish(&scene.exchange(), "site.north.pumps", body.as_bytes(), persistent());

    assert_eq!(device.line(), "ON\r\n");
    scene.amqp.declare_queue(&scene.queue(), &arguments); // would fail had they changed
}

#[test]
fn a_routing_key_that_is_set_is_the_one_bound() {
    let scene = Scene::new("routing-key");
    let bridge = scene.setup().set("MQ_ROUTING_KEY", "commands").start();
    let mut device = bridge.device("127.0.0.2");
    let body = command("127.0.0.2", "ON").to_string();
    scene.amqp.publish(&scene.exchange(), "commands", body.as_bytes(), persistent());
    assert_eq!(device.line(), "ON\r\n");
    // An undelivered command keeps the key it came with.
    let undelivered = scene.undelivered_inbox();
    scene.amqp.publish(
        &scene.exchange(),
        "commands",
        command("127.0.0.9", "ON").to_string().as_bytes(),
        persistent(),
    );
    assert_eq!(undelivered.next().key, "commands");
}

#[test]
fn an_undelivered_exchange_without_a_queue_gets_one_so_that_nothing_is_lost() {
    for kind in [ExchangeKind::Fanout, ExchangeKind::Topic] {
        let scene = Scene::new("undelivered-without-queue");
        scene.amqp.declare_exchange(&scene.undelivered(), kind);
        let bridge = scene.setup().start();
        scene.publish(&command("127.0.0.9", "KEEP"));
        assert_eq!(scene.undelivered_inbox().next().json()["cmd"], "KEEP");
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    }
}

#[test]
fn an_undelivered_exchange_that_routes_nowhere_costs_no_command() {
    // A direct exchange whose queue hears another key than commands have.
    let scene = Scene::new("undelivered-nowhere");
    scene.amqp.declare_exchange(&scene.undelivered(), ExchangeKind::Direct);
    let bridge = scene.setup().start();
    scene.publish(&command("127.0.0.9", "KEEP"));
    bridge.until_logged(&[&scene.undelivered()]);
    assert_eq!(bridge.terminate().code, Some(1), "a command was left");
    eventually("the command is in the queue again", || match scene.amqp.queue(&scene.queue()) {
        Ok((1, 0)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn a_quorum_queue_is_declared_when_the_setting_says_so() {
    let scene = Scene::new("quorum");
    let bridge = scene.setup().set("MQ_QUEUE_TYPE", "quorum").set("MQ_PREFETCH", "16").start();
    scene
        .amqp
        .declare_queue(&scene.queue(), &[("x-queue-type", AMQPValue::LongString("quorum".into()))]);
    let mut device = bridge.device("127.0.0.2");
    for number in 0..50 {
        scene.publish(&command("127.0.0.2", &format!("NUMBER {number}")));
    }
    for number in 0..50 {
        assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
    }
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
}

#[test]
fn a_user_who_may_not_declare_can_use_what_others_declared() {
    let scene = Scene::new("no-configure");
    scene.presence();
    scene.declare();
    scene.amqp.declare_exchange(&scene.undelivered(), ExchangeKind::Fanout);
    scene.amqp.declare_queue(&scene.undelivered(), &[]);
    scene.amqp.bind(&scene.undelivered(), &scene.undelivered(), "");
    scene.broker.ctl(&["add_user", "modest", "modest"]);
    scene.broker.ctl(&["set_permissions", "modest", "^$", ".*", ".*"]);
    let bridge = scene.setup().set("MQ_USERNAME", "modest").set("MQ_PASSWORD", "modest").start();
    let mut device = bridge.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
}
