//! `Latency`: how long deliveries took, counted so that quantiles of a few seconds can be told.
//!
//! Sixteen buckets to each doubling, so none is wider than a sixteenth of what it stands for. To count
//! costs one addition.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets to a doubling, as a power of two.
const FINENESS: u32 = 4;
const FINE: u64 = 1 << FINENESS;
/// Two minutes in microseconds, and all that takes longer: nobody waits for more than `timeout_ms`.
const DOUBLINGS: u32 = 27;
const BUCKETS: usize = ((DOUBLINGS - FINENESS + 1) * (1 << FINENESS)) as usize;

/// Counts by how long it took.
#[derive(Debug)]
pub(super) struct Latency([AtomicU64; BUCKETS]);

/// What was counted up to a moment, or between two.
#[derive(Debug, Clone)]
pub(crate) struct Counts(Box<[u64]>);

impl Latency {
    pub(super) fn new() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }

    pub(super) fn count(&self, took: Duration) {
        if let Some(bucket) = self.0.get(bucket(took)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts(self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect())
    }
}

impl Counts {
    /// What was counted since.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let each = self.0.iter().zip(&earlier.0);
        Self(each.map(|(now, then)| now.saturating_sub(*then)).collect())
    }

    /// The time within which this part of them was done; None if there were none.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let all: u64 = self.0.iter().sum();
        let rank = ((all as f64 * part).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        let reaches = |count: &u64| {
            seen += count;
            seen >= rank
        };
        self.0.iter().position(reaches).map(|index| Duration::from_micros(end(index)))
    }
}

fn bucket(took: Duration) -> usize {
    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min((1 << DOUBLINGS) - 1);
    let doublings = us.max(1).ilog2().saturating_sub(FINENESS);
    // Below the first doubling each microsecond has a bucket; above it the leading bits say which.
    (u64::from(doublings) * FINE + (us >> doublings)) as usize
}

/// The longest time, in microseconds, that a bucket stands for.
fn end(index: usize) -> u64 {
    let index = index as u64;
    let doublings = (index / FINE).saturating_sub(1);
    let leading = index - doublings * FINE;
    ((leading + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_that_ends_little_after_it() {
        let around = |bits: u32| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1];
        for us in (0..5_000).chain((13..27).flat_map(around)) {
            let index = bucket(Duration::from_micros(us));
            assert!(index < BUCKETS, "{us}");
            let end = end(index);
            assert!(us <= end && end <= us + us / FINE, "{us}: {end}");
            let before = us.checked_sub(1).map_or(0, |us| bucket(Duration::from_micros(us)));
            assert!(before <= index && index <= before + 1, "{us}: {before}, {index}");
        }
        assert_eq!(bucket(Duration::from_secs(1_000_000)), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_counted_since() {
        let latency = Latency::new();
        (0..50).for_each(|_| latency.count(Duration::from_secs(9)));
        let before = latency.counts();
        (1..=100).for_each(|ms| latency.count(Duration::from_millis(ms)));
        let since = latency.counts().since(&before);
        let ms = |part: f64| since.quantile(part).expect("some").as_secs_f64() * 1e3;
        assert!((50.0..54.0).contains(&ms(0.5)), "{}", ms(0.5));
        assert!((99.0..106.0).contains(&ms(0.99)), "{}", ms(0.99));
        assert_eq!(before.since(&before).quantile(0.5), None);
    }
}
