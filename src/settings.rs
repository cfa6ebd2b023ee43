//! Every setting of the bridge: its name, default, meaning and check, in one table.
//!
//! This is the only file that reads the environment. `Settings::from_env` is called once, by `main`;
//! all errors are reported together, each naming its variable, and a misspelt name is a warning.
//! Nothing here opens a socket, and a secret never shows in `Debug`.

mod check;
mod hosts;
mod listeners;
mod record;
mod table;
mod value;
mod words;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

pub use hosts::{Endpoint, Hosts};
pub use listeners::Listener;
pub use record::{DatabaseUrl, Keep, Kinds};
pub use table::{
    Access, Broker, CommandDefaults, Device, GroupSettings, Http, Process, Record, Redis, Setting,
    Source, table,
};
pub use value::{LineMax, Listen, Networks, Pattern, Room, Secret, Size, Time};
pub use words::{
    CertificateName, Confirm, Identity, IfOffline, LineEnding, LogFormat, Protocol, QueueType,
    Second, Switch,
};

use crate::command::Address;

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `MQ_…`
    pub mq: Broker,
    /// `DEVICE_…` and `LISTEN_…`: what devices connect to, at least one.
    pub listeners: Vec<Listener>,
    /// `COMMAND_…`
    pub command: CommandDefaults,
    /// `GROUPS_…`
    pub groups: GroupSettings,
    /// `REDIS_…`
    pub redis: Redis,
    /// `SOURCE_…`
    pub source: Source,
    /// `RECORD_…`
    pub record: Record,
    /// `HTTP_…`
    pub http: Http,
    /// The rest.
    pub process: Process,
    /// Whether `MQ_QUEUE_TYPE` was set: then an existing queue is held to it.
    pub queue_type_is_set: bool,
    /// Whether `RECORD_DATABASE` was set: then `rabbitline check` looks at it.
    pub database_is_set: bool,
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
const OUR_PREFIXES: &[&str] = &[
    "MQ_",
    "DEVICE_",
    "COMMAND_",
    "GROUPS_",
    "SOURCE_",
    "RECORD_",
    "HTTP_LISTEN",
    "HTTP_METRICS",
    "HTTP_TOKEN",
    "BRIDGE_",
    "CLUSTER",
    "LAST_",
    "LIVE_",
    "SHUTDOWN_",
    "RUNTIME_",
    "LOG_",
];

/// Variables that the table knows, and those of further listeners, by their names.
type Given = BTreeMap<String, String>;

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
        let listeners = listeners::read(&given, &mut errors);
        let command = CommandDefaults::read(&given, &mut errors);
        let groups = GroupSettings::read(&given, &mut errors);
        let redis = Redis::read(&given, &mut errors);
        let source = Source::read(&given, &mut errors);
        let record = Record::read(&given, &mut errors);
        let http = Http::read(&given, &mut errors);
        let process = Process::read(&given, &mut errors);
        let (Some(mut mq), Some(command), Some(http), Some(process)) = (mq, command, http, process)
        else {
            return Err(SettingsErrors(errors));
        };
        let (Some(groups), Some(redis), Some(source), Some(mut record)) =
            (groups, redis, source, record)
        else {
            return Err(SettingsErrors(errors));
        };
        check::read_password_file(&mut mq, given.contains_key("MQ_PASSWORD"), &mut errors);
        check::broker(&mq, &mut errors);
        record::read_password_file(&mut record, &mut errors);
        check::http(&http, &mut errors);
        check::cluster(&mq, &process, &mut errors);
        if !errors.is_empty() {
            return Err(SettingsErrors(errors));
        }
        let queue_type_is_set = given.contains_key("MQ_QUEUE_TYPE");
        let database_is_set = given.contains_key("RECORD_DATABASE");
        Ok(Self {
            mq,
            listeners,
            command,
            groups,
            redis,
            source,
            record,
            http,
            process,
            queue_type_is_set,
            database_is_set,
            warnings,
        })
    }

    /// The name this bridge goes by in events and receipts.
    pub fn bridge_name(&self) -> String {
        self.process.name()
    }
}

impl Process {
    fn name(&self) -> String {
        let host = || gethostname::gethostname().to_string_lossy().into_owned();
        self.bridge_name.clone().unwrap_or_else(host)
    }
}

impl Broker {
    /// Where the broker is: at least one place.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.host.endpoints(self.port)
    }

    /// The queue in which commands wait for this device.
    pub fn parked_queue(&self, address: &Address) -> String {
        format!("{}.{address}", self.parked_prefix)
    }

    /// The queue to which commands for the devices of a bridge come.
    pub fn inbox(&self, bridge: &str) -> String {
        format!("{}.{bridge}", self.route_exchange)
    }

    /// The bridge whose inbox this is, if it is one.
    pub fn bridge_of<'a>(&self, inbox: &'a str) -> Option<&'a str> {
        inbox.strip_prefix(&self.route_exchange)?.strip_prefix('.')
    }

    /// The queue that is there as long as a bridge of this name is.
    pub fn alive_queue(&self, bridge: &str) -> String {
        format!("{}.alive", self.inbox(bridge))
    }

    /// Through which devices of different bridges speak to each other.
    pub fn talk_exchange(&self) -> String {
        format!("{}.talk", self.route_exchange)
    }

    /// The routing key commands are bound with.
    pub fn command_key(&self) -> &str {
        self.routing_key.as_deref().unwrap_or(&self.queue)
    }
}

/// Keeps the variables that are settings; warns of those that look like ours and are not.
/// A variable set to nothing counts as unset, as env files and manifests mean it.
fn ours(
    vars: impl IntoIterator<Item = (OsString, OsString)>,
    errors: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Given {
    let mut given = Given::new();
    for (name, value) in vars {
        let Some(name) = name.to_str() else { continue };
        if listeners::owns(name) || table().any(|row| row.name == name) {
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

#[cfg(test)]
mod tests;
