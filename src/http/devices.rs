//! `/devices`: the devices that are connected, page by page.

use std::sync::Arc;

use axum::Json;
use axum::extract::{self, Query};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{HttpState, snapshot};
use crate::clock;
use crate::command::Address;
use crate::device::Session;

/// Devices on a page unless `limit` says otherwise, and at most: a page is made in memory.
const PAGE: usize = 100;
const PAGE_MAX: usize = 10_000;

/// Devices looked at in one go, while those that come and go wait: some 20 µs.
const LOOK: usize = 256;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    limit: Option<usize>,
    after: Option<String>,
    prefix: Option<String>,
    search: Option<String>,
    state: Option<State>,
    /// All of them, as they were at one moment.
    snapshot: Option<String>,
}

/// How a device that is connected can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Not silent.
    Online,
    /// It has sent nothing for `DEVICE_SILENCE_LIMIT`.
    Silent,
    /// Commands wait for it.
    Waiting,
}

/// Which devices are wanted.
struct Filter {
    prefix: Option<String>,
    /// In lower case.
    search: Option<String>,
    state: Option<State>,
}

impl Filter {
    fn of(wanted: &Wanted) -> Self {
        let search = wanted.search.as_deref().map(str::to_ascii_lowercase);
        Self { prefix: wanted.prefix.clone(), search, state: wanted.state }
    }

    fn wants(&self, session: &Session) -> bool {
        let is_so = match self.state {
            None => true,
            Some(State::Online) => !session.is_silent(),
            Some(State::Silent) => session.is_silent(),
            Some(State::Waiting) => session.snapshot().lane > 0,
        };
        is_so && self.names(session.address())
    }

    fn names(&self, address: &Address) -> bool {
        if self.prefix.is_none() && self.search.is_none() {
            return true;
        }
        let name = address.to_string();
        self.prefix.as_deref().is_none_or(|prefix| name.starts_with(prefix))
            && self.search.as_deref().is_none_or(|part| name.to_ascii_lowercase().contains(part))
    }
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
    silent: bool,
    lane: usize,
    in_flight: usize,
    commands: u64,
    lines: u64,
}

pub(super) async fn page(
    extract::State(state): extract::State<HttpState>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    if wanted.snapshot.is_some() {
        return snapshot::take(&state, wanted.prefix.as_deref().unwrap_or_default()).await;
    }
    let limit = limited(wanted.limit, PAGE, PAGE_MAX)?;
    let after = wanted.after.as_deref().map(Address::parse).transpose();
    let after = after.map_err(|reason| Problem::bad_request(format!("after: {reason}")))?;
    // One more than asked for tells whether there is a next page.
    let (mut sessions, total) = found(&state, after, &Filter::of(&wanted), limit + 1).await;
    let more = sessions.len() > limit;
    sessions.truncate(limit);
    let next = sessions.last().filter(|_| more).map(|session| session.address().to_string());
    let devices = sessions.iter().map(|session| Device::of(session)).collect();
    Ok(Json(Page { bridge: state.run.bridge.to_string(), total, devices, next }).into_response())
}

/// The first `count` devices behind `after` that are wanted; and how many are connected in all. Those who
/// come or go meanwhile are there or not.
async fn found(
    state: &HttpState,
    mut after: Option<Address>,
    filter: &Filter,
    count: usize,
) -> (Vec<Arc<Session>>, usize) {
    let mut found = Vec::new();
    loop {
        let (next, total) = state.devices.registry.behind(after.as_ref(), LOOK);
        let is_last = next.len() < LOOK;
        after = next.last().map(|session| session.address().clone());
        let wanted = next.into_iter().filter(|session| filter.wants(session));
        found.extend(wanted.take(count - found.len()));
        if is_last || found.len() == count {
            return (found, total);
        }
        // The others have their turn.
        tokio::task::yield_now().await;
    }
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
            silent: now.silent,
            lane: now.lane,
            in_flight: now.in_flight,
            commands: now.commands,
            lines: now.lines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_by_its_beginning_and_by_a_part_of_it() {
        let filter = |prefix: Option<&str>, search: Option<&str>| {
            let (prefix, search) = (prefix.map(str::to_owned), search.map(str::to_owned));
            Filter::of(&Wanted { prefix, search, ..Wanted::default() })
        };
        let names = |filter: &Filter, name: &str| filter.names(&Address::parse(name).expect("one"));
        let pumps = filter(Some("pump-"), None);
        assert!(names(&pumps, "pump-7") && !names(&pumps, "a-pump-7") && !names(&pumps, "Pump-7"));
        let net = filter(Some("10.2."), None);
        assert!(names(&net, "10.2.0.7") && !names(&net, "10.20.0.7"));
        let part = filter(None, Some("UMP"));
        assert!(names(&part, "pump-7") && names(&part, "PUMP") && !names(&part, "valve"));
        let both = filter(Some("p"), Some("7"));
        assert!(names(&both, "pump-7") && !names(&both, "pump-8") && !names(&both, "valve-7"));
    }
}
