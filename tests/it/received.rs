//! `received`: a command is settled once its device's TCP stack has acknowledged the last byte of it, and not before.

use serde_json::{Value, json};

use crate::harness::{
    Inbox, STALL_LINE_MAX, Scene, Setup, command, persistent, reply_to, stall, stalling_line,
    stalling_number,
};

/// More than a narrow device's window takes and less than the socket of the bridge does: it is written at once and not
/// acknowledged before the device reads.
const WIDE: usize = 8_000;

fn received(address: &str, cmd: &str) -> Value {
    json!({"address": address, "cmd": cmd, "confirm": "received"})
}

fn publish(scene: &Scene, receipts: &Inbox, command: &Value) {
    scene.publish_with(command.to_string().as_bytes(), reply_to(receipts));
}

/// A bridge that waits for devices longer than any test lasts.
fn patient(scene: &Scene) -> Setup {
    let setup = scene.setup().set("DEVICE_LINE_MAX", STALL_LINE_MAX);
    setup.set("DEVICE_WRITE_TIMEOUT", "10m").set("DEVICE_USER_TIMEOUT", "10m")
}

#[test]
fn a_device_whose_program_does_not_read_has_received_what_its_kernel_acknowledges() {
    const COMMANDS: usize = 50;
    for prefetch in ["1", "256"] {
        let scene = Scene::new("received");
        let bridge = scene.setup().set("MQ_PREFETCH", prefetch).start();
        let mut device = bridge.device("127.0.0.2");
        let receipts = scene.receipts();

        for number in 0..COMMANDS {
            publish(&scene, &receipts, &received("127.0.0.2", &format!("NUMBER {number}")));
        }

        for receipt in receipts.take(COMMANDS) {
            let receipt = receipt.json();
            assert_eq!(receipt["outcome"], "received", "prefetch {prefetch}: {receipt}");
            assert_eq!(receipt.get("reason"), None, "{receipt}");
        }
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
        assert_eq!(bridge.outcomes("received"), COMMANDS as f64, "and none was counted as written");
        assert_eq!(bridge.outcomes("written"), 0.0);
        for number in 0..COMMANDS {
            assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
        }
        assert_eq!(bridge.terminate().code, Some(0));
        assert_eq!(scene.amqp.depth(&scene.queue()), 0);
    }
}

#[test]
fn many_acknowledgements_at_once_are_all_taken_up() {
    const COMMANDS: usize = 1_000;
    let scene = Scene::new("received-burst");
    let setup = scene.setup().set("MQ_PREFETCH", COMMANDS.to_string());
    let setup = setup.set("DEVICE_LANE_MAX", COMMANDS.to_string());
    let setup = setup.set("MQ_STALLED_MAX", COMMANDS.to_string());
    // The socket has room for most of them.
    let setup = setup.set("DEVICE_SEND_BUFFER", (1024 * 1024).to_string());
    let bridge = setup.set("COMMAND_TIMEOUT", "10m").start();
    let _device = bridge.device("127.0.0.2");
    // The bridge stands still while the commands are published, so that it writes them in one go.
    bridge.program.signal("STOP");
    let body = |number| received("127.0.0.2", &format!("NUMBER {number}")).to_string().into_bytes();
    let messages = (0..COMMANDS).map(|number| (body(number), persistent()));
    scene.amqp.publish_all(&scene.exchange(), &scene.queue(), messages);
    bridge.program.signal("CONT");

    bridge.until_metric("rabbitline_commands_total{outcome=\"received\"}", |count| {
        count == COMMANDS as f64
    });
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn an_acknowledgement_that_the_kernel_cannot_tell_of_is_noticed_all_the_same() {
    let scene = Scene::new("received-untold");
    let setup = patient(&scene).set("COMMAND_TIMEOUT", "10m").set("DEVICE_UPLINK", "off");
    let bridge = setup.start();
    let mut device = bridge.narrow_device("127.0.0.2");
    let receipts = scene.receipts();
    let line = "x".repeat(WIDE);
    publish(&scene, &receipts, &received("127.0.0.2", &line));
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 1.0);

    // The kernel keeps what it has to tell in the receive buffer, and drops it if that is full.
    bridge.program.signal("STOP");
    device.send_until_full(b"BLAH\n");
    assert_eq!(device.line(), line + "\r\n");
    bridge.program.signal("CONT");

    assert_eq!(receipts.next().json()["outcome"], "received");
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn the_setting_says_how_much_proof_is_enough_when_the_command_does_not() {
    let scene = Scene::new("received-by-default");
    let bridge = scene.setup().set("COMMAND_CONFIRM", "received").start();
    let _device = bridge.device("127.0.0.2");
    assert_eq!(scene.receipt_of(&command("127.0.0.2", "ON"))["outcome"], "received");
    let own = json!({"address": "127.0.0.2", "cmd": "ON", "confirm": "written"});
    assert_eq!(scene.receipt_of(&own)["outcome"], "written");
}

#[test]
fn a_command_for_a_full_socket_waits_and_is_received_when_the_device_reads() {
    let scene = Scene::new("received-full");
    let bridge = patient(&scene).start();
    let mut device = bridge.narrow_device("127.0.0.2");
    let receipts = scene.receipts();
    let published = stall(&scene, &bridge, "127.0.0.2", 2);

    publish(&scene, &receipts, &received("127.0.0.2", "LAST"));
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 3.0);
    assert_eq!(bridge.metric("rabbitline_lane_commands"), 3.0, "nothing of it is written");

    for number in 0..published {
        assert_eq!(stalling_number(device.line().as_bytes()), number);
    }
    assert_eq!(device.line(), "LAST\r\n");
    assert_eq!(receipts.next().json()["outcome"], "received");
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.outcomes("uncertain"), 0.0);
}

#[test]
fn a_socket_that_tells_of_acknowledgements_still_takes_what_waits_for_it() {
    const COMMANDS: usize = 20;
    for prefetch in ["1", "256"] {
        let scene = Scene::new("received-large");
        let bridge = patient(&scene).set("MQ_PREFETCH", prefetch).start();
        let mut device = bridge.narrow_device("127.0.0.2");
        let receipts = scene.receipts();
        // From its first acknowledgement on the kernel shows such a socket as writable for ever.
        publish(&scene, &receipts, &received("127.0.0.2", "FIRST"));
        assert_eq!(receipts.next().json()["outcome"], "received");
        assert_eq!(device.line(), "FIRST\r\n");

        for number in 0..COMMANDS {
            publish(&scene, &receipts, &received("127.0.0.2", &stalling_line(number)));
        }
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == COMMANDS as f64);

        for number in 0..COMMANDS {
            assert_eq!(stalling_number(device.line().as_bytes()), number);
        }
        for receipt in receipts.take(COMMANDS) {
            assert_eq!(receipt.json()["outcome"], "received", "prefetch {prefetch}");
        }
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    }
}

#[test]
fn a_command_that_is_not_acknowledged_in_time_is_unanswered_and_not_reported_again() {
    let scene = Scene::new("unacknowledged");
    let bridge = patient(&scene).start();
    let device = bridge.narrow_device("127.0.0.2");
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let line = "x".repeat(WIDE);
    let mut wide = received("127.0.0.2", &line);
    wide["timeout_ms"] = json!(300);

    publish(&scene, &receipts, &wide);

    let receipt = receipts.next().json();
    assert_eq!(receipt["outcome"], "unanswered", "{receipt}");
    assert!(receipt["reason"].is_string(), "{receipt}");
    let letter = undelivered.next();
    assert_eq!((letter.header("x-outcome"), letter.json()), ("unanswered".into(), wide));
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    assert_eq!(bridge.metric("rabbitline_devices_connected"), 1.0, "the device stays connected");
    assert_eq!(bridge.outcomes("written"), 0.0);

    // Its fate is known: the end of the link changes nothing.
    device.reset();
    bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
    publish(&scene, &receipts, &command("127.0.0.2", "NEXT"));
    assert_eq!(receipts.next().json()["outcome"], "offline");
    assert_eq!(undelivered.next().json()["cmd"], "NEXT");
    assert_eq!(bridge.outcomes("uncertain"), 0.0);
}

#[test]
fn commands_that_need_proof_and_commands_that_do_not_arrive_in_the_order_of_the_queue() {
    const COMMANDS: usize = 200;
    for prefetch in ["1", "16", "256"] {
        let scene = Scene::new("mixed");
        let setup = patient(&scene).set("MQ_PREFETCH", prefetch);
        let bridge = setup.set("DEVICE_LANE_MAX", "256").start();
        let mut device = bridge.narrow_device("127.0.0.2");
        let receipts = scene.receipts();
        let outcome = |number| if number % 3 == 0 { "received" } else { "written" };
        // Some too large for the socket, so that those behind them wait.
        let line = |number| match number % 20 {
            7 => stalling_line(number),
            _ => format!("{number:06}"),
        };
        let messages = (0..COMMANDS).map(|number| {
            let confirm = outcome(number);
            let id = number.to_string();
            let command =
                json!({"address": "127.0.0.2", "cmd": line(number), "confirm": confirm, "id": id});
            (command.to_string().into_bytes(), reply_to(&receipts))
        });
        scene.amqp.publish_all(&scene.exchange(), &scene.queue(), messages);

        for number in 0..COMMANDS {
            assert_eq!(device.line(), line(number) + "\r\n", "prefetch {prefetch}");
        }
        for receipt in receipts.take(COMMANDS) {
            let receipt = receipt.json();
            let number: usize = receipt["id"].as_str().expect("an id").parse().expect("a number");
            assert_eq!(receipt["outcome"], outcome(number), "prefetch {prefetch}: {receipt}");
        }
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    }
}

#[test]
fn a_device_whose_acknowledgement_does_not_come_holds_up_no_other_at_prefetch_1() {
    let scene = Scene::new("unacknowledged-beside");
    let bridge = patient(&scene).set("COMMAND_TIMEOUT", "10m").start();
    let mut slow = bridge.narrow_device("127.0.0.2");
    let mut fast = bridge.device("127.0.0.3");
    let receipts = scene.receipts();
    let line = "x".repeat(WIDE);

    publish(&scene, &receipts, &received("127.0.0.2", &line));
    for number in 0..20 {
        let cmd = format!("NUMBER {number}");
        publish(&scene, &receipts, &received("127.0.0.3", &cmd));
        assert_eq!(fast.line(), cmd + "\r\n");
        let receipt = receipts.next().json();
        assert_eq!(
            (&receipt["address"], &receipt["outcome"]),
            (&json!("127.0.0.3"), &json!("received"))
        );
    }
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 1.0);

    assert_eq!(slow.line(), line + "\r\n");
    let receipt = receipts.next().json();
    assert_eq!(
        (&receipt["address"], &receipt["outcome"]),
        (&json!("127.0.0.2"), &json!("received"))
    );
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}
