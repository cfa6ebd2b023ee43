//! What devices connect to: the listener of the `DEVICE_` settings, and further ones with a name each.
//!
//! `LISTEN_PUMPS=0.0.0.0:8124` is the address of the listener `pumps`; `LISTEN_PUMPS_IDENTITY=hello` is
//! for it what `DEVICE_IDENTITY` is for all. What is not set for it is as the `DEVICE_` settings say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::table::{Access, Device, device_rows};
use super::value::{Listen, Value};
use super::{Given, check};

/// What names of variables of further listeners begin with.
const PREFIX: &str = "LISTEN_";
/// What systemd tells of sockets it hands over begins with the same.
const NOT_OURS: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];
/// These hold for all listeners together.
const SHARED: [&str; 1] = ["CONNECTIONS_MAX"];
/// The listener of the `DEVICE_` settings.
const FIRST: &str = "device";

/// Something devices connect to.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name in logs: `device`, or that of its variables.
    pub name: String,
    /// The variable of its address.
    pub variable: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// What its devices are held to.
    pub device: Device,
    /// Who may connect.
    pub access: Access,
}

/// Whether a variable belongs to a further listener.
pub(super) fn owns(variable: &str) -> bool {
    variable.len() > PREFIX.len() && variable.starts_with(PREFIX) && !NOT_OURS.contains(&variable)
}

/// Reads all listeners.
pub(super) fn read(given: &Given, errors: &mut Vec<String>) -> Vec<Listener> {
    let mut listeners = Vec::new();
    let common: Given =
        given.iter().filter(|(name, _)| !owns(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
    if let Some((device, access)) = read_one(&common, errors)
        && let Listen::At(address) = device.listen
    {
        let (name, variable) = (FIRST.to_owned(), "DEVICE_LISTEN".to_owned());
        listeners.push(Listener { name, variable, address, device, access });
    }
    for (name, own) in further(given, errors) {
        listeners.extend(read_further(&name, &own, &common, errors));
    }
    if listeners.is_empty() && errors.is_empty() {
        errors.push(
            "DEVICE_LISTEN: expected an address, or another listener: nobody could connect"
                .to_owned(),
        );
    }
    listeners
}

/// The variables of further listeners: by the listener's name and the setting's, which is empty for
/// its address.
fn further(given: &Given, errors: &mut Vec<String>) -> BTreeMap<String, Given> {
    let mut all: BTreeMap<String, Given> = BTreeMap::new();
    for (variable, value) in given.iter().filter(|(name, _)| owns(name)) {
        let rest = variable.strip_prefix(PREFIX).unwrap_or_default();
        let settings: BTreeSet<&str> = device_rows()
            .filter_map(|row| row.name.strip_prefix("DEVICE_"))
            .filter(|setting| *setting != "LISTEN")
            .collect();
        let of_name = |setting: &&str| {
            rest.strip_suffix(*setting)?.strip_suffix('_').filter(|name| !name.is_empty())
        };
        let longest =
            settings.iter().filter_map(|s| Some((s, of_name(s)?))).max_by_key(|(s, _)| s.len());
        let (setting, name) = longest.map_or(("", rest), |(setting, name)| (setting, name));
        if SHARED.contains(&setting) {
            errors.push(format!("{variable}: DEVICE_{setting} holds for all listeners together"));
            continue;
        }
        all.entry(name.to_owned()).or_default().insert(setting.to_owned(), value.clone());
    }
    all
}

fn read_further(
    name: &str,
    own: &Given,
    common: &Given,
    errors: &mut Vec<String>,
) -> Option<Listener> {
    let variable = format!("{PREFIX}{name}");
    let Some(address) = own.get("") else {
        let first = own.keys().next().map_or("", String::as_str);
        errors.push(format!("{variable}: expected the address of the listener that {variable}_{first} belongs to, got nothing"));
        return None;
    };
    let Some(Listen::At(address)) = Listen::read(address) else {
        errors.push(format!("{variable}: expected {}, got {address}", SocketAddr::expected()));
        return None;
    };
    let mut given = common.clone();
    for (setting, value) in own.iter().filter(|(setting, _)| !setting.is_empty()) {
        given.insert(format!("DEVICE_{setting}"), value.clone());
    }
    let mut wrong = Vec::new();
    let read = read_one(&given, &mut wrong);
    let is_new = |error: &String| !errors.contains(error);
    let new: Vec<String> = wrong.into_iter().filter(is_new).collect();
    errors.extend(new.into_iter().map(|error| by_own_names(&error, own, &variable)));
    let (device, access) = read?;
    Some(Listener { name: name.to_lowercase(), variable, address, device, access })
}

/// An error in which what is set for this listener goes by its own name.
fn by_own_names(error: &str, own: &Given, variable: &str) -> String {
    let is_in_a_name = |c: char| c.is_ascii_uppercase() || c == '_';
    let mut text = String::new();
    let mut rest = error;
    while let Some(at) = rest.find("DEVICE_") {
        let (before, name) = rest.split_at(at);
        let end = name.find(|c| !is_in_a_name(c)).unwrap_or(name.len());
        let (name, after) = name.split_at(end);
        let setting = name.strip_prefix("DEVICE_").filter(|setting| own.contains_key(*setting));
        text += before;
        match setting {
            Some(setting) => text += &format!("{variable}_{setting}"),
            None => text += name,
        }
        rest = after;
    }
    text + rest
}

fn read_one(given: &Given, errors: &mut Vec<String>) -> Option<(Device, Access)> {
    let device = Device::read(given, errors);
    let access = Access::read(given, errors);
    let (device, access) = (device?, access?);
    check::device(&device, errors);
    check::access(&access, &device, errors);
    Some((device, access))
}
