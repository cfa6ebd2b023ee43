//! What devices cost that do nothing: user memory of an idle one, and the time until many that connect at once
//! are registered.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::{
    bridge::{Bridge, Kind},
    broker::Broker,
    clock::{now_us, wait_until},
    devices::Devices,
    drain::ready,
    publisher::Publisher,
    stats::Spread,
};

/// Fewer devices and more, between which the slope is taken.
const FEW: usize = 1_000;
const MANY: usize = 15_000;

/// Memory that has not changed for this long is at rest.
const AT_REST: Duration = Duration::from_secs(2);
const REST_LIMIT: Duration = Duration::from_secs(30);
const REGISTERED_LIMIT: Duration = Duration::from_secs(30);

/// Resident anonymous memory of the bridge, in KiB.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct MemoryReport {
    pub(crate) few_devices: usize,
    pub(crate) few_kib: u64,
    pub(crate) many_devices: usize,
    pub(crate) many_kib: u64,
    pub(crate) kib_per_device: f64,
}

/// Many devices that connect at once.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ConnectReport {
    pub(crate) devices: usize,
    /// The time from the first connect to the last registration.
    pub(crate) registered_ms: Spread,
    /// Processor time for a device until its presence event is published and confirmed, in microseconds.
    pub(crate) bridge_cpu_us: Spread,
    pub(crate) broker_cpu_us: Spread,
}

/// One time that they connect.
#[derive(Debug, Clone, Copy)]
struct Connect {
    registered_ms: f64,
    bridge_cpu_us: f64,
    broker_cpu_us: f64,
}

/// The memory of an idle device, as the slope between few and many.
pub(crate) fn memory(broker: &Broker) -> Result<MemoryReport> {
    let mut publisher = Publisher::connect(broker.port)?;
    let (mut bridge, mut devices) = ready(broker, &mut publisher, Kind::Rabbitline, 1, FEW)?;
    let few_kib = memory_at_rest(&bridge)?;
    devices.begin_connect(bridge.device_port, MANY - FEW)?;
    devices.connected()?;
    bridge.wait_ready(MANY)?;
    let many_kib = memory_at_rest(&bridge)?;
    let kib_per_device = (many_kib as f64 - few_kib as f64) / (MANY - FEW) as f64;
    Ok(MemoryReport { few_devices: FEW, few_kib, many_devices: MANY, many_kib, kib_per_device })
}

/// How long it takes until `count` devices that connect at once are all registered.
pub(crate) fn connect(broker: &Broker, count: usize, runs: usize) -> Result<ConnectReport> {
    let all: Vec<_> = (0..runs).map(|_| connect_once(broker, count)).collect::<Result<_>>()?;
    let spread = |figure: fn(&Connect) -> f64| all.iter().map(figure).collect();
    Ok(ConnectReport {
        devices: count,
        registered_ms: spread(|it| it.registered_ms),
        bridge_cpu_us: spread(|it| it.bridge_cpu_us),
        broker_cpu_us: spread(|it| it.broker_cpu_us),
    })
}

fn connect_once(broker: &Broker, count: usize) -> Result<Connect> {
    let mut bridge = Bridge::start(Kind::Rabbitline, broker, 1, count)?;
    bridge.wait_ready(0)?;
    let mut devices = Devices::start()?;
    let before = (bridge.process.cpu()?, broker.process.cpu()?);
    devices.begin_connect(bridge.device_port, count)?;
    let every = Duration::from_millis(2);
    wait_until("all devices are registered", every, REGISTERED_LIMIT, || {
        Ok(bridge.registered()? >= count)
    })?;
    let registered_us = now_us();
    let started_us = devices.connected()?.started_us;
    bridge.wait_idle()?;
    let a_device = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count as f64;
    Ok(Connect {
        registered_ms: registered_us.saturating_sub(started_us) as f64 / 1e3,
        bridge_cpu_us: a_device(bridge.process.cpu()?.saturating_sub(before.0)),
        broker_cpu_us: a_device(broker.process.cpu()?.saturating_sub(before.1)),
    })
}

/// The memory of the bridge once it no longer changes.
pub(crate) fn memory_at_rest(bridge: &Bridge) -> Result<u64> {
    let started = Instant::now();
    let mut last = (bridge.process.memory()?, Instant::now());
    while last.1.elapsed() < AT_REST {
        if started.elapsed() > REST_LIMIT {
            bail!("the memory of the bridge has changed for {REST_LIMIT:?}; it was {} KiB", last.0);
        }
        thread::sleep(Duration::from_millis(100));
        let memory = bridge.process.memory()?;
        if memory != last.0 {
            last = (memory, Instant::now());
        }
    }
    Ok(last.0)
}
