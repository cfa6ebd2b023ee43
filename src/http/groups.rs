//! `/groups`: who is in which group; and lists members.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::HttpState;
use super::problem::Problem;
use crate::command::Address;
use crate::groups::Members;

pub(super) async fn all(State(state): State<HttpState>) -> Response {
    let all = state.devices.groups.all();
    let shown: BTreeMap<&str, Vec<String>> =
        all.iter().map(|(name, members)| (&**name, shown(members))).collect();
    Json(shown).into_response()
}

pub(super) async fn one(
    State(state): State<HttpState>,
    Path(group): Path<String>,
) -> Result<Json<Vec<String>>, Problem> {
    let members = state.devices.groups.members(&group);
    if members.is_empty() {
        return Err(Problem::not_found(format!("nobody is in the group {group}")));
    }
    Ok(Json(shown(&members)))
}

/// Lists a member of a group, which begins with it if it is not there.
pub(super) async fn add(
    State(state): State<HttpState>,
    Path((group, address)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    change(&state, &group, &address, |members, group, address| {
        members.entry(group).or_default().insert(address);
    })
}

/// Takes a listed member out of a group. One that has joined by itself stays.
pub(super) async fn remove(
    State(state): State<HttpState>,
    Path((group, address)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    change(&state, &group, &address, |members, group, address| {
        if let Some(listed) = members.get_mut(&group) {
            listed.remove(&address);
            if listed.is_empty() {
                members.remove(&group);
            }
        }
    })
}

fn change(
    state: &HttpState,
    group: &str,
    address: &str,
    how: impl FnOnce(&mut Members, Arc<str>, Address),
) -> Result<StatusCode, Problem> {
    let address = Address::parse(address).map_err(Problem::bad_request)?;
    let listed = state.devices.groups.listed();
    let changed = listed.change(|members| how(members, group.into(), address));
    changed.map_err(|reason| Problem::new(StatusCode::CONFLICT, reason))?;
    Ok(StatusCode::NO_CONTENT)
}

fn shown<'a>(members: impl IntoIterator<Item = &'a Address>) -> Vec<String> {
    members.into_iter().map(ToString::to_string).collect()
}
