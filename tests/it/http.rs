//! What probes, scrapers and people see over HTTP.

use serde_json::{Value, json};

use crate::harness::{Scene, Setup, command, free_port};

/// The series there must be from the first moment, before anything has happened.
const SERIES: &[&str] = &[
    "rabbitline_commands_total{outcome=\"written\"}",
    "rabbitline_commands_total{outcome=\"offline\"}",
    "rabbitline_commands_total{outcome=\"expired\"}",
    "rabbitline_commands_total{outcome=\"invalid\"}",
    "rabbitline_commands_total{outcome=\"overloaded\"}",
    "rabbitline_commands_total{outcome=\"uncertain\"}",
    "rabbitline_delivery_seconds_from_publish_count",
    "rabbitline_delivery_seconds_from_arrival_count",
    "rabbitline_devices_connected",
    "rabbitline_connections_total",
    "rabbitline_connections_ended_total{reason=\"closed\"}",
    "rabbitline_connections_ended_total{reason=\"reset\"}",
    "rabbitline_connections_ended_total{reason=\"timeout\"}",
    "rabbitline_connections_ended_total{reason=\"write_timeout\"}",
    "rabbitline_connections_ended_total{reason=\"line_too_long\"}",
    "rabbitline_connections_ended_total{reason=\"replaced\"}",
    "rabbitline_connections_ended_total{reason=\"shutdown\"}",
    "rabbitline_connections_ended_total{reason=\"error\"}",
    "rabbitline_lane_commands",
    "rabbitline_broker_up{connection=\"consumer\"}",
    "rabbitline_broker_up{connection=\"publisher\"}",
    "rabbitline_broker_blocked",
    "rabbitline_undelivered_total",
    "rabbitline_unsettled",
    "rabbitline_uplink_lines_total",
    "rabbitline_uplink_dropped_total",
    "rabbitline_accept_errors_total",
    "rabbitline_settlements_forgotten_total",
];

#[test]
fn every_metric_is_there_from_the_start() {
    let bridge = Setup::new(free_port()).launch();
    let metrics = bridge.get("/metrics");
    assert_eq!(metrics.status, 200);
    for series in SERIES {
        let zero = metrics
            .body
            .lines()
            .any(|line| line.strip_prefix(series).is_some_and(|rest| rest == " 0"));
        assert!(zero, "{series} 0 is not in\n{}", metrics.body);
    }
    let described = |line: &&str| line.starts_with("# HELP rabbitline_");
    let types = metrics.body.lines().filter(|line| line.starts_with("# TYPE rabbitline_")).count();
    assert_eq!(metrics.body.lines().filter(described).count(), types, "each has a help text");
}

#[test]
fn a_bridge_without_a_broker_lives_and_is_not_ready_and_says_why() {
    let bridge = Setup::new(free_port()).launch();
    assert_eq!(bridge.get("/livez").status, 200);
    let answer = bridge.get("/readyz");
    assert_eq!(answer.status, 503);
    assert!(!answer.body.trim().is_empty());
}

#[test]
fn the_latency_of_a_command_is_counted_from_its_arrival_and_if_known_from_its_publication() {
    let scene = Scene::new("latency");
    let bridge = scene.setup().start();
    let _device = bridge.device("127.0.0.2");
    assert_eq!(scene.receipt_of(&command("127.0.0.2", "ON"))["outcome"], "written");
    assert_eq!(bridge.metric("rabbitline_delivery_seconds_from_arrival_count"), 1.0);
    assert_eq!(
        bridge.metric("rabbitline_delivery_seconds_from_publish_count"),
        0.0,
        "it had no timestamp"
    );
    assert_eq!(bridge.metric("rabbitline_broker_up{connection=\"consumer\"}"), 1.0);
    assert_eq!(bridge.metric("rabbitline_broker_up{connection=\"publisher\"}"), 1.0);
}

#[test]
fn devices_are_listed_in_order_page_by_page() {
    let scene = Scene::new("devices");
    let bridge = scene.setup().start();
    let froms = ["127.0.0.2", "127.0.0.10", "127.0.1.1", "127.2.0.1", "127.10.0.1"];
    let mut devices = froms.map(|from| bridge.device(from));
    devices[0].send(b"ONE\nTWO\n");
    bridge.until_metric("rabbitline_uplink_lines_total", |count| count == 2.0);
    scene.receipt_of(&command("127.0.0.2", "ON"));

    let mut seen: Vec<Value> = Vec::new();
    let mut query = "?limit=2".to_owned();
    let mut pages = 0;
    loop {
        let page = bridge.devices(&query);
        assert_eq!((&page["total"], &page["bridge"]), (&json!(5), &json!("bridge-under-test")));
        let listed = page["devices"].as_array().expect("an array");
        assert!(listed.len() <= 2, "{page}");
        seen.extend(listed.iter().cloned());
        pages += 1;
        let Some(next) = page["next"].as_str() else {
            break;
        };
        query = format!("?limit=2&after={next}");
    }
    assert_eq!(pages, 3);
    let all = bridge.devices("");
    assert_eq!(all["devices"].as_array(), Some(&seen), "the pages are the whole");
    assert_eq!(all["next"], Value::Null);
    let mut listed: Vec<&str> =
        seen.iter().map(|device| device["address"].as_str().expect("an address")).collect();
    listed.sort_unstable();
    let mut expected = froms;
    expected.sort_unstable();
    assert_eq!(listed, expected, "each once");

    let device = seen.iter().find(|device| device["address"] == "127.0.0.2").expect("listed");
    assert_eq!(device["peer"], devices[0].local().to_string());
    assert_eq!(
        (&device["commands"], &device["lines"], &device["lane"]),
        (&json!(1), &json!(2), &json!(0)),
        "{device}"
    );
    for field in ["epoch", "since", "last_seen"] {
        assert!(!device[field].is_null(), "{field} in {device}");
    }
}

#[test]
fn what_is_not_there_or_makes_no_sense_is_refused() {
    let bridge = Setup::new(free_port()).launch();
    assert_eq!(bridge.get("/nothing").status, 404);
    for query in ["?limit=many", "?limit=-1"] {
        assert_eq!(bridge.get(&format!("/devices{query}")).status, 400, "{query}");
    }
    let page = bridge.devices("");
    assert_eq!(
        (&page["total"], &page["next"], &page["devices"]),
        (&json!(0), &Value::Null, &json!([]))
    );
}
