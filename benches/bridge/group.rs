//! How long one command for all devices takes.
//!
//! A new bridge has all its devices and an empty queue and is idle; then one command `{"broadcast": true, ...}` that wants
//! receipts is published. Its line carries the time at which it was handed to the kernel; from there count the
//! first and the last device's line, the last receipt of a device, and the summary that says that all have it.
//! The receipts are taken by a consumer on the same machine, whose share of the processors is in the figures.
//! Each device must have the line once: it checks that, and a command of its own, which follows the summary,
//! shows that nothing else came before.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    bridge::Kind,
    broker::Broker,
    drain::ready,
    load::{Load, QUEUE},
    publisher::Publisher,
    receipts::{RECEIPTS, Receipts},
    stats::Spread,
};

const PREFETCH: u16 = 256;
const ID: &str = "to-all";

/// Milliseconds from the publication of the command.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct GroupReport {
    pub(crate) devices: usize,
    pub(crate) first_line_ms: Spread,
    pub(crate) last_line_ms: Spread,
    pub(crate) last_receipt_ms: Spread,
    pub(crate) summary_ms: Spread,
    /// Processor time of the bridge for a device, its receipt included, in microseconds.
    pub(crate) cpu_us: Spread,
}

/// One command.
#[derive(Debug, Clone, Copy)]
struct Run {
    first_line_ms: f64,
    last_line_ms: f64,
    last_receipt_ms: f64,
    summary_ms: f64,
    cpu_us: f64,
}

impl GroupReport {
    /// One line for the progress of a run.
    pub(crate) fn summary(&self) -> String {
        let Self { devices, last_line_ms, last_receipt_ms, summary_ms, .. } = self;
        format!(
            "one command for {devices} devices: last line after {last_line_ms} ms, \
             last receipt after {last_receipt_ms} ms, summary after {summary_ms} ms"
        )
    }
}

/// Sends one command to `devices` devices, `runs` times.
pub(crate) fn measure(broker: &Broker, devices: usize, runs: usize) -> Result<GroupReport> {
    let runs: Vec<_> = (0..runs).map(|_| once(broker, devices)).collect::<Result<_>>()?;
    let spread = |figure: fn(&Run) -> f64| runs.iter().map(figure).collect();
    Ok(GroupReport {
        devices,
        first_line_ms: spread(|run| run.first_line_ms),
        last_line_ms: spread(|run| run.last_line_ms),
        last_receipt_ms: spread(|run| run.last_receipt_ms),
        summary_ms: spread(|run| run.summary_ms),
        cpu_us: spread(|run| run.cpu_us),
    })
}

fn once(broker: &Broker, count: usize) -> Result<Run> {
    let mut publisher = Publisher::connect(broker.port)?;
    let (bridge, mut devices) = ready(broker, &mut publisher, Kind::Rabbitline, PREFETCH, count)?;
    bridge.wait_idle()?;
    let receipts = Receipts::begin(broker.port, ID, count)?;
    let mut load = Load::for_devices(count)?;
    let all = count as u64;

    devices.begin_receive(all)?;
    let cpu = bridge.process.cpu()?;
    let sent_us = load.publish_shared(&mut publisher, ID, Some(RECEIPTS))?;
    let received = devices.received().with_context(|| bridge.said())?;
    let times = receipts.all().with_context(|| bridge.said())?;
    let cpu = bridge.process.cpu()?.saturating_sub(cpu);

    devices.begin_receive(all)?;
    for _ in 0..all {
        load.publish(&mut publisher, None)?;
    }
    publisher.flush()?;
    devices.received().context("after one command for all, one for each")?;
    let left = publisher.declare(QUEUE)?;
    ensure!(left == 0, "{left} commands are left in the queue after all have come");

    let since_ms = |time: u64| time.saturating_sub(sent_us) as f64 / 1e3;
    Ok(Run {
        first_line_ms: since_ms(received.first_us),
        last_line_ms: since_ms(received.last_us),
        last_receipt_ms: since_ms(times.last_receipt_us),
        summary_ms: since_ms(times.summary_us),
        cpu_us: cpu.as_secs_f64() * 1e6 / count as f64,
    })
}
