//! What a flood of connections does to those that are honest.
//!
//! The load of `latency`, twice on one bridge with the same devices: first quiet, then while a process of its own
//! holds connections that say nothing and others that send a byte a second, and makes and resets 2,000 a second
//! (see `flooders`). They come from other addresses than the devices: to the devices' own listener, where identity
//! `ip` makes each of them a device that is registered and reported; or to a second one, whose devices have to say
//! who they are, which none of them does. There the bridge keeps `DEVICE_UNKNOWN_MAX` of them and closes the others,
//! who come again, a thousand a second; how many are held at the end is said beside. Every command must arrive.
//!
//! The first load begins when the bridge is idle, the second when all connections that are held have been made, and
//! the ratio is taken within each pair. The flooders run on the same processors, so part of what they do to the
//! latency is not the bridge's doing; how much of a processor they take is said beside.

use std::{io::Write, process::ChildStdin, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    bridge::{Bridge, Kind},
    broker::Broker,
    drain::with_devices,
    flooders::Counts,
    latency::{self, Plan, Timed},
    load::{Load, QUEUE},
    process::{Lines, Process, piped},
    publisher::Publisher,
    stats::{Quantiles, Spread},
};

/// Flooders that do not answer for this long never will.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

const FIELD: &str = "field";
const FIELD_SETTINGS: [(&str, &str); 2] =
    [("LISTEN_FIELD", "127.0.0.1:0"), ("LISTEN_FIELD_IDENTITY", "hello")];

/// Which listener is flooded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Front {
    /// The devices' own, where an address is a device.
    Ip,
    /// Another one, where devices say who they are.
    Hello,
}

impl Front {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Ip => "the same (ip)",
            Self::Hello => "another (hello)",
        }
    }
}

/// The figures of a cell; times in microseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FloodReport {
    pub(crate) flooded: Front,
    pub(crate) plan: Plan,
    pub(crate) quiet_us: Quantiles,
    pub(crate) flooded_us: Quantiles,
    pub(crate) ratio: Quantiles,
    pub(crate) flood: FloodFigures,
    pub(crate) runs: Vec<Run>,
}

/// What the flood was, of each second while the devices had their commands.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct FloodFigures {
    pub(crate) resets: Spread,
    pub(crate) bytes: Spread,
    pub(crate) failed: Spread,
    /// Connections held that the bridge closed.
    pub(crate) closed: Spread,
    /// Connections held at the end.
    pub(crate) held: Spread,
    /// Processors that the flooders themselves took.
    pub(crate) processors: Spread,
    /// Processors that the bridge took meanwhile.
    pub(crate) bridge_processors: Spread,
}

/// One load while quiet and one in the flood.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) quiet: Timed,
    pub(crate) flooded: Timed,
    pub(crate) before: Counts,
    pub(crate) after: Counts,
}

impl FloodReport {
    /// One line for the progress of a run.
    pub(crate) fn summary(&self) -> String {
        let Self { quiet_us: quiet, flooded_us: flooded, ratio, .. } = self;
        format!(
            "flood of {}: p50 {} us, quiet {} us, ratio {:.2}; p99 {} us, quiet {} us, ratio {:.2}",
            self.flooded.label(),
            flooded.p50,
            quiet.p50,
            ratio.p50,
            flooded.p99,
            quiet.p99,
            ratio.p99
        )
    }
}

/// Floods a listener `runs` times.
pub(crate) fn measure(
    broker: &Broker,
    plan: Plan,
    front: Front,
    runs: usize,
) -> Result<FloodReport> {
    let runs: Vec<_> = (0..runs).map(|_| once(broker, plan, front)).collect::<Result<_>>()?;
    let quantiles = |of: fn(&Run) -> (f64, f64)| runs.iter().map(of).collect();
    let a_second = |of: fn(&Counts) -> f64| runs.iter().map(|run| run.a_second(of)).collect();
    Ok(FloodReport {
        flooded: front,
        plan,
        quiet_us: quantiles(|run| run.quiet.p50_p99()),
        flooded_us: quantiles(|run| run.flooded.p50_p99()),
        ratio: quantiles(|run| run.flooded.times_as_long_as(&run.quiet)),
        flood: FloodFigures {
            resets: a_second(|counts| counts.resets as f64),
            bytes: a_second(|counts| counts.bytes as f64),
            failed: a_second(|counts| counts.failed as f64),
            closed: a_second(|counts| counts.closed as f64),
            held: runs.iter().map(|run| run.after.held as f64).collect(),
            processors: a_second(|counts| counts.cpu.as_secs_f64()),
            bridge_processors: runs
                .iter()
                .map(|run| run.flooded.cpu_us * plan.rate as f64 / 1e6)
                .collect(),
        },
        runs,
    })
}

impl Run {
    /// How much of this there was in each second of the flood.
    fn a_second(&self, of: fn(&Counts) -> f64) -> f64 {
        let seconds = self.after.at_us.saturating_sub(self.before.at_us).max(1) as f64 / 1e6;
        (of(&self.after) - of(&self.before)) / seconds
    }
}

fn once(broker: &Broker, plan: Plan, front: Front) -> Result<Run> {
    let mut publisher = Publisher::connect(broker.port)?;
    publisher.declare(QUEUE)?;
    publisher.purge(QUEUE)?;
    let bridge = match front {
        Front::Ip => Bridge::start(Kind::Rabbitline, broker, plan.prefetch, plan.devices)?,
        Front::Hello => Bridge::start_with(broker, plan.prefetch, &FIELD_SETTINGS)?,
    };
    let port = match front {
        Front::Ip => bridge.device_port,
        Front::Hello => bridge.port_of(FIELD)?,
    };
    let (bridge, mut devices) = with_devices(bridge, plan.devices)?;
    let mut load = Load::for_devices(plan.devices)?;

    bridge.wait_idle()?;
    let quiet = latency::under(&mut load, &mut publisher, &bridge, &mut devices, plan)?;
    let mut flooders = Flooders::start(port)?;
    let before = flooders.counts()?;
    let flooded = latency::under(&mut load, &mut publisher, &bridge, &mut devices, plan)
        .context("in the flood")?;
    let after = flooders.counts()?;
    Ok(Run { quiet, flooded, before, after })
}

/// The plan of all cells.
pub(crate) fn plan(seconds: u64) -> Plan {
    Plan { prefetch: 256, devices: 1_000, rate: 1_000, seconds }
}

/// The process of the flooders, seen from the benchmark.
#[derive(Debug)]
struct Flooders {
    input: ChildStdin,
    answers: Lines,
    _process: Process,
}

impl Flooders {
    /// Starts them and waits until they have made all connections that they hold.
    fn start(port: u16) -> Result<Self> {
        let program = std::env::current_exe()?;
        let program = program.to_str().context("the benchmark's own path is not UTF-8")?;
        let mut command = piped(program);
        command.args(["flooders", &port.to_string()]);
        let mut process = Process::start("flooders", &mut command)?;
        let flooders =
            Self { input: process.input()?, answers: process.lines()?, _process: process };
        flooders.answer().map(|_| flooders)
    }

    /// What they have done so far.
    fn counts(&mut self) -> Result<Counts> {
        writeln!(self.input).context("the flooders are gone")?;
        self.answer()
    }

    fn answer(&self) -> Result<Counts> {
        let line = self.answers.next(ANSWER_LIMIT)?;
        serde_json::from_str(&line).with_context(|| format!("the flooders said {line:?}"))
    }
}
