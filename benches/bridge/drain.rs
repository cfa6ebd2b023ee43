//! How fast a full queue reaches the devices.
//!
//! One drain: a bridge is started, consumes from an empty queue, has all its devices connected, and is idle again. Then it is
//! paused (SIGSTOP), the queue is filled, and it is resumed: so everything is in place when the first command
//! moves, and the filling takes no time from it. The time is from the first line at a device to the last. Our
//! bridge and the bridge in C go through exactly this, in turn, each run with new processes, so that what
//! drifts on the machine is the same for both; the ratio is taken within each pair.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    bridge::{Bridge, Kind},
    broker::Broker,
    devices::Devices,
    load::{Load, QUEUE},
    publisher::Publisher,
    stats::Spread,
};

/// One drain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Commands a second.
    pub(crate) rate: f64,
    /// Processor time for a command, in microseconds.
    pub(crate) cpu_us: CpuOf<f64>,
}

/// Something about the processor time of each of those who share the processors.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct CpuOf<T> {
    pub(crate) bridge: T,
    pub(crate) broker: T,
    pub(crate) devices: T,
}

impl Run {
    pub(crate) fn new(commands: u64, first_us: u64, last_us: u64, cpu: CpuOf<Duration>) -> Self {
        let seconds = last_us.saturating_sub(first_us).max(1) as f64 / 1e6;
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / commands as f64;
        Self {
            rate: (commands - 1) as f64 / seconds,
            cpu_us: CpuOf {
                bridge: each(cpu.bridge),
                broker: each(cpu.broker),
                devices: each(cpu.devices),
            },
        }
    }
}

/// What is drained: so many commands to so many devices at this prefetch.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cell {
    pub(crate) prefetch: u16,
    pub(crate) devices: usize,
    pub(crate) commands: u64,
}

/// The figures of a cell.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CellReport {
    #[serde(flatten)]
    pub(crate) cell: Cell,
    pub(crate) rabbitline: Side,
    pub(crate) limit: Side,
    pub(crate) ratio: Spread,
}

/// One bridge's figures in a cell.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Side {
    pub(crate) rate: Spread,
    pub(crate) cpu_us: CpuOf<Spread>,
}

impl Side {
    pub(crate) fn of(runs: &[Run]) -> Self {
        Self {
            rate: runs.iter().map(|run| run.rate).collect(),
            cpu_us: CpuOf {
                bridge: runs.iter().map(|run| run.cpu_us.bridge).collect(),
                broker: runs.iter().map(|run| run.cpu_us.broker).collect(),
                devices: runs.iter().map(|run| run.cpu_us.devices).collect(),
            },
        }
    }
}

/// Drains a cell `runs` times with `kind` and with what it is measured against.
pub(crate) fn measure(
    broker: &Broker,
    cell: Cell,
    runs: usize,
    kind: Kind,
    against: Kind,
) -> Result<CellReport> {
    let (ours, limit) = in_turn(runs, kind, against, |next| {
        drain(broker, next, cell).with_context(|| format!("{} in {cell:?}", next.label()))
    })?;
    let ratio = ours.iter().zip(&limit).map(|(ours, limit)| ours.rate / limit.rate).collect();
    Ok(CellReport { cell, rabbitline: Side::of(&ours), limit: Side::of(&limit), ratio })
}

/// Takes a figure of `kind` and of what it is measured against in turn, `runs` times each.
pub(crate) fn in_turn<T>(
    runs: usize,
    kind: Kind,
    against: Kind,
    mut once: impl FnMut(Kind) -> Result<T>,
) -> Result<(Vec<T>, Vec<T>)> {
    let (mut ours, mut limit) = (Vec::new(), Vec::new());
    for run in 0..runs {
        // Who goes first changes, too.
        let order = if run % 2 == 0 { [against, kind] } else { [kind, against] };
        for next in order {
            let figure = once(next)?;
            if next == kind { ours.push(figure) } else { limit.push(figure) }
        }
    }
    Ok((ours, limit))
}

/// One drain with one bridge.
pub(crate) fn drain(broker: &Broker, kind: Kind, cell: Cell) -> Result<Run> {
    let mut publisher = Publisher::connect(broker.port)?;
    let (bridge, mut devices) = ready(broker, &mut publisher, kind, cell.prefetch, cell.devices)?;

    bridge.process.pause()?;
    Load::for_devices(cell.devices)?.fill(&mut publisher, cell.commands, cell.prefetch)?;
    devices.begin_receive(cell.commands)?;
    let (bridge_cpu, broker_cpu) = (bridge.process.cpu()?, broker.process.cpu()?);
    bridge.process.resume()?;
    let received = devices.received().with_context(|| bridge.said())?;
    let cpu = CpuOf {
        bridge: bridge.process.cpu()?.saturating_sub(bridge_cpu),
        broker: broker.process.cpu()?.saturating_sub(broker_cpu),
        devices: received.cpu,
    };
    let left = publisher.declare(QUEUE)?;
    ensure!(left == 0, "{left} commands are left in the queue after all have come");
    Ok(Run::new(cell.commands, received.first_us, received.last_us, cpu))
}

/// A bridge that consumes from the empty queue, has its devices and is done with what their connecting gave it to do.
pub(crate) fn ready(
    broker: &Broker,
    publisher: &mut Publisher,
    kind: Kind,
    prefetch: u16,
    count: usize,
) -> Result<(Bridge, Devices)> {
    publisher.declare(QUEUE)?;
    publisher.purge(QUEUE)?;
    let (bridge, devices) = with_devices(Bridge::start(kind, broker, prefetch, count)?, count)?;
    // Ours reports who has connected, which is not what is measured here.
    bridge.wait_idle()?;
    Ok((bridge, devices))
}

/// A bridge that consumes, and its devices.
pub(crate) fn with_devices(mut bridge: Bridge, count: usize) -> Result<(Bridge, Devices)> {
    let mut devices = Devices::start()?;
    devices.begin_connect(bridge.device_port, count)?;
    devices.connected()?;
    bridge.wait_ready(count)?;
    Ok((bridge, devices))
}
