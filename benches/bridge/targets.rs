//! What is promised, and whether it is kept.

use std::fmt;

use serde::Serialize;

use crate::{
    flood::Front,
    latency::{LatencyReport, Plan},
    report::Report,
};

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

/// What a target is called, what was measured of it, and what is wanted.
type Wanted = (String, Option<f64>, Bound);

/// How many times as long a command may take in a flood.
const FLOODED: Bound = Bound::AtMost(5.0);

impl Report {
    /// Holds what was measured against what is promised; what was not measured is not judged.
    pub(crate) fn judge(&mut self) {
        let wanted = [
            self.wanted_of_drains(),
            self.wanted_of_latency(),
            self.wanted_of_the_rest(),
            self.wanted_of_floods(),
        ];
        let judged = wanted.into_iter().flatten().filter_map(|(what, measured, wanted)| {
            let measured = measured?;
            Some(Target { what, measured, wanted, met: wanted.holds(measured) })
        });
        self.targets = judged.collect();
    }

    fn wanted_of_drains(&self) -> Vec<Wanted> {
        let mut all = Vec::new();
        for (prefetch, devices) in [(1, 1_000), (1, 10_000), (256, 1_000), (256, 10_000)] {
            let ratio = self.cell(prefetch, devices).map(|cell| cell.ratio.median);
            let what = format!("rate / limit, prefetch {prefetch}, {devices} devices");
            all.push((what, ratio, Bound::AtLeast(0.95)));
        }
        for devices in [1_000, 10_000] {
            let ratio = self
                .cell(256, devices)
                .map(|cell| cell.rabbitline.cpu_us.bridge.median / cell.limit.cpu_us.bridge.median);
            let what = format!("processor time / limit's, prefetch 256, {devices} devices");
            all.push((what, ratio, Bound::AtMost(1.5)));
        }
        // Ten thousand sockets are cold in every cache, the devices' own included, which are on the
        // same machine: the limit in C slows down as well. What is ours is what we lose beyond that.
        let growth = |prefetch| {
            let (many, few) = (self.cell(prefetch, 10_000)?, self.cell(prefetch, 100)?);
            let ours = many.rabbitline.rate.median / few.rabbitline.rate.median;
            Some(ours / (many.limit.rate.median / few.limit.rate.median).min(1.0))
        };
        for prefetch in [1, 256] {
            let what = format!("10,000 devices / 100, to the limit's, prefetch {prefetch}");
            all.push((what, growth(prefetch), Bound::AtLeast(0.9)));
        }
        all
    }

    fn wanted_of_latency(&self) -> Vec<Wanted> {
        let of = |report: &LatencyReport| {
            let Plan { prefetch, rate, .. } = report.plan;
            let what = format!("p99 / limit's, prefetch {prefetch}, {rate} commands/s");
            (what, Some(report.ratio.p99.median), Bound::AtMost(1.5))
        };
        self.latency.iter().map(of).collect()
    }

    fn wanted_of_the_rest(&self) -> Vec<Wanted> {
        let registered = self.connect.iter().find(|report| report.devices == 1_000);
        let wanted = [
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
        ];
        wanted.map(|(what, measured, wanted)| (what.to_owned(), measured, wanted)).into()
    }

    fn wanted_of_floods(&self) -> Vec<Wanted> {
        let mut all = Vec::new();
        for (front, listener) in [(Front::Ip, "the same"), (Front::Hello, "another")] {
            let flood = self.flood.iter().find(|report| report.flooded == front);
            let ratio = flood.map(|flood| flood.ratio);
            for (quantile, of) in [("p50", ratio.map(|it| it.p50)), ("p99", ratio.map(|it| it.p99))]
            {
                let what = format!("flooded / quiet, {quantile}, {listener} listener");
                all.push((what, of.map(|of| of.median), FLOODED));
            }
        }
        all
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

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
        }
    }
}
