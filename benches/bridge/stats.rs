//! A figure that was taken several times.

use std::fmt;

use serde::Serialize;

/// The median and the extremes.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// The usual time and the long one.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: Spread,
    pub(crate) p99: Spread,
}

impl FromIterator<(f64, f64)> for Quantiles {
    fn from_iter<I: IntoIterator<Item = (f64, f64)>>(figures: I) -> Self {
        let (p50, p99): (Vec<_>, Vec<_>) = figures.into_iter().unzip();
        Self { p50: p50.into_iter().collect(), p99: p99.into_iter().collect() }
    }
}

impl FromIterator<f64> for Spread {
    /// Of no figures: not a number.
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        let mut sorted: Vec<_> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Self { median: f64::NAN, min: f64::NAN, max: f64::NAN };
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Self { median, min: *min, max: *max }
    }
}

impl fmt::Display for Spread {
    /// `median (min-max)`, or the one figure there is, with the precision asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        write!(f, "{:.digits$}", self.median)?;
        if self.min < self.max {
            write!(f, " ({:.digits$}-{:.digits$})", self.min, self.max)?;
        }
        Ok(())
    }
}
