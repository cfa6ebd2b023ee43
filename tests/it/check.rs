//! `rabbitline check`, and a bridge that runs: what is wrong with the broker is said in a sentence that names what to
//! change.

use std::net::TcpListener;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;

use crate::harness::{Scene, Setup, free_port};

/// Runs `check` and expects that the broker is unusable; the finding must hold one of each group of words.
#[track_caller]
fn unusable(setup: &Setup, words: &[&[&str]]) {
    let end = setup.run(&["check"]);
    assert_eq!(end.code, Some(69), "{end:?}");
    let said = format!("{}{}", end.stdout, end.stderr);
    let sentence = said
        .lines()
        .find(|line| words.iter().all(|group| group.iter().any(|word| line.contains(word))));
    assert!(sentence.is_some(), "no line with each of {words:?} in:\n{said}");
}

#[test]
fn a_broker_that_can_be_used_is_found_usable_and_left_unchanged() {
    let scene = Scene::new("check");
    let end = scene.setup().run(&["check"]);
    assert_eq!(end.code, Some(0), "{end:?}");
    for object in [scene.queue(), scene.exchange(), scene.events(), scene.undelivered()] {
        assert!(end.stdout.contains(&object), "{object} is missing, which is said: {end:?}");
    }
    assert!(scene.amqp.queue(&scene.queue()).is_err(), "check declares nothing");
    assert!(scene.amqp.exchange(&scene.events()).is_err(), "check declares nothing");

    drop(scene.setup().start());
    let end = scene.setup().run(&["check"]);
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(!end.stdout.contains("does not exist"), "{end:?}");
}

#[test]
fn a_wrong_password_names_the_login_settings() {
    let scene = Scene::new("check-password");
    unusable(&scene.setup().set("MQ_PASSWORD", "wrong"), &[&["MQ_PASSWORD", "MQ_USERNAME"]]);
}

#[test]
fn a_missing_virtual_host_names_its_setting() {
    let scene = Scene::new("check-vhost");
    unusable(&scene.setup().set("MQ_VHOST", "no such vhost"), &[&["MQ_VHOST"], &["no such vhost"]]);
}

#[test]
fn a_virtual_host_without_permission_names_who_needs_it() {
    let scene = Scene::new("check-permission");
    scene.broker.ctl(&["add_user", "nobody", "nobody"]);
    let nobody = scene.setup().set("MQ_USERNAME", "nobody").set("MQ_PASSWORD", "nobody");
    unusable(&nobody, &[&["MQ_VHOST", "MQ_USERNAME"]]);
    scene.broker.ctl(&["set_permissions", "nobody", "^$", "^$", "^$"]);
    scene.declare();
    unusable(&nobody, &[&["MQ_USERNAME"]]);
}

#[test]
fn a_port_where_nobody_listens_names_host_and_port() {
    let port = free_port();
    unusable(&Setup::new(port), &[&["MQ_HOST"], &["MQ_PORT"], &[&port.to_string()]]);
}

#[test]
fn a_host_name_that_does_not_exist_names_the_host() {
    unusable(
        &Setup::new(5672).set("MQ_HOST", "no-such-host.invalid"),
        &[&["MQ_HOST"], &["no-such-host.invalid"]],
    );
}

#[test]
fn a_port_where_somebody_is_silent_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    unusable(
        &Setup::new(port).set("MQ_CONNECT_TIMEOUT", "500ms"),
        &[&["MQ_HOST", "MQ_PORT", "MQ_CONNECT_TIMEOUT"]],
    );
}

#[test]
fn a_port_where_somebody_speaks_another_protocol_is_named() {
    // The HTTP port of a bridge is such a one.
    let scene = Scene::new("check-protocol");
    let bridge = scene.setup().start();
    unusable(
        &Setup::new(bridge.http.port()).set("MQ_CONNECT_TIMEOUT", "2s"),
        &[&["MQ_HOST", "MQ_PORT"]],
    );
}

#[test]
fn a_queue_of_another_type_than_the_one_set_names_queue_and_setting() {
    let scene = Scene::new("check-queue-type");
    scene.declare();
    unusable(
        &scene.setup().set("MQ_QUEUE_TYPE", "quorum"),
        &[&["MQ_QUEUE_TYPE"], &[&scene.queue()]],
    );
    // The bridge says the same while it runs, and is not ready.
    let bridge = scene.setup().set("MQ_QUEUE_TYPE", "quorum").launch();
    let line = bridge.until_logged(&["MQ_QUEUE_TYPE", &scene.queue()]);
    assert!(line.contains("WARN") || line.contains("ERROR"), "{line}");
    assert_eq!(bridge.get("/readyz").status, 503);
    // Not set, the queue is used as it is.
    let quorum = AMQPValue::LongString("quorum".into());
    scene.amqp.delete_queue(&scene.queue());
    scene.amqp.declare_queue(&scene.queue(), &[("x-queue-type", quorum)]);
    let end = scene.setup().run(&["check"]);
    assert_eq!(end.code, Some(0), "{end:?}");
}

#[test]
fn an_events_exchange_that_is_no_topic_exchange_names_exchange_and_setting() {
    let scene = Scene::new("check-events");
    scene.amqp.declare_exchange(&scene.events(), ExchangeKind::Fanout);
    unusable(&scene.setup(), &[&["MQ_EVENTS_EXCHANGE"], &[&scene.events()]]);
}

#[test]
fn a_route_exchange_that_is_no_direct_exchange_names_exchange_and_setting_in_a_cluster() {
    let scene = Scene::new("check-routes");
    let setup = scene.setup().set("CLUSTER", "on");
    let end = setup.run(&["check"]);
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(end.stdout.contains(&scene.routes()), "it is missing, which is said: {end:?}");
    assert!(scene.amqp.exchange(&scene.routes()).is_err(), "check declares nothing");

    scene.amqp.declare_exchange(&scene.routes(), ExchangeKind::Fanout);
    unusable(&setup, &[&["MQ_ROUTE_EXCHANGE"], &[&scene.routes()]]);
    assert_eq!(scene.setup().run(&["check"]).code, Some(0), "without a cluster it is not needed");
}

#[test]
fn a_bridge_that_cannot_log_in_says_so_in_each_attempt_and_goes_on_when_it_can() {
    let scene = Scene::new("login-later");
    let mut bridge =
        scene.setup().set("MQ_USERNAME", "later").set("MQ_PASSWORD", "secret").launch();
    bridge.until_not_ready();
    bridge.until_logged(&["MQ_PASSWORD"]);
    let reason = bridge.get("/readyz").body;
    assert!(!reason.trim().is_empty(), "readyz says why");
    scene.broker.ctl(&["add_user", "later", "secret"]);
    scene.broker.ctl(&["set_permissions", "later", ".*", ".*", ".*"]);
    bridge.until_ready();
}
