//! What becomes of events when the recorder, its database or its broker ends in the middle of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::harness::{Dice, Postgres};

use super::*;

const EVENTS: u64 = 20_000;
const DEVICES_MAX: usize = 700;

/// Events drawn by lot, and the rows that must come of them.
struct Story {
    events: Vec<Value>,
    devices: Vec<String>,
    connections: Vec<String>,
}

impl Story {
    fn draw(dice: &mut Dice) -> Self {
        let mut open: BTreeMap<usize, u64> = BTreeMap::new();
        let mut devices: BTreeMap<usize, (u64, &str)> = BTreeMap::new();
        let mut connections: BTreeMap<(usize, u64), Option<(u64, &str)>> = BTreeMap::new();
        let mut events = Vec::new();
        for seq in 1..=EVENTS {
            let device = dice.below(DEVICES_MAX);
            let reason = match (open.get(&device), dice.below(8)) {
                (None, _) => "connected",
                (Some(_), 0) => "silent",
                (Some(_), 1) => "heard",
                (Some(_), 2..4) => "timeout",
                (Some(_), _) => "closed",
            };
            let epoch = *open.entry(device).or_insert(seq);
            connections.entry((device, epoch)).or_default();
            if ["closed", "timeout"].contains(&reason) {
                open.remove(&device);
                connections.insert((device, epoch), Some((seq, reason)));
            }
            devices.insert(device, (epoch, reason));
            events.push(presence("a1", seq, &address(device), epoch, reason));
        }
        let devices = devices.iter().map(|(device, (epoch, reason))| {
            let state = if open.contains_key(device) { "online" } else { "offline" };
            format!("{} {epoch} {state} {reason}", address(*device))
        });
        let connections = connections.iter().map(|((device, epoch), end)| {
            let end = end.map(|(seq, reason)| format!("{} {reason}", at(seq)));
            format!(
                "{} {epoch} {} {}",
                address(*device),
                at(*epoch),
                end.unwrap_or_else(|| "- -".to_owned())
            )
        });
        let (devices, connections) = (devices.collect(), connections.collect());
        Self { events, devices, connections }
    }

    /// All of them, in order.
    #[track_caller]
    fn publish(&self, recording: &Recording<'_>) {
        // One key for all: it is the body that says whom an event is about.
        let bodies = self.events.iter().map(|event| (event.to_string().into_bytes(), persistent()));
        recording.scene.amqp.publish_all(&recording.scene.events(), "presence.story", bodies);
    }

    #[track_caller]
    fn check(&self, recording: &Recording<'_>) {
        eventually("all events are recorded", || {
            let left = recording.scene.amqp.depth(&recording.queue());
            let rows = recorded(recording.database);
            if left == 0 && rows == self.connections.len() {
                Ok(())
            } else {
                Err(format!("{left} left, {rows} rows"))
            }
        });
        let devices = "SELECT address || ' ' || epoch || ' ' || state || ' ' || reason FROM devices ORDER BY address";
        recording.until(devices, &self.devices.iter().map(String::as_str).collect::<Vec<_>>());
        recording
            .until(CONNECTIONS, &self.connections.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// Addresses that sort as their numbers do.
fn address(device: usize) -> String {
    format!("d{device:04}")
}

/// How many connections there are rows of.
fn recorded(database: &Database) -> usize {
    let count = database.rows("SELECT CAST(count(*) AS text) FROM connections").unwrap_or_default();
    count.first().map_or(0, |count| count.parse().expect("a number"))
}

/// Waits until a part of the connections, so many in a hundred, have rows.
#[track_caller]
fn until_recorded(recording: &Recording<'_>, story: &Story, percent: usize) {
    let wanted = story.connections.len() * percent / 100;
    eventually(&format!("{percent} in a hundred are recorded"), || {
        let rows = recorded(recording.database);
        if rows >= wanted { Ok(()) } else { Err(rows) }
    });
}

/// Ends recorder, database and broker at moments drawn by lot, while thousands of events wait.
#[track_caller]
fn nothing_is_lost_or_doubled(database: &Database, server: Option<&Arc<Postgres>>) {
    let mut dice = Dice::new();
    let story = Story::draw(&mut dice);
    let small = [("RECORD_BATCH", "100")];
    let mut recording = Recording::start(Scene::alone("record-crash"), database, &small);
    recording.stop();
    recording.scene.broker.sync();
    story.publish(&recording);

    recording.start_again();
    until_recorded(&recording, &story, 5 + dice.below(15));
    recording.program.kill();
    recording.start_again();
    until_recorded(&recording, &story, 25 + dice.below(15));
    if let Some(server) = server {
        server.kill();
        recording.until_logged(&["WARN", "cannot use the database"]);
        server.start();
    }
    until_recorded(&recording, &story, 45 + dice.below(30));
    recording.scene.broker.kill();
    recording.until_logged(&["WARN", "\"connection\":\"consumer\""]);
    recording.scene.restart_broker();
    story.check(&recording);
    recording.stop();
    story.check(&recording);
}

#[test]
fn nothing_is_lost_or_doubled_in_sqlite_whatever_is_killed() {
    nothing_is_lost_or_doubled(&Database::sqlite(), None);
}

#[test]
fn nothing_is_lost_or_doubled_in_postgresql_whatever_is_killed() {
    let server = Arc::new(Postgres::alone());
    nothing_is_lost_or_doubled(&Database::on(&server), Some(&server));
}

#[test]
fn twenty_thousand_events_take_seconds() {
    with_each(|database| {
        let mut dice = Dice::new();
        let story = Story::draw(&mut dice);
        let mut recording = Recording::start(Scene::new("record-many"), database, &[]);
        recording.stop();
        story.publish(&recording);
        let began = Instant::now();
        recording.start_again();
        story.check(&recording);
        println!("{EVENTS} events recorded after {:?}", began.elapsed());
    });
}

#[test]
fn two_recorders_on_one_queue_leave_the_rows_of_one() {
    with_each(|database| {
        let mut dice = Dice::new();
        let story = Story::draw(&mut dice);
        let small = [("RECORD_BATCH", "100")];
        let mut recording = Recording::start(Scene::new("record-two"), database, &small);
        recording.stop();
        story.publish(&recording);
        // Both take from it at the same time, so that neighbours go different ways.
        let (first, second) =
            (recording.setup.command(&["record"]), recording.setup.command(&["record"]));
        for recorder in [&first, &second] {
            until_logged(recorder, &["recording events"]);
        }
        story.check(&recording);
        for mut recorder in [first, second] {
            recorder.signal("TERM");
            assert_eq!(recorder.wait().code(), Some(0), "{}", recorder.stderr.text());
        }
    });
}

#[test]
fn a_database_that_is_away_is_waited_for_and_nothing_is_acknowledged() {
    let server = Arc::new(Postgres::alone());
    let database = Database::on(&server);
    let mut recording =
        Recording::start(Scene::new("record-away"), &database, &[("SHUTDOWN_GRACE", "500ms")]);
    recording.publish(&[presence("a1", 1, "10.0.0.1", 1, "connected")]);
    recording.until("SELECT address FROM devices", &["10.0.0.1"]);
    server.kill();
    recording.publish(&[presence("a1", 2, "10.0.0.2", 2, "connected")]);
    let said = recording.until_logged(&["WARN", "\"connection\":\"database\"", "RECORD_DATABASE"]);
    assert!(!said.contains(crate::harness::PASSWORD), "{said}");
    // Told to end, it cannot keep what it has, says so, and the broker has it still.
    recording.program.signal("TERM");
    assert_eq!(recording.program.wait().code(), Some(1), "{}", recording.program.stderr.text());
    eventually("the event is in the queue", || {
        match recording.scene.amqp.depth(&recording.queue()) {
            1 => Ok(()),
            other => Err(other),
        }
    });
    recording.start_again();
    recording.until_logged(&["WARN", "cannot use the database"]);
    server.start();
    recording.until("SELECT address FROM devices ORDER BY address", &["10.0.0.1", "10.0.0.2"]);
}
