//! `Stats`: how the bridge is now, and how it was in the last hour. What others count, sampled.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::clock::Moment;
use crate::command::Outcome;
use crate::metrics::{Metrics, Reading};
use crate::run::Run;

/// How often a sample is taken: a stall of some seconds shows.
const EVERY: Duration = Duration::from_secs(5);
/// Samples that are kept, an hour of them, at some 120 bytes each.
const SAMPLES_MAX: usize = 720;

/// The bridge now.
#[derive(Debug, Serialize)]
pub(crate) struct Now {
    bridge: String,
    run: String,
    version: &'static str,
    uptime_s: u64,
    broker: Broker,
    ready: bool,
    draining: bool,
    devices: i64,
    /// Commands that wait in lanes.
    lanes: i64,
    unsettled: i64,
    parked: i64,
    outcomes: BTreeMap<&'static str, u64>,
    undelivered: u64,
}

#[derive(Debug, Serialize)]
struct Broker {
    consumer: bool,
    publisher: bool,
    blocked: bool,
}

/// The last hour, oldest first.
#[derive(Debug, Serialize)]
pub(crate) struct History {
    every_s: u64,
    samples: Vec<Sample>,
}

/// What happened in `EVERY`, and how it was at its end.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    at_ms: u64,
    /// Commands by outcome; words that did not occur are not there.
    outcomes: BTreeMap<&'static str, u64>,
    /// How long deliveries took from their arrival, if there were any.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    devices: i64,
    lanes: i64,
    consumer: bool,
    publisher: bool,
}

/// Samples metrics, and tells what it has.
#[derive(Debug)]
pub(crate) struct Stats {
    metrics: Metrics,
    run: Run,
    began: Instant,
    /// Held for one sample or one look, never across an await.
    past: Mutex<Past>,
}

#[derive(Debug)]
struct Past {
    last: Reading,
    samples: VecDeque<Sample>,
}

impl Stats {
    pub(crate) fn new(metrics: Metrics, run: Run) -> Self {
        let past = Past { last: metrics.read(), samples: VecDeque::new() };
        Self { metrics, run, began: Instant::now(), past: Mutex::new(past) }
    }

    /// Takes samples until it is aborted.
    pub(crate) async fn sample(self: Arc<Self>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first comes at once.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.lock().take(self.metrics.read(), Moment::now().wall_ms);
        }
    }

    /// The bridge now; whether it is ready, or about to end, others know.
    pub(crate) fn now(&self, ready: bool, draining: bool) -> Now {
        let now = self.metrics.read();
        Now {
            bridge: self.run.bridge.to_string(),
            run: self.run.name.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.began.elapsed().as_secs(),
            broker: Broker {
                consumer: now.consumer,
                publisher: now.publisher,
                blocked: now.blocked,
            },
            ready,
            draining,
            devices: now.devices,
            lanes: now.lanes,
            unsettled: now.unsettled,
            parked: now.parked,
            outcomes: by_word(&now.outcomes).collect(),
            undelivered: now.undelivered,
        }
    }

    /// The last hour, as far as it came after `after_ms`.
    pub(crate) fn history(&self, after_ms: u64) -> History {
        let past = self.lock();
        let later = past.samples.iter().filter(|sample| sample.at_ms > after_ms);
        let samples = later.cloned().collect();
        History { every_s: EVERY.as_secs(), samples }
    }

    fn lock(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Past {
    fn take(&mut self, now: Reading, at_ms: u64) {
        let last = std::mem::replace(&mut self.last, now);
        let now = &self.last;
        let counts = now.latency.since(&last.latency);
        let ms = |part| counts.quantile(part).map(|took| took.as_secs_f64() * 1e3);
        let before: BTreeMap<_, _> = by_word(&last.outcomes).collect();
        let since = |(word, count): (&'static str, u64)| {
            (word, count - before.get(word).copied().unwrap_or_default().min(count))
        };
        let sample = Sample {
            at_ms,
            outcomes: by_word(&now.outcomes).map(since).filter(|(_, count)| *count > 0).collect(),
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            devices: now.devices,
            lanes: now.lanes,
            consumer: now.consumer,
            publisher: now.publisher,
        };
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }
}

fn by_word(outcomes: &[u64; Outcome::ALL.len()]) -> impl Iterator<Item = (&'static str, u64)> {
    Outcome::ALL.map(Outcome::label).into_iter().zip(*outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Link;

    fn stats() -> Stats {
        Stats::new(Metrics::new(), Run::of_a_test())
    }

    fn sample(stats: &Stats, at_ms: u64) {
        stats.lock().take(stats.metrics.read(), at_ms);
    }

    #[test]
    fn a_sample_tells_what_happened_since_the_one_before() {
        let stats = stats();
        stats.metrics.command(Outcome::Written);
        stats.metrics.delivered(None, Duration::from_millis(8));
        stats.metrics.broker_up(Link::Consumer, true);
        stats.metrics.devices(7);
        sample(&stats, 5_000);
        stats.metrics.command(Outcome::Offline);
        stats.metrics.command(Outcome::Offline);
        sample(&stats, 10_000);
        let told = serde_json::to_value(stats.history(0)).expect("JSON");
        let [first, second] = told["samples"].as_array().expect("a list").as_slice() else {
            panic!("{told}");
        };
        assert_eq!(first["outcomes"], serde_json::json!({"written": 1}));
        let p99 = first["p99_ms"].as_f64().expect("a time");
        assert!((8.0..8.6).contains(&p99) && first["consumer"] == true, "{first}");
        assert_eq!(second["outcomes"], serde_json::json!({"offline": 2}));
        assert_eq!((&second["p50_ms"], &second["devices"]), (&serde_json::Value::Null, &7.into()));
        let now = serde_json::to_value(stats.now(true, false)).expect("JSON");
        assert_eq!(
            (&now["outcomes"]["offline"], &now["outcomes"]["parked"]),
            (&2.into(), &0.into())
        );
    }

    #[test]
    fn the_last_hour_is_kept() {
        let stats = stats();
        (0..SAMPLES_MAX as u64 + 3).for_each(|at_ms| sample(&stats, at_ms));
        let history = stats.history(0);
        assert_eq!((history.samples.len(), history.samples[0].at_ms), (SAMPLES_MAX, 3));
        assert_eq!(stats.history(SAMPLES_MAX as u64).samples.len(), 2, "what came later");
    }
}
