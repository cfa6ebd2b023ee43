//! Checks that need more than one setting, or a file.

use std::path::Path;

use humantime::format_duration;

use super::table::{Access, Broker, Device, Http, Process};
use super::value::Secret;
use super::words::{Identity, Protocol};
use crate::protocol::check_line;

/// Reads the password where it is kept in a file.
pub(super) fn read_password_file(mq: &mut Broker, password_is_set: bool, errors: &mut Vec<String>) {
    let Some(path) = &mq.password_file else {
        return;
    };
    if password_is_set {
        errors.push("MQ_PASSWORD_FILE: expected either this or MQ_PASSWORD, got both".to_owned());
        return;
    }
    match std::fs::read_to_string(path) {
        Ok(text) => mq.password = Secret::from(text.trim_end_matches(['\r', '\n'])),
        Err(error) => {
            errors.push(format!("MQ_PASSWORD_FILE: cannot read {}: {error}", path.display()));
        }
    }
}

/// What the settings of the broker owe each other.
pub(super) fn broker(mq: &Broker, errors: &mut Vec<String>) {
    if mq.heartbeat.as_secs() == 0 || mq.heartbeat.as_secs() > u64::from(u16::MAX) {
        let heartbeat = format_duration(mq.heartbeat);
        errors.push(format!("MQ_HEARTBEAT: expected 1s to 65535s, got {heartbeat}"));
    }
    let endpoints = mq.endpoints();
    let twice = endpoints
        .iter()
        .enumerate()
        .find(|(at, it)| endpoints.iter().take(*at).any(|earlier| earlier == *it));
    if let Some((_, endpoint)) = twice {
        errors.push(format!("MQ_HOST: expected each host once, got {endpoint} twice"));
    }
    readable("MQ_CA_FILE", mq.ca_file.as_deref(), errors);
}

/// AMQP's limit on the names of queues and exchanges, in bytes.
const NAME_MAX: usize = 255;

/// What a bridge needs to be one of several.
pub(super) fn cluster(mq: &Broker, process: &Process, errors: &mut Vec<String>) {
    let name = mq.alive_queue(&process.name());
    if process.cluster.is_on() && name.len() > NAME_MAX {
        errors.push(format!(
            "BRIDGE_NAME: expected `{name}` to have at most {NAME_MAX} bytes with MQ_ROUTE_EXCHANGE before it, got {}",
            name.len()
        ));
    }
}

/// What HTTP needs.
pub(super) fn http(http: &Http, errors: &mut Vec<String>) {
    readable("HTTP_TOKEN_FILE", http.token_file.as_deref(), errors);
}

/// What the settings of devices owe each other.
pub(super) fn device(device: &Device, errors: &mut Vec<String>) {
    let probes =
        device.keepalive_idle + device.keepalive_interval * u32::from(device.keepalive_count.get());
    if device.user_timeout < probes {
        errors.push(format!(
            "DEVICE_USER_TIMEOUT: expected at least {}, which is DEVICE_KEEPALIVE_IDLE + \
             DEVICE_KEEPALIVE_INTERVAL x DEVICE_KEEPALIVE_COUNT, got {}; a shorter one would end \
             the connection after one lost probe",
            format_duration(probes),
            format_duration(device.user_timeout),
        ));
    }
    if device.keepalive_count.get() > 127 {
        let count = device.keepalive_count;
        errors.push(format!("DEVICE_KEEPALIVE_COUNT: expected 1 to 127, got {count}"));
    }
    if let Some(group) = &device.answer_id {
        let names = device.answer_pattern.as_ref().map(|pattern| pattern.group_names());
        if !names.is_some_and(|names| names.contains(group)) {
            errors.push(format!(
                "DEVICE_ANSWER_ID: expected the name of a group in DEVICE_ANSWER_PATTERN, as in (?<id>...), got {group}"
            ));
        }
    }
    if let Some(line) = &device.heartbeat {
        if device.silence_limit.is_none() {
            errors
                .push("DEVICE_HEARTBEAT: expected DEVICE_SILENCE_LIMIT to be set, too".to_owned());
        }
        if device.protocol != Protocol::Line {
            errors.push("DEVICE_HEARTBEAT: expected DEVICE_PROTOCOL to be line".to_owned());
        }
        if let Err(reason) = check_line(line, device.line_max.0) {
            errors.push(format!("DEVICE_HEARTBEAT: {}", reason.trim_start_matches("cmd: ")));
        }
    }
}

/// What the settings of who may connect owe each other.
pub(super) fn access(access: &Access, device: &Device, errors: &mut Vec<String>) {
    let mut expect = |is_right: bool, what: &str| {
        if !is_right {
            errors.push(what.to_owned());
        }
    };
    let tokens = [access.tokens_file.is_some(), access.tokens_redis_key.is_some()];
    let says_who_it_is = access.identity == Identity::Hello || device.protocol == Protocol::Chat;
    expect(
        tokens != [true, true],
        "DEVICE_TOKENS_FILE: expected either this or DEVICE_TOKENS_REDIS_KEY, got both",
    );
    expect(
        says_who_it_is || tokens == [false, false],
        "DEVICE_TOKENS_FILE, DEVICE_TOKENS_REDIS_KEY: expected DEVICE_IDENTITY to be hello, where devices have tokens",
    );
    expect(
        access.tokens_redis_key.as_ref().is_none_or(|key| key.contains("<id>")),
        "DEVICE_TOKENS_REDIS_KEY: expected a name with <id> in it, as in user:<id>",
    );
    let names = access.hello_pattern.group_names();
    let has_group = |name: &str| names.iter().any(|group| group == name);
    expect(
        has_group("id"),
        "DEVICE_HELLO_PATTERN: expected a group with the name id, as in (?<id>...)",
    );
    expect(
        tokens == [false, false] || device.protocol == Protocol::Chat || has_group("token"),
        "DEVICE_HELLO_PATTERN: expected a group with the name token, as in (?<token>...), where devices have tokens",
    );
    expect(
        access.tls_certificate.is_some() == access.tls_key.is_some(),
        "DEVICE_TLS_CERTIFICATE, DEVICE_TLS_KEY: expected both or none",
    );
    expect(
        access.tls_client_ca.is_none() || access.tls_certificate.is_some(),
        "DEVICE_TLS_CLIENT_CA: expected DEVICE_TLS_CERTIFICATE to be set, too",
    );
    expect(
        access.identity != Identity::Certificate || access.tls_client_ca.is_some(),
        "DEVICE_IDENTITY: certificate needs DEVICE_TLS_CLIENT_CA, which says whose certificates count",
    );
    for (name, path) in [
        ("DEVICE_TOKENS_FILE", &access.tokens_file),
        ("DEVICE_TLS_CERTIFICATE", &access.tls_certificate),
        ("DEVICE_TLS_KEY", &access.tls_key),
        ("DEVICE_TLS_CLIENT_CA", &access.tls_client_ca),
    ] {
        readable(name, path.as_deref(), errors);
    }
}

fn readable(name: &str, path: Option<&Path>, errors: &mut Vec<String>) {
    if let Some(path) = path
        && let Err(error) = std::fs::File::open(path)
    {
        errors.push(format!("{name}: cannot read {}: {error}", path.display()));
    }
}
