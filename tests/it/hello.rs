//! Devices that say in their first line who they are, and prove it by a token if they must.

use serde_json::json;

use crate::harness::{Device, Program, Scene, Setup, TokensFile, command, eventually, park};

const GATEWAY: &str = "127.0.0.2";

fn setup(scene: &Scene) -> Setup {
    scene.setup().set("DEVICE_IDENTITY", "hello")
}

#[track_caller]
fn assert_lets_nothing_through(device: &mut Device) {
    assert_eq!(device.until_closed(), Vec::<Vec<u8>>::new(), "closed, without a word");
}

#[test]
fn devices_behind_one_address_each_get_their_own_commands() {
    const IDS: [&str; 3] = ["pump-1", "pump-2", "p\u{fc}mp/3"];
    let scene = Scene::new("hello");
    let presence = scene.presence();
    let bridge = setup(&scene).start();
    let mut devices = IDS.map(|id| bridge.hello_device(GATEWAY, &format!("HELLO {id}")));
    for (id, device) in IDS.iter().zip(&devices) {
        let event = presence.next().json();
        assert_eq!((&event["address"], &event["online"]), (&json!(id), &json!(true)));
        assert_eq!(event["peer"], device.local().to_string());
    }

    for number in 0..60 {
        scene.publish(&command(IDS[number % 3], &format!("NUMBER {number}")));
    }

    for number in 0..60 {
        assert_eq!(devices[number % 3].line(), format!("NUMBER {number}\r\n"));
    }
    assert_eq!(scene.receipt_of(&command(GATEWAY, "ON"))["outcome"], "offline", "it is no device");
    scene.publish(&json!({"broadcast": true, "cmd": "END"}));
    for device in &mut devices {
        assert_eq!(device.line(), "END\r\n", "and nothing of another's before");
    }
    assert_eq!(bridge.metric("rabbitline_devices_connected"), 3.0);
}

#[test]
fn what_a_device_sends_behind_its_hello_is_not_lost() {
    let scene = Scene::new("hello-rest");
    let uplink = scene.uplink();
    let bridge = setup(&scene).start();
    let mut device = Device::connect(GATEWAY, bridge.device_port);
    device.send(b"\r\nHELLO pump-1\r\nT=20\nALARM 3\r\nHAL");
    let lines = uplink.take(2).iter().map(|event| event.json()["line"].clone()).collect::<Vec<_>>();
    assert_eq!(lines, ["T=20", "ALARM 3"]);
    device.send(b"F\n");
    let event = uplink.next();
    assert_eq!((&*event.key, &event.json()["line"]), ("uplink.pump-1", &json!("HALF")));
    scene.publish(&command("pump-1", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    bridge.until_metric("rabbitline_uplink_lines_total", |count| count == 3.0);
    // Nor if it leaves at once.
    drop(bridge.saying(GATEWAY, "HELLO pump-2\r\nBYE"));
    let event = uplink.next();
    assert_eq!((&*event.key, &event.json()["line"]), ("uplink.pump-2", &json!("BYE")));
}

#[test]
fn a_hello_may_come_byte_by_byte() {
    let scene = Scene::new("hello-bytes");
    let uplink = scene.uplink();
    let bridge = setup(&scene).start();
    let mut device = Device::connect(GATEWAY, bridge.device_port);
    device.send_bytewise(b"HELLO pump-1\r\nT=20\r\n");
    assert_eq!(uplink.next().json()["line"], "T=20");
    scene.publish(&command("pump-1", "ON"));
    assert_eq!(device.line(), "ON\r\n");
}

#[test]
fn devices_may_say_hello_in_their_own_way() {
    let scene = Scene::new("hello-pattern");
    let setup = setup(&scene).set("DEVICE_HELLO_PATTERN", "^IMEI:(?<id>[0-9]{15});");
    let bridge = setup.start();
    let mut device = bridge.hello_device(GATEWAY, "IMEI:490154203237518;fw=3");
    scene.publish(&command("490154203237518", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    assert_lets_nothing_through(&mut bridge.saying(GATEWAY, "HELLO pump-1"));
    bridge.until_refused("hello", 1);
}

#[test]
fn a_device_with_its_token_is_in_and_without_it_nobody_ever_knows_of_it() {
    let tokens = TokensFile::new(&[("pump-1", "s3cret"), ("pump-2", "other")]);
    let scene = Scene::new("tokens");
    let presence = scene.presence();
    let bridge = setup(&scene).set("DEVICE_TOKENS_FILE", tokens.path()).start();
    scene.publish(&park("pump-1", "FOR PUMP 1 ALONE"));
    scene.until_parked("pump-1", 1);

    let wrong = ["pump-1 guess", "pump-1 other", "pump-1", "nobody s3cret", "pump-2 s3cret"];
    for (number, wrong) in (1..).zip(wrong) {
        // Each from an address of its own, which has not failed before.
        let mut device = bridge.saying(&format!("127.0.2.{number}"), &format!("HELLO {wrong}"));
        assert_lets_nothing_through(&mut device);
        bridge.until_refused("token", number);
    }
    assert_eq!(bridge.devices("")["total"], 0);
    assert_eq!(bridge.metric("rabbitline_connections_total"), 0.0);
    scene.until_parked("pump-1", 1);

    let mut device = bridge.hello_device(GATEWAY, "HELLO pump-1 s3cret");
    assert_eq!(device.line(), "FOR PUMP 1 ALONE\r\n");
    let event = presence.next().json();
    assert_eq!(
        (&event["address"], &event["online"], &event["peer"]),
        (&json!("pump-1"), &json!(true), &json!(device.local().to_string())),
        "the first event of all"
    );
    let log = bridge.terminate().stderr;
    assert!(!log.contains("s3cret") && !log.contains("guess"), "no token is in the log");
}

#[test]
fn who_has_guessed_must_wait_and_another_device_behind_the_address_need_not() {
    let tokens = TokensFile::new(&[("pump-1", "s3cret"), ("pump-2", "other")]);
    let scene = Scene::new("too-soon");
    let bridge = setup(&scene).set("DEVICE_TOKENS_FILE", tokens.path()).start();
    let mut tries = 0.0;
    // After the fourth wrong one the wait is four seconds.
    eventually("four guesses were told that they are wrong", || {
        assert_lets_nothing_through(&mut bridge.saying(GATEWAY, "HELLO pump-1 guess"));
        tries += 1.0;
        let counted = || bridge.refused("token") + bridge.refused("too_soon");
        eventually("the guess is counted", || if counted() == tries { Ok(()) } else { Err(tries) });
        let told = bridge.refused("token");
        if told >= 4.0 { Ok(()) } else { Err(told) }
    });
    let too_soon = bridge.refused("too_soon");
    assert!(too_soon > 0.0, "guesses in a row are not all told");

    assert_lets_nothing_through(&mut bridge.saying(GATEWAY, "HELLO pump-1 s3cret"));
    bridge.until_refused("too_soon", too_soon as usize + 1);
    let mut neighbour = bridge.hello_device(GATEWAY, "HELLO pump-2 other");
    let elsewhere = bridge.hello_device("127.0.0.3", "HELLO pump-1 s3cret");
    scene.publish(&command("pump-2", "ON"));
    assert_eq!(neighbour.line(), "ON\r\n");
    drop(elsewhere);

    eventually("it is let in when it has waited", || {
        bridge.takes(bridge.saying(GATEWAY, "HELLO pump-1 s3cret")).ok_or("refused")
    });
}

#[test]
fn a_token_that_is_added_to_the_file_counts_without_a_restart() {
    let mut tokens = TokensFile::new(&[("pump-1", "s3cret")]);
    let scene = Scene::new("new-token");
    let bridge = setup(&scene).set("DEVICE_TOKENS_FILE", tokens.path()).start();
    let _first = bridge.hello_device(GATEWAY, "HELLO pump-1 s3cret");
    assert_lets_nothing_through(&mut bridge.saying("127.0.0.3", "HELLO pump-2 other"));

    tokens.add("pump-2", "other");

    let read_again =
        || bridge.log().all().iter().any(|line| line.contains("files have changed and were read"));
    eventually("the file is read again when somebody asks", || {
        drop(bridge.hello_device(GATEWAY, "HELLO pump-1 s3cret"));
        if read_again() { Ok(()) } else { Err("not yet") }
    });
    let mut device = bridge.hello_device("127.0.0.4", "HELLO pump-2 other");
    scene.publish(&command("pump-2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
}

#[test]
fn what_is_no_hello_is_closed() {
    let scene = Scene::new("no-hello");
    let presence = scene.presence();
    let bridge = setup(&scene).set("DEVICE_LINE_MAX", "300").start();
    let mut first = bridge.hello_device(GATEWAY, "HELLO pump-1");
    assert_eq!(presence.next().json()["address"], "pump-1");
    let too_long_a_name = format!("HELLO {}", "x".repeat(290));
    let wrong = ["T=20", "hello pump-2", "HELLO ", "GET / HTTP/1.1", &*too_long_a_name];
    for (count, line) in (1..).zip(wrong) {
        assert_lets_nothing_through(&mut bridge.saying(GATEWAY, line));
        bridge.until_refused("hello", count);
    }
    let mut endless = Device::connect(GATEWAY, bridge.device_port);
    endless.send(&[b'x'; 302]);
    assert_lets_nothing_through(&mut endless);
    bridge.until_refused("hello", wrong.len() + 1);
    let mut gone = Device::connect(GATEWAY, bridge.device_port);
    gone.send(b"HELLO pu");
    drop(gone);
    bridge.until_refused("left", 1);

    scene.publish(&command("pump-1", "ON"));
    assert_eq!(first.line(), "ON\r\n", "nobody else is harmed");
    assert_eq!(bridge.metric("rabbitline_connections_total"), 1.0);
    let _last = bridge.hello_device(GATEWAY, "HELLO pump-2");
    assert_eq!(presence.next().json()["address"], "pump-2", "nothing was told of the others");
}

#[test]
fn who_does_not_say_who_it_is_in_time_is_closed() {
    let scene = Scene::new("hello-timeout");
    let bridge = setup(&scene).set("DEVICE_HELLO_TIMEOUT", "1s").start();
    let mut known = bridge.hello_device(GATEWAY, "HELLO pump-1");
    let mut silent = Device::connect(GATEWAY, bridge.device_port);
    let mut slow = Device::connect(GATEWAY, bridge.device_port);
    slow.send(b"HELLO pump-2");
    assert_lets_nothing_through(&mut silent);
    assert_lets_nothing_through(&mut slow);
    bridge.until_refused("timeout", 2);
    scene.publish(&command("pump-1", "ON"));
    assert_eq!(known.line(), "ON\r\n", "who has said it may be silent");
}

#[test]
fn a_second_connection_takes_the_place_of_the_first_unless_it_is_to_be_rejected() {
    let scene = Scene::new("second");
    let bridge = setup(&scene).start();
    let mut first = bridge.hello_device(GATEWAY, "HELLO pump-1");
    let mut second = bridge.hello_device("127.0.0.3", "HELLO pump-1");
    assert_lets_nothing_through(&mut first);
    scene.publish(&command("pump-1", "FOR THE SECOND"));
    assert_eq!(second.line(), "FOR THE SECOND\r\n");
    assert_eq!((bridge.ended("replaced"), bridge.refused("taken")), (1.0, 0.0));

    let scene = Scene::new("second-rejected");
    let presence = scene.presence();
    let bridge = setup(&scene).set("DEVICE_SECOND", "reject").start();
    let mut first = bridge.hello_device(GATEWAY, "HELLO pump-1");
    assert_lets_nothing_through(&mut bridge.saying("127.0.0.3", "HELLO pump-1"));
    bridge.until_refused("taken", 1);
    scene.publish(&command("pump-1", "FOR THE FIRST"));
    assert_eq!(first.line(), "FOR THE FIRST\r\n");
    assert_eq!(presence.next().json()["peer"], first.local().to_string());

    drop(first);
    let event = presence.next().json();
    assert_eq!((&event["online"], &event["reason"]), (&json!(false), &json!("closed")));
    let mut third = bridge.hello_device("127.0.0.3", "HELLO pump-1");
    scene.publish(&command("pump-1", "FOR THE THIRD"));
    assert_eq!(third.line(), "FOR THE THIRD\r\n");
}

#[test]
fn what_was_parked_for_a_device_arrives_when_it_says_hello() {
    let scene = Scene::new("hello-parked");
    let bridge = setup(&scene).start();
    scene.park_numbers("pump-1", 0..20);
    scene.until_parked("pump-1", 20);
    let mut other = bridge.hello_device(GATEWAY, "HELLO pump-2");
    let mut device = bridge.hello_device(GATEWAY, "HELLO pump-1");
    for number in 0..20 {
        assert_eq!(device.line(), format!("{number}\r\n"));
    }
    scene.publish(&command("pump-2", "ON"));
    assert_eq!(other.line(), "ON\r\n", "and none of them came here");
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
}

#[test]
fn a_tokens_file_that_is_none_keeps_the_bridge_from_starting() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "pump-1 s3cret\n").expect("written");
    let scene = Scene::new("tokens-wrong");
    let setup = setup(&scene).set("DEVICE_TOKENS_FILE", file.path());
    let end: Program = setup.command(&["serve"]);
    let end = end.finish();
    assert!(end.code.is_some_and(|code| code != 0), "{end:?}");
    assert!(end.stderr.contains("line 1") && end.stderr.contains("rabbitline token"), "{end:?}");
    assert!(!end.stderr.contains("s3cret"), "{end:?}");
}
