//! Whom a command is for: one device, several, a group, or all.

use serde_json::value::RawValue;

use super::{Body, expected, missing, text};
use crate::command::{ADDRESS_MAX, Address, Reason, Whom};

/// Devices that one command may list. Each has its own outcome and receipt, so this bounds what one
/// delivery can be.
const ADDRESSES_MAX: usize = 10_000;

/// Whom a command is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recipients {
    One(Address),
    /// Each once, in the order they were named.
    These(Vec<Address>),
    Members(Whom),
}

/// Reads whom a command is for; it must say so in one way.
pub(super) fn read(body: &Body<'_>) -> Result<Recipients, Reason> {
    let broadcast = match body.broadcast.map(RawValue::get) {
        None | Some("false") => None,
        Some("true") => Some(Recipients::Members(Whom::All)),
        Some(other) => return Err(expected("broadcast", "true or false", other)),
    };
    let said = [
        body.address.map(|raw| Ok(Recipients::One(Address::parse(&text("address", raw)?)?))),
        body.addresses.map(|raw| list("addresses", raw)),
        body.group.map(group),
        broadcast.map(Ok),
    ];
    let mut said = said.into_iter().flatten();
    let Some(recipients) = said.next() else { return Err(missing("address")) };
    if said.next().is_some() {
        return Err("address: expected one of address, addresses, group and broadcast".into());
    }
    recipients
}

/// Reads whom a `chat` message of a backend is for, by its command.
pub(super) fn read_chat(command: &str, to: Option<&RawValue>) -> Result<Recipients, Reason> {
    if command == "104" {
        return Ok(Recipients::Members(Whom::AllInChat));
    }
    if !["102", "103"].contains(&command) {
        return Err(expected("command_id", "102, 103 or 104", command));
    }
    let to = to.ok_or_else(|| missing("chat_to"))?;
    if to.get().starts_with('[') {
        list("chat_to", to)
    } else {
        Ok(Recipients::One(address("chat_to", to)?))
    }
}

fn group(raw: &RawValue) -> Result<Recipients, Reason> {
    let name = text("group", raw)?;
    if name.is_empty() || name.len() > ADDRESS_MAX {
        return Err(format!("group: expected a name of 1 to {ADDRESS_MAX} bytes").into());
    }
    Ok(Recipients::Members(Whom::Group(name.as_ref().into())))
}

fn list(name: &str, raw: &RawValue) -> Result<Recipients, Reason> {
    let raws: Vec<&RawValue> =
        serde_json::from_str(raw.get()).map_err(|_| expected(name, "a list", raw.get()))?;
    if raws.is_empty() || raws.len() > ADDRESSES_MAX {
        let count = raws.len();
        return Err(format!("{name}: expected 1 to {ADDRESSES_MAX} devices, got {count}").into());
    }
    let mut seen = std::collections::HashSet::new();
    let mut addresses = Vec::with_capacity(raws.len());
    for raw in raws {
        let address = address(name, raw)?;
        if seen.insert(address.clone()) {
            addresses.push(address);
        }
    }
    Ok(Recipients::These(addresses))
}

/// An address as a string, or as a number, as phone numbers come.
fn address(name: &str, raw: &RawValue) -> Result<Address, Reason> {
    if raw.get().bytes().all(|byte| byte.is_ascii_digit()) {
        return Address::parse(raw.get());
    }
    Address::parse(&text(name, raw)?)
}
