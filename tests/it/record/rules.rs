//! Which rows become of which events.

use serde_json::json;

use super::*;

#[test]
fn what_a_bridge_tells_of_its_devices_becomes_rows() {
    with_each(|database| {
        let kinds = [("RECORD_KINDS", "uplink")];
        let recording = Recording::start(Scene::new("record-bridge"), database, &kinds);
        let bridge = recording.setup.start();
        let mut stays = bridge.device("127.0.0.2");
        let goes = bridge.device("127.0.0.3");
        let epoch = |address: &str| bridge.until_listed("address", address)["epoch"].to_string();
        let (first, second) = (epoch("127.0.0.2"), epoch("127.0.0.3"));
        drop(goes);

        let short = "SELECT address || ' ' || epoch || ' ' || state || ' ' || reason || ' ' || bridge FROM devices ORDER BY address";
        recording.until(
            short,
            &[
                &format!("127.0.0.2 {first} online connected bridge-under-test"),
                &format!("127.0.0.3 {second} offline closed bridge-under-test"),
            ],
        );
        let peers = "SELECT peer || ' ' || CASE WHEN until >= since THEN reason ELSE 'open' END FROM connections ORDER BY address";
        let peer = database.rows("SELECT peer FROM devices ORDER BY address").expect("rows");
        assert_eq!(peer[0], stays.local().to_string());
        recording.until(peers, &[&format!("{} open", peer[0]), &format!("{} closed", peer[1])]);
        // Two lines that are alike are two, also when they come at the same time.
        stays.send(b"T=1\r\nT=1\r\nT=2\r\n");
        recording.until(
            "SELECT address || ' ' || epoch || ' ' || line FROM lines ORDER BY number",
            &[
                &format!("127.0.0.2 {first} T=1"),
                &format!("127.0.0.2 {first} T=1"),
                &format!("127.0.0.2 {first} T=2"),
            ],
        );
    });
}

#[test]
fn events_that_come_again_change_nothing_and_older_ones_neither() {
    with_each(|database| {
        let kinds = [("RECORD_KINDS", "presence,outcome,uplink")];
        let recording = Recording::start(Scene::new("record-again"), database, &kinds);
        let events = [
            presence("a1", 1, "10.0.0.1", 1, "connected"),
            presence("a1", 2, "10.0.0.1", 1, "silent"),
            presence("a1", 3, "10.0.0.1", 1, "heard"),
            presence("a1", 4, "10.0.0.2", 2, "connected"),
            presence("a1", 5, "10.0.0.1", 1, "timeout"),
            presence("a1", 6, "10.0.0.1", 3, "connected"),
            presence("a1", 7, "10.0.0.2", 2, "closed"),
            outcome("a1", 1, "written", 8),
            outcome("a1", 2, "parked", 9),
            outcome("a1", 1, "uncertain", 9),
            line("a1", 1, "T=1", 10),
            line("a1", 2, "T=1", 10),
            heartbeat("a1", 11, true, 600_000),
        ];
        recording.publish(&events);
        let check = || {
            recording.until(
                DEVICES,
                &[
                    &format!("10.0.0.1 online on 3 connected {} {}", at(6), at(6)),
                    &format!("10.0.0.2 offline off 2 closed {} {}", at(4), at(7)),
                ],
            );
            recording.until(
                CONNECTIONS,
                &[
                    &format!("10.0.0.1 1 {} {} timeout", at(1), at(5)),
                    &format!("10.0.0.1 3 {} - -", at(6)),
                    &format!("10.0.0.2 2 {} {} closed", at(4), at(7)),
                ],
            );
            recording.until(
                COMMANDS,
                &[
                    &format!("1 id-1 ON uncertain - {}", at(9)),
                    &format!("2 id-2 ON parked - {}", at(9)),
                ],
            );
            recording.until(LINES, &["1 T=1", "2 T=1"]);
            let bridge = "SELECT name || ' ' || run || ' ' || seq || ' ' || state || ' ' || time(heard) FROM bridges";
            recording.until(bridge, &[&format!("b a1 11 online {}", at(11))]);
        };
        check();
        // In order again, backwards, and each alone; then one more, to know when all of them are through.
        recording.publish(&events);
        let backwards: Vec<_> = events.iter().rev().cloned().collect();
        recording.publish(&backwards);
        recording.publish(&[line("a1", 3, "LAST", 12)]);
        recording.until("SELECT line FROM lines WHERE number = 3", &["LAST"]);
        database.rows("DELETE FROM lines WHERE number = 3 RETURNING line").expect("deleted");
        check();
    });
}

#[test]
fn an_end_that_comes_alone_leaves_a_row_and_the_next_connection_is_another() {
    with_each(|database| {
        let recording = Recording::start(Scene::new("record-end"), database, &[]);
        recording.publish(&[
            presence("a1", 5, "10.0.0.1", 5, "closed"),
            presence("a1", 4, "10.0.0.1", 5, "connected"),
            presence("a1", 9, "10.0.0.1", 9, "silent"),
        ]);
        recording.until(DEVICES, &[&format!("10.0.0.1 online on 9 silent - {}", at(5))]);
        recording.until(
            CONNECTIONS,
            &[&format!("10.0.0.1 5 {} {} closed", at(4), at(5)), "10.0.0.1 9 - - -"],
        );
    });
}

#[test]
fn a_bridge_that_begins_anew_ends_what_it_held_before() {
    with_each(|database| {
        let recording = Recording::start(Scene::new("record-run"), database, &[]);
        // A run is when it began, so the end of what was held is known.
        let (old, new) = ("19aa65b2280", "19aa65b4990");
        let began = "2025-11-21T16:59:06.000Z";
        recording.publish(&[
            presence(old, 1, "10.0.0.1", 1, "connected"),
            presence(old, 2, "10.0.0.2", 2, "connected"),
            presence(old, 3, "10.0.0.3", 3, "connected"),
            presence(old, 4, "10.0.0.3", 3, "closed"),
        ]);
        recording
            .until("SELECT state FROM devices ORDER BY address", &["online", "online", "offline"]);
        recording.publish(&[
            presence(new, 5, "10.0.0.1", 5, "connected"),
            // What the old process said last comes late, and must not bring it back.
            presence(old, 5, "10.0.0.4", 4, "connected"),
        ]);
        let rows = "SELECT address || ' ' || epoch || ' ' || state || ' ' || reason FROM devices ORDER BY address";
        recording.until(
            rows,
            &[
                "10.0.0.1 5 online connected",
                "10.0.0.2 2 offline bridge gone",
                "10.0.0.3 3 offline closed",
                "10.0.0.4 4 offline bridge gone",
            ],
        );
        let ended = "SELECT address || ' ' || epoch || ' ' || reason FROM connections WHERE until IS NOT NULL ORDER BY epoch";
        recording.until(
            ended,
            &[
                "10.0.0.1 1 bridge gone",
                "10.0.0.2 2 bridge gone",
                "10.0.0.3 3 closed",
                "10.0.0.4 4 bridge gone",
            ],
        );
        let began_at = database.rows("SELECT time(started) FROM bridges").expect("rows");
        let until = "SELECT DISTINCT time(until) FROM connections WHERE reason = 'bridge gone'";
        assert_eq!(database.rows(until).expect("rows"), began_at);
        assert!(began_at[0].starts_with(&began[..4]), "{began_at:?}");
        // The true end, if it is told after all, is the better one.
        recording.publish(&[presence(old, 6, "10.0.0.2", 2, "timeout")]);
        recording.until(
            "SELECT reason || ' ' || time(until) FROM connections WHERE epoch = 2",
            &[&format!("timeout {}", at(6))],
        );
        recording.until("SELECT reason FROM devices WHERE epoch = 2", &["timeout"]);
    });
}

#[test]
fn devices_of_a_bridge_that_is_not_heard_are_unknown_until_it_is() {
    with_each(|database| {
        let mut recording = Recording::start(Scene::new("record-heartbeat"), database, &[]);
        let states = "SELECT address || ' ' || state || ' ' || CASE WHEN online THEN 'on' ELSE 'off' END FROM devices ORDER BY address";
        recording.publish(&[
            presence("a1", 1, "10.0.0.1", 1, "connected"),
            presence("a1", 2, "10.0.0.2", 2, "connected"),
            presence("a1", 3, "10.0.0.2", 2, "closed"),
            heartbeat("a1", 4, true, 100),
        ]);
        recording.until(states, &["10.0.0.1 unknown off", "10.0.0.2 offline off"]);
        recording.until("SELECT state FROM bridges", &["unknown"]);
        recording.until_logged(&["WARN", "heartbeats of a bridge are missing"]);
        recording.publish(&[heartbeat("a1", 5, true, 600_000)]);
        recording.until(states, &["10.0.0.1 online on", "10.0.0.2 offline off"]);

        // A recorder that begins anew misses those that the last one knew.
        recording.publish(&[heartbeat("a1", 6, true, 3_000)]);
        recording.until("SELECT time(heard) FROM bridges", &[&at(6)]);
        recording.program.kill();
        recording.start_again();
        recording.until(states, &["10.0.0.1 unknown off", "10.0.0.2 offline off"]);

        // One that says that it ends is not missed, and holds nothing any more.
        recording.publish(&[heartbeat("a1", 7, false, 100)]);
        recording.until(states, &["10.0.0.1 offline off", "10.0.0.2 offline off"]);
        recording.until("SELECT state FROM bridges", &["offline"]);
        recording.until("SELECT time(until) FROM connections WHERE epoch = 1", &[&at(7)]);
    });
}

#[test]
fn a_command_for_many_is_a_row_for_each_and_one_for_nobody_too() {
    with_each(|database| {
        let kinds = [("RECORD_KINDS", "outcome")];
        let recording = Recording::start(Scene::new("record-many-recipients"), database, &kinds);
        let to = |address: &str, word: &str, second: u64| {
            let mut event = outcome("a1", 1, word, second);
            event["address"] = json!(address);
            event
        };
        let mut to_nobody = outcome("a1", 2, "invalid", 4);
        to_nobody.as_object_mut().expect("an object").remove("address");
        to_nobody["reason"] = json!("no address");
        recording.publish(&[
            to("10.0.0.1", "written", 1),
            to("10.0.0.2", "offline", 2),
            to("10.0.0.1", "uncertain", 3),
            to_nobody,
        ]);
        recording.until(
            "SELECT number || ' ' || address || ' ' || outcome FROM commands ORDER BY number, address",
            &["1 10.0.0.1 uncertain", "1 10.0.0.2 offline", "2  invalid"],
        );
    });
}

#[test]
fn only_the_kinds_that_are_asked_for_are_recorded() {
    with_each(|database| {
        let recording =
            Recording::start(Scene::new("record-kinds"), database, &[("RECORD_KINDS", "uplink")]);
        recording.publish(&[
            outcome("a1", 1, "written", 1),
            presence("a1", 2, "10.0.0.1", 1, "connected"),
            line("a1", 1, "T=1", 3),
        ]);
        recording.until(LINES, &["1 T=1"]);
        recording.until("SELECT time(last_seen) FROM devices", &[&at(3)]);
        recording.until("SELECT id FROM commands", &[]);
    });
}

#[test]
fn what_cannot_be_recorded_is_said_and_does_not_come_again() {
    with_each(|database| {
        let kinds = [("RECORD_KINDS", "outcome,uplink")];
        let recording = Recording::start(Scene::new("record-malformed"), database, &kinds);
        let mut bad_time = presence("a1", 1, "10.0.0.1", 1, "connected");
        bad_time["at"] = json!("yesterday");
        recording.publish_as("presence.10.0.0.1", bad_time.to_string().as_bytes());
        recording.until_logged(&["WARN", "presence.10.0.0.1", "expected a time like"]);
        recording.publish_as("presence.x", b"{\"address\": \"x\"}");
        recording.until_logged(&["WARN", "missing field"]);
        recording.publish_as("uplink.x", b"\xff\x00");
        recording.until_logged(&["WARN", "expected a uplink event"]);
        let mut word = outcome("a1", 1, "written", 1);
        word["outcome"] = json!("lost");
        recording.publish(&[word]);
        let line_of_it = recording.until_logged(&["WARN", "expected one of written"]);
        assert!(line_of_it.contains("\"malformed\":4"), "they are counted: {line_of_it}");
        // A character that PostgreSQL has no place for is none to lose a line for.
        recording.publish(&[line("a1", 1, "A\0B", 2)]);
        recording.until(LINES, &["1 A\u{fffd}B"]);
        eventually("nothing is left in the queue", || {
            match recording.scene.amqp.queue(&recording.queue()) {
                Ok((0, 1)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let told = recording.program.stderr.text().matches("cannot be recorded").count();
        assert_eq!(told, 4, "each once");
    });
}

#[test]
fn what_the_database_refuses_is_left_out_and_the_rest_of_its_batch_is_kept() {
    with_each(|database| {
        let wait = [("RECORD_FLUSH", "1s"), ("RECORD_KINDS", "uplink")];
        let recording = Recording::start(Scene::new("record-refused"), database, &wait);
        recording.publish(&[line("a1", 1, "FIRST", 1)]);
        recording.until(LINES, &["1 FIRST"]);
        // A rule that somebody else has made.
        let rule = match database {
            Database::Sqlite(_) => {
                "CREATE TRIGGER no BEFORE INSERT ON lines WHEN new.line = 'BAD' BEGIN SELECT RAISE(ABORT, 'not this'); END"
            }
            Database::Postgres { .. } => "ALTER TABLE lines ADD CHECK (line <> 'BAD')",
        };
        database.rows(rule).expect("a rule");
        let lines =
            (2..40).map(|number| line("a1", number, if number == 17 { "BAD" } else { "GOOD" }, 1));
        recording.publish(&lines.collect::<Vec<_>>());
        recording.until(
            "SELECT 'all' FROM lines WHERE line = 'GOOD' GROUP BY line HAVING count(*) = 37",
            &["all"],
        );
        recording.until_logged(&["WARN", "the database refuses it"]);
        recording.until("SELECT line FROM lines WHERE line = 'BAD'", &[]);
    });
}

#[test]
fn old_rows_are_deleted_and_young_ones_are_kept() {
    with_each(|database| {
        const OLD: u64 = 2_500;
        let kinds = [("RECORD_KINDS", "outcome,uplink")];
        let mut recording = Recording::start(Scene::new("record-keep"), database, &kinds);
        let young = |mut event: Value| {
            event["at"] = json!(now());
            event
        };
        let mut events = vec![
            presence("a1", 1, "10.0.0.1", 1, "connected"),
            presence("a1", 2, "10.0.0.1", 1, "closed"),
            presence("a1", 3, "10.0.0.1", 3, "connected"),
            outcome("a1", 1, "written", 3),
            young(outcome("a1", 2, "written", 4)),
            young(presence("a1", 4, "10.0.0.2", 4, "closed")),
        ];
        // More than one portion.
        events.extend((1..=OLD).map(|number| line("a1", number, "OLD", number)));
        events.push(young(line("a1", OLD + 1, "YOUNG", 1)));
        let messages = events.iter().map(|event| (key(event), event.to_string().into_bytes()));
        for (key, body) in messages {
            recording.scene.amqp.publish(&recording.scene.events(), &key, &body, transient());
        }
        recording.until("SELECT line FROM lines WHERE line = 'YOUNG'", &["YOUNG"]);
        recording.stop();

        recording.setup = recording.setup.clone().set("RECORD_KEEP", "1h");
        recording.start_again();
        recording.until("SELECT DISTINCT line FROM lines", &["YOUNG"]);
        recording.until("SELECT id FROM commands", &["id-2"]);
        let left = "SELECT address || ' ' || epoch FROM connections ORDER BY epoch";
        recording.until(left, &["10.0.0.1 3", "10.0.0.2 4"]);
        recording.until("SELECT address FROM devices ORDER BY address", &["10.0.0.1", "10.0.0.2"]);
    });
}

/// This moment, as events have it.
fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}
