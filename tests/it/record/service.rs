//! The recorder as its operators see it: settings, an end in good order, what systemd is told.

use std::sync::Arc;

use super::*;
use crate::harness::{Authority, Manager, PASSWORD, Postgres};

#[test]
fn wrong_settings_are_told_with_what_was_expected() {
    let scene = Scene::new("record-settings");
    let wrong = |name: &str, value: &str, expected: &str| {
        let end = scene.setup().set(name, value).run(&["record"]);
        assert_eq!(end.code, Some(64), "{end:?}");
        let said = end.stderr.lines().any(|line| line.starts_with(name) && line.contains(expected));
        assert!(said, "{name}: {expected} in {}", end.stderr);
    };
    wrong("RECORD_DATABASE", "mysql://me:hunter2@db/x", "sqlite:FILE or postgres://");
    wrong("RECORD_KINDS", "presence,lines", "presence, outcome and uplink");
    wrong("RECORD_BATCH", "0", "1 to 65535");
    wrong("RECORD_FLUSH", "200", "with a unit");
    wrong("RECORD_KEEP", "30", "with a unit");
    wrong(
        "RECORD_DATABASE_PASSWORD_FILE",
        "/etc/hostname",
        "expected RECORD_DATABASE to be postgres",
    );
    let end = scene.setup().set("RECORD_DATABASE", "mysql://me:hunter2@db/x").run(&["record"]);
    assert!(!end.stderr.contains("hunter2"), "{end:?}");
}

#[test]
fn check_looks_at_the_database_if_one_is_named_and_makes_nothing() {
    let scene = Scene::new("record-check");
    assert!(!scene.setup().run(&["check"]).stdout.contains("database:"));
    with_each(|database| {
        let setup = scene.setup().set("RECORD_DATABASE", database.url());
        let end = setup.run(&["check"]);
        assert_eq!(end.code, Some(0), "{end:?}");
        let (expected, tables) = match database {
            Database::Sqlite(_) => ("does not exist", None),
            Database::Postgres { .. } => ("can be used", Some(Vec::new())),
        };
        assert!(end.stdout.contains(expected), "{end:?}");
        let query = "SELECT 'a table' FROM information_schema.tables WHERE table_schema = 'public'";
        assert_eq!(database.rows(query).ok(), tables);
    });
    let nowhere = scene.setup().set("RECORD_DATABASE", "postgres://me:hunter2@127.0.0.1:1/x");
    let end = nowhere.run(&["check"]);
    assert_eq!(end.code, Some(69), "{end:?}");
    assert!(end.stderr.contains("RECORD_DATABASE") && !end.stderr.contains("hunter2"), "{end:?}");
}

#[test]
fn the_password_of_the_database_can_come_from_a_file_and_is_never_logged() {
    let database = Database::postgres();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{PASSWORD}\n")).expect("written");
    let (url, path) = (database.url_without_password(), file.path().display().to_string());
    let settings = [
        ("RECORD_DATABASE", url.as_str()),
        ("RECORD_DATABASE_PASSWORD_FILE", path.as_str()),
        ("LOG", "trace"),
    ];
    let mut recording = Recording::start(Scene::new("record-password"), &database, &settings);
    recording.publish(&[presence("a1", 1, "10.0.0.1", 1, "connected")]);
    recording.until("SELECT address FROM devices", &["10.0.0.1"]);
    recording.stop();
    assert!(!recording.program.stderr.text().contains(PASSWORD), "the password is in the log");
}

#[test]
fn a_database_is_spoken_to_over_tls_if_its_certificate_is_the_right_one() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Arc::new(Postgres::with_tls(&authority.vouch("database", "localhost")));
    let database = Database::on(&server);
    let folder = tempfile::tempdir().expect("a directory");
    let url = |trusted: &Authority| {
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, trusted.pem()).expect("written");
        let url = database.url().replace("127.0.0.1", "localhost");
        format!("{url}?sslmode=verify-full&sslrootcert={}", file.display())
    };
    let wrong = url(&stranger);
    let scene = Scene::new("record-tls");
    let mut recording = Recording::start(scene, &database, &[("RECORD_DATABASE", &wrong)]);
    recording.publish(&[presence("a1", 1, "10.0.0.1", 1, "connected")]);
    let said = recording.until_logged(&["WARN", "cannot use the database"]);
    assert!(said.contains("certificate") && !said.contains(PASSWORD), "{said}");
    recording.program.kill();

    recording.setup = recording.setup.clone().set("RECORD_DATABASE", url(&authority));
    recording.start_again();
    recording.until("SELECT address FROM devices", &["10.0.0.1"]);
    let secured = "SELECT 'yes' FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE ssl AND application_name = 'rabbitline record' AND datname = current_database()";
    recording.until(secured, &["yes"]);
}

#[test]
fn a_recorder_that_is_told_to_end_keeps_what_it_has_taken() {
    with_each(|database| {
        // It would wait for more for a long time.
        let mut recording =
            Recording::start(Scene::new("record-stop"), database, &[("RECORD_FLUSH", "10m")]);
        recording.publish(&[presence("a1", 1, "10.0.0.1", 1, "connected")]);
        eventually("the recorder has taken it", || {
            match recording.scene.amqp.depth(&recording.queue()) {
                0 => Ok(()),
                left => Err(left),
            }
        });
        recording.stop();
        recording.until("SELECT address FROM devices", &["10.0.0.1"]);
        assert_eq!(recording.scene.amqp.depth(&recording.queue()), 0, "acknowledged");
    });
}

#[test]
fn systemd_is_told_when_the_recorder_is_ready_that_it_lives_and_when_it_stops() {
    let manager = Manager::start();
    let database = Database::sqlite();
    let given = manager.settings();
    let settings = given.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut recording = Recording::start(Scene::new("record-systemd"), &database, &settings);
    for word in ["READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
        manager.hears(word);
    }
    recording.program.signal("TERM");
    manager.hears("STOPPING=1");
    assert_eq!(recording.program.wait().code(), Some(0));
}
