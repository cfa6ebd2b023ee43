//! `Uplink`: lines from devices on their way to the broker.
//!
//! They wait in a `Backlog`; what finds no room there is counted. The last line of each device is kept, and whoever looks
//! on hears of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backlog::{self, Backlog, Told};
use crate::clock::{self, Moment};
use crate::command::Address;
use crate::last_values::{LastValue, LastValues};
use crate::live::{Kind, Live};
use crate::metrics::Metrics;
use crate::run::Run;

#[derive(Serialize)]
struct Event<'a> {
    address: String,
    epoch: u64,
    bridge: &'a str,
    run: &'a str,
    /// Names the line among those of this run. One that is left out was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
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
    /// None for one that is told again.
    number: Option<u64>,
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
    metrics: Metrics,
    numbers: AtomicU64,
    live: Arc<Live>,
    last: LastValues,
    backlog: Backlog,
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
        let backlog = Backlog::new("lines of devices", work, backlog::BYTES_MAX);
        Self { run, metrics, numbers: AtomicU64::new(1), live, last, backlog }
    }

    /// Takes up a line that a device sent. `late` marks an answer to a command that was given up.
    pub(crate) fn line(&self, address: &Address, epoch: u64, line: &[u8], late: bool) {
        let at = Moment::now();
        let number = Some(self.numbers.fetch_add(1, Ordering::Relaxed));
        let head = Head { address, epoch, number, at_ms: at.wall_ms, late, age_ms: None };
        self.live.tell(Kind::Line, address, || self.json(head, &self.live.mask().over(line)));
        self.last.keep(address, epoch, line, at);
        self.push("uplink", address.to_string(), self.json(head, line));
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
            number: None,
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
            self.push("last", address.to_string(), serde_json::to_vec(&event).unwrap_or_default());
        }
    }

    fn json(&self, head: Head<'_>, line: &[u8]) -> Vec<u8> {
        let (line, line_base64) = text_or_base64(line);
        let event = Event {
            address: head.address.to_string(),
            epoch: head.epoch,
            bridge: &self.run.bridge,
            run: &self.run.name,
            number: head.number,
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

    fn push(&self, kind: &'static str, address: String, json: Vec<u8>) {
        if !self.backlog.push((kind, address, json)) {
            self.metrics.uplink_dropped();
        }
    }

    /// The next event to publish.
    pub(crate) fn next(&self) -> Option<Told> {
        self.backlog.next()
    }

    /// Whether everything has been taken out.
    pub(crate) fn is_empty(&self) -> bool {
        self.backlog.is_empty()
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
        let backlog = Backlog::new("lines", Arc::new(Notify::new()), bytes_max);
        Uplink { backlog, ..uplink }
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
        let uplink = uplink(backlog::BYTES_MAX);
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
        let uplink = uplink(backlog::BYTES_MAX);
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
        assert_eq!((kind, address), ("last", device().to_string()));
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
