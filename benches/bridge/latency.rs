//! How long a command takes from its publication to its device at a rate that all can bear: half of what ours
//! reaches from a full queue. The bridge in C has the same load, in turn with ours; the ratio is taken within each
//! pair.
//!
//! The load is open: commands are published by the clock, whether or not earlier ones have arrived, and each
//! carries the time at which it was meant to be published. Latency counts from there, so a stall of the broker
//! or of the bridge shows in every command that it held up, and so does a publisher that is late itself; how
//! late it was is reported beside.

use std::{num::NonZeroU64, thread, time::Duration};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    bridge::{Bridge, Kind},
    broker::Broker,
    clock::now_us,
    devices::{Devices, Percentiles},
    drain::{in_turn, ready},
    load::Load,
    publisher::Publisher,
    stats::{Quantiles, Spread},
};

/// One load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Plan {
    pub(crate) prefetch: u16,
    pub(crate) devices: usize,
    pub(crate) rate: u64,
    pub(crate) seconds: u64,
}

/// One bridge under it, once; times in microseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Timed {
    pub(crate) latency_us: Percentiles,
    pub(crate) publisher_late_us: Percentiles,
    /// Processor time of the bridge for a command.
    pub(crate) cpu_us: f64,
}

/// Both bridges under it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LatencyReport {
    pub(crate) plan: Plan,
    pub(crate) rabbitline: LatencySide,
    pub(crate) limit: LatencySide,
    /// Ours to the limit's, taken within each pair.
    pub(crate) ratio: Quantiles,
}

/// One bridge's figures, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct LatencySide {
    pub(crate) latency_us: Quantiles,
    pub(crate) p999_us: Spread,
    pub(crate) max_us: Spread,
    pub(crate) publisher_late_us: Quantiles,
    pub(crate) cpu_us: Spread,
}

impl Timed {
    pub(crate) fn p50_p99(&self) -> (f64, f64) {
        self.latency_us.p50_p99()
    }

    /// Both quantiles, in those of `other`.
    pub(crate) fn times_as_long_as(&self, other: &Self) -> (f64, f64) {
        let (own, other) = (self.p50_p99(), other.p50_p99());
        (own.0 / other.0.max(1.0), own.1 / other.1.max(1.0))
    }
}

impl LatencySide {
    fn of(runs: &[Timed]) -> Self {
        Self {
            latency_us: runs.iter().map(Timed::p50_p99).collect(),
            p999_us: runs.iter().map(|run| run.latency_us.p999 as f64).collect(),
            max_us: runs.iter().map(|run| run.latency_us.max as f64).collect(),
            publisher_late_us: runs.iter().map(|run| run.publisher_late_us.p50_p99()).collect(),
            cpu_us: runs.iter().map(|run| run.cpu_us).collect(),
        }
    }
}

impl LatencyReport {
    /// One line for the progress of a run.
    pub(crate) fn summary(&self) -> String {
        let Plan { prefetch, devices, rate, .. } = self.plan;
        let (ours, limit) = (self.rabbitline.latency_us, self.limit.latency_us);
        format!(
            "latency, prefetch {prefetch}, {devices} devices, {rate}/s: p50 {} us, limit {} us, ratio {:.2}; \
             p99 {} us, limit {} us, ratio {:.2}",
            ours.p50, limit.p50, self.ratio.p50, ours.p99, limit.p99, self.ratio.p99
        )
    }
}

/// Runs our bridge and the limit under one load, `runs` times in turn.
pub(crate) fn measure(broker: &Broker, plan: Plan, runs: usize) -> Result<LatencyReport> {
    let (ours, limit) = in_turn(runs, Kind::Rabbitline, Kind::LimitInC, |next| {
        once(broker, next, plan).with_context(|| format!("{} under {plan:?}", next.label()))
    })?;
    let ratio = ours.iter().zip(&limit).map(|(ours, limit)| ours.times_as_long_as(limit)).collect();
    Ok(LatencyReport {
        plan,
        rabbitline: LatencySide::of(&ours),
        limit: LatencySide::of(&limit),
        ratio,
    })
}

fn once(broker: &Broker, kind: Kind, plan: Plan) -> Result<Timed> {
    let mut publisher = Publisher::connect(broker.port)?;
    let (bridge, mut devices) = ready(broker, &mut publisher, kind, plan.prefetch, plan.devices)?;
    let mut load = Load::for_devices(plan.devices)?;
    under(&mut load, &mut publisher, &bridge, &mut devices, plan)
}

/// Runs a bridge that has its devices under one load, which goes on where it was.
pub(crate) fn under(
    load: &mut Load,
    publisher: &mut Publisher,
    bridge: &Bridge,
    devices: &mut Devices,
    plan: Plan,
) -> Result<Timed> {
    let count = plan.rate * plan.seconds;
    devices.begin_receive(count)?;
    let cpu = bridge.process.cpu()?;
    let late = publish_by_the_clock(load, publisher, plan.rate, count)?;
    let received = devices.received().with_context(|| bridge.said())?;
    let cpu = bridge.process.cpu()?.saturating_sub(cpu);
    Ok(Timed {
        latency_us: received.latency.context("no command carried a time")?,
        publisher_late_us: Percentiles::of(&late),
        cpu_us: cpu.as_secs_f64() * 1e6 / count as f64,
    })
}

/// Publishes each command at its time; how late the kernel got them.
fn publish_by_the_clock(
    load: &mut Load,
    publisher: &mut Publisher,
    rate: u64,
    count: u64,
) -> Result<Histogram<u64>> {
    // A sleeping thread is usually woken up to 50 µs late, to save power.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let mut late = Percentiles::histogram()?;
    let start = now_us() + 10_000;
    let time_of = |number| start + number * 1_000_000 / rate;
    let mut published = 0;
    while published < count {
        let now = now_us();
        let first = published;
        while published < count && time_of(published) <= now {
            load.publish(publisher, Some(time_of(published)))?;
            published += 1;
        }
        publisher.flush()?;
        let now = now_us();
        for number in first..published {
            late.saturating_record(now.saturating_sub(time_of(number)));
        }
        if published < count {
            thread::sleep(Duration::from_micros(time_of(published).saturating_sub(now)));
        }
    }
    Ok(late)
}
