//! Whoever asks for a receipt gets one, and knows it by its correlation id.

use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::harness::{Scene, command, persistent, reply_to, table};

#[test]
fn a_receipt_carries_the_correlation_id_the_headers_and_what_became_of_the_command() {
    let scene = Scene::new("receipt");
    let bridge = scene.setup().start();
    let _device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    let headers = table(&[
        ("traceparent", AMQPValue::LongString("00-ab-cd-01".into())),
        ("n", AMQPValue::LongInt(7)),
    ]);

    let properties =
        reply_to(&receipts).with_correlation_id("order 66".into()).with_headers(headers.clone());
    let body = json!({"address": "127.0.0.2", "cmd": "ON", "id": "cmd-1"});
    scene.publish_with(body.to_string().as_bytes(), properties);

    let receipt = receipts.next();
    assert_eq!(receipt.correlation_id(), Some("order 66"));
    assert_eq!(receipt.properties.headers().as_ref(), Some(&headers));
    assert_eq!(
        receipt.properties.content_type().as_ref().map(|kind| kind.as_str()),
        Some("application/json")
    );
    let receipt = receipt.json();
    let at = receipt["at"].as_str().expect("a time").to_owned();
    assert_time(&at);
    let expected = json!({
        "id": "cmd-1", "address": "127.0.0.2", "outcome": "written", "bridge": "bridge-under-test", "at": at,
    });
    assert_eq!(receipt, expected, "these fields and no others");
}

#[test]
fn a_command_is_named_by_its_id_else_by_its_message_id_else_by_the_bridge() {
    let scene = Scene::new("ids");
    let bridge = scene.setup().start();
    let _device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    let id_of = |body: Value, message_id: Option<&str>| {
        let mut properties = reply_to(&receipts);
        if let Some(id) = message_id {
            properties = properties.with_message_id(id.into());
        }
        scene.publish_with(body.to_string().as_bytes(), properties);
        receipts.next().json()["id"].as_str().expect("an id").to_owned()
    };

    let named = json!({"address": "127.0.0.2", "cmd": "ON", "id": "body"});
    assert_eq!(id_of(named.clone(), None), "body");
    assert_eq!(id_of(named, Some("property")), "body");
    assert_eq!(id_of(command("127.0.0.2", "ON"), Some("property")), "property");
    let (first, second) =
        (id_of(command("127.0.0.2", "ON"), None), id_of(command("127.0.0.2", "ON"), None));
    assert!(!first.is_empty() && !second.is_empty() && first != second, "{first:?} {second:?}");
}

#[test]
fn a_receipt_names_the_address_in_canonical_form() {
    let scene = Scene::new("canonical");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let receipt = scene.receipt_of(&command("::ffff:127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    assert_eq!(
        (&receipt["address"], &receipt["outcome"]),
        (&json!("127.0.0.2"), &json!("written"))
    );
}

#[test]
fn a_reply_queue_that_is_gone_holds_nothing_up() {
    let scene = Scene::new("no-reply-queue");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    for cmd in ["ONE", "TWO"] {
        let nowhere = persistent().with_reply_to("it.is.gone".into());
        scene.publish_with(command("127.0.0.2", cmd).to_string().as_bytes(), nowhere);
        assert_eq!(device.line(), format!("{cmd}\r\n"));
    }
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.terminate().code, Some(0));
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
}

/// RFC 3339, UTC, milliseconds: `2026-01-31T23:59:59.123Z`.
#[track_caller]
fn assert_time(text: &str) {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{text}");
}
