//! Several listeners, each with rules of its own.

use serde_json::json;

use crate::harness::{Device, Scene, Setup, command};

fn with_pumps(setup: Setup) -> Setup {
    setup
        .set("LISTEN_PUMPS", "127.0.0.1:0")
        .set("LISTEN_PUMPS_IDENTITY", "hello")
        .set("LISTEN_PUMPS_LINE_ENDING", "lf")
        .set("LISTEN_PUMPS_LINE_MAX", "20")
}

#[test]
fn each_listener_holds_its_devices_to_its_own_rules() {
    let scene = Scene::new("listeners");
    let uplink = scene.uplink();
    let bridge = with_pumps(scene.setup()).start();
    let mut plain = bridge.device("127.0.0.2");
    let pumps = bridge.port_of("pumps");
    assert_ne!(pumps, bridge.device_port);
    let mut pump = Device::connect("127.0.0.2", pumps);
    pump.send(b"HELLO pump-1\n");
    let mut pump = bridge.knows(pump);

    let long = "x".repeat(40);
    for (address, cmd, outcome) in [
        ("127.0.0.2", "ON", "written"),
        ("pump-1", "ON", "written"),
        ("127.0.0.2", &*long, "written"),
        ("pump-1", &*long, "invalid"),
    ] {
        assert_eq!(scene.receipt_of(&command(address, cmd))["outcome"], outcome, "{address} {cmd}");
    }
    scene.publish(&json!({"addresses": ["127.0.0.2", "pump-1"], "cmd": "BOTH"}));
    assert_eq!(
        [plain.line(), plain.line(), plain.line()],
        ["ON\r\n", &*(long.clone() + "\r\n"), "BOTH\r\n"]
    );
    assert_eq!([pump.line(), pump.line()], ["ON\n", "BOTH\n"]);

    // `HELLO` is a line as any other where nobody has to say it.
    plain.send(b"HELLO pump-2\n");
    let event = uplink.next();
    assert_eq!((&*event.key, &event.json()["line"]), ("uplink.127.0.0.2", &json!("HELLO pump-2")));
    pump.send(format!("{long}\n").as_bytes());
    assert_eq!(pump.until_closed().len(), 0);
    bridge.until_metric("rabbitline_connections_ended_total{reason=\"line_too_long\"}", |count| {
        count == 1.0
    });
    plain.send(format!("{long}\n").as_bytes());
    assert_eq!(uplink.next().json()["line"], *long);
}

#[test]
fn a_device_that_comes_to_another_listener_is_the_same_device() {
    let scene = Scene::new("listeners-one-device");
    let setup = scene.setup().set("LISTEN_LEGACY", "127.0.0.1:0");
    let bridge = setup.set("LISTEN_LEGACY_LINE_ENDING", "lf").start();
    let mut first = bridge.device("127.0.0.2");
    let second = Device::connect("127.0.0.2", bridge.port_of("legacy"));
    let mut second = bridge.knows(second);
    assert_eq!(first.until_closed().len(), 0);
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(second.line(), "ON\n");
    assert_eq!(bridge.ended("replaced"), 1.0);
}

#[test]
fn there_may_be_listeners_of_other_names_only() {
    let scene = Scene::new("listeners-named");
    let setup = with_pumps(scene.setup()).set("DEVICE_LISTEN", "off");
    let bridge = setup.start();
    assert_eq!(bridge.device_port, bridge.port_of("pumps"), "the only one");
    let mut pump = bridge.hello_device("127.0.0.2", "HELLO pump-1");
    scene.publish(&command("pump-1", "ON"));
    assert_eq!(pump.line(), "ON\n");
    let nobody = scene.setup().set("DEVICE_LISTEN", "off").run(&["check"]);
    assert_eq!(nobody.code, Some(64), "{nobody:?}");
    assert!(nobody.stderr.contains("DEVICE_LISTEN"), "{nobody:?}");
}

#[test]
fn check_names_the_variable_of_a_listener_that_is_wrong() {
    let pumps = || Setup::new(1).set("LISTEN_PUMPS", "127.0.0.1:0");
    for (name, value) in [
        ("LISTEN_PUMPS", "nowhere"),
        ("LISTEN_PUMPS_IDENTITY", "nobody"),
        ("LISTEN_PUMPS_LINE_MAX", "0"),
        ("LISTEN_PUMPS_LINE_ENDING", "cr"),
        ("LISTEN_PUMPS_LINE_MAXIMUM", "5"),
        ("LISTEN_PUMPS_HELLO_PATTERN", "("),
        ("LISTEN_PUMPS_HELLO_PATTERN", "^HELLO"),
        ("LISTEN_PUMPS_PROXY_FROM", "10.0.0.0/99"),
        ("LISTEN_PUMPS_CONNECTIONS_MAX", "5"),
        ("LISTEN_VALVES_LINE_MAX", "5"),
        ("LISTEN_PUMPS_TOKENS_REDIS_KEY", "user"),
        ("LISTEN_PUMPS_TLS_CERTIFICATE", "/dev/null"),
        ("LISTEN_PUMPS_TLS_CLIENT_CA", "/no/such/file"),
        ("LISTEN_PUMPS_TOKENS_FILE", "/dev/null"),
        ("LISTEN_PUMPS_KEEPALIVE_IDLE", "10m"),
    ] {
        let end = pumps().set(name, value).run(&["check"]);
        assert_eq!(end.code, Some(64), "{name}={value}: {end:?}");
        assert!(end.stderr.contains(name), "{name}={value}: {end:?}");
    }
    let both =
        pumps().set("LISTEN_PUMPS_LINE_MAX", "0").set("DEVICE_LANE_MAX", "0").run(&["check"]);
    for name in ["LISTEN_PUMPS_LINE_MAX", "DEVICE_LANE_MAX"] {
        assert!(both.stderr.contains(name), "all that is wrong is told: {both:?}");
    }
}
