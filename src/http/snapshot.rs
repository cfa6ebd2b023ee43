//! `GET /devices?snapshot`: all devices of one moment, to begin a copy of the state with.
//!
//! It is made in memory, some devices at a time, so that commands go on meanwhile, and lets go of the sessions
//! before anything is sent: however slowly it is read, no connection that ends is held open by it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::timeout;

use super::HttpState;
use super::problem::Problem;
use crate::clock::{self, Moment};
use crate::device::Session;
use crate::last_values::{LastValues, Shown};

/// Devices written between two turns of the other tasks: some 100 µs.
const STEP: usize = 64;
/// Bytes handed to the connection at a time.
const PIECE: usize = 64 * 1024;
/// Snapshots in memory at a time: of 15,000 devices each has some 3 MB.
const SNAPSHOTS_MAX: usize = 8;
/// A reader that takes no piece for this long is cut off, to make room for others.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

static ROOM: Semaphore = Semaphore::const_new(SNAPSHOTS_MAX);

#[derive(Serialize)]
struct Device {
    address: String,
    epoch: u64,
    online: bool,
    silent: bool,
    since: String,
    last_seen: String,
    peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Shown>,
}

/// A device that is not connected, and whose last line is known.
#[derive(Serialize)]
struct Away {
    address: String,
    /// That of the connection the line came over.
    epoch: u64,
    online: bool,
    last: Shown,
}

/// All devices whose address begins with `prefix`.
pub(super) async fn take(state: &HttpState, prefix: &str) -> Result<Response, Problem> {
    let Ok(room) = ROOM.try_acquire() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("expected at most {SNAPSHOTS_MAX} snapshots at a time; try again"),
        ));
    };
    let at = Moment::now();
    let Some((seq, sessions)) = state.devices.registry.snapshot() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many changes wait for the broker, which is away; try again when it is back",
        ));
    };
    let bytes = write(state, prefix, seq, at, sessions).await;
    let length = bytes.len();
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, body(bytes, room)).into_response())
}

/// The whole of it as JSON.
async fn write(
    state: &HttpState,
    prefix: &str,
    seq: u64,
    at: Moment,
    sessions: Vec<Arc<Session>>,
) -> Vec<u8> {
    let mut json = Json { bytes: Vec::new(), first: true };
    json.open(state, seq, at);
    let last = state.devices.uplink.as_ref().map(|uplink| uplink.last());
    let mut online = HashSet::new();
    let mut left = sessions;
    while !left.is_empty() {
        for session in left.drain(left.len().saturating_sub(STEP)..) {
            let address = session.address().to_string();
            if address.starts_with(prefix) {
                let last = last.and_then(|last| last.get(session.address()));
                json.push(&Device::of(&session, address, last.map(|last| last.shown())));
            }
            online.insert(session.address().clone());
        }
        tokio::task::yield_now().await;
    }
    for values in last.map(LastValues::all).unwrap_or_default().chunks(STEP) {
        for value in values.iter().filter(|value| !online.contains(&value.address)) {
            let address = value.address.to_string();
            if address.starts_with(prefix) {
                let (epoch, last) = (value.epoch, value.shown());
                json.push(&Away { address, epoch, online: false, last });
            }
        }
        tokio::task::yield_now().await;
    }
    json.bytes.extend_from_slice(b"]}");
    json.bytes
}

/// The text, as far as it is written.
struct Json {
    bytes: Vec<u8>,
    first: bool,
}

impl Json {
    fn open(&mut self, state: &HttpState, seq: u64, at: Moment) {
        let head = serde_json::json!({
            "bridge": &*state.run.bridge,
            "run": &*state.run.name,
            "seq": seq,
            "at": clock::rfc3339(at.wall_ms),
            "expires_ms": state.expires_ms,
        });
        self.bytes = head.to_string().into_bytes();
        // The object goes on.
        self.bytes.pop();
        self.bytes.extend_from_slice(b",\"devices\":[");
    }

    fn push(&mut self, device: &impl Serialize) {
        if !std::mem::take(&mut self.first) {
            self.bytes.push(b',');
        }
        // Strings, numbers and bools into memory: this cannot fail.
        let written = serde_json::to_writer(&mut self.bytes, device);
        debug_assert!(written.is_ok());
    }
}

impl Device {
    fn of(session: &Session, address: String, last: Option<Shown>) -> Self {
        let now = session.snapshot();
        Self {
            address,
            epoch: session.epoch(),
            online: true,
            silent: now.silent,
            since: clock::rfc3339(now.since_ms),
            last_seen: clock::rfc3339(now.last_seen_ms),
            peer: session.peer().to_string(),
            last,
        }
    }
}

/// Hands `bytes` out for as long as they are taken. A reader that is cut off knows it by the length that was announced.
fn body(bytes: Vec<u8>, room: SemaphorePermit<'static>) -> Body {
    let (pieces, taken) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut bytes = Bytes::from(bytes);
        while !bytes.is_empty() {
            let piece = bytes.split_to(PIECE.min(bytes.len()));
            if !matches!(timeout(READ_TIMEOUT, pieces.send(piece)).await, Ok(Ok(()))) {
                break;
            }
        }
        drop(room);
    });
    let next = async |mut taken: mpsc::Receiver<Bytes>| Some((taken.recv().await?, taken));
    Body::from_stream(stream::unfold(taken, next).map(Ok::<_, std::convert::Infallible>))
}
