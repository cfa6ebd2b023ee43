//! `/session`: what the caller may do.

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;

use super::HttpState;
use super::access::Role;

#[derive(Serialize)]
pub(super) struct Session {
    role: Role,
    /// Whether it had to show a token.
    needs_token: bool,
}

pub(super) async fn session(
    State(state): State<HttpState>,
    Extension(role): Extension<Role>,
) -> Json<Session> {
    Json(Session { role, needs_token: state.needs_token })
}
