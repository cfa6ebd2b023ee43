//! What was measured, as a table for people and as JSON for programs.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::{
    bridge::Kind,
    cluster::{self, ClusterReport},
    connections::{ConnectReport, MemoryReport},
    drain::{CellReport, CpuOf, Side},
    flood::FloodReport,
    group::GroupReport,
    latency::{LatencyReport, LatencySide},
    machine::Machine,
    stats::Spread,
    targets::Target,
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

impl Report {
    pub(crate) fn all_targets_met(&self) -> bool {
        self.targets.iter().all(|target| target.met)
    }

    /// Our median rate in this cell, if it was measured.
    pub(crate) fn rate(&self, prefetch: u16, devices: usize) -> Option<f64> {
        self.cell(prefetch, devices).map(|cell| cell.rabbitline.rate.median)
    }

    pub(crate) fn cell(&self, prefetch: u16, devices: usize) -> Option<&CellReport> {
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

impl fmt::Display for CpuOf<Spread> {
    /// The medians, with the precision asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let [bridge, broker, devices] =
            [self.bridge, self.broker, self.devices].map(|of| of.median);
        write!(f, "{bridge:.digits$} / {broker:.digits$} / {devices:.digits$}")
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
        let rows = self.latency.iter().flat_map(|row| {
            [(Kind::Rabbitline, row.rabbitline), (Kind::LimitInC, row.limit)].map(|(kind, side)| {
                let LatencySide { latency_us, p999_us, max_us, publisher_late_us: late, cpu_us } =
                    side;
                [
                    kind.label().to_owned(),
                    row.plan.prefetch.to_string(),
                    row.plan.devices.to_string(),
                    row.plan.rate.to_string(),
                    latency_us.p50.to_string(),
                    latency_us.p99.to_string(),
                    format!("{:.0}", p999_us.median),
                    format!("{:.0}", max_us.median),
                    format!("{:.0} / {:.0}", late.p50.median, late.p99.median),
                    format!("{:.1}", cpu_us.median),
                ]
            })
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
        )?;
        let rows = self.latency.iter().map(|row| {
            [
                row.plan.prefetch.to_string(),
                row.plan.devices.to_string(),
                row.plan.rate.to_string(),
                format!("{:.2}", row.ratio.p50),
                format!("{:.2}", row.ratio.p99),
            ]
        });
        write_table(
            f,
            "The same, in those of the limit",
            ["prefetch", "devices", "rate/s", "p50", "p99"],
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
