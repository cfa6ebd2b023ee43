//! What was written and had not arrived when the link ended is uncertain, also if it was reported as written before.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Bridge, Device, Inbox, Letter, Scene, Setup, command, reply_to};

/// More than a narrow device's window takes and less than the socket of the bridge does: it is written at once and not
/// acknowledged before the device reads. Nothing behind it is, either.
const WIDE: usize = 8_000;

/// A bridge that waits for devices longer than any test lasts.
fn patient(scene: &Scene) -> Setup {
    scene.setup().set("DEVICE_WRITE_TIMEOUT", "10m").set("DEVICE_USER_TIMEOUT", "10m")
}

/// A command that is named by its first word.
fn named(id: &str) -> Value {
    json!({"address": "127.0.0.2", "cmd": id, "id": id})
}

fn wide(id: &str) -> Value {
    json!({"address": "127.0.0.2", "cmd": id.to_owned() + &"x".repeat(WIDE), "id": id})
}

fn with(mut command: Value, field: &str, value: impl Into<Value>) -> Value {
    command[field] = value.into();
    command
}

fn publish(scene: &Scene, receipts: &Inbox, command: &Value) {
    scene.publish_with(command.to_string().as_bytes(), reply_to(receipts));
}

/// Publishes a command and waits for its receipt.
#[track_caller]
fn send(scene: &Scene, receipts: &Inbox, command: &Value, outcome: &str) {
    publish(scene, receipts, command);
    assert_eq!(next(receipts), (text(&command["id"]), outcome.into()));
}

/// The next receipt: which command, and what became of it.
#[track_caller]
fn next(receipts: &Inbox) -> (String, String) {
    let receipt = receipts.next().json();
    (text(&receipt["id"]), text(&receipt["outcome"]))
}

fn uncertain(ids: &[&str]) -> Vec<(String, String)> {
    ids.iter().map(|id| ((*id).to_owned(), "uncertain".to_owned())).collect()
}

#[track_caller]
fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn ids(letters: &[Letter]) -> Vec<String> {
    letters.iter().map(|letter| text(&letter.json()["id"])).collect()
}

/// Breaks the link and waits until the bridge has seen to its end.
#[track_caller]
fn reset(bridge: &Bridge, device: Device) {
    device.reset();
    bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
}

#[test]
fn what_the_device_had_not_acknowledged_when_it_reset_is_reported_again_as_uncertain() {
    for prefetch in ["1", "256"] {
        let scene = Scene::new("uncertain");
        let bridge = patient(&scene).set("MQ_PREFETCH", prefetch).start();
        let undelivered = scene.undelivered_inbox();
        let receipts = scene.receipts();
        let device = bridge.narrow_device("127.0.0.2");
        send(&scene, &receipts, &named("ARRIVED 1"), "written");
        // It is proved to be in the device's kernel, and what was written before it, too.
        send(&scene, &receipts, &with(named("ARRIVED 2"), "confirm", "received"), "received");
        let lost = [wide("LOST 1"), named("LOST 2"), with(named("LOST 3"), "once", true)];
        lost.iter().for_each(|command| send(&scene, &receipts, command, "written"));
        bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
        assert_eq!(bridge.metric("rabbitline_undelivered_total"), 0.0);

        reset(&bridge, device);

        let again: Vec<_> = (0..lost.len()).map(|_| receipts.next().json()).collect();
        for (receipt, command) in again.iter().zip(&lost) {
            assert_eq!(
                (&receipt["id"], &receipt["outcome"]),
                (&command["id"], &json!("uncertain"))
            );
            assert!(receipt["reason"].is_string(), "{receipt}");
        }
        let letters = undelivered.take(lost.len());
        for (letter, command) in letters.iter().zip(&lost) {
            assert_eq!(letter.header("x-outcome"), "uncertain");
            assert!(!letter.header("x-reason").is_empty());
            assert_eq!(&letter.json(), command, "in the order they were written, unchanged");
        }
        // What had arrived is not reported again.
        send(&scene, &receipts, &named("NEXT"), "offline");
        assert_eq!(undelivered.next().json()["id"], "NEXT");
        assert_eq!(bridge.outcomes("uncertain"), lost.len() as f64);
        assert_eq!(bridge.terminate().code, Some(0));
        assert_eq!(scene.amqp.depth(&scene.queue()), 0);
    }
}

#[test]
fn what_waited_for_a_proof_is_uncertain_in_its_place_among_the_others() {
    let scene = Scene::new("uncertain-order");
    let setup = patient(&scene).set("MQ_PREFETCH", "16").set("COMMAND_TIMEOUT", "10m");
    let bridge = setup.start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let device = bridge.narrow_device("127.0.0.2");
    let commands = [
        wide("1"),
        with(named("2"), "confirm", "received"),
        with(named("3"), "confirm", "answered"),
        named("4"),
        with(named("5"), "confirm", "received"),
    ];
    commands.iter().for_each(|command| publish(&scene, &receipts, command));
    assert_eq!([next(&receipts).0, next(&receipts).0], ["1", "4"], "these need no proof");
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 3.0);
    // This one waits for the answer to the third: nothing of it is written.
    publish(&scene, &receipts, &with(named("6"), "confirm", "answered"));
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting == 1.0);

    reset(&bridge, device);

    let order = ["1", "2", "3", "4", "5", "6"];
    let mut expected = uncertain(&order);
    expected[5].1 = "offline".into();
    assert_eq!((0..6).map(|_| next(&receipts)).collect::<Vec<_>>(), expected);
    assert_eq!(ids(&undelivered.take(6)), order);
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn uncertain_commands_that_say_drop_are_forgotten_unless_they_say_once() {
    let scene = Scene::new("uncertain-drop");
    let bridge = patient(&scene).start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let device = bridge.narrow_device("127.0.0.2");
    let dropped = |command| with(command, "if_offline", "drop");
    send(&scene, &receipts, &dropped(wide("DROPPED")), "written");
    send(&scene, &receipts, &dropped(with(named("KEPT"), "once", true)), "written");
    send(&scene, &receipts, &dropped(named("DROPPED TOO")), "written");

    reset(&bridge, device);

    let again = [next(&receipts), next(&receipts), next(&receipts)];
    assert_eq!(again.to_vec(), uncertain(&["DROPPED", "KEPT", "DROPPED TOO"]));
    scene.publish(&command("127.0.0.9", "LAST"));
    assert_eq!(undelivered.next().json()["id"], "KEPT");
    assert_eq!(undelivered.next().json()["cmd"], "LAST", "the others did not come before");
}

#[test]
fn uncertain_commands_that_may_be_parked_are_written_to_the_next_connection() {
    let scene = Scene::new("uncertain-park");
    let setup = patient(&scene).set("MQ_PARKED_PREFIX", scene.queue() + ".parked");
    let bridge = setup.start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let device = bridge.narrow_device("127.0.0.2");
    let parked = |command| with(command, "if_offline", "park");
    send(&scene, &receipts, &parked(wide("FIRST")), "written");
    send(&scene, &receipts, &parked(with(named("ONCE"), "once", true)), "written");
    send(&scene, &receipts, &parked(named("SECOND")), "written");

    reset(&bridge, device);

    // What is parked is told once it is safe, which takes another way than what is told at once.
    let mut again: Vec<_> = (0..3).map(|_| next(&receipts)).collect();
    again.sort();
    let expected = [("FIRST", "parked"), ("ONCE", "uncertain"), ("SECOND", "parked")];
    assert_eq!(again, expected.map(|(id, outcome)| (id.into(), outcome.into())));
    assert_eq!(undelivered.next().json()["id"], "ONCE");
    let mut device = bridge.device("127.0.0.2");
    assert_eq!(device.line().get(..6), Some("FIRSTx"));
    assert_eq!(device.line(), "SECOND\r\n");
    let last: Vec<_> = (0..2).map(|_| next(&receipts)).collect();
    assert_eq!(last, ["FIRST", "SECOND"].map(|id| (id.into(), "written".into())));
}

#[test]
fn a_connection_that_is_replaced_leaves_what_it_had_not_acknowledged_uncertain() {
    let scene = Scene::new("uncertain-replaced");
    let bridge = patient(&scene).start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let _old = bridge.narrow_device("127.0.0.2");
    send(&scene, &receipts, &wide("LOST"), "written");

    let mut new = bridge.device("127.0.0.2");

    assert_eq!(next(&receipts), ("LOST".into(), "uncertain".into()));
    assert_eq!(undelivered.next().json()["id"], "LOST");
    send(&scene, &receipts, &named("NEXT"), "written");
    assert_eq!(new.line(), "NEXT\r\n");
}

#[test]
fn a_device_that_closes_in_an_orderly_way_without_having_read_all_leaves_the_rest_uncertain() {
    let scene = Scene::new("uncertain-closed");
    let bridge = patient(&scene).start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let mut device = bridge.narrow_device("127.0.0.2");
    send(&scene, &receipts, &named("READ"), "written");
    assert_eq!(device.line(), "READ\r\n");
    send(&scene, &receipts, &wide("LOST"), "written");

    drop(device);

    assert_eq!(next(&receipts), ("LOST".into(), "uncertain".into()));
    assert_eq!(undelivered.next().json()["id"], "LOST");
    bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
    assert_eq!(bridge.outcomes("uncertain"), 1.0);
}

#[test]
fn no_more_is_written_than_the_bridge_may_remember_until_it_is_acknowledged() {
    const COMMANDS: usize = 20;
    let scene = Scene::new("tail-max");
    let setup = patient(&scene).set("MQ_PREFETCH", "64");
    let bridge = setup.set("DEVICE_TAIL_MAX", "10000").start();
    let receipts = scene.receipts();
    let mut device = bridge.narrow_device("127.0.0.2");
    send(&scene, &receipts, &wide("FIRST"), "written");
    for number in 0..COMMANDS {
        publish(&scene, &receipts, &named(&format!("NUMBER {number}")));
    }

    // There is room in the socket for all of them, and in the memory for a few.
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled >= 15.0);
    let waiting = bridge.metric("rabbitline_lane_commands");
    assert!((15.0..20.0).contains(&waiting), "{waiting}");

    assert_eq!(device.line().len(), "FIRST\r\n".len() + WIDE);
    for number in 0..COMMANDS {
        assert_eq!(device.line(), format!("NUMBER {number}\r\n"));
    }
    for receipt in receipts.take(COMMANDS) {
        assert_eq!(receipt.json()["outcome"], "written");
    }
    bridge.until_metric("rabbitline_unsettled", |unsettled| unsettled == 0.0);
}

#[test]
fn a_bridge_that_ends_reports_what_no_device_has_acknowledged_within_its_grace() {
    const GRACE: Duration = Duration::from_secs(4);
    let scene = Scene::new("uncertain-end");
    let bridge = patient(&scene).set("SHUTDOWN_GRACE", "4s").start();
    let undelivered = scene.undelivered_inbox();
    let receipts = scene.receipts();
    let mut prompt = bridge.device("127.0.0.3");
    let _slow = bridge.narrow_device("127.0.0.2");
    let arrived = with(named("ARRIVED"), "address", "127.0.0.3");
    send(&scene, &receipts, &arrived, "written");
    send(&scene, &receipts, &wide("LOST 1"), "written");
    send(&scene, &receipts, &with(named("LOST 2"), "once", true), "written");

    let begun = Instant::now();
    let end = bridge.terminate();

    let took = begun.elapsed();
    // Room for a busy machine.
    assert!(took < 2 * GRACE, "{took:?}");
    assert!(end.stderr.contains("LOST 1"), "the log names them: {}", end.stderr);
    let again = [next(&receipts), next(&receipts)];
    assert_eq!(again.to_vec(), uncertain(&["LOST 1", "LOST 2"]));
    let letters = undelivered.take(2);
    assert_eq!(ids(&letters), ["LOST 1", "LOST 2"]);
    assert!(letters.iter().all(|letter| letter.header("x-outcome") == "uncertain"));
    assert_eq!(prompt.line(), "ARRIVED\r\n");
    assert_eq!(scene.amqp.depth(&scene.queue()), 0);
    assert_eq!(receipts.so_far().len() + undelivered.so_far().len(), 0, "and nothing else");
}

#[test]
fn a_bridge_that_ends_gives_devices_time_to_acknowledge() {
    let scene = Scene::new("late-acknowledgement");
    let bridge = patient(&scene).set("SHUTDOWN_GRACE", "10m").start();
    let receipts = scene.receipts();
    let mut device = bridge.narrow_device("127.0.0.2");
    send(&scene, &receipts, &wide("SLOW"), "written");

    bridge.program.signal("TERM");
    bridge.until_not_ready();
    assert_eq!(device.until_closed().len(), 1);

    let end = bridge.program.finish();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert_eq!(scene.amqp.depth(&scene.undelivered()), 0);
    assert_eq!(receipts.so_far().len(), 0, "it was not reported again");
}
