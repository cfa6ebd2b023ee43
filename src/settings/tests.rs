use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::*;

fn read(vars: &[(&str, &str)]) -> Result<Settings, SettingsErrors> {
    Settings::read(vars.iter().map(|(name, value)| (name.into(), value.into())))
}

fn errors(vars: &[(&str, &str)]) -> Vec<String> {
    read(vars).expect_err("these settings are wrong").0
}

#[test]
fn nothing_set_gives_the_documented_defaults() {
    let settings = read(&[]).expect("the defaults are valid");
    assert_eq!(settings.mq.prefetch.get(), 1);
    assert_eq!(settings.mq.command_key(), "device-commands");
    let [listener] = &settings.listeners[..] else { panic!("{:?}", settings.listeners) };
    assert_eq!(listener.name, "device");
    assert_eq!(listener.device.write_timeout, Duration::from_secs(10));
    assert!(settings.warnings.is_empty());
    assert!(!settings.queue_type_is_set);
}

#[test]
fn a_further_listener_has_what_is_set_for_it_and_the_rest_of_all() {
    let settings = read(&[
        ("DEVICE_LINE_MAX", "100"),
        ("DEVICE_LANE_MAX", "7"),
        ("LISTEN_PUMPS", "127.0.0.1:8124"),
        ("LISTEN_PUMPS_LINE_MAX", "200"),
        ("LISTEN_PUMPS_IDENTITY", "hello"),
        ("LISTEN_NORTH_HALL", "[::1]:8125"),
        ("LISTEN_FDS", "1"),
    ])
    .expect("valid");
    let shown: Vec<_> = settings
        .listeners
        .iter()
        .map(|it| (&*it.name, it.address.port(), it.device.line_max.0, it.access.identity))
        .collect();
    let expected = [
        ("device", 8123, 100, Identity::Ip),
        ("north_hall", 8125, 100, Identity::Ip),
        ("pumps", 8124, 200, Identity::Hello),
    ];
    assert_eq!(shown, expected);
    assert!(settings.listeners.iter().all(|it| it.device.lane_max.get() == 7));
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn a_listener_needs_an_address_and_settings_of_its_own_go_by_their_own_names() {
    let check = |vars: &[(&str, &str)], expected: &str| {
        let errors = errors(vars);
        assert!(errors.len() == 1 && errors[0].starts_with(expected), "{errors:?}");
    };
    check(&[("DEVICE_LISTEN", "off")], "DEVICE_LISTEN: expected an address, or another listener");
    check(&[("LISTEN_PUMPS_IDENTITY", "hello")], "LISTEN_PUMPS: expected the address");
    check(&[("LISTEN_PUMPS", "8124")], "LISTEN_PUMPS: expected an IP address and a port");
    let pumps = ("LISTEN_PUMPS", "127.0.0.1:8124");
    check(&[pumps, ("LISTEN_PUMPS_IDENTITY", "name")], "LISTEN_PUMPS_IDENTITY: expected `ip`");
    check(&[pumps, ("LISTEN_PUMPS_HEARTBEAT", "PING")], "LISTEN_PUMPS_HEARTBEAT: expected DEVICE");
    check(&[pumps, ("LISTEN_PUMPS_CONNECTIONS_MAX", "1")], "LISTEN_PUMPS_CONNECTIONS_MAX: DEVICE");
    check(&[pumps, ("DEVICE_KEEPALIVE_COUNT", "0")], "DEVICE_KEEPALIVE_COUNT: expected");
}

#[test]
fn settings_that_need_each_other_say_so() {
    let wrong = errors(&[("DEVICE_ANSWER_ID", "id"), ("DEVICE_ANSWER_PATTERN", "^ACK (.*)")]);
    assert!(wrong[0].starts_with("DEVICE_ANSWER_ID: expected the name of a group"), "{wrong:?}");
    let wrong = errors(&[("DEVICE_HEARTBEAT", "PING")]);
    assert!(wrong[0].contains("DEVICE_SILENCE_LIMIT"), "{wrong:?}");
    read(&[("DEVICE_ANSWER_ID", "id"), ("DEVICE_ANSWER_PATTERN", r"^ACK (?<id>\S+)")])
        .expect("they fit");
}

#[test]
fn all_errors_are_told_at_once_each_with_its_variable() {
    let errors = errors(&[
        ("MQ_PORT", "amqp"),
        ("MQ_PREFETCH", "0"),
        ("DEVICE_WRITE_TIMEOUT", "10"),
        ("LOG_FORMAT", "xml"),
    ]);
    assert_eq!(errors.len(), 4, "{errors:?}");
    for name in ["MQ_PORT", "MQ_PREFETCH", "DEVICE_WRITE_TIMEOUT", "LOG_FORMAT"] {
        assert!(errors.iter().any(|error| error.starts_with(name)), "{name} in {errors:?}");
    }
}

#[test]
fn the_hosts_of_the_broker_are_each_there_once() {
    let wrong = errors(&[("MQ_HOST", "mq1,mq2:amqp")]);
    assert!(wrong[0].starts_with("MQ_HOST: expected ") && wrong[0].ends_with(", got mq2:amqp"));
    let twice = [("MQ_HOST", "mq1,mq2,mq1:5672")];
    assert_eq!(errors(&twice), ["MQ_HOST: expected each host once, got mq1:5672 twice"]);
    let [host, other] = [twice[0], ("MQ_PORT", "5671")];
    let settings = read(&[host, other]).expect("two ports of one host");
    let shown: Vec<String> = settings.mq.endpoints().iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["mq1:5671", "mq2:5671", "mq1:5672"]);
}

#[test]
fn a_duration_needs_a_unit() {
    let error = errors(&[("SHUTDOWN_GRACE", "5")]).remove(0);
    assert!(error.contains("with a unit, as in 10s or 500ms"), "{error}");
}

#[test]
fn a_size_has_bounds() {
    for wrong in ["0", "-1", "1.5", "4294967296"] {
        let error = errors(&[("COMMAND_PARKED_MAX", wrong)]).remove(0);
        assert_eq!(
            error,
            format!(
                "COMMAND_PARKED_MAX: expected a whole number from 1 to 4294967295, got {wrong}"
            )
        );
    }
    let settings = read(&[("COMMAND_PARKED_MAX", "4294967295")]).expect("the largest");
    assert_eq!(settings.command.parked_max.0, 4_294_967_295);
}

#[test]
fn user_timeout_may_not_undercut_keepalive() {
    let error = errors(&[("DEVICE_USER_TIMEOUT", "34s")]).remove(0);
    assert!(error.contains("at least 35s"), "{error}");
}

#[test]
fn a_misspelt_name_is_a_warning_with_the_nearest_name() {
    let settings = read(&[("MQ_PREFETCHS", "5"), ("HTTP_PROXY", "x")]).expect("only a warning");
    assert_eq!(settings.warnings, ["MQ_PREFETCHS is not a setting; did you mean MQ_PREFETCH?"]);
}

#[test]
fn bytes_that_are_not_utf8_matter_only_in_our_own_variables() {
    let bad = OsString::from_vec(vec![0xff]);
    let fine = Settings::read([("OTHER".into(), bad.clone())]);
    assert!(fine.is_ok());
    let wrong = Settings::read([("MQ_HOST".into(), bad)]).expect_err("MQ_HOST is not text");
    assert!(wrong.0[0].starts_with("MQ_HOST: expected text"), "{wrong}");
}

#[test]
fn a_password_never_shows() {
    let settings = read(&[("MQ_PASSWORD", "hunter2")]).expect("valid");
    assert!(!format!("{settings:?}").contains("hunter2"));
    assert_eq!(settings.mq.password.expose(), "hunter2");
}

#[test]
fn the_password_file_loses_its_last_newline_only() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), " pass word \n").expect("written");
    let path = file.path().to_str().expect("a UTF-8 path");
    let settings = read(&[("MQ_PASSWORD_FILE", path)]).expect("valid");
    assert_eq!(settings.mq.password.expose(), " pass word ");
    let both = errors(&[("MQ_PASSWORD_FILE", path), ("MQ_PASSWORD", "x")]);
    assert!(both[0].contains("got both"), "{both:?}");
}

#[test]
fn the_readme_shows_this_table() {
    let readme = include_str!("../../README.md");
    for row in table() {
        let default =
            if row.default.is_empty() { "–".to_owned() } else { format!("`{}`", row.default) };
        let line = format!("| `{}` | {default} | {} |", row.name, row.meaning);
        assert!(readme.contains(&line), "README.md lacks this row of the settings table:\n{line}");
    }
    let rows = readme.lines().filter(|line| is_settings_row(line)).count();
    assert_eq!(rows, table().count(), "README.md has rows of settings that do not exist");
}

fn is_settings_row(line: &str) -> bool {
    let name = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()).unwrap_or("");
    let is_one = name.contains('_') && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    is_one || ["LOG", "CLUSTER"].contains(&name)
}
