//! A command that says `park` waits in the broker for its device, keeps its place and its time, and ends as any other.

use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::harness::{
    Fleet, Inbox, Scene, Stream, address, command, eventually, park, reply_to, table,
};

/// Far more than any test needs.
const LONG_MS: u64 = 3_600_000;

#[test]
fn commands_parked_for_a_hundred_devices_arrive_in_order_when_they_connect() {
    const DEVICES: usize = 100;
    let scene = Scene::new("parked-fleet");
    let bridge = scene.setup().set("COMMAND_IF_OFFLINE", "park").set("MQ_PREFETCH", "64").start();
    let stream = Stream::publish(&scene, DEVICES, 10_000);
    scene.until_drained(&bridge);
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == stream.total() as f64);
    let waiting = |device| scene.amqp.depth(&scene.parked_for(&address(device))) as usize;
    assert_eq!((0..DEVICES).map(waiting).sum::<usize>(), stream.total(), "each in its own queue");

    let fleet = Fleet::start(DEVICES, bridge.device_port);

    eventually("every command has arrived", || fleet.has(stream.total()));
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    let arrived = stream.arrived(&fleet);
    assert_eq!((arrived.missing.len(), arrived.duplicates), (0, 0), "{arrived:?}");
    assert_eq!(bridge.outcomes("written"), stream.total() as f64);
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!((0..DEVICES).map(waiting).sum::<usize>(), 0, "nothing is left behind");
    assert_eq!(scene.amqp.depth(&scene.undelivered()), 0);
}

#[test]
fn a_parked_command_that_is_not_fetched_in_time_is_undelivered_and_the_others_arrive() {
    let scene = Scene::new("parked-ttl");
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let body =
        br#"{ "address": "127.0.0.9", "cmd": "LATE",  "ttl_ms": 1000, "if_offline": "park" }"#;
    let headers = table(&[("tenant", AMQPValue::LongString("north".into()))]);

    let ask = |id: &str| {
        let properties = reply_to(&receipts).with_correlation_id(id.into());
        properties.with_message_id(format!("message {id}").into())
    };
    scene.publish_with(body, ask("late").with_headers(headers));
    let on_time = park("127.0.0.9", "ON TIME").to_string();
    scene.publish_with(on_time.as_bytes(), ask("on time"));

    assert_eq!(outcomes(&receipts, 2), [pair("late", "parked"), pair("on time", "parked")]);
    let letter = undelivered.next();
    assert_eq!(letter.body, body, "the body is not touched");
    assert_eq!(letter.key, scene.queue(), "the routing key is the command's");
    assert_eq!(letter.header("x-outcome"), "expired");
    assert!(!letter.header("x-reason").is_empty());
    assert_eq!(letter.header("tenant"), "north");
    assert_eq!(letter.correlation_id(), Some("late"));
    assert_eq!(letter.properties.reply_to().as_ref().map(|to| to.as_str()), Some(&*receipts.queue));
    assert_eq!(letter.properties.expiration(), &None, "it must not expire there too");
    assert_eq!(outcomes(&receipts, 1), [pair("late", "expired")]);

    let mut device = bridge.device("127.0.0.9");
    assert_eq!(device.line(), "ON TIME\r\n", "the late one did not come before");
    assert_eq!(outcomes(&receipts, 1), [pair("on time", "written")]);
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    assert_eq!(bridge.outcomes("parked"), 2.0);
    assert_eq!((bridge.outcomes("expired"), bridge.outcomes("written")), (1.0, 1.0));
    assert_eq!(undelivered.so_far().len(), 0, "each ends once");
}

#[test]
fn a_command_without_a_timestamp_spends_its_time_while_it_is_parked() {
    // No device gets anything, so that what was fetched waits on until it expires.
    let scene = Scene::new("parked-time");
    let bridge = scene.setup().set("DEVICE_GREETING", "on").start();
    let undelivered = scene.undelivered_inbox();
    let brief = |address: &str, cmd: &str, ttl_ms: u64| {
        scene.publish(
            &json!({"address": address, "cmd": cmd, "if_offline": "park", "ttl_ms": ttl_ms}),
        );
    };
    brief("127.0.0.9", "FETCHED", 4_000);
    brief("127.0.0.8", "TWO SECONDS ARE OVER", 2_000);
    assert_eq!(undelivered.next().json()["cmd"], "TWO SECONDS ARE OVER");

    let _device = bridge.device("127.0.0.9");
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 1.0);
    brief("127.0.0.8", "THREE SECONDS LATER", 3_000);

    let first = undelivered.next();
    assert_eq!(first.json()["cmd"], "FETCHED", "its time began before it was parked");
    assert_eq!(first.header("x-outcome"), "expired");
    assert_eq!(undelivered.next().json()["cmd"], "THREE SECONDS LATER");
}

#[test]
fn what_a_command_was_given_while_it_was_parked_is_gone_from_what_leaves_the_bridge() {
    let scene = Scene::new("parked-headers");
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let headers = table(&[("tenant", AMQPValue::LongString("north".into()))]);
    let command = json!({
        "address": "127.0.0.9", "cmd": "ASK", "if_offline": "park", "confirm": "answered", "timeout_ms": 1,
    });
    let properties = reply_to(&receipts)
        .with_headers(headers.clone())
        .with_correlation_id("c-1".into())
        .with_app_id("backend".into())
        .with_priority(4);
    scene.publish_with(command.to_string().as_bytes(), properties.clone());
    assert_eq!(receipts.next().json()["outcome"], "parked");

    let mut device = bridge.device("127.0.0.9");

    assert_eq!(device.line(), "ASK\r\n");
    let receipt = receipts.next();
    assert_eq!(receipt.json()["outcome"], "unanswered");
    assert_eq!(receipt.correlation_id(), Some("c-1"));
    assert_eq!(receipt.properties.headers().as_ref(), Some(&headers), "as the sender set them");
    let letter = undelivered.next();
    assert_eq!(letter.header("x-outcome"), "unanswered");
    assert_eq!(letter.header("tenant"), "north");
    let all = letter.properties.headers().clone().expect("headers");
    assert_eq!(all.inner().len(), 4, "one of its own and three of ours: {all:?}");
    assert_eq!(letter.key, scene.queue(), "the routing key is the command's");
    assert_eq!(letter.properties.expiration(), &None);
    assert_eq!(letter.properties.app_id(), properties.app_id());
    assert_eq!(letter.properties.priority(), properties.priority());
}

#[test]
fn both_receipts_of_a_parked_command_name_it_alike() {
    let scene = Scene::new("parked-ids");
    let bridge = scene.setup().start();
    let receipts = scene.receipts();
    scene.publish_with(park("127.0.0.9", "ON").to_string().as_bytes(), reply_to(&receipts));
    let parked = receipts.next().json();
    assert_eq!(parked["outcome"], "parked");
    assert!(parked["reason"].is_string(), "{parked}");

    let _device = bridge.device("127.0.0.9");

    let written = receipts.next().json();
    assert_eq!((&written["outcome"], &written["id"]), (&json!("written"), &parked["id"]));
    assert_eq!(written["address"], "127.0.0.9");
}

#[test]
fn a_parked_command_is_proved_as_it_asks_to_be() {
    let scene = Scene::new("parked-proof");
    let bridge = scene.setup().start();
    let receipts = scene.receipts();
    for confirm in ["received", "answered", "written"] {
        let command = json!({"address": "127.0.0.9", "cmd": confirm, "if_offline": "park", "confirm": confirm});
        let properties = reply_to(&receipts).with_correlation_id(confirm.into());
        scene.publish_with(command.to_string().as_bytes(), properties);
        assert_eq!(outcomes(&receipts, 1), [pair(confirm, "parked")]);
    }

    let mut device = bridge.device("127.0.0.9");

    assert_eq!(device.line(), "received\r\n");
    assert_eq!(outcomes(&receipts, 1), [pair("received", "received")]);
    assert_eq!((device.line(), device.line()), ("answered\r\n".into(), "written\r\n".into()));
    assert_eq!(outcomes(&receipts, 1), [pair("written", "written")]);
    device.send(b"IT IS DONE\n");
    let answer = receipts.next();
    assert_eq!(answer.correlation_id(), Some("answered"));
    assert_eq!(answer.json()["answer"], "IT IS DONE");
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
}

#[test]
fn one_command_too_many_for_a_device_is_overloaded_until_others_expire() {
    limited("COMMAND_PARKED_MAX", "127.0.0.9");
}

#[test]
fn one_command_too_many_for_all_devices_is_overloaded_until_others_expire() {
    limited("COMMAND_PARKED_TOTAL_MAX", "127.0.0.8");
}

/// Parks as many commands as `setting` allows for one device, then one more for `last`.
fn limited(setting: &str, last: &str) {
    let scene = Scene::new("parked-limit");
    let bridge = scene.setup().set(setting, "3").start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let put = |address: &str, cmd: &str, ttl_ms: u64| {
        let command =
            json!({"address": address, "cmd": cmd, "if_offline": "park", "ttl_ms": ttl_ms});
        scene.publish_with(command.to_string().as_bytes(), reply_to(&receipts));
        receipts.next().json()["outcome"].as_str().expect("a word").to_owned()
    };
    // The first two are told of by receipts, and the third says nothing.
    assert_eq!(put("127.0.0.9", "ONE", 2_000), "parked");
    assert_eq!(put("127.0.0.9", "TWO", 2_000), "parked");
    scene.publish(&park("127.0.0.9", "THREE"));
    scene.until_drained(&bridge);
    assert_eq!(put(last, "TOO MANY", LONG_MS), "overloaded");
    let letter = undelivered.next();
    assert_eq!(
        (letter.header("x-outcome"), &letter.json()["cmd"]),
        ("overloaded".into(), &json!("TOO MANY"))
    );

    for _ in 0..2 {
        assert_eq!(undelivered.next().header("x-outcome"), "expired");
        assert_eq!(receipts.next().json()["outcome"], "expired");
    }
    assert_eq!(put(last, "FOUR", LONG_MS), "parked", "there is room again");
    assert_eq!(put(last, "FIVE", LONG_MS), "parked");
    assert_eq!(put(last, "AGAIN TOO MANY", LONG_MS), "overloaded");
    let mut device = bridge.device("127.0.0.9");
    assert_eq!(device.line(), "THREE\r\n");
    bridge.until_metric("rabbitline_parked_commands", |parked| {
        parked == if last == "127.0.0.9" { 0.0 } else { 2.0 }
    });
    assert_eq!(put(last, "SIX", LONG_MS), if last == "127.0.0.9" { "written" } else { "parked" });
}

#[test]
fn room_comes_back_when_commands_parked_by_an_earlier_bridge_expire() {
    let scene = Scene::new("parked-limit-older");
    let setup = scene.setup().set("COMMAND_PARKED_MAX", "3");
    let bridge = setup.start();
    for cmd in ["ONE", "TWO", "THREE"] {
        scene.publish(
            &json!({"address": "127.0.0.9", "cmd": cmd, "if_offline": "park", "ttl_ms": 4_000}),
        );
    }
    scene.until_parked("127.0.0.9", 3);
    assert_eq!(bridge.terminate().code, Some(0));
    let bridge = setup.start();
    // With the first for the device the bridge learns how many are there.
    scene.publish(
        &json!({"address": "127.0.0.9", "cmd": "FOUR", "if_offline": "park", "ttl_ms": 4_000}),
    );
    scene.until_drained(&bridge);
    let undelivered = scene.undelivered_inbox();
    scene.publish(&park("127.0.0.9", "FIVE"));
    assert_eq!(undelivered.next().header("x-outcome"), "overloaded");
    for _ in 0..4 {
        assert_eq!(undelivered.next().header("x-outcome"), "expired");
    }

    eventually("there is room again", || {
        match scene.receipt_of(&park("127.0.0.9", "SIX"))["outcome"].as_str() {
            Some("parked") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 1.0);
}

#[test]
fn a_command_that_may_be_parked_lives_a_week_at_most() {
    let scene = Scene::new("parked-week");
    let _bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    let outcome = |ttl_ms: u64, if_offline: &str| {
        let command = json!({"address": "127.0.0.9", "cmd": "ON", "if_offline": if_offline, "ttl_ms": ttl_ms});
        scene.receipt_of(&command)
    };
    const WEEK_MS: u64 = 7 * 24 * 3_600_000;
    assert_eq!(outcome(WEEK_MS, "park")["outcome"], "parked");
    let invalid = outcome(WEEK_MS + 1, "park");
    assert_eq!(invalid["outcome"], "invalid");
    assert!(invalid["reason"].as_str().expect("a reason").starts_with("ttl_ms:"), "{invalid}");
    assert_eq!(undelivered.next().header("x-outcome"), "invalid");
    assert_eq!(outcome(WEEK_MS + 1, "reject")["outcome"], "offline");
}

#[test]
fn where_nothing_was_ever_parked_no_queue_is_made_and_where_something_was_a_marker_says_so() {
    let scene = Scene::new("parked-never");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.9");
    scene.publish(&park("127.0.0.9", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    scene.publish(&command("127.0.0.8", "REJECTED"));
    scene.until_drained(&bridge);
    let is_missing = |queue: String| {
        let error = scene.amqp.queue(&queue).expect_err("there is no such queue");
        assert!(error.contains("NOT_FOUND") || error.contains("404"), "{error}");
    };
    is_missing(scene.parked());
    is_missing(scene.parked_for("127.0.0.9"));
    is_missing(scene.parked_for("127.0.0.8"));

    scene.publish(&park("127.0.0.8", "PARKED"));
    scene.until_drained(&bridge);

    assert_eq!(scene.amqp.queue(&scene.parked()), Ok((0, 0)));
    assert_eq!(scene.amqp.depth(&scene.parked_for("127.0.0.8")), 1);
    is_missing(scene.parked_for("127.0.0.9"));
}

#[test]
fn a_device_whose_parked_commands_all_expired_can_have_others_parked() {
    let scene = Scene::new("parked-again");
    let bridge = scene.setup().start();
    let undelivered = scene.undelivered_inbox();
    scene.publish(
        &json!({"address": "127.0.0.9", "cmd": "LATE", "if_offline": "park", "ttl_ms": 1}),
    );
    assert_eq!(undelivered.next().header("x-outcome"), "expired");
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    bridge.device("127.0.0.9").reset();
    bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);

    scene.park_numbers("127.0.0.9", 0..3);
    scene.until_drained(&bridge);

    let mut device = bridge.device("127.0.0.9");
    assert_eq!([device.line(), device.line(), device.line()], ["0\r\n", "1\r\n", "2\r\n"]);
    assert!(
        !bridge.log().text().contains("WARN"),
        "the publisher's connection was not given up: {}",
        bridge.log().text()
    );
}

fn pair(id: &str, outcome: &str) -> (String, Value) {
    (id.to_owned(), json!(outcome))
}

/// The next receipts: correlation id and outcome, by id.
#[track_caller]
fn outcomes(receipts: &Inbox, count: usize) -> Vec<(String, Value)> {
    let mut all: Vec<_> = receipts
        .take(count)
        .iter()
        .map(|receipt| {
            (receipt.correlation_id().expect("an id").to_owned(), receipt.json()["outcome"].clone())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}
