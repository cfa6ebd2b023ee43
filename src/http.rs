//! The HTTP side: is it alive, is it ready, its metrics, the devices it holds, and what happened lately.
//!
//! It reads what others own; only `/groups` changes something, and at `/message` clients become devices.
//! By default it listens on loopback only.

mod events;
mod explain;
mod groups;
mod message;
mod snapshot;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
pub(crate) use explain::{CommandHistory, DeviceHistory, Timeline};
pub(crate) use message::Topics;
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::clock;
use crate::command::Address;
use crate::device::{self, Session};
use crate::live::Live;
use crate::run::Run;
use crate::trail::Trail;

/// Devices on a page unless `limit` says otherwise, and at most: a page is made in memory.
const PAGE: usize = 100;
const PAGE_MAX: usize = 10_000;

/// What the handlers read.
#[derive(Debug, Clone)]
pub(crate) struct HttpState {
    pub(crate) devices: Arc<device::Devices>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) live: Arc<Live>,
    pub(crate) bridge: Arc<str>,
    pub(crate) run: Run,
    /// How long what is told of the devices counts without another word from the bridge.
    pub(crate) expires_ms: u64,
    pub(crate) consuming: Arc<AtomicBool>,
    pub(crate) draining: Arc<AtomicBool>,
}

/// Serves until it is aborted.
pub(crate) async fn serve(listener: tokio::net::TcpListener, state: HttpState, topics: Topics) {
    let app = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/devices", get(devices))
        .route("/devices/{address}", get(explain::device))
        .route("/events", get(events::follow))
        .route("/commands/{id}", get(explain::command))
        .route("/groups", get(groups::all))
        .route("/groups/{group}", get(groups::one))
        .route("/groups/{group}/members/{address}", put(groups::add).delete(groups::remove))
        .with_state(state)
        .merge(message::router(topics));
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    if let Err(error) = axum::serve(listener, app).await {
        error!(%error, "HTTP has ended.");
    }
}

async fn readyz(State(state): State<HttpState>) -> (StatusCode, &'static str) {
    if state.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if state.consuming.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not consuming: no connection to the broker\n")
    }
}

async fn metrics(State(state): State<HttpState>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], state.devices.metrics.encode())
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
    after: Option<String>,
    prefix: Option<String>,
    /// All of them, as they were at one moment.
    snapshot: Option<String>,
}

#[derive(Serialize)]
struct Devices {
    bridge: String,
    total: usize,
    devices: Vec<Device>,
    /// `after` for the next page, if there is one.
    next: Option<String>,
}

#[derive(Serialize)]
struct Device {
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

async fn devices(State(state): State<HttpState>, Query(page): Query<Page>) -> Response {
    if page.snapshot.is_some() {
        return snapshot::take(&state, page.prefix.as_deref().unwrap_or_default()).await;
    }
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return bad_request(format!("limit: expected 1 to {PAGE_MAX}, got {limit}\n"));
    }
    let after = match page.after.as_deref().map(Address::parse).transpose() {
        Ok(after) => after,
        Err(reason) => return bad_request(format!("after: {reason}\n")),
    };
    // One more than asked for tells whether there is a next page.
    let (mut sessions, total) = state.devices.registry.page(after.as_ref(), limit + 1);
    let more = sessions.len() > limit;
    sessions.truncate(limit);
    let next = sessions.last().filter(|_| more).map(|session| session.address().to_string());
    let devices = sessions.iter().map(|session| Device::of(session)).collect();
    Json(Devices { bridge: state.bridge.to_string(), total, devices, next }).into_response()
}

fn bad_request(text: String) -> Response {
    (StatusCode::BAD_REQUEST, text).into_response()
}

impl Device {
    fn of(session: &Session) -> Self {
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
