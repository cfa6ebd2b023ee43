//! Settings are checked before anything starts, all of them, and each error names its variable.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use crate::harness::{Scene, Setup, command};

/// A setting, a value it cannot have.
const WRONG: &[(&str, &str)] = &[
    ("MQ_PORT", "amqp"),
    ("MQ_TLS", "maybe"),
    ("MQ_QUEUE_TYPE", "stream"),
    ("MQ_PREFETCH", "0"),
    ("MQ_STALLED_MAX", "-1"),
    ("MQ_HEARTBEAT", "10"),
    ("MQ_CONNECT_TIMEOUT", "soon"),
    ("DEVICE_LISTEN", "8123"),
    ("DEVICE_LINE_ENDING", "cr"),
    ("DEVICE_LINE_MAX", "0"),
    ("DEVICE_LANE_MAX", "many"),
    ("DEVICE_WRITE_TIMEOUT", "10"),
    ("DEVICE_KEEPALIVE_COUNT", "3s"),
    ("DEVICE_UPLINK", "1"),
    ("COMMAND_TTL", "1 fortnight and a half"),
    ("COMMAND_CONFIRM", "delivered"),
    ("COMMAND_IF_OFFLINE", "wait"),
    ("COMMAND_PARKED_MAX", "0"),
    ("DEVICE_ANSWER_PATTERN", "("),
    ("HTTP_LISTEN", "localhost"),
    ("HTTP_METRICS_LISTEN", "9124"),
    ("SHUTDOWN_GRACE", "0.5"),
    ("RUNTIME_THREADS", "0"),
    ("LOG_FORMAT", "xml"),
];

#[test]
fn all_wrong_settings_are_reported_at_once_and_nothing_starts() {
    let all = WRONG.iter().fold(Setup::new(1), |setup, (name, value)| setup.set(name, value));
    for args in [&["serve"][..], &[], &["check"]] {
        let end = all.run(args);
        assert_eq!(end.code, Some(64), "{args:?}: {end:?}");
        for (name, _) in WRONG {
            let line =
                end.stderr.lines().chain(end.stdout.lines()).find(|line| line.contains(name));
            assert!(line.is_some(), "{args:?}: {name} is not named in {end:?}");
        }
    }
}

#[test]
fn each_wrong_setting_alone_is_enough_and_only_it_is_named() {
    for (name, value) in WRONG {
        let end = Setup::new(1).set(name, value).run(&["serve"]);
        assert_eq!(end.code, Some(64), "{name}={value}: {end:?}");
        let named: Vec<_> =
            WRONG.iter().filter(|(other, _)| end.stderr.contains(&format!("{other}:"))).collect();
        assert_eq!(named, [&(*name, *value)], "{}", end.stderr);
    }
}

#[test]
fn a_user_timeout_shorter_than_keepalive_is_an_error_that_names_it() {
    let end = Setup::new(1).set("DEVICE_USER_TIMEOUT", "10s").run(&["serve"]);
    assert_eq!(end.code, Some(64), "{end:?}");
    assert!(end.stderr.contains("DEVICE_USER_TIMEOUT"), "{end:?}");
}

#[test]
fn an_unknown_variable_is_a_warning_that_names_the_nearest_setting() {
    let scene = Scene::new("unknown-variable");
    let bridge = scene
        .setup()
        .set("MQ_PREFETC", "5")
        .set("DEVICE_LINE_ENDINGS", "lf")
        .set("OTHER", "x")
        .start();
    for (unknown, nearest) in
        [("MQ_PREFETC ", "MQ_PREFETCH"), ("DEVICE_LINE_ENDINGS", "DEVICE_LINE_ENDING?")]
    {
        let line = bridge.until_logged(&[unknown]);
        assert!(line.contains(nearest) && line.contains("WARN"), "{line}");
    }
    assert!(!bridge.log().text().contains("OTHER"));
}

#[test]
fn variables_of_others_need_not_be_utf8_and_ours_must() {
    let scene = Scene::new("not-utf8");
    let foreign = OsStr::from_bytes(b"\xff\xfe");
    let bridge = scene
        .setup()
        .set("SOMEBODY_ELSES", foreign)
        .set(OsStr::from_bytes(b"\xffNAME"), "x")
        .start();
    let mut device = bridge.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");

    let end = scene.setup().set("MQ_QUEUE", foreign).run(&["serve"]);
    assert_eq!(end.code, Some(64), "{end:?}");
    assert!(end.stderr.contains("MQ_QUEUE"), "{end:?}");
}

#[test]
fn the_password_can_come_from_a_file_and_is_never_logged() {
    let scene = Scene::new("password-file");
    let (user, password) = ("with.a.secret", "tell-nobody-94117");
    scene.broker.ctl(&["add_user", user, password]);
    scene.broker.ctl(&["set_permissions", user, ".*", ".*", ".*"]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{password}\n")).expect("written");

    let from_file = scene
        .setup()
        .set("MQ_USERNAME", user)
        .set("MQ_PASSWORD_FILE", file.path())
        .set("LOG", "trace");
    let bridge = from_file.start();
    let mut device = bridge.device("127.0.0.2");
    scene.publish(&command("127.0.0.2", "ON"));
    assert_eq!(device.line(), "ON\r\n");
    let log = bridge.terminate().stderr;
    assert!(!log.contains(password), "the password is in the log");

    let both = from_file.clone().set("MQ_PASSWORD", password).run(&["serve"]);
    assert_eq!(both.code, Some(64), "{both:?}");
    assert!(
        both.stderr.contains("MQ_PASSWORD_FILE") && !both.stderr.contains(password),
        "{both:?}"
    );
    let gone = from_file.set("MQ_PASSWORD_FILE", "/no/such/file").run(&["serve"]);
    assert_eq!(gone.code, Some(64), "{gone:?}");
    assert!(
        gone.stderr.contains("MQ_PASSWORD_FILE") && gone.stderr.contains("/no/such/file"),
        "{gone:?}"
    );
}

#[test]
fn a_port_that_is_taken_is_said_to_be() {
    let scene = Scene::new("port-taken");
    let bridge = scene.setup().start();
    for (name, address) in [
        ("DEVICE_LISTEN", format!("127.0.0.1:{}", bridge.device_port)),
        ("HTTP_LISTEN", bridge.http.to_string()),
    ] {
        let end = scene.setup().set(name, &address).run(&["serve"]);
        assert!(end.code.is_some_and(|code| code != 0), "{end:?}");
        assert!(
            end.stderr.contains(&address) || end.stderr.contains(name),
            "{name}: {}",
            end.stderr
        );
    }
}
