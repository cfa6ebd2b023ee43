//! `/commands`: a command is sent, and the last ones are told.

use std::num::NonZeroUsize;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::HttpState;
use super::devices::limited;
use super::explain::{self, CommandHistory};
use super::problem::Problem;
use crate::broker::{Gathered, REQUEST_BODY_MAX, Unpublished};

/// The longest a request may wait for receipts: longer than most proxies keep an idle one open.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long the body of a request may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// Commands listed unless `limit` says otherwise, and at most.
const LISTED: usize = 100;
const LISTED_MAX: usize = 1000;
/// When it may be tried again, where the broker or the room is a matter of moments.
const TRY_AGAIN: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
pub(super) struct Wait {
    wait: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Limit {
    limit: Option<usize>,
}

/// What is known of a command that is published.
#[derive(Serialize)]
struct Known<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts: Option<&'a [Box<RawValue>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'a RawValue>,
    /// Devices whose receipts are not among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<NonZeroUsize>,
    /// Why no more can come.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// The last commands of all devices.
pub(super) async fn last(
    State(state): State<HttpState>,
    Query(wanted): Query<Limit>,
) -> Result<Json<CommandHistory>, Problem> {
    let limit = limited(wanted.limit, LISTED, LISTED_MAX)?;
    Ok(Json(explain::commands(&state, |_| true, limit)))
}

/// Sends a command.
pub(super) async fn send(
    State(state): State<HttpState>,
    Query(wanted): Query<Wait>,
    request: Request,
) -> Result<Response, Problem> {
    let wait = wanted.wait.as_deref().map(duration).transpose()?;
    if state.draining.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(unavailable("the bridge is shutting down".to_owned()));
    }
    let room = state.requests.room().ok_or_else(|| {
        unavailable("as many commands as may be are on their way; try again".to_owned())
    })?;
    let body = read(request).await?;
    let published = state.requests.publish(body, wait, room).await.map_err(problem)?;
    let (id, gathered) = (&*published.id, &published.gathered);
    if wait.is_none() {
        return Ok(accepted_again(id));
    }
    if !gathered.is_done() {
        let detail = published.lost.as_deref();
        return Ok(accepted(id, &Known { id: Some(id), detail, ..Known::of(Some(gathered)) }));
    }
    Ok(match gathered.receipts.last() {
        Some(receipt) if gathered.is_for_one => Json(receipt).into_response(),
        _ => Json(Known::of(Some(gathered))).into_response(),
    })
}

impl<'a> Known<'a> {
    fn of(gathered: Option<&'a Gathered>) -> Self {
        Self {
            id: None,
            receipts: gathered.map(|gathered| &*gathered.receipts),
            summary: gathered.and_then(|gathered| gathered.summary.as_deref()),
            left_out: gathered.and_then(|gathered| NonZeroUsize::new(gathered.left_out)),
            detail: None,
        }
    }
}

/// A command that was not delivered is on its way again.
pub(super) fn accepted_again(id: &str) -> Response {
    accepted(id, &Known { id: Some(id), ..Known::of(None) })
}

/// The command is on its way; where more will be known of it.
fn accepted(id: &str, known: &Known<'_>) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(known)).into_response();
    let at = format!("/commands/{}", utf8_percent_encode(id, NON_ALPHANUMERIC));
    if let Ok(at) = HeaderValue::try_from(at) {
        response.headers_mut().insert(header::LOCATION, at);
    }
    response
}

fn duration(text: &str) -> Result<Duration, Problem> {
    let wait = humantime::parse_duration(text).ok();
    wait.filter(|wait| !wait.is_zero() && *wait <= WAIT_MAX).ok_or_else(|| {
        let max = humantime::format_duration(WAIT_MAX);
        Problem::bad_request(format!(
            "wait: expected a duration up to {max}, as in 10s, got {text}"
        ))
    })
}

/// The body, which the router bounds.
async fn read(request: Request) -> Result<Vec<u8>, Problem> {
    let late = |_| {
        let limit = humantime::format_duration(BODY_LIMIT);
        Problem::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {limit}"))
    };
    let read = tokio::time::timeout(BODY_LIMIT, Bytes::from_request(request, &())).await;
    let read = read.map_err(late)?.map_err(|error| {
        let reason = match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => format!("expected at most {REQUEST_BODY_MAX} bytes"),
            _ => error.body_text(),
        };
        Problem::new(error.status(), format!("body: {reason}"))
    })?;
    Ok(read.into())
}

fn unavailable(why: String) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, why).again_after(TRY_AGAIN)
}

fn problem(unpublished: Unpublished) -> Problem {
    match unpublished {
        Unpublished::Invalid(reason) => Problem::bad_request(reason),
        Unpublished::Away(why) => unavailable(why),
        Unpublished::Unknown { id, why } => {
            let why = format!("{why}; it may be on its way all the same");
            Problem::new(StatusCode::GATEWAY_TIMEOUT, why).of(id)
        }
    }
}
