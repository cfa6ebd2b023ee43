//! Every metric: its name, help text and labels, and the one place that counts.
//!
//! To add one: a field, its registration in `new`, a method that says what happened, and the line in
//! README.md's table. No metric has a label whose values devices or senders could make up.

mod latency;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use latency::{Counts, Latency};

use crate::command::Outcome;
use crate::device::{EndReason, Refusal};

/// Which side of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The one that consumes commands and acknowledges them.
    Consumer,
    /// The one that publishes receipts, events and undelivered commands.
    Publisher,
}

impl Link {
    /// The word for it, in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Publisher => "publisher",
        }
    }
}

type Labels = [(&'static str, &'static str); 1];

/// The bridge's metrics. A clone is a handle to the same ones.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    commands: Commands,
    devices: Devices,
    broker: Broker,
    cluster: Cluster,
}

/// What goes on between this bridge and the others.
#[derive(Debug)]
struct Cluster {
    passed_on: Counter,
    returned: Counter,
    loops: Counter,
    binding: Gauge,
    handed_over: Counter,
    taken_over: Counter,
    bridges: Gauge,
    moving: Gauge,
    elsewhere: Gauge,
}

/// What becomes of commands.
#[derive(Debug)]
struct Commands {
    by_outcome: [Counter; Outcome::ALL.len()],
    from_publish: Histogram,
    from_arrival: Histogram,
    /// The same, fine enough for quantiles of a few seconds.
    latency: Latency,
    unsettled: Gauge,
    parked: Gauge,
    undelivered: Counter,
    outcome_events_dropped: Counter,
    forgotten: Counter,
}

/// What devices do.
#[derive(Debug)]
struct Devices {
    connected: Gauge,
    connections: Counter,
    ended: [Counter; EndReason::ALL.len()],
    accept_errors: Counter,
    refused: [Counter; Refusal::ALL.len()],
    in_lanes: Gauge,
    uplink_lines: Counter,
    uplink_dropped: Counter,
    messages_dropped: Counter,
}

/// How the broker is.
#[derive(Debug)]
struct Broker {
    up: [Gauge; 2],
    blocked: Gauge,
}

/// What was counted up to a moment.
#[derive(Debug)]
pub(crate) struct Reading {
    /// In the order of `Outcome::ALL`.
    pub(crate) outcomes: [u64; Outcome::ALL.len()],
    pub(crate) latency: Counts,
    pub(crate) devices: i64,
    pub(crate) lanes: i64,
    pub(crate) unsettled: i64,
    pub(crate) parked: i64,
    pub(crate) undelivered: u64,
    pub(crate) consumer: bool,
    pub(crate) publisher: bool,
    pub(crate) blocked: bool,
}

impl Commands {
    #[rustfmt::skip] // a table
    fn new(r: &mut Registry) -> Self {
        Self {
            by_outcome: counters(r, "commands", "Commands by outcome.", "outcome", Outcome::ALL.map(Outcome::label)),
            from_publish: seconds(r, "delivery_seconds_from_publish", "From publication to the proof that was asked for (the write, the acknowledgement, the answer), for delivered commands whose message has a timestamp (whole seconds unless it has a timestamp_in_ms header)."),
            from_arrival: seconds(r, "delivery_seconds_from_arrival", "From arrival at the bridge to that proof, for delivered commands."),
            latency: Latency::new(),
            unsettled: gauge(r, "unsettled", "Deliveries in hand whose fate is not settled."),
            parked: gauge(r, "parked_commands", "Commands parked in the broker by this process, and those found there, as far as it knows; looked at once a second."),
            undelivered: counter(r, "undelivered", "Commands published to the undelivered exchange and confirmed there."),
            outcome_events_dropped: counter(r, "outcome_events_dropped", "Outcome events dropped because the broker was away or slow for too long."),
            forgotten: counter(r, "settlements_forgotten", "Deliveries dropped unsettled, which is a bug; they are delivered again."),
        }
    }
}

impl Devices {
    #[rustfmt::skip] // a table
    fn new(r: &mut Registry) -> Self {
        Self {
            connected: gauge(r, "devices_connected", "Devices connected now."),
            connections: counter(r, "connections", "Device connections taken up."),
            ended: counters(r, "connections_ended", "Device connections that ended, by reason.", "reason", EndReason::ALL.map(EndReason::label)),
            accept_errors: counter(r, "accept_errors", "Failures to accept a connection, for lack of file descriptors above all."),
            refused: counters(r, "connections_refused", "Connections that did not become a device, by reason.", "reason", Refusal::ALL.map(Refusal::label)),
            in_lanes: gauge(r, "lane_commands", "Commands that wait in lanes for devices that do not read."),
            uplink_lines: counter(r, "uplink_lines", "Lines received from devices."),
            uplink_dropped: counter(r, "uplink_dropped", "Lines dropped because the broker was away or slow for too long."),
            messages_dropped: counter(r, "messages_dropped", "Messages from device to device, and answers of a wire format, dropped because their device does not read."),
        }
    }
}

impl Broker {
    fn new(r: &mut Registry) -> Self {
        let up = Family::<Labels, Gauge>::default();
        r.register("broker_up", "Whether the connections to the broker work, of the side that consumes and of the one that publishes.", up.clone());
        let up = [Link::Consumer, Link::Publisher]
            .map(|link| up.get_or_create_owned(&[("connection", link.label())]));
        let blocked = gauge(
            r,
            "broker_blocked",
            "Whether the broker blocks publishers (memory or disk alarm).",
        );
        Self { up, blocked }
    }
}

impl Cluster {
    #[rustfmt::skip] // a table
    fn new(r: &mut Registry) -> Self {
        Self {
            passed_on: counter(r, "route_passed_on", "Commands passed on to the bridge that has their device."),
            returned: counter(r, "route_returned", "Commands that came back because no bridge has their device."),
            loops: counter(r, "route_loops", "Commands given up because too many bridges have passed them on, which is a bug or a stale binding."),
            binding: gauge(r, "route_pending", "Devices that are connected and not yet bound for the other bridges."),
            handed_over: counter(r, "route_devices_handed_over", "Devices handed over to another bridge that they have connected to."),
            bridges: gauge(r, "route_bridges", "Other bridges that are known."),
            moving: gauge(r, "route_moving", "Devices of bridges that have ended, which may come back."),
            elsewhere: gauge(r, "route_devices_elsewhere", "Devices of other bridges, of which this one tells that they are gone if their bridge dies."),
            taken_over: counter(r, "route_bridges_taken_over", "Bridges that were gone, and whose commands this one has taken on."),
        }
    }
}

impl Metrics {
    /// All of them, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("rabbitline");
        let commands = Commands::new(&mut registry);
        let devices = Devices::new(&mut registry);
        let broker = Broker::new(&mut registry);
        let cluster = Cluster::new(&mut registry);
        Self(Arc::new(Inner { registry, commands, devices, broker, cluster }))
    }

    /// All of them in the Prometheus text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let written = prometheus_client::encoding::text::encode(&mut text, &self.0.registry);
        debug_assert!(written.is_ok());
        text
    }

    /// What is counted, now.
    pub(crate) fn read(&self) -> Reading {
        let Inner { commands, devices, broker, .. } = &*self.0;
        let [consumer, publisher] = &broker.up;
        Reading {
            outcomes: commands.by_outcome.each_ref().map(Counter::get),
            latency: commands.latency.counts(),
            devices: devices.connected.get(),
            lanes: devices.in_lanes.get(),
            unsettled: commands.unsettled.get(),
            parked: commands.parked.get(),
            undelivered: commands.undelivered.get(),
            consumer: consumer.get() > 0,
            publisher: publisher.get() > 0,
            blocked: broker.blocked.get() > 0,
        }
    }

    /// The fate of a command is known.
    pub fn command(&self, outcome: Outcome) {
        if let Some(counter) = self.0.commands.by_outcome.get(outcome.index()) {
            counter.inc();
        }
    }

    /// A command was written, this long after each beginning.
    pub fn delivered(&self, from_publish: Option<Duration>, from_arrival: Duration) {
        if let Some(duration) = from_publish {
            self.0.commands.from_publish.observe(duration.as_secs_f64());
        }
        self.0.commands.from_arrival.observe(from_arrival.as_secs_f64());
        self.0.commands.latency.count(from_arrival);
    }

    /// The deliveries in hand became more or fewer by so many.
    pub fn unsettled_changed(&self, by: i64) {
        self.0.commands.unsettled.inc_by(by);
    }

    /// Another bridge has a command now.
    pub fn passed_on(&self) {
        self.0.cluster.passed_on.inc();
    }

    /// No bridge has the device of a command.
    pub fn route_returned(&self) {
        self.0.cluster.returned.inc();
    }

    /// Too many bridges have passed a command on.
    pub fn route_looped(&self) {
        self.0.cluster.loops.inc();
    }

    /// So many devices are connected and not bound.
    pub fn route_pending(&self, count: usize) {
        self.0.cluster.binding.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many other bridges are known.
    pub fn bridges(&self, count: usize) {
        self.0.cluster.bridges.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many devices of other bridges are remembered.
    pub fn elsewhere(&self, count: usize) {
        self.0.cluster.elsewhere.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many devices of bridges that have ended are held.
    pub fn moving(&self, count: usize) {
        self.0.cluster.moving.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A bridge is gone, and this one takes its commands on.
    pub fn taken_over(&self) {
        self.0.cluster.taken_over.inc();
    }

    /// Another bridge has a device now that was connected here.
    pub fn handed_over(&self) {
        self.0.cluster.handed_over.inc();
    }

    /// So many commands are parked.
    pub fn parked(&self, count: usize) {
        self.0.commands.parked.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A command went to the undelivered exchange.
    pub fn undelivered(&self) {
        self.0.commands.undelivered.inc();
    }

    /// An outcome event found no room.
    pub fn outcome_event_dropped(&self) {
        self.0.commands.outcome_events_dropped.inc();
    }

    /// A delivery was dropped unsettled.
    pub fn settlement_forgotten(&self) {
        self.0.commands.forgotten.inc();
    }

    /// A device connection was taken up; so many are connected now.
    pub fn device_connected(&self, now: usize) {
        self.0.devices.connections.inc();
        self.devices(now);
    }

    /// A device connection ended.
    pub fn device_ended(&self, reason: EndReason) {
        if let Some(counter) = EndReason::ALL
            .iter()
            .position(|r| *r == reason)
            .and_then(|i| self.0.devices.ended.get(i))
        {
            counter.inc();
        }
    }

    /// So many devices are connected now.
    pub fn devices(&self, now: usize) {
        self.0.devices.connected.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    /// A connection could not be accepted.
    pub fn accept_error(&self) {
        self.0.devices.accept_errors.inc();
    }

    /// The commands in lanes became more or fewer by so many.
    pub fn lanes_changed(&self, by: i64) {
        self.0.devices.in_lanes.inc_by(by);
    }

    /// A device sent a line.
    pub fn uplink_line(&self) {
        self.0.devices.uplink_lines.inc();
    }

    /// A line of a device was dropped.
    pub fn uplink_dropped(&self) {
        self.0.devices.uplink_dropped.inc();
    }

    /// A connection did not become a device.
    pub fn refused(&self, refusal: Refusal) {
        let at = Refusal::ALL.iter().position(|it| *it == refusal);
        if let Some(counter) = at.and_then(|at| self.0.devices.refused.get(at)) {
            counter.inc();
        }
    }

    /// What was said to a device that does not read was dropped.
    pub fn message_dropped(&self) {
        self.0.devices.messages_dropped.inc();
    }

    /// A broker connection works, or does not.
    pub fn broker_up(&self, link: Link, up: bool) {
        let [consumer, publisher] = &self.0.broker.up;
        let gauge = match link {
            Link::Consumer => consumer,
            Link::Publisher => publisher,
        };
        gauge.set(i64::from(up));
    }

    /// The broker blocks publishers, or does not.
    pub fn broker_blocked(&self, blocked: bool) {
        self.0.broker.blocked.set(i64::from(blocked));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// 50 µs to 26 s in steps of two: a local write takes tens of microseconds, a write deadline seconds.
fn seconds(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let buckets = prometheus_client::metrics::histogram::exponential_buckets(0.000_05, 2.0, 20);
    let histogram = Histogram::new(buckets);
    registry.register(name, help, histogram.clone());
    histogram
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn counters<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: [&'static str; N],
) -> [Counter; N] {
    let family = Family::<Labels, Counter>::default();
    registry.register(name, help, family.clone());
    values.map(|value| family.get_or_create_owned(&[(label, value)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_and_every_end_has_its_line_from_the_start() {
        let metrics = Metrics::new();
        metrics.command(Outcome::Expired);
        metrics.device_ended(EndReason::Replaced);
        let text = metrics.encode();
        for outcome in Outcome::ALL {
            let count = u8::from(outcome == Outcome::Expired);
            let line = format!("rabbitline_commands_total{{outcome=\"{outcome}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in\n{text}");
        }
        for reason in EndReason::ALL {
            let count = u8::from(reason == EndReason::Replaced);
            let line = format!(
                "rabbitline_connections_ended_total{{reason=\"{}\"}} {count}\n",
                reason.label()
            );
            assert!(text.contains(&line), "{line} in\n{text}");
        }
        assert!(text.contains("rabbitline_broker_up{connection=\"publisher\"} 0"));
    }
}
