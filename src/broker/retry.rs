//! `Retry`: the wait between an attempt on a connection and the next.

use std::convert::Infallible;
use std::fmt::Display;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::BrokerError;
use crate::metrics;

/// First and longest wait between two attempts. The jitter adds up to as much again, so the real
/// ones lie between 0.1 s and 10 s, and bridges that lost one broker do not return in step.
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(5);
/// A connection that worked for this long was no flapping one: the waits start over.
const STEADY: Duration = Duration::from_secs(10);

/// The waits of one connection.
pub(crate) struct Retry {
    connection: &'static str,
    waits: ExponentialBackoff,
    began: Instant,
}

impl Retry {
    /// For a first attempt that begins now.
    pub(super) fn new(link: metrics::Link) -> Self {
        Self::of(link.label())
    }

    /// The same on a connection that is named so in the log.
    pub(crate) fn of(connection: &'static str) -> Self {
        Self { connection, waits: waits(), began: Instant::now() }
    }

    /// Says why the attempt failed, and waits until the next may begin. False if `stop` came first.
    pub(crate) async fn wait(&mut self, error: &impl Display, stop: &CancellationToken) -> bool {
        if self.began.elapsed() >= STEADY {
            self.waits = waits();
        }
        let wait = self.waits.next().unwrap_or(WAIT_MAX);
        warn!(connection = self.connection, retry_in_ms = wait.as_millis(), "{error}");
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(wait) => {}
        }
        self.began = Instant::now();
        true
    }
}

/// Makes one attempt after the other, for as long as it is polled.
pub(super) async fn for_ever<F>(connection: &'static str, attempt: impl Fn() -> F) -> Infallible
where
    F: Future<Output = Result<Infallible, BrokerError>>,
{
    let never = CancellationToken::new();
    let mut retry = Retry::of(connection);
    loop {
        let Err(error) = attempt().await;
        retry.wait(&error, &never).await;
    }
}

fn waits() -> ExponentialBackoff {
    waits_between(WAIT_MIN, WAIT_MAX)
}

/// Waits without end that double from `first` to `last`, each with up to as much again by lot.
pub(super) fn waits_between(first: Duration, last: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(last)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_between_a_tenth_and_ten_seconds() {
        let waits: Vec<Duration> = waits().take(50).collect();
        let bounds = Duration::from_millis(100)..=Duration::from_secs(10);
        assert!(waits.iter().all(|wait| bounds.contains(wait)), "{waits:?}");
        assert!(waits[0] < Duration::from_millis(200) && waits[49] >= WAIT_MAX);
    }
}
