//! `Settlement`: the duty to settle one AMQP delivery, exactly once.
//!
//! The consumer makes one for each delivery. Whoever learns the fate of the command consumes it.
//! Dropping one unsettled is a bug: it is logged and counted, and the message, never acknowledged,
//! is delivered again. A settlement outlives its AMQP channel harmlessly: the broker delivers
//! again what a dead channel held, so there is then nothing left to settle.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::error;

use crate::gathering::Gathering;
use crate::metrics::Metrics;

/// What becomes of a delivery; the number is its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Acknowledge it.
    Ack(u64),
    /// Leave it: it is delivered again once its channel closes.
    Return(u64),
}

/// The duty to settle one delivery, or a share of it.
#[derive(Debug)]
pub struct Settlement {
    duty: Duty,
    forgotten: Option<Metrics>,
}

#[derive(Debug)]
enum Duty {
    Whole {
        tag: u64,
        verdicts: mpsc::Sender<Verdict>,
    },
    /// One of several orders that one delivery is for.
    Share(Arc<Gathering>),
}

impl Settlement {
    /// The duty for the delivery `tag`. `verdicts` leads to the task that holds its channel and
    /// has room for every delivery that can be unsettled at once.
    pub fn new(tag: u64, verdicts: mpsc::Sender<Verdict>, metrics: Metrics) -> Self {
        Self { duty: Duty::Whole { tag, verdicts }, forgotten: Some(metrics) }
    }

    /// A share of a delivery that is for many.
    pub(crate) fn share_of(gathering: &Arc<Gathering>, metrics: Metrics) -> Self {
        Self { duty: Duty::Share(Arc::clone(gathering)), forgotten: Some(metrics) }
    }

    /// The delivery it is a share of, if it is one.
    pub(crate) fn gathering(&self) -> Option<&Gathering> {
        match &self.duty {
            Duty::Whole { .. } => None,
            Duty::Share(gathering) => Some(gathering),
        }
    }

    /// Whether the channel still stands. If not, the broker delivers the message again, and doing
    /// its work here too would do it twice.
    pub fn is_live(&self) -> bool {
        match &self.duty {
            Duty::Whole { verdicts, .. } => !verdicts.is_closed(),
            Duty::Share(gathering) => gathering.is_live(),
        }
    }

    /// Settles it from any task: the consumer acknowledges the delivery.
    pub fn settle(self) {
        self.end(false);
    }

    /// Settles it inside the consumer, which acknowledges the tag itself, if there is one to
    /// acknowledge.
    pub fn settle_here(mut self) -> Option<u64> {
        if let Duty::Whole { tag, .. } = &self.duty {
            self.forgotten = None;
            return Some(*tag);
        }
        self.settle();
        None
    }

    /// Gives the delivery back: unacknowledged, it is delivered again once its channel closes.
    pub fn hand_back(self) {
        self.end(true);
    }

    fn end(mut self, returned: bool) {
        self.forgotten = None;
        let (tag, verdicts) = match &self.duty {
            Duty::Whole { tag, verdicts } => (*tag, verdicts),
            Duty::Share(gathering) => {
                gathering.share_done(returned);
                return;
            }
        };
        let verdict = if returned { Verdict::Return(tag) } else { Verdict::Ack(tag) };
        match verdicts.try_send(verdict) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(verdict)) => {
                error!(
                    ?verdict,
                    "no room for a verdict, which must not happen; the message will be delivered again."
                );
            }
        }
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if let Some(metrics) = self.forgotten.take() {
            metrics.settlement_forgotten();
            error!(duty = ?self.duty, "a delivery was dropped unsettled; it will be delivered again.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_verdict_reaches_the_consumer_once() {
        let (verdicts, mut consumer) = mpsc::channel(1);
        let metrics = Metrics::new();
        Settlement::new(7, verdicts.clone(), metrics.clone()).settle();
        assert_eq!(consumer.recv().await, Some(Verdict::Ack(7)));
        assert_eq!(Settlement::new(8, verdicts.clone(), metrics.clone()).settle_here(), Some(8));
        Settlement::new(9, verdicts, metrics.clone()).hand_back();
        assert_eq!(consumer.recv().await, Some(Verdict::Return(9)));
        assert_eq!(consumer.recv().await, None);
        assert!(metrics.encode().contains("rabbitline_settlements_forgotten_total 0"));
    }

    #[test]
    fn a_forgotten_one_is_counted_and_not_acknowledged() {
        let (verdicts, mut consumer) = mpsc::channel(1);
        let metrics = Metrics::new();
        drop(Settlement::new(7, verdicts, metrics.clone()));
        assert!(consumer.try_recv().is_err());
        assert!(metrics.encode().contains("rabbitline_settlements_forgotten_total 1"));
    }

    #[test]
    fn one_of_a_dead_channel_is_not_live_and_settles_to_nothing() {
        let (verdicts, consumer) = mpsc::channel(1);
        let settlement = Settlement::new(7, verdicts, Metrics::new());
        assert!(settlement.is_live());
        drop(consumer);
        assert!(!settlement.is_live());
        settlement.settle();
    }
}
