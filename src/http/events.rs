//! `GET /events`: what happens, as server-sent events, for as long as the reader keeps up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;
use tokio::time::timeout;

use super::HttpState;
use super::problem::Problem;
use crate::last_values::LastValue;
use crate::live::{Heard, Kind, Kinds, Reader};
use crate::uplink::Uplink;

/// A word now and then, so that nobody on the way takes the connection for dead.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Bytes handed to the connection at a time, or one event more.
const PIECE: usize = 64 * 1024;

#[derive(Deserialize)]
pub(super) struct Wanted {
    /// Which kinds, with commas between; all if it does not say.
    kind: Option<String>,
    /// Of devices whose address begins so.
    prefix: Option<String>,
}

/// Follows what happens from now on.
pub(super) async fn follow(
    State(state): State<HttpState>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let kinds = wanted.kind.as_deref().map_or_else(|| Ok(Kinds::all()), Kinds::parse);
    let kinds = kinds.map_err(Problem::bad_request)?;
    let prefix = wanted.prefix.unwrap_or_default();
    let Some(reader) = state.live.subscribe(kinds, &prefix) else {
        let reason = "as many look on as may; try again when one has gone";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason));
    };
    // What comes meanwhile waits in the reader's box.
    let uplink = state.devices.uplink.clone().filter(|_| kinds.has(Kind::Line));
    let last = uplink.iter().flat_map(|uplink| uplink.last().all());
    let last = last.filter(|value| value.address.to_string().starts_with(&prefix)).collect();
    let follower = Follower { uplink, last, ..Follower::new(reader, COMMENT_EVERY) };
    let pieces = stream::unfold(follower, Follower::next);
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let body = Body::from_stream(pieces.map(Ok::<_, std::convert::Infallible>));
    Ok((headers, body).into_response())
}

/// One reader's stream.
struct Follower {
    reader: Reader,
    uplink: Option<Arc<Uplink>>,
    /// The last values that it is told first. What is not sent yet is kept for it, though newer ones have come.
    last: VecDeque<Arc<LastValue>>,
    comment_every: Duration,
    begun: bool,
    ended: bool,
}

impl Follower {
    fn new(reader: Reader, comment_every: Duration) -> Self {
        let last = VecDeque::new();
        Self { reader, uplink: None, last, comment_every, begun: false, ended: false }
    }

    /// What is sent next.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        if self.ended {
            return None;
        }
        // At once, so that the reader knows that it misses nothing from now on.
        if !std::mem::replace(&mut self.begun, true) {
            return Some((Bytes::from_static(b": following\n\n"), self));
        }
        let mut piece = Vec::new();
        while piece.len() < PIECE
            && let Some(uplink) = &self.uplink
            && let Some(value) = self.last.pop_front()
        {
            write(Kind::Line.word(), &uplink.last_event(&value), &mut piece);
        }
        if !piece.is_empty() {
            return Some((piece.into(), self));
        }
        let Ok(heard) = timeout(self.comment_every, self.reader.next()).await else {
            return Some((Bytes::from_static(b":\n\n"), self));
        };
        self.write(heard?, &mut piece);
        while piece.len() < PIECE
            && !self.ended
            && let Some(heard) = self.reader.try_next()
        {
            self.write(heard, &mut piece);
        }
        Some((piece.into(), self))
    }

    fn write(&mut self, heard: Heard, piece: &mut Vec<u8>) {
        match heard {
            Heard::Event(event) => write(event.kind.word(), &event.json, piece),
            Heard::Missed(count) => {
                write("missed", format!("{{\"missed\":{count}}}").as_bytes(), piece);
                self.ended = true;
            }
        }
    }
}

/// One event; JSON is one line.
fn write(kind: &str, json: &[u8], piece: &mut Vec<u8>) {
    for part in [b"event: ", kind.as_bytes(), b"\ndata: ", json, b"\n\n"] {
        piece.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Live;

    async fn next(follower: Follower) -> (String, Follower) {
        let (piece, follower) = follower.next().await.expect("a piece");
        (String::from_utf8(piece.to_vec()).expect("text"), follower)
    }

    #[tokio::test]
    async fn what_happens_is_sent_together_and_silence_is_broken() {
        let live = Live::of_a_test();
        let reader = live.subscribe(Kinds::all(), "").expect("room");
        let follower = Follower::new(reader, Duration::from_millis(1));
        let (piece, follower) = next(follower).await;
        assert_eq!(piece, ": following\n\n");
        live.tell(Kind::Line, "a", || b"{\"n\":1}".to_vec());
        live.tell(Kind::Presence, "a", || b"{}".to_vec());
        let (piece, follower) = next(follower).await;
        assert_eq!(piece, "event: line\ndata: {\"n\":1}\n\nevent: presence\ndata: {}\n\n");
        let (piece, _) = next(follower).await;
        assert_eq!(piece, ":\n\n");
    }

    #[tokio::test]
    async fn a_stream_ends_with_what_was_missed() {
        let live = Live::of_a_test();
        let reader = live.subscribe(Kinds::all(), "").expect("room");
        let mut follower = Follower::new(reader, COMMENT_EVERY);
        for _ in 0..20_000 {
            live.tell(Kind::Line, "a", || b"{}".to_vec());
        }
        let mut text = String::new();
        while let Some((piece, rest)) = follower.next().await {
            text.push_str(&String::from_utf8_lossy(&piece));
            follower = rest;
        }
        let kept = text.matches("event: line\n").count();
        let end = format!("event: missed\ndata: {{\"missed\":{}}}\n\n", 20_000 - kept);
        assert!(kept > 0 && text.ends_with(&end), "{kept}");
    }
}
