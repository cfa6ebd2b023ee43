//! `/groups`: who is in which group; and lists members. Changes are taken from this machine only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::{HttpState, bad_request};
use crate::command::Address;
use crate::groups::Members;

pub(super) async fn all(State(state): State<HttpState>) -> Response {
    let all = state.devices.groups.all();
    let shown: BTreeMap<&str, Vec<String>> =
        all.iter().map(|(name, members)| (&**name, shown(members))).collect();
    Json(shown).into_response()
}

pub(super) async fn one(State(state): State<HttpState>, Path(group): Path<String>) -> Response {
    let members = state.devices.groups.members(&group);
    if members.is_empty() {
        return (StatusCode::NOT_FOUND, format!("nobody is in the group {group}\n"))
            .into_response();
    }
    Json(shown(&members)).into_response()
}

/// Lists a member of a group, which begins with it if it is not there.
pub(super) async fn add(
    State(state): State<HttpState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path((group, address)): Path<(String, String)>,
) -> Response {
    change(&state, peer, &group, &address, |members, group, address| {
        members.entry(group).or_default().insert(address);
    })
}

/// Takes a listed member out of a group. One that has joined by itself stays.
pub(super) async fn remove(
    State(state): State<HttpState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path((group, address)): Path<(String, String)>,
) -> Response {
    change(&state, peer, &group, &address, |members, group, address| {
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
    peer: SocketAddr,
    group: &str,
    address: &str,
    how: impl FnOnce(&mut Members, Arc<str>, Address),
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let reason = "groups are changed from the bridge's own machine only\n";
        return (StatusCode::FORBIDDEN, reason).into_response();
    }
    let address = match Address::parse(address) {
        Ok(address) => address,
        Err(reason) => return bad_request(format!("{reason}\n")),
    };
    match state.devices.groups.listed().change(|members| how(members, group.into(), address)) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(reason) => (StatusCode::CONFLICT, format!("{reason}\n")).into_response(),
    }
}

fn shown<'a>(members: impl IntoIterator<Item = &'a Address>) -> Vec<String> {
    members.into_iter().map(ToString::to_string).collect()
}
