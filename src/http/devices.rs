//! `/devices`: the devices that are connected, page by page.

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use super::HttpState;
use super::problem::Problem;
use crate::clock;
use crate::command::Address;
use crate::device::Session;

/// Devices on a page unless `limit` says otherwise, and at most: a page is made in memory.
const PAGE: usize = 100;
const PAGE_MAX: usize = 10_000;

#[derive(Deserialize)]
pub(super) struct Wanted {
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Page {
    bridge: String,
    total: usize,
    devices: Vec<Device>,
    /// `after` for the next page, if there is one.
    next: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Device {
    address: String,
    epoch: u64,
    peer: String,
    since: String,
    last_seen: String,
    lane: usize,
    in_flight: usize,
    commands: u64,
    lines: u64,
}

pub(super) async fn page(
    State(state): State<HttpState>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Page>, Problem> {
    let limit = limited(wanted.limit, PAGE, PAGE_MAX)?;
    let after = wanted.after.as_deref().map(Address::parse).transpose();
    let after = after.map_err(|reason| Problem::bad_request(format!("after: {reason}")))?;
    // One more than asked for tells whether there is a next page.
    let (mut sessions, total) = state.devices.registry.page(after.as_ref(), limit + 1);
    let more = sessions.len() > limit;
    sessions.truncate(limit);
    let next = sessions.last().filter(|_| more).map(|session| session.address().to_string());
    let devices = sessions.iter().map(|session| Device::of(session)).collect();
    Ok(Json(Page { bridge: state.bridge.to_string(), total, devices, next }))
}

/// The `limit` of a query.
pub(super) fn limited(limit: Option<usize>, default: usize, max: usize) -> Result<usize, Problem> {
    let limit = limit.unwrap_or(default);
    if (1..=max).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::bad_request(format!("limit: expected 1 to {max}, got {limit}")))
}

impl Device {
    pub(super) fn of(session: &Session) -> Self {
        let now = session.snapshot();
        Self {
            address: session.address().to_string(),
            epoch: session.epoch(),
            peer: session.peer().to_string(),
            since: clock::rfc3339(now.since_ms),
            last_seen: clock::rfc3339(now.last_seen_ms),
            lane: now.lane,
            in_flight: now.in_flight,
            commands: now.commands,
            lines: now.lines,
        }
    }
}
