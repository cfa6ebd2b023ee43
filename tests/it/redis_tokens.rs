//! Tokens of devices from Redis: whatever becomes of that server, nobody is let in who should not be.

use crate::harness::{Redis, Scene, Setup, command, eventually};

const GATEWAY: &str = "127.0.0.2";

fn setup(scene: &Scene, redis: &Redis) -> Setup {
    let setup = scene.setup().set("DEVICE_IDENTITY", "hello");
    setup.set("DEVICE_TOKENS_REDIS_KEY", "user:<id>").set("REDIS_URL", redis.url())
}

#[test]
fn the_token_in_redis_is_the_one_that_counts() {
    let redis = Redis::start();
    redis.set("user:pump-1", "token", "s3cret");
    redis.set("user:pump-2", "name", "a pump without a token");
    let scene = Scene::new("redis");
    let presence = scene.presence();
    let bridge = setup(&scene, &redis).start();
    for (count, wrong) in (1..).zip(["pump-1 guess", "pump-1", "nobody s3cret", "pump-2 s3cret"]) {
        let mut device = bridge.saying(&format!("127.0.2.{count}"), &format!("HELLO {wrong}"));
        assert!(device.until_closed().is_empty(), "{wrong}");
        bridge.until_refused("token", count);
    }
    assert_eq!(bridge.devices("")["total"], 0);

    let mut device = bridge.hello_device(GATEWAY, "HELLO pump-1 s3cret");
    scene.publish(&command("pump-1", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    assert_eq!(presence.next().json()["address"], "pump-1", "nothing was told of the others");

    redis.set("user:pump-1", "token", "changed");
    assert!(bridge.saying("127.0.2.9", "HELLO pump-1 s3cret").until_closed().is_empty());
    bridge.until_refused("token", 5);
    scene.publish(&command("pump-1", "STILL"));
    assert_eq!(device.line(), "STILL\r\n", "who is in stays in");
    let mut device = bridge.hello_device(GATEWAY, "HELLO pump-1 changed");
    scene.publish(&command("pump-1", "AGAIN"));
    assert_eq!(device.line(), "AGAIN\r\n");
}

#[test]
fn while_redis_is_away_nobody_is_let_in_and_those_who_are_in_stay() {
    let mut redis = Redis::start();
    redis.set("user:pump-1", "token", "s3cret");
    redis.set("user:pump-2", "token", "other");
    let scene = Scene::new("redis-away");
    let bridge = setup(&scene, &redis).start();
    let mut inside = bridge.hello_device(GATEWAY, "HELLO pump-1 s3cret");

    redis.kill();

    for count in 1..=3 {
        assert!(bridge.saying(GATEWAY, "HELLO pump-2 other").until_closed().is_empty());
        bridge.until_refused("tokens_away", count);
    }
    let said = bridge.until_logged(&["pump-2", "nobody can say"]);
    assert!(!said.contains("other"), "{said}");
    scene.publish(&command("pump-1", "ON"));
    assert_eq!(inside.line(), "ON\r\n");

    redis.start_again();
    redis.set("user:pump-2", "token", "other");

    let mut device = eventually("it is let in again", || {
        bridge.takes(bridge.saying(GATEWAY, "HELLO pump-2 other")).ok_or("refused")
    });
    scene.publish(&command("pump-2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    assert_eq!(bridge.refused("token") + bridge.refused("too_soon"), 0.0, "it was nobody's guess");
}
