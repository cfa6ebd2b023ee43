//! `bridge.<name>`: that the bridge is there, said again and again.
//!
//! A bridge that is killed tells nobody that its devices are gone. Whoever hears nothing of it for long enough knows
//! that it does not know.

use std::time::Duration;

use lapin::BasicProperties;
use serde::Serialize;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::clock::{self, Moment};
use crate::device::Registry;
use crate::run::Run;
use crate::settings::{Process, Settings};

#[derive(Serialize)]
struct Event<'a> {
    bridge: &'a str,
    run: &'a str,
    /// That of the last presence event that was published.
    seq: u64,
    online: bool,
    devices: usize,
    at: String,
    /// The exchange by which other bridges reach this one, if there are others.
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<&'a str>,
    /// The highest epoch that was given out, for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    /// Who hears nothing for this long takes the devices for unknown.
    expires_ms: u64,
}

/// When to say it: now, and from then on each time after so long.
pub(super) fn every(time: Duration) -> Interval {
    let mut beat = interval(time);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// That the bridge is there, or will be no more.
pub(super) fn json(
    run: &Run,
    settings: &Settings,
    seq: u64,
    registry: &Registry,
    online: bool,
) -> Vec<u8> {
    let process = &settings.process;
    let event = Event {
        bridge: &run.bridge,
        run: &run.name,
        seq,
        online,
        devices: registry.count(),
        at: clock::rfc3339(Moment::now().wall_ms),
        routes: process.cluster.is_on().then_some(&*settings.mq.route_exchange),
        epoch: process.cluster.is_on().then(|| registry.last_epoch()),
        expires_ms: process.expires_ms(),
    };
    // Strings, numbers and a bool: this cannot fail.
    serde_json::to_vec(&event).unwrap_or_default()
}

/// Those of a heartbeat: in a queue that nobody reads it would only pile up.
pub(super) fn properties(process: &Process) -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_expiration(process.expires_ms().to_string().into())
}
