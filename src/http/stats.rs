//! `/stats`: how the bridge is, and with `?history` how it was in the last hour.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::HttpState;

#[derive(Deserialize)]
pub(super) struct Wanted {
    history: Option<String>,
    /// Of the history only what came after this, in ms since 1970, for those who have the rest.
    after: Option<u64>,
}

pub(super) async fn stats(
    State(state): State<HttpState>,
    Query(wanted): Query<Wanted>,
) -> Response {
    if wanted.history.is_some() {
        return Json(state.stats.history(wanted.after.unwrap_or_default())).into_response();
    }
    let is_set = |flag: &std::sync::atomic::AtomicBool| flag.load(Ordering::Relaxed);
    let draining = is_set(&state.draining);
    let ready = is_set(&state.consuming) && state.is_routing() && !draining;
    Json(state.stats.now(ready, draining)).into_response()
}
