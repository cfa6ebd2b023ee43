//! What happened to a command, and to a device: `/commands/ID` and `/devices/ADDRESS`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};

use super::HttpState;
use super::devices::Device;
use super::problem::Problem;
use crate::clock;
use crate::command::Address;
use crate::last_values::Shown;
use crate::order::Facts;
use crate::report::Reporter;
use crate::trail::Connection;

/// Commands shown of one id: a sender may use it again, and a parked command is taken up twice.
const OF_AN_ID_MAX: usize = 16;
/// Commands shown of one device.
const OF_A_DEVICE_MAX: usize = 32;

/// What is known of an id, or of all.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CommandHistory {
    /// Each time it was taken up, newest first.
    pub(crate) commands: Vec<Timeline>,
}

/// What is known of a device.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeviceHistory {
    pub(crate) address: String,
    /// Its connection, if it is connected.
    pub(crate) connected: Option<serde_json::Value>,
    /// Its last line, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<Shown>,
    /// Its past connections, newest first.
    pub(crate) connections: Vec<Ended>,
    /// Its last commands, newest first.
    pub(crate) commands: Vec<Timeline>,
}

/// A past connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) epoch: u64,
    pub(crate) peer: String,
    pub(crate) since: String,
    pub(crate) until: String,
    pub(crate) reason: String,
}

/// One command's steps, each with its time, and none for a step not taken.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Timeline {
    pub(crate) id: String,
    pub(crate) address: String,
    /// What the device reads.
    pub(crate) line: String,
    pub(crate) confirm: String,
    pub(crate) if_offline: String,
    pub(crate) once: bool,
    /// Whether the broker had delivered it before.
    pub(crate) redelivered: bool,
    /// Whether it came from its device's own queue.
    pub(crate) from_parking: bool,
    /// What ties it to a trace.
    pub(crate) trace: Option<String>,
    pub(crate) published: Option<String>,
    pub(crate) taken: String,
    pub(crate) written: Option<String>,
    /// When the bridge learned that the device's TCP stack has acknowledged it.
    pub(crate) acknowledged: Option<String>,
    pub(crate) answered: Option<String>,
    /// When another bridge had it, which tells its outcome.
    pub(crate) passed_on: Option<String>,
    pub(crate) outcome: Option<String>,
    /// When that outcome was known.
    pub(crate) settled: Option<String>,
}

pub(super) async fn command(
    State(state): State<HttpState>,
    Path(id): Path<String>,
) -> Result<Json<CommandHistory>, Problem> {
    let is_it = |facts: &Facts| state.devices.reporter.id(&facts.origin) == id;
    let found = commands(&state, is_it, OF_AN_ID_MAX);
    if found.commands.is_empty() {
        return Err(Problem::not_found(format!("no command `{id}` is remembered")));
    }
    Ok(Json(found))
}

pub(super) async fn device(
    State(state): State<HttpState>,
    Path(name): Path<String>,
) -> Result<Json<DeviceHistory>, Problem> {
    let address = Address::parse(&name).map_err(Problem::bad_request)?;
    let session = state.devices.registry.find(&address);
    let connections: Vec<Ended> =
        state.trail.connections(&address).into_iter().map(ended).collect();
    let is_its = |facts: &Facts| facts.command.address == address;
    let commands = commands(&state, is_its, OF_A_DEVICE_MAX).commands;
    let last = state.devices.uplink.as_ref().and_then(|uplink| uplink.last().get(&address));
    if session.is_none() && connections.is_empty() && commands.is_empty() && last.is_none() {
        return Err(Problem::not_found(format!("no device `{address}` is remembered")));
    }
    let connected = session.map(|session| Device::of(&session));
    let connected = connected.and_then(|device| serde_json::to_value(device).ok());
    let (address, last) = (address.to_string(), last.map(|last| last.shown()));
    Ok(Json(DeviceHistory { address, connected, last, connections, commands }))
}

/// The last commands for which `wanted` holds, newest first.
pub(super) fn commands(
    state: &HttpState,
    wanted: impl Fn(&Facts) -> bool,
    limit: usize,
) -> CommandHistory {
    let (found, reporter) = (state.trail.commands(wanted, limit), &state.devices.reporter);
    CommandHistory { commands: found.iter().map(|facts| timeline(facts, reporter)).collect() }
}

fn ended(connection: Connection) -> Ended {
    Ended {
        epoch: connection.epoch,
        peer: connection.peer.to_string(),
        since: clock::rfc3339(connection.since_ms),
        until: clock::rfc3339(connection.until_ms),
        reason: connection.reason.to_owned(),
    }
}

fn timeline(facts: &Arc<Facts>, reporter: &Reporter) -> Timeline {
    let (command, origin, steps) = (&facts.command, &facts.origin, &facts.steps);
    let step = |at: &AtomicU64| {
        let at = at.load(Ordering::Relaxed);
        (at > 0).then(|| clock::rfc3339(at))
    };
    Timeline {
        id: reporter.id(origin),
        address: command.address.to_string(),
        line: command.spoken.payload().content.text().to_owned(),
        confirm: command.confirm.word().to_owned(),
        if_offline: command.if_offline.word().to_owned(),
        once: command.once,
        redelivered: origin.redelivered,
        from_parking: origin.parked,
        trace: origin.message.trace().map(str::to_owned),
        published: origin.published_ms.map(clock::rfc3339),
        taken: clock::rfc3339(origin.arrived.wall_ms),
        written: step(&steps.written_ms),
        acknowledged: step(&steps.acknowledged_ms),
        answered: step(&steps.answered_ms),
        passed_on: step(&steps.passed_on_ms),
        outcome: steps.outcome().map(|outcome| outcome.label().to_owned()),
        settled: step(&steps.concluded_ms),
    }
}
