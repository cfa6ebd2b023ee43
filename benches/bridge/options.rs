//! What can be asked of the benchmark.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Measures the bridge against a private broker and simulated devices on this machine.
///
/// Without options everything is measured, in about a quarter of an hour on two cores.
#[derive(Debug, Parser)]
#[command(name = "./dev bench")]
pub(crate) struct Options {
    /// Fewer cells and runs, in two to three minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART,...")]
    pub(crate) only: Vec<Part>,
    /// Drain at these prefetch counts [default: 1,16,256; quick: 1,256]
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    prefetch: Vec<u16>,
    /// Drain to so many devices [default: 1,100,1000,10000; quick: 100,1000]
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    devices: Vec<usize>,
    /// Commands of one drain [default: what takes some five seconds; quick: half]
    #[arg(long, value_name = "N")]
    commands: Option<u64>,
    /// Times each figure is taken [default: 3; quick: 1]
    #[arg(long, value_name = "K")]
    runs: Option<usize>,
    /// Commands a second while latency is measured at prefetch 256 [default: half the rate measured there]
    #[arg(long, value_name = "N")]
    pub(crate) latency_rate: Option<u64>,
    /// Bridges of the cluster
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) bridges: usize,
    /// Devices of each bridge of the cluster
    #[arg(long, value_name = "N", default_value_t = 15_000)]
    pub(crate) devices_each: usize,
    /// Write the figures as JSON, too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw the rates from a full queue as SVG, too
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Exit with 1 if a target is missed
    #[arg(long)]
    pub(crate) check: bool,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
}

/// What this program is when the benchmark starts itself as a child.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Role {
    /// The simulated devices
    #[command(hide = true)]
    Devices { first: usize },
    /// The consumer that only acknowledges
    #[command(hide = true)]
    BareConsumer { port: u16, prefetch: u16, count: u64 },
    /// Those who flood the bridge at this port
    #[command(hide = true)]
    Flooders { port: u16 },
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// A consumer that only acknowledges
    Consumer,
    /// The bridge and the bridge in C, from a full queue to the devices
    Drain,
    /// The bridge with `received` and with `written`
    Proof,
    /// From the intended time of publication to the device, at half load: the bridge and the bridge in C
    Latency,
    /// User memory of an idle device
    Memory,
    /// Many devices connecting at once
    Connect,
    /// One command for all of many devices
    Group,
    /// The latency of commands while others flood the bridge with connections
    Flood,
    /// Several bridges as one, with many devices; only if it is named, because of the memory it takes
    Cluster,
}

impl Options {
    pub(crate) fn wants(&self, part: Part) -> bool {
        (self.only.is_empty() && part != Part::Cluster) || self.only.contains(&part)
    }

    pub(crate) fn prefetch(&self) -> &[u16] {
        match (&self.prefetch[..], self.quick) {
            ([], true) => &[1, 256],
            ([], false) => &[1, 16, 256],
            (chosen, _) => chosen,
        }
    }

    pub(crate) fn devices(&self) -> &[usize] {
        match (&self.devices[..], self.quick) {
            ([], true) => &[100, 1_000],
            ([], false) => &[1, 100, 1_000, 10_000],
            (chosen, _) => chosen,
        }
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.unwrap_or(if self.quick { 1 } else { 3 }).max(1)
    }

    pub(crate) fn commands(&self, prefetch: u16) -> u64 {
        // Four seconds or more on two cores: of less the noise is as large as what is looked for.
        let full = match prefetch {
            ..8 => 40_000,
            8..64 => 120_000,
            64.. => 300_000,
        };
        self.commands.unwrap_or(if self.quick { full / 2 } else { full }).max(2)
    }

    /// Seconds for which latency is measured.
    pub(crate) fn latency_seconds(&self) -> u64 {
        if self.quick { 3 } else { 10 }
    }
}
