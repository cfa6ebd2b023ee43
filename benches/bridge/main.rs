//! The benchmark of the bridge: `./dev bench`, or `cargo bench --bench bridge -- OPTIONS`.
//!
//! Everything is real but the devices' hardware: a private RabbitMQ node, the release build of `rabbitline`,
//! and one TCP connection for each device, from its own loopback address. The limits are measured in the same
//! run and in the same way, so that the figures mean something on any machine. `drain`, `latency`, `connections`,
//! `group`, `flood` and `cluster` say how each figure is taken; `load` what is sent.

mod bridge;
mod broker;
mod clock;
mod cluster;
mod connections;
mod consumer;
mod devices;
mod drain;
mod flood;
mod flooders;
mod group;
mod latency;
mod load;
mod machine;
mod options;
mod plot;
mod process;
mod publisher;
mod receipts;
mod report;
mod simulator;
mod stats;
mod targets;

use std::fs;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;

use bridge::Kind;
use broker::Broker;
use drain::{Cell, Side};
use flood::Front;
use latency::Plan;
use options::{Options, Part, Role};
use report::{ConsumerReport, Report};

/// As many connections of one process as any measurement wants.
const FILES: u64 = 20_000;

fn main() -> Result<()> {
    let options = Options::parse();
    // Children inherit it; more than the hard limit is not to be had, and a measurement that needs it says so.
    rlimit::increase_nofile_limit(FILES)?;
    match options.role {
        Some(Role::Devices { first }) => return simulator::run(first),
        Some(Role::BareConsumer { port, prefetch, count }) => {
            return consumer::run(port, prefetch, count);
        }
        Some(Role::Flooders { port }) => return flooders::run(port),
        None => {}
    }
    process::end_with_signals()?;
    bridge::compile_limit()?;
    progress("starting a private broker");
    let broker = Broker::start()?;

    let report = measure(&broker, &options).map_err(|error| {
        // What then fails is whatever was being waited for, which says nothing.
        if process::interrupted() { anyhow!("interrupted") } else { error }
    })?;
    println!("{report}");
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(file, json + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &options.svg {
        plot::draw(&report, file)?;
    }
    if options.check && !report.all_targets_met() {
        bail!("a target is missed");
    }
    Ok(())
}

fn measure(broker: &Broker, options: &Options) -> Result<Report> {
    let mut report = Report {
        machine: machine::Machine::with_broker(&broker.version)?,
        runs: options.runs(),
        consumer: Vec::new(),
        drain: Vec::new(),
        proof: Vec::new(),
        latency: Vec::new(),
        connect: Vec::new(),
        memory: None,
        group: None,
        flood: Vec::new(),
        cluster: Vec::new(),
        targets: Vec::new(),
    };
    // A new broker is slower for its first second.
    drain::drain(broker, Kind::LimitInC, Cell { prefetch: 256, devices: 100, commands: 50_000 })?;

    if options.wants(Part::Consumer) {
        report.consumer = measure_consumer(broker, options)?;
    }
    if options.wants(Part::Drain) {
        report.drain = measure_drain(broker, options)?;
    }
    if options.wants(Part::Proof) {
        let cell = Cell { prefetch: 256, devices: 1_000, commands: options.commands(256) };
        let (received, written) = (Kind::Received, Kind::Rabbitline);
        let proof = drain::measure(broker, cell, options.runs(), received, written)?;
        progress(&format!("received {}/s, written {}/s", proof.rabbitline.rate, proof.limit.rate));
        report.proof.push(proof);
    }
    if options.wants(Part::Latency) {
        report.latency = measure_latency(broker, options, &report)?;
    }
    if options.wants(Part::Connect) {
        for devices in [1_000, 10_000] {
            let connect = connections::connect(broker, devices, options.runs())?;
            progress(&format!(
                "{devices} devices at once: registered after {:.0} ms",
                connect.registered_ms
            ));
            report.connect.push(connect);
        }
    }
    if options.wants(Part::Memory) {
        let memory = connections::memory(broker)?;
        progress(&format!("memory: {:.2} KiB for an idle device", memory.kib_per_device));
        report.memory = Some(memory);
    }
    if options.wants(Part::Group) {
        let group = group::measure(broker, 10_000, options.runs())?;
        progress(&group.summary());
        report.group = Some(group);
    }
    if options.wants(Part::Flood) {
        let plan = flood::plan(options.latency_seconds());
        for front in [Front::Ip, Front::Hello] {
            let flood = flood::measure(broker, plan, front, options.runs())?;
            progress(&flood.summary());
            report.flood.push(flood);
        }
    }
    if options.wants(Part::Cluster) {
        let plan = cluster::Plan { bridges: options.bridges, devices_each: options.devices_each };
        let cluster = cluster::measure(broker, plan)?;
        progress(&cluster.summary());
        report.cluster.push(cluster);
    }
    report.judge();
    Ok(report)
}

fn measure_consumer(broker: &Broker, options: &Options) -> Result<Vec<ConsumerReport>> {
    let mut reports = Vec::new();
    for prefetch in [1, 256] {
        let commands = options.commands(prefetch);
        let runs: Result<Vec<_>> =
            (0..options.runs()).map(|_| consumer::measure(broker, prefetch, commands)).collect();
        let side = Side::of(&runs?);
        progress(&format!("bare consumer, prefetch {prefetch}: {}/s", side.rate));
        reports.push(ConsumerReport { prefetch, commands, side });
    }
    Ok(reports)
}

fn measure_drain(broker: &Broker, options: &Options) -> Result<Vec<drain::CellReport>> {
    let mut reports = Vec::new();
    for &prefetch in options.prefetch() {
        for &devices in options.devices() {
            let cell = Cell { prefetch, devices, commands: options.commands(prefetch) };
            let report =
                drain::measure(broker, cell, options.runs(), Kind::Rabbitline, Kind::LimitInC)?;
            let (ours, limit, ratio) = (report.rabbitline.rate, report.limit.rate, report.ratio);
            progress(&format!(
                "prefetch {prefetch}, {devices} devices: {ours}/s, limit {limit}/s, ratio {ratio:.2}"
            ));
            reports.push(report);
        }
    }
    Ok(reports)
}

fn measure_latency(
    broker: &Broker,
    options: &Options,
    report: &Report,
) -> Result<Vec<latency::LatencyReport>> {
    let mut reports = Vec::new();
    for (prefetch, devices) in [(1, 100), (256, 1_000)] {
        let cell = Cell { prefetch, devices, commands: options.commands(prefetch) };
        let rate =
            match (options.latency_rate.filter(|_| prefetch > 1), report.rate(prefetch, devices)) {
                (Some(rate), _) => rate,
                (None, Some(rate)) => half(rate),
                (None, None) => half(drain::drain(broker, Kind::Rabbitline, cell)?.rate),
            };
        let plan = Plan { prefetch, devices, rate, seconds: options.latency_seconds() };
        let latency = latency::measure(broker, plan, options.runs())?;
        progress(&latency.summary());
        reports.push(latency);
    }
    Ok(reports)
}

/// Half a rate, in whole thousands.
fn half(rate: f64) -> u64 {
    ((rate / 2e3).round() as u64).max(1) * 1_000
}

fn progress(what: &str) {
    eprintln!("{what}");
}
