//! `/undelivered`: the commands that were not delivered, as they lie in the broker.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::HttpState;
use super::commands::accepted_again;
use super::devices::limited;
use super::problem::Problem;
use crate::broker::{UNDELIVERED_LOOKED_MAX, UndeliveredLetter, UndeliveredTrouble};

/// Messages listed unless `limit` says otherwise.
const LISTED: usize = 100;
/// When it may be tried again if somebody else looks, or the broker is away.
const TRY_AGAIN: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
pub(super) struct Wanted {
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Listed {
    total: usize,
    messages: Vec<UndeliveredLetter>,
}

pub(super) async fn list(
    State(state): State<HttpState>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Listed>, Problem> {
    let limit = limited(wanted.limit, LISTED, UNDELIVERED_LOOKED_MAX)?;
    let listed = state.undelivered.list(limit).await.map_err(problem)?;
    Ok(Json(Listed { total: listed.total, messages: listed.letters }))
}

pub(super) async fn retry(
    State(state): State<HttpState>,
    Path(key): Path<String>,
) -> Result<Response, Problem> {
    let undelivered = Arc::clone(&state.undelivered);
    let id = to_the_end(async move { undelivered.retry(&key).await }).await?;
    Ok(accepted_again(&id))
}

pub(super) async fn delete(
    State(state): State<HttpState>,
    Path(key): Path<String>,
) -> Result<StatusCode, Problem> {
    let undelivered = Arc::clone(&state.undelivered);
    to_the_end(async move { undelivered.delete(&key).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Does it also if who has asked goes away: else it could be left half done.
async fn to_the_end<T: Send + 'static>(
    what: impl Future<Output = Result<T, UndeliveredTrouble>> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::spawn(what).await;
    done.unwrap_or_else(|error| Err(UndeliveredTrouble::Broker(error.to_string()))).map_err(problem)
}

fn problem(trouble: UndeliveredTrouble) -> Problem {
    let unavailable =
        |why: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, why).again_after(TRY_AGAIN);
    match trouble {
        UndeliveredTrouble::Busy => {
            unavailable("somebody else looks at what was not delivered; try again".to_owned())
        }
        UndeliveredTrouble::Broker(why) => unavailable(why),
        UndeliveredTrouble::Unsendable(reason) => Problem::new(StatusCode::CONFLICT, reason),
        UndeliveredTrouble::NotThere(looked) => Problem::not_found(format!(
            "there is no such message among the first {looked} of the queue, which were looked through"
        )),
    }
}
