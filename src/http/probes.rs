//! What probes and scrapers ask: is it alive, is it ready, its metrics. Plain text.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::HttpState;
use super::route::Route;

/// Its routes, which are open.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::open("/livez").get(async || "alive\n"),
        Route::open("/readyz").get(readyz),
        Route::open("/metrics").get(metrics),
    ]
}

async fn readyz(State(state): State<HttpState>) -> (StatusCode, &'static str) {
    if state.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if !state.is_routing() {
        (StatusCode::SERVICE_UNAVAILABLE, "not routing: other bridges do not find its devices\n")
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
