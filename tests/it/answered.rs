//! `answered`: a command is settled by the line its device sends back, which its receipt carries.

use lapin::types::AMQPValue;
use serde_json::{Value, json};

use crate::harness::{Bridge, Inbox, Scene, command, reply_to};

fn asked(cmd: &str) -> Value {
    json!({"address": "127.0.0.2", "cmd": cmd, "id": cmd, "confirm": "answered"})
}

fn publish(scene: &Scene, receipts: &Inbox, command: &Value) {
    scene.publish_with(command.to_string().as_bytes(), reply_to(receipts));
}

/// The next receipt: which command, what became of it, and the answer.
#[track_caller]
fn next(receipts: &Inbox) -> (String, String, Value) {
    let receipt = receipts.next().json();
    let text = |field: &str| receipt[field].as_str().expect("a text").to_owned();
    (text("id"), text("outcome"), receipt["answer"].clone())
}

fn answered(id: &str, answer: &str) -> (String, String, Value) {
    (id.into(), "answered".into(), answer.into())
}

fn unanswered(id: &str) -> (String, String, Value) {
    (id.into(), "unanswered".into(), Value::Null)
}

#[track_caller]
fn until_waiting(bridge: &Bridge, count: usize) {
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == count as f64);
}

#[test]
fn the_next_line_of_the_device_is_the_answer_and_no_uplink() {
    for prefetch in ["1", "256"] {
        let scene = Scene::new("answered");
        let uplink = scene.uplink();
        let bridge = scene.setup().set("MQ_PREFETCH", prefetch).start();
        let mut device = bridge.device("127.0.0.2");
        let receipts = scene.receipts();
        device.send(b"BEFORE\n");
        assert_eq!(uplink.next().json()["line"], "BEFORE");

        publish(&scene, &receipts, &asked("STATUS"));
        assert_eq!(device.line(), "STATUS\r\n");
        assert_eq!(bridge.metric("rabbitline_unsettled"), 1.0, "until the answer has come");
        device.send("\r\nFÜNF\r\nAFTER\n".as_bytes());

        let receipt = receipts.next().json();
        let expected = json!({
            "id": "STATUS", "address": "127.0.0.2", "outcome": "answered", "answer": "FÜNF",
            "bridge": "bridge-under-test", "at": receipt["at"],
        });
        assert_eq!(receipt, expected, "these fields and no others");
        assert_eq!(uplink.next().json()["line"], "AFTER", "the answer did not come before");
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
        assert_eq!((bridge.outcomes("answered"), bridge.outcomes("written")), (1.0, 0.0));
        assert_eq!(bridge.terminate().code, Some(0));
        assert_eq!(scene.amqp.depth(&scene.queue()), 0);
    }
}

#[test]
fn an_answer_that_is_not_utf8_is_carried_in_base64() {
    let scene = Scene::new("answered-base64");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    publish(&scene, &receipts, &asked("DUMP"));
    assert_eq!(device.line(), "DUMP\r\n");
    device.send(b"\xff\x00\xfe\n");
    let receipt = receipts.next().json();
    assert_eq!(receipt["answer_base64"], "/wD+");
    assert_eq!(receipt.get("answer"), None, "{receipt}");
}

#[test]
fn an_answer_in_pieces_is_one_answer_once_its_line_has_ended() {
    let scene = Scene::new("answered-pieces");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    publish(&scene, &receipts, &asked("FIRST"));
    publish(&scene, &receipts, &asked("SECOND"));
    assert_eq!(device.line(), "FIRST\r\n");
    until_waiting(&bridge, 1);

    let bytes_seen = || bridge.devices("")["devices"][0]["last_seen"].clone();
    for piece in ["O", "K", " 1\r"] {
        let before = bytes_seen();
        // Each piece in a packet of its own, and no answer yet.
        device.send(piece.as_bytes());
        crate::harness::eventually("the piece has come", || {
            let now = bytes_seen();
            if now == before { Err(now) } else { Ok(()) }
        });
        assert_eq!(bridge.metric("rabbitline_lane_commands"), 1.0);
    }
    device.send(b"\n");
    assert_eq!(next(&receipts), answered("FIRST", "OK 1"));
    assert_eq!(device.line(), "SECOND\r\n");
    // The end of one line and the whole of the next.
    device.send(b"OK 2\nOK 3\n");
    assert_eq!(next(&receipts), answered("SECOND", "OK 2"));
}

#[test]
fn without_ids_one_command_at_a_time_waits_for_its_answer() {
    const COMMANDS: usize = 5;
    for prefetch in ["1", "16"] {
        let scene = Scene::new("one-at-a-time");
        // It is not the socket that holds up those in the lane.
        let setup = scene.setup().set("DEVICE_WRITE_TIMEOUT", "1s").set("MQ_PREFETCH", prefetch);
        let bridge = setup.start();
        let mut device = bridge.device("127.0.0.2");
        let mut other = bridge.device("127.0.0.3");
        let receipts = scene.receipts();
        for number in 0..COMMANDS {
            publish(&scene, &receipts, &asked(&format!("NUMBER {number}")));
        }
        // One that wants no answer keeps its place among them.
        scene.publish(&command("127.0.0.2", "LAST"));
        scene.publish(&command("127.0.0.3", "GO ON"));
        assert_eq!(other.line(), "GO ON\r\n", "it holds up no other");

        for number in 0..COMMANDS {
            assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
            // Behind the last of them nothing has to wait.
            until_waiting(&bridge, if number + 1 < COMMANDS { COMMANDS - number } else { 0 });
            device.send(format!("ANSWER {number}\n").as_bytes());
            let expected = answered(&format!("NUMBER {number}"), &format!("ANSWER {number}"));
            assert_eq!(next(&receipts), expected, "prefetch {prefetch}");
        }
        assert_eq!(device.line(), "LAST\r\n");
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    }
}

#[test]
fn a_command_that_wants_no_answer_does_not_wait_for_that_of_another() {
    let scene = Scene::new("answered-beside-written");
    let bridge = scene.setup().start();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    publish(&scene, &receipts, &asked("STATUS"));
    publish(&scene, &receipts, &command("127.0.0.2", "ON"));
    assert_eq!((device.line(), device.line()), ("STATUS\r\n".into(), "ON\r\n".into()));
    assert_eq!(receipts.next().json()["outcome"], "written");
    device.send(b"FINE\n");
    assert_eq!(next(&receipts), answered("STATUS", "FINE"));
}

#[test]
fn lines_that_do_not_look_like_an_answer_are_uplink() {
    let scene = Scene::new("answer-pattern");
    let uplink = scene.uplink();
    let bridge = scene.setup().set("DEVICE_ANSWER_PATTERN", "^(OK|ERR)( |$)").start();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    // Nobody has asked.
    device.send(b"OK EARLY\n");
    assert_eq!(uplink.next().json()["line"], "OK EARLY");

    publish(&scene, &receipts, &asked("ON"));
    assert_eq!(device.line(), "ON\r\n");
    device.send(b"temp=21\nNOT OK\nOKAY\nERR 5\nOK\n");

    assert_eq!(next(&receipts), answered("ON", "ERR 5"));
    let lines: Vec<Value> =
        uplink.take(4).iter().map(|event| event.json()["line"].clone()).collect();
    assert_eq!(lines, ["temp=21", "NOT OK", "OKAY", "OK"]);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn with_ids_several_wait_at_a_time_and_each_answer_finds_its_command() {
    const COMMANDS: usize = 8;
    for prefetch in ["1", "16"] {
        let scene = Scene::new("answer-ids");
        let uplink = scene.uplink();
        let setup = scene.setup().set("DEVICE_ANSWER_PATTERN", r"^ACK (?<number>\w+)");
        let setup = setup.set("DEVICE_ANSWER_ID", "number").set("MQ_PREFETCH", prefetch);
        let bridge = setup.start();
        let mut device = bridge.device("127.0.0.2");
        let receipts = scene.receipts();
        for number in 0..COMMANDS {
            publish(&scene, &receipts, &asked(&format!("C{number}")));
        }
        for number in 0..COMMANDS {
            assert_eq!(device.line(), format!("C{number}\r\n"), "prefetch {prefetch}");
        }
        device.send(b"ACK STRANGER\ntemp=21\n");
        for line in ["ACK STRANGER", "temp=21"] {
            let event = uplink.next().json();
            assert_eq!((&event["line"], event.get("late")), (&json!(line), None));
        }
        for number in (0..COMMANDS).rev() {
            device.send(format!("ACK C{number} DONE\n").as_bytes());
            let expected = answered(&format!("C{number}"), &format!("ACK C{number} DONE"));
            assert_eq!(next(&receipts), expected, "prefetch {prefetch}");
        }
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
    }
}

#[test]
fn a_command_without_an_id_cannot_be_answered_where_answers_have_ids() {
    let scene = Scene::new("answer-without-id");
    let setup = scene.setup().set("DEVICE_ANSWER_PATTERN", r"^ACK (?<number>\w+)");
    let bridge = setup.set("DEVICE_ANSWER_ID", "number").start();
    let _device = bridge.device("127.0.0.2");
    let asked = json!({"address": "127.0.0.2", "cmd": "ON", "confirm": "answered"});
    let receipt = scene.receipt_of(&asked);
    assert_eq!(receipt["outcome"], "invalid", "{receipt}");
    assert!(receipt["reason"].as_str().expect("a reason").contains("id"), "{receipt}");
}

#[test]
fn an_answer_that_comes_too_late_is_marked_and_answers_nothing_else() {
    let scene = Scene::new("late-answer");
    let uplink = scene.uplink();
    let bridge = scene.setup().set("COMMAND_TIMEOUT", "10m").start();
    let undelivered = scene.undelivered_inbox();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    // As long again as this, the next line may be the late answer: time enough for what the test does.
    let mut first = asked("FIRST");
    first["timeout_ms"] = json!(4_000);
    publish(&scene, &receipts, &first);
    assert_eq!(device.line(), "FIRST\r\n");
    publish(&scene, &receipts, &asked("SECOND"));

    assert_eq!(next(&receipts), unanswered("FIRST"));
    let letter = undelivered.next();
    assert_eq!((letter.header("x-outcome"), letter.json()), ("unanswered".into(), first));
    assert_eq!(bridge.metric("rabbitline_lane_commands"), 1.0, "no other is asked meanwhile");
    device.send(b"ANSWER TO FIRST\n");

    let event = uplink.next().json();
    assert_eq!((&event["line"], &event["late"]), (&json!("ANSWER TO FIRST"), &json!(true)));
    assert_eq!(device.line(), "SECOND\r\n");
    device.send(b"ANSWER TO SECOND\nMORE\n");
    assert_eq!(next(&receipts), answered("SECOND", "ANSWER TO SECOND"));
    let event = uplink.next().json();
    assert_eq!((&event["line"], event.get("late")), (&json!("MORE"), None));
    assert_eq!(bridge.metric("rabbitline_devices_connected"), 1.0);
}

#[test]
fn an_answer_that_never_comes_holds_up_the_next_command_only_for_so_long() {
    let scene = Scene::new("no-answer");
    let bridge = scene.setup().set("COMMAND_TIMEOUT", "300ms").start();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    publish(&scene, &receipts, &asked("FIRST"));
    let mut second = asked("SECOND");
    second["timeout_ms"] = json!(600_000);
    publish(&scene, &receipts, &second);

    assert_eq!(device.line(), "FIRST\r\n");
    assert_eq!(next(&receipts), unanswered("FIRST"));
    assert_eq!(device.line(), "SECOND\r\n");
    device.send(b"FINE\n");
    assert_eq!(next(&receipts), answered("SECOND", "FINE"));
}

#[test]
fn with_ids_a_late_answer_is_known_by_its_id() {
    let scene = Scene::new("late-id");
    let uplink = scene.uplink();
    let setup = scene.setup().set("DEVICE_ANSWER_PATTERN", r"^ACK (?<number>\w+)");
    let bridge = setup.set("DEVICE_ANSWER_ID", "number").set("COMMAND_TIMEOUT", "10m").start();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    let mut first = asked("C1");
    first["timeout_ms"] = json!(200);
    publish(&scene, &receipts, &first);
    publish(&scene, &receipts, &asked("C2"));
    assert_eq!((device.line(), device.line()), ("C1\r\n".into(), "C2\r\n".into()));
    assert_eq!(next(&receipts), unanswered("C1"));

    // Late once; said again it is something else.
    device.send(b"ACK C1\nACK C1\nACK C2\n");

    let late = |event: Value| (event["line"].clone(), event.get("late").cloned());
    assert_eq!(late(uplink.next().json()), (json!("ACK C1"), Some(json!(true))));
    assert_eq!(late(uplink.next().json()), (json!("ACK C1"), None));
    assert_eq!(next(&receipts), answered("C2", "ACK C2"));
}

#[test]
fn a_command_whose_link_ends_before_the_answer_is_uncertain_and_those_behind_it_are_offline() {
    let scene = Scene::new("link-ends-unanswered");
    let bridge = scene.setup().set("MQ_PREFETCH", "16").start();
    let undelivered = scene.undelivered_inbox();
    let mut device = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    publish(&scene, &receipts, &asked("FIRST"));
    publish(&scene, &receipts, &asked("SECOND"));
    assert_eq!(device.line(), "FIRST\r\n");
    until_waiting(&bridge, 1);

    // Half an answer is none.
    device.send(b"O");
    drop(device);

    for (id, outcome) in [("FIRST", "uncertain"), ("SECOND", "offline")] {
        assert_eq!(next(&receipts), (id.into(), outcome.into(), Value::Null));
        let letter = undelivered.next();
        assert_eq!((letter.header("x-outcome"), letter.json()), (outcome.into(), asked(id)));
    }
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn a_newer_connection_is_asked_what_waited_behind_the_answer_of_the_older() {
    let scene = Scene::new("answered-inherit");
    let bridge = scene.setup().set("MQ_PREFETCH", "16").start();
    let mut old = bridge.device("127.0.0.2");
    let receipts = scene.receipts();
    publish(&scene, &receipts, &asked("FIRST"));
    publish(&scene, &receipts, &asked("SECOND"));
    assert_eq!(old.line(), "FIRST\r\n");
    until_waiting(&bridge, 1);

    let mut new = bridge.device("127.0.0.2");

    assert_eq!(next(&receipts), ("FIRST".into(), "uncertain".into(), Value::Null));
    assert_eq!(new.line(), "SECOND\r\n");
    new.send(b"FINE\n");
    assert_eq!(next(&receipts), answered("SECOND", "FINE"));
}

#[test]
fn a_device_that_does_not_answer_stops_nobody_on_a_queue_with_a_single_active_consumer() {
    for queue_type in ["classic", "quorum"] {
        let scene = Scene::new("answered-single");
        scene.declare_with(&[
            ("x-queue-type", AMQPValue::LongString(queue_type.into())),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ]);
        let bridge = scene.setup().set("MQ_QUEUE_TYPE", queue_type).start();
        let (mut silent, mut other) = (bridge.device("127.0.0.2"), bridge.device("127.0.0.3"));
        scene.publish(&asked("STATUS"));
        assert_eq!(silent.line(), "STATUS\r\n");

        scene.publish(&command("127.0.0.3", "ON"));

        assert_eq!(other.line(), "ON\r\n");
    }
}
