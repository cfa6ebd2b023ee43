//! Clients of the other wire formats, written in Python from their descriptions alone, work unchanged; and what a
//! backend publishes reaches them.

use serde_json::{Value, json};

use crate::harness::{Bridge, Scene, ScriptedClient, TokensFile};

const CHANNEL: &str = include_str!("clients/channel.py");
const CHAT: &str = include_str!("clients/chat.py");
const TOPIC: &str = include_str!("clients/topic.py");

/// Runs a client; when it is ready, publishes `commands`, and waits until it is done.
#[track_caller]
fn run(scene: &Scene, client: &str, port: u16, commands: &[Value]) {
    let client = ScriptedClient::start(client, port);
    for command in commands {
        scene.publish(command);
    }
    client.until_done();
}

fn until_drained(scene: &Scene, bridge: &Bridge) {
    scene.until_drained(bridge);
    assert_eq!(bridge.metric("rabbitline_settlements_forgotten_total"), 0.0);
}

#[test]
fn a_channel_client_joins_publishes_and_hears_what_a_backend_says_to_the_group() {
    let scene = Scene::new("channel");
    let setup = scene.setup().set("DEVICE_PROTOCOL", "channel").set("DEVICE_IDENTITY", "peer");
    let bridge = setup.start();
    let commands = [
        json!({"group": "pumps", "cmd": {"from": "backend"}}),
        json!({"group": "pumps", "cmd": "ALL STOP"}),
    ];

    run(&scene, CHANNEL, bridge.device_port, &commands);

    until_drained(&scene, &bridge);
    assert_eq!(bridge.outcomes("written"), 2.0);
}

#[test]
fn a_chat_client_is_verified_talks_and_hears_what_a_backend_says() {
    let scene = Scene::new("chat");
    let tokens = TokensFile::new(&[("5551", "one"), ("5552", "two"), ("5553", "three")]);
    let setup =
        scene.setup().set("DEVICE_PROTOCOL", "chat").set("DEVICE_TOKENS_FILE", tokens.path());
    let bridge = setup.start();
    let chat = |command: u32, to: &Value| {
        let content = format!("number {command}");
        json!({"command_id": command, "chat_from": "shop", "chat_to": to, "chat_content": content})
    };
    let commands = [
        json!({"address": "5552", "cmd": "SET OUT1 ON", "from": "backend"}),
        chat(102, &json!("5552")),
        chat(103, &json!(["5551", "5552"])),
        chat(104, &Value::Null),
    ];

    run(&scene, CHAT, bridge.device_port, &commands);

    until_drained(&scene, &bridge);
    assert_eq!(bridge.outcomes("written"), 6.0);
    assert!(
        bridge.metric("rabbitline_connections_ended_total{reason=\"heartbeat_timeout\"}") == 1.0
    );
}

#[test]
fn a_topic_client_subscribes_publishes_and_hears_what_a_backend_says_to_the_group() {
    let scene = Scene::new("topic");
    let bridge = scene.setup().start();
    let commands = [json!({"group": "pumps", "cmd": {"from": "backend"}})];

    run(&scene, TOPIC, bridge.http.port(), &commands);

    until_drained(&scene, &bridge);
    let answer = bridge.get("/message");
    assert_eq!(answer.status, 426);
    assert_eq!(answer.json()["detail"], "expected a WebSocket handshake");
}

#[test]
fn groups_reach_across_wire_formats() {
    let scene = Scene::new("mixed");
    let bridge = scene.setup().start();
    let mut line = bridge.device("127.0.0.2");
    // The second client of the script leaves the group, the first stays until it is done.
    run(
        &scene,
        TOPIC,
        bridge.http.port(),
        &[
            json!({"group": "pumps", "cmd": {"from": "backend"}}),
            json!({"broadcast": true, "cmd": "TO ALL"}),
        ],
    );
    assert_eq!(line.line(), "TO ALL\r\n");
}
