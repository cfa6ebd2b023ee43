//! The settings table: every setting's name, default and meaning, and how a section of it is read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::hosts::Hosts;
use super::record::{DatabaseUrl, Keep, Kinds};
use super::value::{Field, LineMax, Listen, Networks, Pattern, Room, Secret, Size, Time};
use super::words::{
    CertificateName, Confirm, Identity, IfOffline, LineEnding, LogFormat, Protocol, QueueType,
    Second, Switch,
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
            pub(super) fn read(given: &BTreeMap<String, String>, errors: &mut Vec<String>) -> Option<Self> {
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
    host: Hosts = "MQ_HOST", "localhost", "Host name or address of the broker; of a cluster's nodes, with commas between, each with its port if that is not `MQ_PORT`, as in `mq1,mq2:5673,[fd00::3]:5673`.";
    port: u16 = "MQ_PORT", "5672", "Port of the broker (5671 is usual with `MQ_TLS=on`).";
    vhost: String = "MQ_VHOST", "/", "Virtual host.";
    username: String = "MQ_USERNAME", "guest", "User to log in as.";
    password: Secret = "MQ_PASSWORD", "guest", "Password of that user.";
    password_file: Option<PathBuf> = "MQ_PASSWORD_FILE", "", "File that holds the password, instead of `MQ_PASSWORD`; read once at start, a newline at its end is not part of it.";
    tls: Switch = "MQ_TLS", "off", "`on` speaks AMQP over TLS (amqps).";
    ca_file: Option<PathBuf> = "MQ_CA_FILE", "", "PEM file of certificate authorities to trust besides the system's, if it has any.";
    queue: String = "MQ_QUEUE", "device-commands", "Queue that commands are consumed from; declared durable if it is missing.";
    exchange: String = "MQ_EXCHANGE", "device-commands", "Exchange the queue is bound to; declared direct and durable if it is missing.";
    routing_key: Option<String> = "MQ_ROUTING_KEY", "", "Routing key of that binding; unset: the queue's name.";
    queue_type: QueueType = "MQ_QUEUE_TYPE", "classic", "`classic` or `quorum`: type of the queues the bridge declares. When set, an existing command queue must be of it.";
    prefetch: NonZeroU16 = "MQ_PREFETCH", "1", "Commands in hand at a time, 1 to 65535. 1 keeps strict queue order between devices; 100 to 300 is much faster and keeps order per device.";
    stalled_max: NonZeroU16 = "MQ_STALLED_MAX", "256", "Commands that may wait unsettled for devices that do not read, besides the prefetch; one more that would have to wait is `overloaded`.";
    heartbeat: Duration = "MQ_HEARTBEAT", "10s", "AMQP heartbeat, whole seconds; a silent broker is given up after twice this.";
    connect_timeout: Duration = "MQ_CONNECT_TIMEOUT", "10s", "Limit for one attempt to connect, TCP, TLS and AMQP handshake together.";
    events_exchange: String = "MQ_EVENTS_EXCHANGE", "device-events", "Topic exchange for `presence.<address>`, `uplink.<address>` and what else is told; declared if it is missing.";
    outcome_events: Switch = "MQ_OUTCOME_EVENTS", "off", "`on` publishes what became of each command as `outcome.<address>`, whether or not its sender wants a receipt.";
    tap_exchange: String = "MQ_TAP_EXCHANGE", "device-tap", "Topic exchange to which what happens is published while somebody listens there, as `rabbitline tap` does; declared if it is missing.";
    undelivered_exchange: String = "MQ_UNDELIVERED_EXCHANGE", "undelivered", "Exchange for commands that were not delivered; declared (fanout) if it is missing, with a durable queue of the same name.";
    route_exchange: String = "MQ_ROUTE_EXCHANGE", "device-routes", "With `CLUSTER=on`: direct exchange that takes a command to the bridge which has its device, whose address is the routing key; declared if it is missing.";
    parked_prefix: String = "MQ_PARKED_PREFIX", "parked", "Commands parked for a device wait in the durable queue `<prefix>.<address>`; a queue named by the prefix alone marks that there may be such.";
}

section! {
    /// The device side: the listener and what every device connection is held to.
    Device, RawDevice, DEVICE_ROWS, "DEVICE_";
    listen: Listen = "DEVICE_LISTEN", "0.0.0.0:8123", "Address and port devices connect to; `[::]:8123` takes IPv6 and IPv4; `off` if there are only listeners of other names.";
    protocol: Protocol = "DEVICE_PROTOCOL", "line", "Wire format of the devices: `line`, `channel` or `chat`.";
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
    keepalive_idle: Duration = "DEVICE_KEEPALIVE_IDLE", "20s", "TCP keepalive: the first probe after this much silence, whole seconds; each connection has one from half of it to all, so that not all are probed at once.";
    keepalive_interval: Duration = "DEVICE_KEEPALIVE_INTERVAL", "5s", "TCP keepalive: time between probes, whole seconds.";
    keepalive_count: NonZeroU16 = "DEVICE_KEEPALIVE_COUNT", "3", "TCP keepalive: unanswered probes until the device counts as gone, 1 to 127.";
    uplink: Switch = "DEVICE_UPLINK", "on", "`on` publishes the lines devices send as `uplink.<address>` events; `off` reads and drops them.";
}

section! {
    /// Who may connect to a listener, and as whom.
    Access, RawAccess, ACCESS_ROWS, "DEVICE_";
    identity: Identity = "DEVICE_IDENTITY", "ip", "What names a device: `ip`, its address; `peer`, its address and port, so that each connection is a device; `hello`, its first line; `certificate`, that of its TLS connection. With `chat` it is always the phone number.";
    hello_pattern: Pattern = "DEVICE_HELLO_PATTERN", "^HELLO (?<id>[^ ]+)( (?<token>[^ ]+))?$", "Regular expression of the first line, with the groups `id` and, if devices have tokens, `token`.";
    hello_timeout: Duration = "DEVICE_HELLO_TIMEOUT", "10s", "How long it may take until it is known who a device is: PROXY header, TLS handshake and first line together.";
    second: Second = "DEVICE_SECOND", "replace", "A second connection of a device: `replace` closes the first, `reject` refuses the second.";
    tokens_file: Option<PathBuf> = "DEVICE_TOKENS_FILE", "", "File of ids and argon2 hashes of their tokens, a line each, as `rabbitline token` writes them; read again when it changes. With it a device needs its token.";
    tokens_redis_key: Option<String> = "DEVICE_TOKENS_REDIS_KEY", "", "Name of the Redis hash that has a device's token in its field `token`, with `<id>` for the id, as in `user:<id>`. With it a device needs its token.";
    tls_certificate: Option<PathBuf> = "DEVICE_TLS_CERTIFICATE", "", "PEM file of the listener's certificate and those that vouch for it; with it devices speak TLS. Read again when it changes.";
    tls_key: Option<PathBuf> = "DEVICE_TLS_KEY", "", "PEM file of that certificate's private key.";
    tls_client_ca: Option<PathBuf> = "DEVICE_TLS_CLIENT_CA", "", "PEM file of the authorities that vouch for devices; with it a device without such a certificate is refused.";
    certificate_name: CertificateName = "DEVICE_CERTIFICATE_NAME", "cn", "What names a device in its certificate: `cn`, the common name of its subject, or `san`, its first DNS name or URI.";
    proxy_from: Networks = "DEVICE_PROXY_FROM", "", "Networks (as in 10.0.0.0/8, with commas between) of proxies that begin each connection with a PROXY header, version 1 or 2; from there it must have one, from elsewhere it is none.";
    connections_max: Option<Size> = "DEVICE_CONNECTIONS_MAX", "", "Connections of all listeners together; unset: as many as the limit on open files leaves room for.";
    connections_per_ip: Option<Size> = "DEVICE_CONNECTIONS_PER_IP", "", "Connections from one IP address; unset: no limit.";
    connections_per_net: Option<Size> = "DEVICE_CONNECTIONS_PER_NET", "", "Connections from one network, a /24 of IPv4 or a /64 of IPv6; unset: no limit.";
    unknown_max: Size = "DEVICE_UNKNOWN_MAX", "1000", "Connections of which it is not known yet who they are; beyond it the one that has waited longest is closed.";
    accept_rate: Option<Size> = "DEVICE_ACCEPT_RATE", "", "Connections taken up in a second; more wait in the kernel's queue. Unset: no limit.";
    line_timeout: Duration = "DEVICE_LINE_TIMEOUT", "1m", "A device that has sent the beginning of a line or frame must send its end within this.";
    flap_max: Option<Size> = "DEVICE_FLAP_MAX", "", "Connects of one device within `DEVICE_FLAP_WINDOW`; one that connects more often is refused for `DEVICE_FLAP_PAUSE`. Unset: no limit.";
    flap_window: Duration = "DEVICE_FLAP_WINDOW", "1m", "See `DEVICE_FLAP_MAX`.";
    flap_pause: Duration = "DEVICE_FLAP_PAUSE", "1m", "See `DEVICE_FLAP_MAX`.";
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
    /// Groups of devices.
    GroupSettings, RawGroups, GROUP_ROWS, "GROUPS_";
    file: Option<PathBuf> = "GROUPS_FILE", "", "JSON file of groups and their members, an object of lists; read again when it changes, written anew when members change over HTTP.";
}

section! {
    /// Redis, where it is used.
    Redis, RawRedis, REDIS_ROWS, "REDIS_";
    url: Secret = "REDIS_URL", "redis://127.0.0.1:6379/0", "Redis server that is asked where another setting says so.";
}

section! {
    /// Where commands come from besides the command queue.
    Source, RawSource, SOURCE_ROWS, "SOURCE_";
    redis_list: Option<String> = "SOURCE_REDIS_LIST", "", "List at `REDIS_URL` from whose right end commands are taken and put into the command queue.";
    redis_channel: Option<String> = "SOURCE_REDIS_CHANNEL", "", "Channel at `REDIS_URL`; what is published there is said to those who have joined the group, or subscribed to the topic, of the same name.";
}

section! {
    /// The recorder, a process of its own.
    Record, RawRecord, RECORD_ROWS, "RECORD_";
    database: DatabaseUrl = "RECORD_DATABASE", "sqlite:rabbitline.db", "Where `rabbitline record` keeps what it records: `sqlite:FILE`, made if it is missing, or `postgres://USER@HOST/DATABASE`.";
    database_password_file: Option<PathBuf> = "RECORD_DATABASE_PASSWORD_FILE", "", "File that holds the password of the user in `RECORD_DATABASE`; read once at start, a newline at its end is not part of it.";
    queue: String = "RECORD_QUEUE", "device-record", "Queue that `rabbitline record` consumes events from; declared durable if it is missing, and bound to `MQ_EVENTS_EXCHANGE`.";
    kinds: Kinds = "RECORD_KINDS", "presence", "What is recorded, with commas between: `presence` (always), `outcome`, `uplink`.";
    batch: NonZeroU16 = "RECORD_BATCH", "500", "Events in one transaction at most, 1 to 65535.";
    flush: Duration = "RECORD_FLUSH", "200ms", "How long an event may wait for others to share its transaction with.";
    keep: Option<Keep> = "RECORD_KEEP", "", "How long ended connections, settled commands and lines are kept, as in `30d`; unset: for ever.";
}

section! {
    /// The HTTP side.
    Http, RawHttp, HTTP_ROWS, "HTTP_";
    listen: SocketAddr = "HTTP_LISTEN", "127.0.0.1:9123", "Address and port of everything that is asked over HTTP. Not on loopback it needs `HTTP_TOKEN_FILE`, but for `/livez`, `/readyz`, `/metrics` and `/message`.";
    metrics_listen: Option<SocketAddr> = "HTTP_METRICS_LISTEN", "", "Address and port of `/livez`, `/readyz` and `/metrics`, which are not at `HTTP_LISTEN` then.";
    token_file: Option<PathBuf> = "HTTP_TOKEN_FILE", "", "File of tokens, a line each: `reader TOKEN` or `operator TOKEN`, of at least 16 characters; read again when it changes. With it who asks needs one.";
}

section! {
    /// The process itself.
    Process, RawProcess, PROCESS_ROWS, "";
    bridge_name: Option<String> = "BRIDGE_NAME", "", "Name of this bridge in events and receipts; unset: the host name.";
    cluster: Switch = "CLUSTER", "off", "`on`: this bridge is one of several that share the devices and the command queue; each needs a `BRIDGE_NAME` of its own.";
    cluster_gone_after: Duration = "CLUSTER_GONE_AFTER", "5s", "A bridge that has not been connected to the broker for this long is taken over from by another.";
    cluster_moving: Time = "CLUSTER_MOVING", "30s", "How long after a bridge has ended, or is taken for dead, its devices may take to come back to any bridge before they are told as offline. 0s: they are told at once.";
    cluster_drain_spread: Time = "CLUSTER_DRAIN_SPREAD", "5s", "On SIGTERM the connections of devices are closed one after the other over this time, at most half of `SHUTDOWN_GRACE`, if there is another bridge. 0s: all at once.";
    bridge_heartbeat: Duration = "BRIDGE_HEARTBEAT", "3s", "How often the bridge says in `bridge.<name>` that it is there.";
    last_value_max: Room = "LAST_VALUE_MAX", "16777216", "Bytes of memory for the last line of each device, all together, which is shown to who asks for the state; the oldest goes first. 0: none is kept.";
    last_value_ttl: Option<Duration> = "LAST_VALUE_TTL", "", "A last line is removed after this, and `last.<address>` says so; unset: never.";
    live_mask: Option<Pattern> = "LIVE_MASK", "", "Regular expression of what is replaced by `***` in lines and commands shown at `/events` and by the tap: its group `secret` if it has one, else all of it. Unset: what follows words like password, token or secret.";
    shutdown_grace: Duration = "SHUTDOWN_GRACE", "10s", "Limit for the drain on SIGTERM or SIGINT.";
    runtime_threads: NonZeroU16 = "RUNTIME_THREADS", "1", "Worker threads. One is fastest up to many thousands of devices: commands then never change threads.";
    log: String = "LOG", "info", "Log filter: `error`, `warn`, `info`, `debug`, `trace`, or per module as in `info,rabbitline::device=debug`.";
    log_format: LogFormat = "LOG_FORMAT", "text", "`text` for people, `json` for machines; one line an event, on standard error.";
}

impl Process {
    /// How long what readers know of the devices counts when they hear nothing more of the bridge, in milliseconds:
    /// three heartbeats and one second for the way, and never so short that a new connection to the broker, which
    /// takes some seconds, seems to be the bridge's end.
    pub fn expires_ms(&self) -> u64 {
        const LEAST: Duration = Duration::from_secs(10);
        let expires = LEAST.max(3 * self.bridge_heartbeat + Duration::from_secs(1));
        u64::try_from(expires.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The settings table, in the order the documentation shows it.
pub fn table() -> impl Iterator<Item = &'static Setting> {
    [
        BROKER_ROWS,
        DEVICE_ROWS,
        ACCESS_ROWS,
        COMMAND_ROWS,
        GROUP_ROWS,
        REDIS_ROWS,
        SOURCE_ROWS,
        RECORD_ROWS,
        HTTP_ROWS,
        PROCESS_ROWS,
    ]
    .into_iter()
    .flatten()
}

/// The settings that each listener may have for itself.
pub(super) fn device_rows() -> impl Iterator<Item = &'static Setting> {
    [DEVICE_ROWS, ACCESS_ROWS].into_iter().flatten()
}
