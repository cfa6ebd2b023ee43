//! `Uplink`: lines from devices on their way to the broker.
//!
//! A bounded queue between the sessions, which never wait, and the publisher. When the broker is
//! away or slow for too long the newest lines are dropped, counted, and said once in the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::clock::{self, Moment};
use crate::command::Address;
use crate::last_values::{LastValue, LastValues};
use crate::live::{Kind, Live};
use crate::metrics::Metrics;
use crate::run::Run;

/// What the queue may hold, in bytes of JSON: some 200,000 short lines, or ten seconds of 1,000
/// devices that send 1,600 bytes each second.
const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Serialize)]
struct Event<'a> {
    address: String,
    epoch: u64,
    bridge: &'a str,
    run: &'a str,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line_base64: Option<String>,
    /// Whether it answers a command that was given up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    /// Whether it came before its reader did; then also how long ago.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    last: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
}

/// What there is to say of a line, but for the line.
#[derive(Clone, Copy)]
struct Head<'a> {
    address: &'a Address,
    epoch: u64,
    at_ms: u64,
    late: bool,
    age_ms: Option<u64>,
}

#[derive(Serialize)]
struct Expired<'a> {
    address: String,
    bridge: &'a str,
    run: &'a str,
    at: String,
    expired: bool,
}

/// Lines from devices, waiting to be published.
#[derive(Debug)]
pub struct Uplink {
    run: Run,
    work: Arc<Notify>,
    metrics: Metrics,
    live: Arc<Live>,
    last: LastValues,
    bytes_max: usize,
    /// Held for one push or pop, never across an await.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Kind, address and JSON of each.
    events: VecDeque<(&'static str, Address, Vec<u8>)>,
    bytes: usize,
    full: bool,
}

impl Uplink {
    /// An empty queue; `work` is told when there is something to publish.
    pub(crate) fn new(
        run: Run,
        work: Arc<Notify>,
        metrics: Metrics,
        live: Arc<Live>,
        last: LastValues,
    ) -> Self {
        Self { run, work, metrics, live, last, bytes_max: QUEUE_BYTES_MAX, queue: Mutex::default() }
    }

    /// Takes up a line that a device sent. `late` marks an answer to a command that was given up.
    pub(crate) fn line(&self, address: &Address, epoch: u64, line: &[u8], late: bool) {
        let at = Moment::now();
        let head = Head { address, epoch, at_ms: at.wall_ms, late, age_ms: None };
        self.live.tell(Kind::Line, address, || self.json(head, &self.live.mask().over(line)));
        self.last.keep(address, epoch, line, at);
        self.push("uplink", address.clone(), self.json(head, line));
    }

    /// What is kept of each device.
    pub(crate) fn last(&self) -> &LastValues {
        &self.last
    }

    /// A last value, for one who begins to look on.
    pub(crate) fn last_event(&self, value: &LastValue) -> Vec<u8> {
        let head = Head {
            address: &value.address,
            epoch: value.epoch,
            at_ms: value.at.wall_ms,
            late: false,
            age_ms: Some(value.age_ms()),
        };
        self.json(head, &self.live.mask().over(&value.line))
    }

    /// Removes the last values whose time has come, and says so.
    pub(crate) fn expire(&self, now: Instant) {
        for address in self.last.expire(now) {
            let event = Expired {
                address: address.to_string(),
                bridge: &self.run.bridge,
                run: &self.run.name,
                at: clock::rfc3339(Moment::now().wall_ms),
                expired: true,
            };
            // Strings and a bool: this cannot fail.
            self.push("last", address, serde_json::to_vec(&event).unwrap_or_default());
        }
    }

    fn json(&self, head: Head<'_>, line: &[u8]) -> Vec<u8> {
        let (line, line_base64) = text_or_base64(line);
        let event = Event {
            address: head.address.to_string(),
            epoch: head.epoch,
            bridge: &self.run.bridge,
            run: &self.run.name,
            at: clock::rfc3339(head.at_ms),
            line,
            line_base64,
            late: head.late,
            last: head.age_ms.is_some(),
            age_ms: head.age_ms,
        };
        // Strings and numbers: this cannot fail.
        serde_json::to_vec(&event).unwrap_or_default()
    }

    fn push(&self, kind: &'static str, address: Address, json: Vec<u8>) {
        let mut queue = self.lock();
        if queue.bytes + json.len() > self.bytes_max {
            self.metrics.uplink_dropped();
            if !std::mem::replace(&mut queue.full, true) {
                warn!(
                    bytes = queue.bytes,
                    "uplink queue is full: lines from devices are dropped until the broker takes more."
                );
            }
            return;
        }
        queue.bytes += json.len();
        queue.events.push_back((kind, address, json));
        drop(queue);
        self.work.notify_one();
    }

    /// The next event to publish: its kind, the address it is about and its JSON.
    pub(crate) fn next(&self) -> Option<(&'static str, Address, Vec<u8>)> {
        let mut queue = self.lock();
        let event = queue.events.pop_front()?;
        queue.bytes -= event.2.len();
        // Said again only after the queue has had real room.
        queue.full &= queue.bytes > self.bytes_max / 2;
        Some(event)
    }

    /// Whether everything has been taken out.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().events.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line as JSON can carry it: as text, or else as base64.
pub(crate) fn text_or_base64(line: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(line) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(base64::engine::general_purpose::STANDARD.encode(line))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn uplink(bytes_max: usize) -> Uplink {
        let uplink = Uplink::new(
            Run::of_a_test(),
            Arc::new(Notify::new()),
            Metrics::new(),
            Live::of_a_test(),
            LastValues::new(1000, Some(Duration::from_secs(9))),
        );
        Uplink { bytes_max, ..uplink }
    }

    fn device() -> Address {
        Address::parse("10.0.0.7").expect("an address")
    }

    fn next_json(uplink: &Uplink) -> serde_json::Value {
        let (_, _, json) = uplink.next().expect("an event");
        serde_json::from_slice(&json).expect("JSON")
    }

    #[test]
    fn a_line_that_is_not_text_goes_out_as_base64() {
        let uplink = uplink(QUEUE_BYTES_MAX);
        uplink.line(&device(), 5, b"temp=21", false);
        uplink.line(&device(), 5, b"\xff\x00", false);
        let event = next_json(&uplink);
        assert_eq!((&event["line"], &event["epoch"]), (&"temp=21".into(), &5.into()));
        assert!(event.get("line_base64").is_none());
        let event = next_json(&uplink);
        assert_eq!(event["line_base64"], "/wA=");
        assert!(event.get("line").is_none() && uplink.is_empty());
    }

    #[test]
    fn a_last_value_is_told_as_such_and_so_is_its_end() {
        let uplink = uplink(QUEUE_BYTES_MAX);
        uplink.line(&device(), 5, b"temp=21 pwd=x", false);
        assert_eq!(next_json(&uplink)["line"], "temp=21 pwd=x");
        let value = uplink.last().get(&device()).expect("it is kept");
        let told: serde_json::Value =
            serde_json::from_slice(&uplink.last_event(&value)).expect("JSON");
        assert_eq!((&told["line"], &told["last"]), (&"temp=21 pwd=***".into(), &true.into()));
        assert!(told["age_ms"].is_u64() && told["epoch"] == 5, "{told}");
        uplink.expire(Instant::now());
        assert!(uplink.is_empty());
        uplink.expire(Instant::now() + Duration::from_secs(10));
        let (kind, address, _) = uplink.next().expect("its end");
        assert_eq!((kind, address), ("last", device()));
        assert!(uplink.last().get(&device()).is_none());
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_counts_it() {
        let uplink = uplink(300);
        for _ in 0..10 {
            uplink.line(&device(), 5, b"x", false);
        }
        let dropped = |text: String| {
            let line =
                text.lines().find(|line| line.starts_with("rabbitline_uplink_dropped_total "));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
                .expect("the counter")
        };
        let kept = std::iter::from_fn(|| uplink.next()).count();
        assert!(kept > 0);
        assert_eq!(kept + dropped(uplink.metrics.encode()), 10);
    }
}
