//! What became of each command, as an event, and the trace it belongs to.

use lapin::types::AMQPValue;
use serde_json::json;

use crate::harness::{Scene, command, persistent, reply_to, table};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn what_became_of_each_command_is_published_if_that_is_wanted() {
    let scene = Scene::new("outcome-events");
    scene.presence();
    let outcomes = scene.amqp.subscribe(&scene.events(), "outcome.#");
    let bridge = scene.setup().set("MQ_OUTCOME_EVENTS", "on").start();
    let mut device = bridge.device("127.0.0.2");

    scene.publish(&json!({"address": "127.0.0.2", "cmd": "SET PASSWORD x", "id": "i1"}));
    device.line();
    let written = outcomes.next();
    assert_eq!(written.key, "outcome.127.0.0.2");
    let written = written.json();
    let run = bridge.devices("?snapshot")["run"].clone();
    let expected = json!({
        "id": "i1", "address": "127.0.0.2", "outcome": "written", "cmd": "SET PASSWORD x",
        "confirm": "written", "bridge": "bridge-under-test", "run": run, "number": 1,
        "taken": written["taken"], "written": written["written"], "at": written["at"],
    });
    assert_eq!(written, expected, "these fields and no others");

    let headers = table(&[("traceparent", AMQPValue::LongString(TRACE.into()))]);
    let body = json!({"address": "127.0.0.9", "cmd": "ON", "id": "i2"}).to_string();
    scene.publish_with(body.as_bytes(), persistent().with_headers(headers));
    let offline = outcomes.next().json();
    assert_eq!((&offline["outcome"], &offline["trace"]), (&json!("offline"), &json!(TRACE)));
    assert_eq!((&offline["number"], offline.get("written")), (&json!(2), None));
    assert!(offline["reason"].is_string());
    bridge.until_logged(&["command not delivered", &format!("\"trace\":\"{TRACE}\"")]);
    let history = bridge.get("/commands/i2");
    assert!(history.body.contains(&format!("\"trace\":\"{TRACE}\"")), "{history:?}");

    scene.publish_with(b"nonsense", persistent());
    let invalid = outcomes.next();
    assert_eq!((invalid.key.as_str(), &invalid.json()["outcome"]), ("outcome.", &json!("invalid")));
}

#[test]
fn what_became_of_commands_is_told_to_nobody_else_by_default() {
    let scene = Scene::new("outcome-events-off");
    scene.presence();
    let outcomes = scene.amqp.subscribe(&scene.events(), "outcome.#");
    let bridge = scene.setup().start();
    let _device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    let headers = table(&[("traceparent", AMQPValue::LongString(TRACE.into()))]);
    let body = command("127.0.0.2", "ON").to_string();
    scene.publish_with(body.as_bytes(), reply_to(&receipts).with_headers(headers));
    let receipt = receipts.next();
    assert_eq!(
        (&receipt.json()["outcome"], receipt.header("traceparent").as_str()),
        (&json!("written"), TRACE)
    );
    // The bridge publishes its end behind all else.
    let beats = scene.amqp.subscribe(&scene.events(), "bridge.#");
    bridge.terminate();
    while beats.next().json()["online"] != false {}
    assert!(outcomes.so_far().is_empty());
}
