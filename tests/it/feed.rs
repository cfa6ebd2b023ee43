//! Commands from a Redis list, and what is published to a Redis channel.

use serde_json::json;

use crate::harness::{Device, Redis, Scene, ScriptedClient, eventually};

const TOPIC_CLIENT: &str = include_str!("clients/topic.py");

#[test]
fn commands_from_a_list_arrive_in_order_and_none_is_left_behind() {
    const COMMANDS: usize = 200;
    let (scene, redis) = (Scene::new("feed"), Redis::start());
    let setup = scene
        .setup()
        .set("REDIS_URL", redis.url())
        .set("SOURCE_REDIS_LIST", "commands")
        .set("BRIDGE_NAME", "b1");
    // What a bridge of this name had taken when it ended.
    let command =
        |number: usize| json!({"address": "127.0.0.2", "cmd": number.to_string()}).to_string();
    redis.number(&["LPUSH", "commands:taken:b1", &command(0)]);
    for number in 1..COMMANDS / 2 {
        redis.number(&["LPUSH", "commands", &command(number)]);
    }
    let bridge = setup.set("COMMAND_IF_OFFLINE", "park").start();
    let mut device = Device::connect("127.0.0.2", bridge.device_port);
    for number in COMMANDS / 2..COMMANDS {
        redis.number(&["LPUSH", "commands", &command(number)]);
    }
    for number in 0..COMMANDS {
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    eventually("both lists are empty", || {
        match (redis.number(&["LLEN", "commands"]), redis.number(&["LLEN", "commands:taken:b1"])) {
            (0, 0) => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
}

#[test]
fn a_list_is_taken_from_again_when_its_server_is_back() {
    let (scene, mut redis) = (Scene::new("feed-away"), Redis::start());
    let setup = scene.setup().set("REDIS_URL", redis.url()).set("SOURCE_REDIS_LIST", "commands");
    let bridge = setup.start();
    let mut device = bridge.device("127.0.0.2");
    let command = |cmd: &str| json!({"address": "127.0.0.2", "cmd": cmd}).to_string();
    redis.number(&["LPUSH", "commands", &command("BEFORE")]);
    assert_eq!(device.line(), "BEFORE\r\n");

    redis.kill();
    bridge.until_logged(&["WARN", "Redis: the list cannot be used"]);
    redis.start_again();
    redis.number(&["LPUSH", "commands", &command("AFTER")]);

    assert_eq!(device.line(), "AFTER\r\n");
}

#[test]
fn what_is_published_to_a_channel_reaches_the_topic_of_its_name() {
    let (scene, redis) = (Scene::new("feed-channel"), Redis::start());
    let setup = scene.setup().set("REDIS_URL", redis.url()).set("SOURCE_REDIS_CHANNEL", "pumps");
    let bridge = setup.start();
    bridge.until_logged(&["hearing a channel of Redis"]);
    let client = ScriptedClient::start(TOPIC_CLIENT, bridge.http.port());

    // The bridge is the one that hears it.
    assert_eq!(redis.number(&["PUBLISH", "pumps", r#"{"from": "backend"}"#]), 1);

    client.until_done();
}
