//! The program's other commands, as a person or a script uses them.

use serde_json::Value;

use crate::harness::{Finished, Program, Scene, Setup, command, eventually, free_port};

/// The receipt that `send` printed.
#[track_caller]
fn receipt(end: &Finished) -> Value {
    assert_eq!(end.stdout.lines().count(), 1, "one line: {end:?}");
    serde_json::from_str(end.stdout.trim()).unwrap_or_else(|error| panic!("{error}: {end:?}"))
}

#[test]
fn send_prints_the_receipt_and_its_exit_code_says_whether_it_was_delivered() {
    let scene = Scene::new("send");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");

    let end = scene.setup().run(&["send", "127.0.0.2", "SET OUT1 ON", "--id", "mine"]);
    assert_eq!(end.code, Some(0), "{end:?}");
    let delivered = receipt(&end);
    assert_eq!((&delivered["outcome"], &delivered["id"]), (&"written".into(), &"mine".into()));
    assert_eq!(device.line(), "SET OUT1 ON\r\n");

    let end = scene.setup().run(&["send", "127.0.0.9", "ON", "--ttl", "30s"]);
    assert_eq!(end.code, Some(1), "{end:?}");
    assert_eq!(receipt(&end)["outcome"], "offline");
    let body = scene.undelivered_inbox().next().json();
    assert_eq!((&body["address"], &body["cmd"]), (&"127.0.0.9".into(), &"ON".into()));
}

#[test]
fn send_takes_json_when_it_is_told_to_and_text_otherwise() {
    let scene = Scene::new("send-json");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    for (args, line) in [
        (&["send", "127.0.0.2", r#"{"b": 1, "a": [2]}"#, "--json"][..], r#"{"b":1,"a":[2]}"#),
        (&["send", "127.0.0.2", r#"{"b": 1}"#], r#"{"b": 1}"#),
        (&["send", "127.0.0.2", "17"], "17"),
    ] {
        let end = scene.setup().run(args);
        assert_eq!(end.code, Some(0), "{args:?}: {end:?}");
        assert_eq!(device.line(), format!("{line}\r\n"));
    }
    let end = scene.setup().run(&["send", "127.0.0.2", "{not json", "--json"]);
    assert!(end.code.is_some_and(|code| code != 0), "{end:?}");
}

#[test]
fn send_says_by_its_exit_code_what_kept_it_from_knowing() {
    let scene = Scene::new("send-errors");
    scene.declare();
    let no_bridge = scene.setup().run(&["send", "127.0.0.2", "ON", "--timeout", "1s"]);
    assert_eq!(no_bridge.code, Some(75), "{no_bridge:?}");
    assert!(!no_bridge.stderr.is_empty());
    let no_broker = Setup::new(free_port()).run(&["send", "127.0.0.2", "ON"]);
    assert_eq!(no_broker.code, Some(69), "{no_broker:?}");
    assert!(
        no_broker.stderr.contains("MQ_HOST") || no_broker.stderr.contains("MQ_PORT"),
        "{no_broker:?}"
    );
    let bad_settings = scene.setup().set("MQ_PORT", "x").run(&["send", "127.0.0.2", "ON"]);
    assert_eq!(bad_settings.code, Some(64), "{bad_settings:?}");
    assert!(bad_settings.stderr.contains("MQ_PORT"), "{bad_settings:?}");
}

#[test]
fn a_simulated_device_prints_what_it_receives_and_answers() {
    let scene = Scene::new("simulated");
    let bridge = scene.setup().start();
    let uplink = scene.uplink();
    let mut device =
        start_devices(&scene, bridge.device_port, &["--bind", "127.0.0.7", "--answer", "OK THEN"]);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);

    scene.publish(&command("127.0.0.7", "SET OUT1 ON"));

    device
        .stdout
        .find("the line it received", |line| (line == "127.0.0.7 SET OUT1 ON\n").then_some(()));
    let answer = uplink.next().json();
    assert_eq!((&answer["address"], &answer["line"]), (&"127.0.0.7".into(), &"OK THEN".into()));
    device.signal("INT");
    let status = device.wait();
    assert_eq!(status.code(), Some(0), "Ctrl-C is how it ends");
}

#[test]
fn many_simulated_devices_connect_from_a_range_and_come_back() {
    let scene = Scene::new("simulated-range");
    let port = free_port();
    let setup = scene.setup().set("DEVICE_LISTEN", format!("127.0.0.1:{port}"));
    let mut bridge = setup.start();
    let devices = start_devices(&scene, port, &["--bind", "127.3.0.1-127.3.0.40", "--count", "40"]);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 40.0);
    let page = bridge.devices("?limit=100");
    let first_and_last = ["127.3.0.1", "127.3.0.40"];
    for address in first_and_last {
        assert!(page.to_string().contains(&format!("\"{address}\"")), "{page}");
    }

    bridge.program.kill();
    let bridge = setup.start();
    bridge.until_metric("rabbitline_devices_connected", |count| count == 40.0);
    for address in first_and_last {
        scene.publish(&command(address, "HELLO"));
        let line = format!("{address} HELLO\n");
        devices.stdout.find("the line it received", |printed| (printed == line).then_some(()));
    }
}

#[test]
fn watch_prints_who_comes_and_goes() {
    let scene = Scene::new("watch");
    let bridge = scene.setup().start();
    let mut watch = scene.setup().command(&["watch"]);
    let some = scene.setup().command(&["watch", "--address", "127.6"]);
    // Until it is bound to the exchange it sees nothing, so devices come until it sees one.
    let seen = |program: &Program, address: &str, state: &str| {
        program.stdout.all().iter().any(|line| line.contains(address) && line.contains(state))
    };
    eventually("both see a device come", || {
        drop(bridge.device("127.6.0.2"));
        let both = seen(&watch, "127.6.0.2", "online") && seen(&some, "127.6.0.2", "online");
        if both { Ok(()) } else { Err(watch.stderr.text() + &some.stderr.text()) }
    });
    drop(bridge.device("127.60.0.3"));
    drop(bridge.device("127.6.0.4"));
    for program in [&watch, &some] {
        eventually("it sees the last one go", || {
            if seen(program, "127.6.0.4", "offline") { Ok(()) } else { Err(program.stdout.text()) }
        });
    }
    assert!(seen(&watch, "127.60.0.3", "offline"), "{}", watch.stdout.text());
    assert!(
        !some.stdout.text().contains("127.60.0.3"),
        "it was told to look elsewhere: {}",
        some.stdout.text()
    );
    watch.signal("INT");
    assert_eq!(watch.wait().code(), Some(0), "Ctrl-C is how it ends");
}

#[test]
fn token_prints_the_line_of_a_device_and_nothing_of_its_token() {
    let printed = |text: &str| Program::rabbitline_reading(text, &["token", "pump-1"]).finish();
    let ends = ["s3cret\n", "s3cret"].map(printed);
    for end in &ends {
        assert_eq!(end.code, Some(0), "{end:?}");
        assert!(end.stdout.starts_with("pump-1 $argon2id$v=19$"), "{end:?}");
        assert_eq!(end.stdout.lines().count(), 1, "{end:?}");
        assert!(!format!("{end:?}").contains("s3cret"), "{end:?}");
    }
    assert_ne!(ends[0].stdout, ends[1].stdout, "salted");
    for wrong in ["", "\n", "one\ntwo\n"] {
        let end = printed(wrong);
        assert_eq!(end.code, Some(64), "{wrong:?}: {end:?}");
        assert!(end.stdout.is_empty() && end.stderr.contains("expected a token"), "{end:?}");
    }
    let end = Program::rabbitline_reading("s3cret\n", &["token", "pump 1"]).finish();
    assert_eq!(end.code, Some(64), "{end:?}");
}

#[test]
fn help_names_every_command_and_nonsense_is_refused() {
    let help = Setup::new(1).run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for word in ["serve", "check", "send", "device", "watch", "tap", "explain", "token"] {
        assert!(help.stdout.contains(word), "{help:?}");
    }
    for args in [
        &["nonsense"][..],
        &["send"],
        &["send", "127.0.0.2", "ON", "--ttl", "soon"],
        &["device", "--bind", "x"],
        &["token"],
        &["tap", "--kind", "nonsense"],
    ] {
        let end = Setup::new(1).run(args);
        assert!(end.code.is_some_and(|code| code != 0), "{args:?}: {end:?}");
        assert!(!end.stderr.is_empty(), "{args:?}");
    }
}

fn start_devices(scene: &Scene, port: u16, args: &[&str]) -> Program {
    let connect = format!("127.0.0.1:{port}");
    let args: Vec<&str> =
        ["device", "--connect", &connect].into_iter().chain(args.iter().copied()).collect();
    scene.setup().command(&args)
}
