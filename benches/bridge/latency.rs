//! How long a command takes from its publication to its device at a rate that all can bear.
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
    drain::ready,
    load::Load,
    publisher::Publisher,
};

/// What is measured: one bridge under one load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Plan {
    pub(crate) bridge: Kind,
    pub(crate) prefetch: u16,
    pub(crate) devices: usize,
    pub(crate) rate: u64,
    pub(crate) seconds: u64,
}

/// The figures, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LatencyReport {
    #[serde(flatten)]
    pub(crate) plan: Plan,
    pub(crate) latency_us: Percentiles,
    pub(crate) publisher_late_us: Percentiles,
    /// Processor time of the bridge for a command.
    pub(crate) cpu_us: f64,
}

impl LatencyReport {
    pub(crate) fn p50_p99(&self) -> (f64, f64) {
        (self.latency_us.p50 as f64, self.latency_us.p99 as f64)
    }

    /// One line for the progress of a run.
    pub(crate) fn summary(&self) -> String {
        let Plan { bridge, prefetch, rate, .. } = self.plan;
        let Percentiles { p50, p99, .. } = self.latency_us;
        format!(
            "latency of {}, prefetch {prefetch}, {rate}/s: p50 {p50} us, p99 {p99} us",
            bridge.label()
        )
    }
}

/// Runs one bridge under one load.
pub(crate) fn measure(broker: &Broker, plan: Plan) -> Result<LatencyReport> {
    let mut publisher = Publisher::connect(broker.port)?;
    let (bridge, mut devices) =
        ready(broker, &mut publisher, plan.bridge, plan.prefetch, plan.devices)?;
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
) -> Result<LatencyReport> {
    let count = plan.rate * plan.seconds;
    devices.begin_receive(count)?;
    let cpu = bridge.process.cpu()?;
    let late = publish_by_the_clock(load, publisher, plan.rate, count)?;
    let received = devices.received().with_context(|| bridge.said())?;
    let cpu = bridge.process.cpu()?.saturating_sub(cpu);
    Ok(LatencyReport {
        plan,
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
