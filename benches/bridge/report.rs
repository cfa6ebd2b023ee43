//! What was measured, as a table for people and as JSON for programs, and which targets it meets.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::{
    cluster::{self, ClusterReport},
    connections::{ConnectReport, MemoryReport},
    drain::{CellReport, CpuOf, Side},
    flood::{FloodReport, Front},
    group::GroupReport,
    latency::LatencyReport,
    machine::Machine,
    stats::Spread,
};

/// All figures of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) runs: usize,
    pub(crate) consumer: Vec<ConsumerReport>,
    pub(crate) drain: Vec<CellReport>,
    /// `received`, held against `written`.
    pub(crate) proof: Vec<CellReport>,
    pub(crate) latency: Vec<LatencyReport>,
    pub(crate) connect: Vec<ConnectReport>,
    pub(crate) memory: Option<MemoryReport>,
    pub(crate) group: Option<GroupReport>,
    pub(crate) flood: Vec<FloodReport>,
    pub(crate) cluster: Vec<ClusterReport>,
    pub(crate) targets: Vec<Target>,
}

/// The consumer that only acknowledges.
#[derive(Debug, Serialize)]
pub(crate) struct ConsumerReport {
    pub(crate) prefetch: u16,
    pub(crate) commands: u64,
    #[serde(flatten)]
    pub(crate) side: Side,
}

/// A promise and what was measured of it.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) wanted: Bound,
    pub(crate) met: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// How many times as long a command may take in a flood.
const FLOODED: Bound = Bound::AtMost(5.0);

impl Report {
    /// Holds what was measured against what is promised; what was not measured is not judged.
    pub(crate) fn judge(&mut self) {
        let ratio = |prefetch, devices| self.cell(prefetch, devices).map(|cell| cell.ratio.median);
        // Ten thousand sockets are cold in every cache, the devices' own included, which are on the
        // same machine: the limit in C slows down as well. What is ours is what we lose beyond that.
        let growth = |prefetch| {
            let (many, few) = (self.cell(prefetch, 10_000)?, self.cell(prefetch, 100)?);
            let ours = many.rabbitline.rate.median / few.rabbitline.rate.median;
            Some(ours / (many.limit.rate.median / few.limit.rate.median).min(1.0))
        };
        let flood = |front, of: fn(&FloodReport) -> Spread| {
            self.flood.iter().find(|report| report.flooded == front).map(|it| of(it).median)
        };
        let registered = self.connect.iter().find(|report| report.devices == 1_000);
        let candidates = [
            ("rate / limit, prefetch 1, 100 devices", ratio(1, 100), Bound::AtLeast(0.75)),
            ("rate / limit, prefetch 256, 1,000 devices", ratio(256, 1_000), Bound::AtLeast(0.75)),
            ("10,000 devices / 100, to the limit's, prefetch 1", growth(1), Bound::AtLeast(0.9)),
            (
                "10,000 devices / 100, to the limit's, prefetch 256",
                growth(256),
                Bound::AtLeast(0.9),
            ),
            (
                "received / written, prefetch 256, 1,000 devices",
                self.proof.first().map(|report| report.ratio.median),
                Bound::AtLeast(0.6),
            ),
            (
                "ms until 1,000 are registered",
                registered.map(|it| it.registered_ms.median),
                Bound::AtMost(1e3),
            ),
            (
                "KiB for an idle device",
                self.memory.map(|memory| memory.kib_per_device),
                Bound::AtMost(2.0),
            ),
            (
                "flooded / quiet, p50, the same listener",
                flood(Front::Ip, |it| it.ratio.p50),
                FLOODED,
            ),
            (
                "flooded / quiet, p99, the same listener",
                flood(Front::Ip, |it| it.ratio.p99),
                FLOODED,
            ),
            (
                "flooded / quiet, p50, another listener",
                flood(Front::Hello, |it| it.ratio.p50),
                FLOODED,
            ),
            (
                "flooded / quiet, p99, another listener",
                flood(Front::Hello, |it| it.ratio.p99),
                FLOODED,
            ),
        ];
        let judged = candidates.into_iter().filter_map(|(what, measured, wanted)| {
            let measured = measured?;
            Some(Target { what: what.to_owned(), measured, wanted, met: wanted.holds(measured) })
        });
        self.targets = judged.collect();
    }

    pub(crate) fn all_targets_met(&self) -> bool {
        self.targets.iter().all(|target| target.met)
    }

    /// Our median rate in this cell, if it was measured.
    pub(crate) fn rate(&self, prefetch: u16, devices: usize) -> Option<f64> {
        self.cell(prefetch, devices).map(|cell| cell.rabbitline.rate.median)
    }

    fn cell(&self, prefetch: u16, devices: usize) -> Option<&CellReport> {
        self.drain
            .iter()
            .find(|report| report.cell.prefetch == prefetch && report.cell.devices == devices)
    }
}

impl CellReport {
    /// Where it is, our side, the other, and how they compare.
    fn row(&self) -> [String; 7] {
        [
            self.cell.prefetch.to_string(),
            self.cell.devices.to_string(),
            self.rabbitline.rate.to_string(),
            self.limit.rate.to_string(),
            format!("{:.2}", self.ratio),
            format!("{:.1}", self.rabbitline.cpu_us),
            format!("{:.1}", self.limit.cpu_us),
        ]
    }
}

impl Bound {
    fn holds(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(bound) => measured >= bound,
            Self::AtMost(bound) => measured <= bound,
        }
    }
}

impl fmt::Display for CpuOf<Spread> {
    /// The medians, with the precision asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let [bridge, broker, devices] =
            [self.bridge, self.broker, self.devices].map(|of| of.median);
        write!(f, "{bridge:.digits$} / {broker:.digits$} / {devices:.digits$}")
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nfigures: median (least-most) of {}", self.machine, self.runs)?;
        self.write_rates(f)?;
        self.write_latency(f)?;
        self.write_connections(f)?;
        self.write_group(f)?;
        self.write_flood(f)?;
        cluster::write(&self.cluster, f)?;
        self.write_targets(f)
    }
}

impl Report {
    fn write_rates(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.consumer.iter().map(|row| {
            let Side { rate, cpu_us } = row.side;
            [
                row.prefetch.to_string(),
                rate.to_string(),
                format!("{:.1}", cpu_us.bridge),
                format!("{:.1}", cpu_us.broker),
            ]
        });
        write_table(
            f,
            "A consumer (lapin) that only acknowledges",
            ["prefetch", "messages/s", "CPU us/message", "broker's"],
            rows.collect(),
        )?;
        write_table(
            f,
            "From a full queue to the devices: rabbitline and the limit, a bridge in C without checks\n\
             (CPU: microseconds a command of the bridge / the broker / the simulated devices)",
            ["prefetch", "devices", "commands/s", "limit/s", "ratio", "CPU", "limit's CPU"],
            self.drain.iter().map(CellReport::row).collect(),
        )?;
        write_table(
            f,
            "The same with confirm `received`, held against `written`",
            ["prefetch", "devices", "received/s", "written/s", "ratio", "CPU", "written's CPU"],
            self.proof.iter().map(CellReport::row).collect(),
        )
    }

    fn write_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.latency.iter().map(|row| {
            [
                row.plan.bridge.label().to_owned(),
                row.plan.prefetch.to_string(),
                row.plan.devices.to_string(),
                row.plan.rate.to_string(),
                row.latency_us.p50.to_string(),
                row.latency_us.p99.to_string(),
                row.latency_us.p999.to_string(),
                row.latency_us.max.to_string(),
                format!("{} / {}", row.publisher_late_us.p50, row.publisher_late_us.p99),
                format!("{:.1}", row.cpu_us),
            ]
        });
        write_table(
            f,
            "Microseconds from the intended time of publication to the device (of it, publisher late: p50 / p99)",
            [
                "bridge",
                "prefetch",
                "devices",
                "rate/s",
                "p50",
                "p99",
                "p99.9",
                "max",
                "late",
                "CPU us/command",
            ],
            rows.collect(),
        )
    }

    fn write_connections(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.connect.iter().map(|row| {
            [
                row.devices.to_string(),
                row.registered_ms.to_string(),
                format!("{:.0} / {:.0}", row.bridge_cpu_us.median, row.broker_cpu_us.median),
            ]
        });
        write_table(
            f,
            "Devices that connect at once: milliseconds until all are registered (CPU: microseconds a device of the\n\
             bridge / the broker, until its presence event is confirmed)",
            ["devices", "ms", "CPU"],
            rows.collect(),
        )?;
        let rows = self.memory.iter().map(|memory| {
            [
                format!("{:.2}", memory.kib_per_device),
                format!("{} KiB with {}", memory.few_kib, memory.few_devices),
                format!("{} KiB with {}", memory.many_kib, memory.many_devices),
            ]
        });
        write_table(
            f,
            "User memory of rabbitline for an idle device",
            ["KiB/device", "from", "to"],
            rows.collect(),
        )
    }

    fn write_group(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.group.iter().map(|group| {
            [
                group.devices.to_string(),
                format!("{:.0}", group.first_line_ms),
                format!("{:.0}", group.last_line_ms),
                format!("{:.0}", group.last_receipt_ms),
                format!("{:.0}", group.summary_ms),
                format!("{:.1}", group.cpu_us),
            ]
        });
        write_table(
            f,
            "One command for all devices: milliseconds from its publication\n\
             (CPU: microseconds a device of the bridge, its receipt included)",
            ["devices", "first line", "last line", "last receipt", "summary", "CPU"],
            rows.collect(),
        )
    }

    fn write_flood(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.flood.iter().flat_map(|row| {
            let (quiet, flooded, ratio) = (row.quiet_us, row.flooded_us, row.ratio);
            [("p50", quiet.p50, flooded.p50, ratio.p50), ("p99", quiet.p99, flooded.p99, ratio.p99)]
                .map(|(quantile, quiet, flooded, ratio)| {
                    [
                        row.flooded.label().to_owned(),
                        quantile.to_owned(),
                        quiet.to_string(),
                        flooded.to_string(),
                        format!("{ratio:.2}"),
                    ]
                })
        });
        write_table(
            f,
            "A flood of connections: microseconds from the intended time of publication to the device",
            ["flooded listener", "", "quiet", "flooded", "ratio"],
            rows.collect(),
        )?;
        let rows = self.flood.iter().map(|row| {
            let flood = row.flood;
            [
                row.flooded.label().to_owned(),
                flood.resets.to_string(),
                flood.bytes.to_string(),
                flood.held.to_string(),
                flood.closed.to_string(),
                flood.failed.to_string(),
                format!("{:.2}", flood.processors),
                format!("{:.2}", flood.bridge_processors),
            ]
        });
        write_table(
            f,
            "The flood of each second: connections made and reset, single bytes, connections held at the end,\n\
             those that the bridge closed, those that failed, processors that the flooders and the bridge took",
            [
                "flooded listener",
                "resets",
                "bytes",
                "held",
                "closed",
                "failed",
                "CPU",
                "bridge's CPU",
            ],
            rows.collect(),
        )
    }

    fn write_targets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.targets.iter().map(|target| {
            let met = if target.met { "met" } else { "MISSED" };
            [
                target.what.clone(),
                format!("{:.2}", target.measured),
                target.wanted.to_string(),
                met.to_owned(),
            ]
        });
        write_table(f, "Targets", ["what", "measured", "wanted", ""], rows.collect())
    }
}

/// Writes a table with right-aligned columns; none if there are no rows.
pub(crate) fn write_table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    head: [&str; N],
    rows: Vec<[String; N]>,
) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{title}")?;
    let rows = [vec![head.map(str::to_owned)], rows].concat();
    for row in &rows {
        let mut line = String::new();
        for (column, text) in row.iter().enumerate() {
            let width =
                rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
            write!(line, "  {text:>width$}")?;
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
