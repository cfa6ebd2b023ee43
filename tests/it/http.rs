//! What probes, scrapers and people see over HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{STALL_LINE_MAX, Scene, Setup, command, eventually, free_port, stall};

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
fn devices_are_found_by_a_part_of_their_address_and_by_how_they_are() {
    let scene = Scene::new("devices-found");
    let bridge = scene
        .setup()
        .set("DEVICE_IDENTITY", "hello")
        .set("DEVICE_SILENCE_LIMIT", "1s")
        .set("DEVICE_LANE_MAX", "8")
        .start();
    let names: Vec<String> = (0..600).map(|n| format!("pump-{n:03}")).collect();
    let _pumps: Vec<_> =
        names.iter().map(|name| bridge.saying("127.0.0.2", &format!("HELLO {name}"))).collect();
    let mut valve = bridge.hello_device("127.0.0.3", "HELLO Valve-7");
    bridge.until_metric("rabbitline_devices_connected", |count| count == 601.0);
    let found = |query: &str| -> Vec<String> {
        let page = bridge.devices(query);
        assert_eq!(page["total"], 601, "all, whatever is looked for");
        let devices = page["devices"].as_array().expect("a list");
        devices.iter().map(|it| it["address"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(found("?prefix=Valve"), ["Valve-7"]);
    assert_eq!(found("?search=valve"), ["Valve-7"]);
    assert_eq!(found("?search=59&limit=1000").len(), 16);
    assert_eq!(found("?prefix=pump-59&limit=3"), ["pump-590", "pump-591", "pump-592"]);
    assert_eq!(found("?prefix=pump-59&limit=3&after=pump-592")[0], "pump-593");
    assert_eq!(found("?prefix=nothing"), Vec::<String>::new());
    let page = bridge.devices("?prefix=pump-59&limit=10");
    assert_eq!(page["next"], Value::Null, "there is nothing more");
    assert_eq!(bridge.devices("?prefix=pump-59&limit=9")["next"], "pump-598");

    eventually("the pumps are silent, and the valve is not", || {
        valve.send(b"HERE\n");
        let (silent, online) = (found("?state=silent&limit=1000").len(), found("?state=online"));
        if silent == 600 && online == ["Valve-7"] {
            Ok(())
        } else {
            Err(format!("{silent} {online:?}"))
        }
    });
    assert_eq!(found("?state=waiting"), Vec::<String>::new());
    assert_eq!(bridge.get("/devices?state=asleep").status, 400);
}

#[test]
fn a_device_that_does_not_read_is_one_that_commands_wait_for() {
    let scene = Scene::new("devices-waiting");
    let bridge = scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX).start();
    let _other = bridge.device("127.0.0.3");
    let _stalled = bridge.narrow_device("127.0.0.2");
    stall(&scene, &bridge, "127.0.0.2", 1);
    let page = bridge.devices("?state=waiting");
    assert_eq!(page["devices"].as_array().map(Vec::len), Some(1), "{page}");
    assert_eq!(page["devices"][0]["address"], "127.0.0.2");
}

#[test]
fn who_connects_and_says_nothing_is_let_go_and_keeps_nobody_out() {
    let bridge = Setup::new(free_port()).launch();
    // More than there is room for; one of them begins and does not go on.
    let mut idle: Vec<TcpStream> =
        (0..600).map(|_| TcpStream::connect(bridge.http).expect("connected")).collect();
    idle[0].write_all(b"GET /livez HTTP/1.1\r\nHost:").expect("written");
    assert_eq!(bridge.get("/livez").status, 200, "when there is room again");
    for stream in &mut idle[..512] {
        stream.set_read_timeout(Some(Duration::from_secs(45))).expect("set");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the bridge closes it");
    }
}

#[test]
fn stats_tell_how_it_is_and_how_it_was() {
    let scene = Scene::new("stats");
    let bridge = scene.setup().start();
    let _device = bridge.device("127.0.0.2");
    for (address, outcome) in [("127.0.0.2", "written"), ("127.0.0.9", "offline")] {
        assert_eq!(scene.receipt_of(&command(address, "ON"))["outcome"], outcome);
    }
    bridge.until_metric("rabbitline_undelivered_total", |count| count == 1.0);
    let now = bridge.get("/stats").json();
    assert_eq!(now["outcomes"]["written"], 1, "{now}");
    assert_eq!((&now["outcomes"]["offline"], &now["outcomes"]["invalid"]), (&json!(1), &json!(0)));
    assert_eq!(
        (&now["devices"], &now["undelivered"], &now["ready"]),
        (&json!(1), &json!(1), &json!(true))
    );
    assert_eq!(now["broker"], json!({"consumer": true, "publisher": true, "blocked": false}));
    assert_eq!((&now["bridge"], &now["lanes"]), (&json!("bridge-under-test"), &json!(0)));
    assert!(u64::from_str_radix(now["run"].as_str().expect("a run"), 16).is_ok(), "{now}");
    // Within one sample or two, which are five seconds each.
    let samples = eventually("both commands are in the history", || {
        let history = bridge.get("/stats?history").json();
        assert_eq!(history["every_s"], 5);
        let samples = history["samples"].as_array().expect("a list").clone();
        let count =
            |word: &str| samples.iter().filter_map(|it| it["outcomes"][word].as_u64()).sum::<u64>();
        if (count("written"), count("offline")) == (1, 1) { Ok(samples) } else { Err(history) }
    });
    let with = samples.iter().find(|it| it["outcomes"]["written"] == 1).expect("it is there");
    assert!(with["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0) && with["p50_ms"] == with["p99_ms"]);
    assert_eq!((&with["consumer"], &with["devices"]), (&json!(true), &json!(1)));
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
