//! The HTTP side: is it alive, is it ready, its metrics, the devices it holds, what happened lately; and
//! what people and programs may do.
//!
//! All routes are in one list. Around them lie two layers: one that gives every answer its headers and
//! makes a problem of every error, and within it the one that decides who may ask (`access`). By default
//! it listens on loopback only. At `/message` clients become devices.

mod access;
mod commands;
mod connections;
mod console;
mod devices;
mod events;
mod explain;
mod groups;
mod message;
mod openapi;
mod probes;
mod problem;
mod route;
mod session;
mod snapshot;
mod stats;
mod undelivered;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::net::TcpListener;

pub(crate) use access::{Access, first_token};
pub(crate) use explain::{CommandHistory, DeviceHistory, Timeline};
pub(crate) use message::Topics;
use route::Route;

use crate::broker::{REQUEST_BODY_MAX, Requests, Undelivered};
use crate::device;
use crate::live::Live;
use crate::run::Run;
use crate::stats::Stats;
use crate::trail::Trail;

/// What the handlers read.
#[derive(Debug, Clone)]
pub(crate) struct HttpState {
    pub(crate) devices: Arc<device::Devices>,
    pub(crate) trail: Arc<Trail>,
    pub(crate) live: Arc<Live>,
    /// Who publishes commands that come here.
    pub(crate) requests: Arc<Requests>,
    pub(crate) undelivered: Arc<Undelivered>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) run: Run,
    /// How long what is told of the devices counts without another word from the bridge.
    pub(crate) expires_ms: u64,
    pub(crate) consuming: Arc<AtomicBool>,
    pub(crate) draining: Arc<AtomicBool>,
    /// Whether callers have to say who they are; the listener knows.
    pub(crate) needs_token: bool,
}

impl HttpState {
    /// Whether the other bridges, if this is one of several, find its devices.
    fn is_routing(&self) -> bool {
        let cluster = self.devices.cluster.as_ref();
        cluster.is_none_or(|cluster| cluster.routing.load(Ordering::Relaxed))
    }
}

/// Everything but probes, the console's files, and `/message`, which has a state of its own.
fn routes() -> Vec<Route> {
    vec![
        Route::open("/openapi.json").get(openapi::openapi),
        Route::closed("/session").get(session::session),
        Route::closed("/stats").get(stats::stats),
        Route::closed("/devices").get(devices::page),
        Route::closed("/devices/{address}").get(explain::device),
        Route::closed("/events").get(events::follow),
        Route::closed("/commands").get(commands::last).post(commands::send),
        Route::closed("/commands/{id}").get(explain::command),
        Route::closed("/undelivered").get(undelivered::list),
        Route::closed("/undelivered/{key}").delete(undelivered::delete),
        Route::closed("/undelivered/{key}/retry").post(undelivered::retry),
        Route::closed("/groups").get(groups::all),
        Route::closed("/groups/{group}").get(groups::one),
        Route::closed("/groups/{group}/members/{address}").put(groups::add).delete(groups::remove),
    ]
}

/// Serves until it is aborted; probes and metrics, too, unless they have a listener of their own.
pub(crate) async fn serve(
    listener: TcpListener,
    access: Access,
    state: HttpState,
    topics: Topics,
    with_probes: bool,
) {
    let mut routes = routes();
    routes.extend(console::routes());
    if with_probes {
        routes.extend(probes::routes());
    }
    let open = routes.iter().filter(|route| route.is_open).map(|route| route.path);
    let access = access.with_open(open.chain([message::PATH]));
    let state = HttpState { needs_token: access.needs_token(), ..state };
    let app = router(routes, state).merge(message::router(topics));
    answer(listener, app.layer(from_fn_with_state(Arc::new(access), access::guard))).await;
}

/// Serves nothing but probes and metrics until it is aborted.
pub(crate) async fn serve_probes(listener: TcpListener, state: HttpState) {
    answer(listener, router(probes::routes(), state)).await;
}

fn router(routes: Vec<Route>, state: HttpState) -> Router {
    let add = |router: Router<HttpState>, route: Route| router.route(route.path, route.handlers);
    let router = routes.into_iter().fold(Router::new(), add);
    router.layer(DefaultBodyLimit::max(REQUEST_BODY_MAX)).with_state(state)
}

async fn answer(listener: TcpListener, app: Router) {
    connections::serve(listener, app.layer(from_fn(problem::dress))).await;
}
