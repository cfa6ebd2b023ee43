//! Several bridges as one: what each device costs the bridges, the broker and the kernel, how long it takes until
//! all that connect at once can be reached from everywhere, and how fast commands reach them.
//!
//! Every bridge gets a few devices first, then as many more as it is to have; each slope is between the two. Then
//! there is a command for each device, in the one queue that all bridges take from: all but one in N goes on to the
//! bridge that has its device. Every device checks that it has its own, once and in order. At last there is one command for all
//! devices.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    bridge::Bridge,
    broker::Broker,
    clock::{now_us, wait_until},
    connections::memory_at_rest,
    devices::Devices,
    drain::{CpuOf, Run},
    load::{Load, QUEUE, take_turns},
    process::kib_of,
    progress,
    publisher::Publisher,
    report::write_table,
};

const PREFETCH: u16 = 256;
/// Devices of each bridge before the rest of them comes.
const FEW: usize = 1_000;
/// Commands for each device.
const COMMANDS: u64 = 1;
/// Ten bridges on two cores bind some thousand devices a second.
const SERVICE_LIMIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
/// Devices that are connected and that the other bridges cannot find yet.
const UNBOUND: &str = "rabbitline_route_pending";
const PASSED_ON: &str = "rabbitline_route_passed_on_total";

/// So many bridges with so many devices each.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Plan {
    pub(crate) bridges: usize,
    pub(crate) devices_each: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ClusterReport {
    #[serde(flatten)]
    pub(crate) plan: Plan,
    pub(crate) devices: usize,
    /// From the first connect of the many to the last registration, and until all can be reached from everywhere.
    pub(crate) registered_s: f64,
    pub(crate) in_service_s: f64,
    /// Resident anonymous memory of its bridge for a device, and what the broker has in use for it.
    pub(crate) bridge_kib: f64,
    pub(crate) broker_kib: f64,
    /// The kernel's slab memory for one end of a device's connection; both ends are on this machine.
    pub(crate) kernel_kib: f64,
    /// A bridge without devices.
    pub(crate) bridge_base_kib: f64,
    #[serde(flatten)]
    pub(crate) through: Through,
    /// From the publication of one command for all devices to the last of them.
    pub(crate) broadcast_s: f64,
}

/// Commands on their way through the bridges.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Through {
    pub(crate) commands: u64,
    pub(crate) rate: f64,
    /// The part of them that another bridge than the device's took off the queue.
    pub(crate) passed_on: f64,
    /// Processor time for a command, in microseconds; of all bridges.
    pub(crate) cpu_us: CpuOf<f64>,
}

/// A bridge and its devices.
struct Member {
    bridge: Bridge,
    devices: Devices,
    load: Load,
}

/// Memory at rest, in KiB.
#[derive(Debug, Clone, Copy)]
struct Memory {
    bridges: u64,
    broker: u64,
    slab: u64,
}

/// How it went.
struct Service {
    registered_s: f64,
    in_service_s: f64,
}

pub(crate) fn measure(broker: &Broker, plan: Plan) -> Result<ClusterReport> {
    let Plan { bridges, devices_each } = plan;
    ensure!(devices_each > FEW, "each bridge needs more than {FEW} devices");
    let mut publisher = Publisher::connect(broker.port)?;
    publisher.declare(QUEUE)?;
    publisher.purge(QUEUE)?;
    let mut members: Vec<_> =
        (0..bridges).map(|number| Member::start(broker, plan, number)).collect::<Result<_>>()?;
    let base = Memory::now(broker, &members)?;
    connect(&mut members, FEW)?;
    let few = Memory::now(broker, &members)?;
    let service = connect(&mut members, devices_each - FEW)?;
    progress(&format!("in service after {:.1} s", service.in_service_s));
    let many = Memory::now(broker, &members)?;

    let devices = bridges * devices_each;
    let added = (devices - bridges * FEW) as f64;
    let slope = |of: fn(&Memory) -> u64| (of(&many) as f64 - of(&few) as f64) / added;
    let through = command_all(broker, &mut publisher, &mut members, devices_each)?;
    let broadcast_s = command_for_all(&mut publisher, &mut members, devices_each)?;
    Ok(ClusterReport {
        plan,
        devices,
        registered_s: service.registered_s,
        in_service_s: service.in_service_s,
        bridge_kib: slope(|it| it.bridges),
        broker_kib: slope(|it| it.broker),
        kernel_kib: slope(|it| it.slab) / 2.0,
        bridge_base_kib: base.bridges as f64 / bridges as f64,
        through,
        broadcast_s,
    })
}

impl Member {
    fn start(broker: &Broker, plan: Plan, number: usize) -> Result<Self> {
        let name = format!("bench-{number}");
        let settings = [("CLUSTER", "on"), ("BRIDGE_NAME", name.as_str())];
        let mut bridge = Bridge::start_with(broker, PREFETCH, &settings)?;
        bridge.wait_ready(0)?;
        let first = number * plan.devices_each;
        Ok(Self {
            bridge,
            devices: Devices::start_from(first)?,
            load: Load::for_those(first..first + plan.devices_each)?,
        })
    }

    fn has(&self, devices: usize) -> Result<bool> {
        Ok(self.bridge.registered()? >= devices)
    }
}

/// Connects so many more devices to each bridge, all at once.
fn connect(members: &mut [Member], count: usize) -> Result<Service> {
    let started = now_us();
    let mut wanted = Vec::new();
    for member in members.iter_mut() {
        wanted.push(member.bridge.registered()? + count);
        member.devices.begin_connect(member.bridge.device_port, count)?;
    }
    for member in members.iter() {
        member.devices.connected()?;
    }
    let since = || now_us().saturating_sub(started) as f64 / 1e6;
    for (member, wanted) in members.iter().zip(&wanted) {
        wait_until("all devices are registered", POLL, SERVICE_LIMIT, || member.has(*wanted))
            .with_context(|| member.bridge.said())?;
    }
    let registered_s = since();
    for (member, wanted) in members.iter().zip(&wanted) {
        wait_until("all devices can be reached from everywhere", POLL, SERVICE_LIMIT, || {
            Ok(member.bridge.metric(UNBOUND)? == 0.0)
        })
        .with_context(|| member.bridge.said())?;
        ensure!(member.has(*wanted)?, "devices have left meanwhile");
    }
    Ok(Service { registered_s, in_service_s: since() })
}

/// Fills the queue with commands for all devices while nobody takes them, then lets go.
fn command_all(
    broker: &Broker,
    publisher: &mut Publisher,
    members: &mut [Member],
    devices_each: usize,
) -> Result<Through> {
    let each = COMMANDS * devices_each as u64;
    for member in members.iter() {
        member.bridge.wait_idle()?;
        member.bridge.process.pause()?;
    }
    let held = u64::from(PREFETCH) * members.len() as u64;
    let mut loads: Vec<_> = members.iter_mut().map(|member| &mut member.load).collect();
    take_turns(&mut loads, publisher, each, held)?;
    for member in members.iter_mut() {
        member.devices.begin_receive(each)?;
    }
    let before = (cpu(members)?, broker.process.cpu()?);
    for member in members.iter() {
        member.bridge.process.resume()?;
    }
    let (mut first_us, mut last_us, mut devices) = (u64::MAX, 0, Duration::ZERO);
    for member in members.iter() {
        let received = member.devices.received().with_context(|| member.bridge.said())?;
        first_us = first_us.min(received.first_us);
        last_us = last_us.max(received.last_us);
        devices += received.cpu;
    }
    let cpu = CpuOf {
        bridge: cpu(members)?.saturating_sub(before.0),
        broker: broker.process.cpu()?.saturating_sub(before.1),
        devices,
    };
    let commands = each * members.len() as u64;
    let Run { rate, cpu_us } = Run::new(commands, first_us, last_us, cpu);
    let passed_on = members.iter().map(|member| member.bridge.metric(PASSED_ON));
    let passed_on = passed_on.sum::<Result<f64>>()? / commands as f64;
    Ok(Through { commands, rate, passed_on, cpu_us })
}

/// One command for all devices: the seconds until the last one has it.
fn command_for_all(
    publisher: &mut Publisher,
    members: &mut [Member],
    devices_each: usize,
) -> Result<f64> {
    for member in members.iter_mut() {
        member.bridge.wait_idle()?;
        member.devices.begin_receive(devices_each as u64)?;
    }
    let [first, ..] = members else { return Ok(0.0) };
    let sent_us = first.load.publish_shared(publisher, "to-all", None)?;
    let mut last_us = sent_us;
    for member in members.iter() {
        let received = member.devices.received().with_context(|| member.bridge.said())?;
        last_us = last_us.max(received.last_us);
    }
    Ok((last_us - sent_us) as f64 / 1e6)
}

/// The processor time of all bridges.
fn cpu(members: &[Member]) -> Result<Duration> {
    members.iter().map(|member| member.bridge.process.cpu()).sum()
}

impl Memory {
    /// Waits until all is at rest.
    fn now(broker: &Broker, members: &[Member]) -> Result<Self> {
        let bridges = members.iter().map(|member| memory_at_rest(&member.bridge));
        Ok(Self {
            bridges: bridges.sum::<Result<u64>>()?,
            broker: broker.memory()?,
            slab: kib_of("/proc/meminfo", "Slab:")?,
        })
    }
}

impl ClusterReport {
    /// One line for the progress of a run.
    pub(crate) fn summary(&self) -> String {
        let Self { devices, in_service_s, .. } = self;
        let (bridges, rate) = (self.plan.bridges, self.through.rate);
        format!(
            "{bridges} bridges, {devices} devices: in service after {in_service_s:.1} s, {rate:.0}/s"
        )
    }
}

/// The tables of what was measured of clusters.
pub(crate) fn write(reports: &[ClusterReport], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let place = |it: &ClusterReport| [it.plan.bridges.to_string(), it.devices.to_string()];
    let rows = reports.iter().map(|it| {
        let [bridges, devices] = place(it);
        [
            bridges,
            devices,
            format!("{:.1}", it.registered_s),
            format!("{:.1}", it.in_service_s),
            format!("{:.2}", it.bridge_kib),
            format!("{:.2}", it.broker_kib),
            format!("{:.2}", it.kernel_kib),
            format!("{:.0}", it.bridge_base_kib / 1024.0),
        ]
    });
    write_table(
        f,
        "Several bridges as one: seconds until all devices that connect at once are registered, and until they can be\n\
         reached from every bridge; KiB an idle device at its bridge, at the broker, and in the kernel for one end of\n\
         its connection; MiB of a bridge without devices",
        ["bridges", "devices", "registered", "in service", "bridge", "broker", "kernel", "base"],
        rows.collect(),
    )?;
    let rows = reports.iter().map(|it| {
        let [bridges, devices] = place(it);
        let Through { rate, passed_on, cpu_us: CpuOf { bridge, broker, devices: theirs }, .. } =
            it.through;
        [
            bridges,
            devices,
            format!("{rate:.0}"),
            format!("{passed_on:.2}"),
            format!("{bridge:.1} / {broker:.1} / {theirs:.1}"),
            format!("{:.1}", it.broadcast_s),
        ]
    });
    write_table(
        f,
        "From a full queue that all of them take from to the devices, and the part that goes through two bridges\n\
         (CPU: microseconds a command of all bridges / the broker / the simulated devices);\n\
         and the seconds until one command for all devices is at the last of them",
        ["bridges", "devices", "commands/s", "passed on", "CPU", "one for all"],
        rows.collect(),
    )
}
