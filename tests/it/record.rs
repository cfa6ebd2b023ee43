//! The recorder: what bridges tell becomes rows, once each, in SQLite and in PostgreSQL.

mod crash;
mod rules;
mod service;

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::harness::{Database, Program, Scene, Setup, eventually, persistent};

/// Runs a test with each kind of database.
#[track_caller]
fn with_each(test: impl Fn(&Database)) {
    println!("with SQLite");
    test(&Database::sqlite());
    println!("with PostgreSQL");
    test(&Database::postgres());
}

/// A scene with a recorder that runs on it.
struct Recording<'a> {
    scene: Scene,
    database: &'a Database,
    setup: Setup,
    program: Program,
}

impl<'a> Recording<'a> {
    #[track_caller]
    fn start(scene: Scene, database: &'a Database, more: &[(&str, &str)]) -> Self {
        let mut setup = scene
            .setup()
            .set("RECORD_QUEUE", format!("{}.record", scene.events()))
            .set("RECORD_DATABASE", database.url())
            .set("RECORD_FLUSH", "10ms");
        for (name, value) in more {
            setup = setup.set(name, value);
        }
        let program = recorder(&setup);
        Self { scene, database, setup, program }
    }

    fn queue(&self) -> String {
        format!("{}.record", self.scene.events())
    }

    /// Publishes events, each with the key that it belongs under.
    #[track_caller]
    fn publish(&self, events: &[Value]) {
        for event in events {
            self.publish_as(&key(event), event.to_string().as_bytes());
        }
    }

    #[track_caller]
    fn publish_as(&self, key: &str, body: &[u8]) {
        self.scene.amqp.publish(&self.scene.events(), key, body, persistent());
    }

    /// Waits until the rows of a query are these.
    #[track_caller]
    fn until(&self, query: &str, expected: &[&str]) {
        eventually(&format!("the rows of {query} are {expected:#?}"), || {
            let rows = self.database.rows(query)?;
            if rows == expected { Ok(()) } else { Err(format!("{rows:#?}")) }
        });
    }

    #[track_caller]
    fn until_logged(&self, words: &[&str]) -> String {
        until_logged(&self.program, words)
    }

    /// Starts it again after it has ended.
    #[track_caller]
    fn start_again(&mut self) {
        self.program = recorder(&self.setup);
    }

    /// SIGTERM: what has come before is kept, and the recorder ends well.
    #[track_caller]
    fn stop(&mut self) {
        self.program.signal("TERM");
        let status = self.program.wait();
        assert_eq!(status.code(), Some(0), "{}", self.program.stderr.text());
    }
}

/// A recorder that consumes.
#[track_caller]
fn recorder(setup: &Setup) -> Program {
    let program = setup.command(&["record"]);
    until_logged(&program, &["recording events"]);
    program
}

#[track_caller]
fn until_logged(program: &Program, words: &[&str]) -> String {
    let says = |line: &str| words.iter().all(|word| line.contains(word)).then(|| line.to_owned());
    program.stderr.find(&format!("a log line with {words:?}"), says)
}

/// The routing key of an event.
fn key(event: &Value) -> String {
    let kind = [
        ("outcome", "outcome"),
        ("line", "uplink"),
        ("line_base64", "uplink"),
        ("reason", "presence"),
    ];
    let kind = kind.iter().find(|(field, _)| event.get(field).is_some());
    match kind {
        Some((_, kind)) => format!("{kind}.{}", event["address"].as_str().unwrap_or("none")),
        None => format!("bridge.{}", event["bridge"].as_str().expect("a bridge")),
    }
}

/// A moment so many seconds after noon.
fn at(second: u64) -> String {
    let (hour, minute) = (12 + second / 3600, second / 60 % 60);
    format!("2026-11-21T{hour:02}:{minute:02}:{:02}.000Z", second % 60)
}

/// A presence event of bridge `b`, whose process began when `run` says. Its time goes by its number.
fn presence(run: &str, seq: u64, address: &str, epoch: u64, reason: &str) -> Value {
    let online = ["connected", "silent", "heard"].contains(&reason);
    let mut event = json!({
        "address": address, "online": online, "epoch": epoch, "bridge": "b", "run": run, "seq": seq,
        "at": at(seq), "reason": reason, "peer": format!("{address}:1"),
    });
    if reason == "silent" {
        event["silent"] = json!(true);
    }
    event
}

fn heartbeat(run: &str, second: u64, online: bool, expires_ms: u64) -> Value {
    json!({"bridge": "b", "run": run, "seq": second, "online": online, "devices": 1,
        "at": at(second), "expires_ms": expires_ms})
}

fn outcome(run: &str, number: u64, word: &str, second: u64) -> Value {
    json!({"id": format!("id-{number}"), "address": "10.0.0.1", "outcome": word, "cmd": "ON",
        "confirm": "written", "bridge": "b", "run": run, "number": number, "taken": at(1), "at": at(second)})
}

fn line(run: &str, number: u64, text: &str, second: u64) -> Value {
    json!({"address": "10.0.0.1", "epoch": 1, "bridge": "b", "run": run, "number": number,
        "at": at(second), "line": text})
}

fn transient() -> BasicProperties {
    BasicProperties::default()
}

const DEVICES: &str = "SELECT address || ' ' || state || ' ' || CASE WHEN online THEN 'on' ELSE 'off' END || ' ' || epoch
    || ' ' || reason || ' ' || coalesce(time(since), '-') || ' ' || coalesce(time(last_seen), '-') FROM devices ORDER BY address";
const CONNECTIONS: &str = "SELECT address || ' ' || epoch || ' ' || coalesce(time(since), '-') || ' ' || coalesce(time(until), '-')
    || ' ' || coalesce(reason, '-') FROM connections ORDER BY address, epoch";
const COMMANDS: &str = "SELECT number || ' ' || id || ' ' || cmd || ' ' || outcome || ' ' || coalesce(reason, '-') || ' '
    || time(settled) FROM commands ORDER BY run, number";
const LINES: &str =
    "SELECT number || ' ' || coalesce(line, line_base64) FROM lines ORDER BY run, number";
