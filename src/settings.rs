//! Every setting of the bridge: its name, default, meaning and check, in one table.
//!
//! This is the only file that reads the environment. `Settings::from_env` is called once, by `main`;
//! all errors are reported together, each naming its variable, and a misspelt name is a warning.
//! Nothing here opens a socket, and a secret never shows in `Debug`.

mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use value::Field;

use crate::command::{Address, Line};
pub use value::{
    Confirm, IfOffline, LineEnding, LineMax, LogFormat, Pattern, QueueType, Secret, Size, Switch,
};

/// One row of the settings table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// What it is when unset, as one would write it; empty where the meaning says what then.
    pub default: &'static str,
    /// What it does, in a sentence.
    pub meaning: &'static str,
}

/// Declares one section: its settings, their rows in the table, and how they are read.
macro_rules! section {
    (
        $(#[$doc:meta])* $section:ident, $raw:ident, $rows:ident, $prefix:literal;
        $( $field:ident: $kind:ty = $name:literal, $default:literal, $meaning:literal; )*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $section {
            $( #[doc = $meaning] pub $field: $kind, )*
        }

        #[derive(Deserialize)]
        struct $raw { $( $field: Field<$kind>, )* }

        const $rows: &[Setting] = &[
            $( Setting { name: $name, default: $default, meaning: $meaning }, )*
        ];

        impl $section {
            fn read(given: &BTreeMap<String, String>, errors: &mut Vec<String>) -> Option<Self> {
                let values = $rows.iter().map(|row| {
                    let value = given.get(row.name).cloned();
                    (row.name.to_owned(), value.unwrap_or_else(|| row.default.to_owned()))
                });
                let raw: $raw = match envy::prefixed($prefix).from_iter(values) {
                    Ok(raw) => raw,
                    Err(error) => {
                        errors.push(format!("{}*: {error}", $prefix));
                        return None;
                    }
                };
                let read = ( $( raw.$field.or_report($name, errors), )* );
                let ( $( $field, )* ) = read;
                Some(Self { $( $field: $field?, )* })
            }
        }
    };
}

section! {
    /// The RabbitMQ side: where the broker is, and what the bridge uses on it.
    Broker, RawBroker, BROKER_ROWS, "MQ_";
    host: String = "MQ_HOST", "localhost", "Host name or address of the broker.";
    port: u16 = "MQ_PORT", "5672", "Port of the broker (5671 is usual with `MQ_TLS=on`).";
    vhost: String = "MQ_VHOST", "/", "Virtual host.";
    username: String = "MQ_USERNAME", "guest", "User to log in as.";
    password: Secret = "MQ_PASSWORD", "guest", "Password of that user.";
    password_file: Option<PathBuf> = "MQ_PASSWORD_FILE", "", "File that holds the password, instead of `MQ_PASSWORD`; read once at start, a newline at its end is not part of it.";
    tls: Switch = "MQ_TLS", "off", "`on` speaks AMQP over TLS (amqps).";
    ca_file: Option<PathBuf> = "MQ_CA_FILE", "", "PEM file of certificate authorities to trust besides the system's.";
    queue: String = "MQ_QUEUE", "device-commands", "Queue that commands are consumed from; declared durable if it is missing.";
    exchange: String = "MQ_EXCHANGE", "device-commands", "Exchange the queue is bound to; declared direct and durable if it is missing.";
    routing_key: Option<String> = "MQ_ROUTING_KEY", "", "Routing key of that binding; unset: the queue's name.";
    queue_type: QueueType = "MQ_QUEUE_TYPE", "classic", "`classic` or `quorum`: type of the queues the bridge declares. When set, an existing command queue must be of it.";
    prefetch: NonZeroU16 = "MQ_PREFETCH", "1", "Commands in hand at a time, 1 to 65535. 1 keeps strict queue order between devices; 100 to 300 is much faster and keeps order per device.";
    stalled_max: NonZeroU16 = "MQ_STALLED_MAX", "256", "Commands that may wait unsettled for devices that do not read, besides the prefetch; one more that would have to wait is `overloaded`.";
    heartbeat: Duration = "MQ_HEARTBEAT", "10s", "AMQP heartbeat, whole seconds; a silent broker is given up after twice this.";
    connect_timeout: Duration = "MQ_CONNECT_TIMEOUT", "10s", "Limit for one attempt to connect, TCP, TLS and AMQP handshake together.";
    events_exchange: String = "MQ_EVENTS_EXCHANGE", "device-events", "Topic exchange for `presence.<address>` and `uplink.<address>`; declared if it is missing.";
    undelivered_exchange: String = "MQ_UNDELIVERED_EXCHANGE", "undelivered", "Exchange for commands that were not delivered; declared (fanout) if it is missing, with a durable queue of the same name.";
    parked_prefix: String = "MQ_PARKED_PREFIX", "parked", "Commands parked for a device wait in the durable queue `<prefix>.<address>`; a queue named by the prefix alone marks that there may be such.";
}

section! {
    /// The device side: the listener and what every device connection is held to.
    Device, RawDevice, DEVICE_ROWS, "DEVICE_";
    listen: SocketAddr = "DEVICE_LISTEN", "0.0.0.0:8123", "Address and port devices connect to; `[::]:8123` takes IPv6 and IPv4.";
    line_ending: LineEnding = "DEVICE_LINE_ENDING", "crlf", "`crlf` or `lf`: what ends each command line.";
    line_max: LineMax = "DEVICE_LINE_MAX", "8192", "Longest line in bytes, both ways, its ending not counted; 1 to 1048576. A longer command is `invalid`; a device that sends a longer line is disconnected.";
    send_buffer: Size = "DEVICE_SEND_BUFFER", "32768", "SO_SNDBUF in bytes, which Linux doubles: what may be on its way to a device unacknowledged, some 50 short commands. The rest waits in its lane.";
    tail_max: Size = "DEVICE_TAIL_MAX", "262144", "Bytes of memory for commands written to one device and not yet acknowledged by it; beyond it commands wait in its lane.";
    answer_pattern: Option<Pattern> = "DEVICE_ANSWER_PATTERN", "", "Regular expression that a device's answer to a command matches; other lines are uplink. Unset: the next line is the answer.";
    answer_id: Option<String> = "DEVICE_ANSWER_ID", "", "Named group of `DEVICE_ANSWER_PATTERN` that holds the id of the command that is answered; then several may be on their way at a time.";
    greeting: Switch = "DEVICE_GREETING", "off", "`on`: a device gets no command before it has sent its first line.";
    silence_limit: Option<Duration> = "DEVICE_SILENCE_LIMIT", "", "A device that has sent nothing for this long is reported as silent, and as heard when it sends again; unset: never. It stays connected.";
    heartbeat: Option<String> = "DEVICE_HEARTBEAT", "", "Line sent to a device that has sent nothing for half of `DEVICE_SILENCE_LIMIT`, for devices that answer one.";
    lane_max: NonZeroU16 = "DEVICE_LANE_MAX", "64", "Commands that may wait for one device that does not read; one more is `overloaded`.";
    write_timeout: Duration = "DEVICE_WRITE_TIMEOUT", "10s", "A device whose socket does not take the line at the head of its lane for this long is disconnected.";
    user_timeout: Duration = "DEVICE_USER_TIMEOUT", "35s", "TCP_USER_TIMEOUT: a device that acknowledges no data for this long is gone. At least keepalive idle + interval x count.";
    keepalive_idle: Duration = "DEVICE_KEEPALIVE_IDLE", "20s", "TCP keepalive: the first probe after this much silence, whole seconds.";
    keepalive_interval: Duration = "DEVICE_KEEPALIVE_INTERVAL", "5s", "TCP keepalive: time between probes, whole seconds.";
    keepalive_count: NonZeroU16 = "DEVICE_KEEPALIVE_COUNT", "3", "TCP keepalive: unanswered probes until the device counts as gone, 1 to 127.";
    uplink: Switch = "DEVICE_UPLINK", "on", "`on` publishes the lines devices send as `uplink.<address>` events; `off` reads and drops them.";
}

section! {
    /// What a command is held to when it does not say so itself.
    CommandDefaults, RawCommand, COMMAND_ROWS, "COMMAND_";
    ttl: Duration = "COMMAND_TTL", "1h", "A command is not written later than this after its publication, unless it has a `ttl_ms` of its own.";
    confirm: Confirm = "COMMAND_CONFIRM", "written", "How much proof makes a command delivered: `written`, `received` or `answered`.";
    timeout: Duration = "COMMAND_TIMEOUT", "10s", "How long after the write the proof may take, unless the command has a `timeout_ms` of its own.";
    if_offline: IfOffline = "COMMAND_IF_OFFLINE", "reject", "For a device that is not connected: `reject` sends the command to the undelivered exchange, `park` keeps it in the broker until the device connects or the ttl ends, `drop` forgets it.";
    parked_max: Size = "COMMAND_PARKED_MAX", "1000", "Commands that may be parked for one device; one more is `overloaded`.";
    parked_total_max: Size = "COMMAND_PARKED_TOTAL_MAX", "100000", "Commands that may be parked for all devices together; one more is `overloaded`.";
}

section! {
    /// The HTTP side.
    Http, RawHttp, HTTP_ROWS, "HTTP_";
    listen: SocketAddr = "HTTP_LISTEN", "127.0.0.1:9123", "Address and port of `/livez`, `/readyz`, `/metrics` and `/devices`.";
}

section! {
    /// The process itself.
    Process, RawProcess, PROCESS_ROWS, "";
    bridge_name: Option<String> = "BRIDGE_NAME", "", "Name of this bridge in events and receipts; unset: the host name.";
    shutdown_grace: Duration = "SHUTDOWN_GRACE", "10s", "Limit for the drain on SIGTERM or SIGINT.";
    runtime_threads: NonZeroU16 = "RUNTIME_THREADS", "1", "Worker threads. One is fastest up to many thousands of devices: commands then never change threads.";
    log: String = "LOG", "info", "Log filter: `error`, `warn`, `info`, `debug`, `trace`, or per module as in `info,rabbitline::device=debug`.";
    log_format: LogFormat = "LOG_FORMAT", "text", "`text` for people, `json` for machines; one line an event, on standard error.";
}

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `MQ_…`
    pub mq: Broker,
    /// `DEVICE_…`
    pub device: Device,
    /// `COMMAND_…`
    pub command: CommandDefaults,
    /// `HTTP_…`
    pub http: Http,
    /// The rest.
    pub process: Process,
    /// Whether `MQ_QUEUE_TYPE` was set: then an existing queue is held to it.
    pub queue_type_is_set: bool,
    /// What is odd but not wrong, one sentence each, to be logged once logging is up.
    pub warnings: Vec<String>,
}

/// What is wrong with the settings: one sentence a variable.
#[derive(Debug, thiserror::Error)]
pub struct SettingsErrors(pub Vec<String>);

impl fmt::Display for SettingsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Prefixes under which an unknown variable is worth a warning. `HTTP_PROXY` is somebody else's.
const OUR_PREFIXES: &[&str] =
    &["MQ_", "DEVICE_", "COMMAND_", "HTTP_LISTEN", "BRIDGE_", "SHUTDOWN_", "RUNTIME_", "LOG_"];

impl Settings {
    /// Reads the process's environment. Values that are not UTF-8 matter only under our own names.
    pub fn from_env() -> Result<Self, SettingsErrors> {
        Self::read(std::env::vars_os())
    }

    /// Reads settings from any list of variables.
    pub fn read(
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, SettingsErrors> {
        let mut errors = Vec::new();
        let mut warnings = Vec::new();
        let given = ours(vars, &mut errors, &mut warnings);
        let mq = Broker::read(&given, &mut errors);
        let device = Device::read(&given, &mut errors);
        let command = CommandDefaults::read(&given, &mut errors);
        let http = Http::read(&given, &mut errors);
        let process = Process::read(&given, &mut errors);
        let (Some(mut mq), Some(device), Some(command), Some(http), Some(process)) =
            (mq, device, command, http, process)
        else {
            return Err(SettingsErrors(errors));
        };
        read_password_file(&mut mq, given.contains_key("MQ_PASSWORD"), &mut errors);
        check_together(&mq, &device, &mut errors);
        if !errors.is_empty() {
            return Err(SettingsErrors(errors));
        }
        let queue_type_is_set = given.contains_key("MQ_QUEUE_TYPE");
        Ok(Self { mq, device, command, http, process, queue_type_is_set, warnings })
    }

    /// The name this bridge goes by in events and receipts.
    pub fn bridge_name(&self) -> String {
        self.process
            .bridge_name
            .clone()
            .unwrap_or_else(|| gethostname::gethostname().to_string_lossy().into_owned())
    }
}

impl Broker {
    /// The queue in which commands wait for this device.
    pub fn parked_queue(&self, address: &Address) -> String {
        format!("{}.{address}", self.parked_prefix)
    }

    /// The routing key commands are bound with.
    pub fn command_key(&self) -> &str {
        self.routing_key.as_deref().unwrap_or(&self.queue)
    }
}

/// The settings table, in the order the documentation shows it.
pub fn table() -> impl Iterator<Item = &'static Setting> {
    [BROKER_ROWS, DEVICE_ROWS, COMMAND_ROWS, HTTP_ROWS, PROCESS_ROWS].into_iter().flatten()
}

/// Keeps the variables the table knows; warns of those that look like ours and are not.
/// A variable set to nothing counts as unset, as env files and manifests mean it.
fn ours(
    vars: impl IntoIterator<Item = (OsString, OsString)>,
    errors: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let mut given = BTreeMap::new();
    for (name, value) in vars {
        let Some(name) = name.to_str() else { continue };
        if table().any(|row| row.name == name) {
            match value.into_string() {
                Ok(value) if value.is_empty() => {}
                Ok(value) => {
                    given.insert(name.to_owned(), value);
                }
                Err(_) => {
                    errors.push(format!("{name}: expected text, got bytes that are not UTF-8"))
                }
            }
        } else if OUR_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            let nearest = table().max_by(|a, b| {
                strsim::jaro_winkler(name, a.name).total_cmp(&strsim::jaro_winkler(name, b.name))
            });
            let nearest = nearest.map_or("", |row| row.name);
            warnings.push(format!("{name} is not a setting; did you mean {nearest}?"));
        }
    }
    given
}

fn read_password_file(mq: &mut Broker, password_is_set: bool, errors: &mut Vec<String>) {
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

/// Checks that need more than one setting.
fn check_together(mq: &Broker, device: &Device, errors: &mut Vec<String>) {
    let probes =
        device.keepalive_idle + device.keepalive_interval * u32::from(device.keepalive_count.get());
    if device.user_timeout < probes {
        errors.push(format!(
            "DEVICE_USER_TIMEOUT: expected at least {}, which is DEVICE_KEEPALIVE_IDLE + \
             DEVICE_KEEPALIVE_INTERVAL x DEVICE_KEEPALIVE_COUNT, got {}; a shorter one would end \
             the connection after one lost probe",
            humantime::format_duration(probes),
            humantime::format_duration(device.user_timeout),
        ));
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
        if let Err(reason) = Line::encode(line, device.line_ending, device.line_max.0) {
            errors.push(format!("DEVICE_HEARTBEAT: {}", reason.trim_start_matches("cmd: ")));
        }
    }
    if device.keepalive_count.get() > 127 {
        errors.push(format!(
            "DEVICE_KEEPALIVE_COUNT: expected 1 to 127, got {}",
            device.keepalive_count
        ));
    }
    if mq.heartbeat.as_secs() == 0 || mq.heartbeat.as_secs() > u64::from(u16::MAX) {
        errors.push(format!(
            "MQ_HEARTBEAT: expected 1s to 65535s, got {}",
            humantime::format_duration(mq.heartbeat)
        ));
    }
    if let Some(path) = &mq.ca_file
        && let Err(error) = std::fs::metadata(path)
    {
        errors.push(format!("MQ_CA_FILE: cannot read {}: {error}", path.display()));
    }
}

#[cfg(test)]
mod tests;
