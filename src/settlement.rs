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

/// Where the verdicts on the deliveries of one AMQP channel go.
#[derive(Debug)]
pub struct Verdicts {
    sender: mpsc::Sender<Verdict>,
    metrics: Metrics,
}

impl Verdicts {
    /// `sender` leads to the task that holds the channel and has room for every delivery that can
    /// be unsettled at once.
    pub fn new(sender: mpsc::Sender<Verdict>, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { sender, metrics })
    }

    fn take(&self, verdict: Verdict) {
        match self.sender.try_send(verdict) {
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

/// The duty to settle one delivery, or a share of it.
#[derive(Debug)]
pub struct Settlement {
    duty: Duty,
    is_done: bool,
}

#[derive(Debug)]
enum Duty {
    Whole {
        tag: u64,
        verdicts: Arc<Verdicts>,
    },
    /// One of several orders that one delivery is for.
    Share(Arc<Gathering>, Metrics),
}

impl Settlement {
    /// The duty for the delivery `tag` of the channel whose verdicts go to `verdicts`.
    pub fn new(tag: u64, verdicts: &Arc<Verdicts>) -> Self {
        Self { duty: Duty::Whole { tag, verdicts: Arc::clone(verdicts) }, is_done: false }
    }

    /// A share of a delivery that is for many.
    pub(crate) fn share_of(gathering: &Arc<Gathering>, metrics: Metrics) -> Self {
        Self { duty: Duty::Share(Arc::clone(gathering), metrics), is_done: false }
    }

    /// The delivery it is a share of, if it is one.
    pub(crate) fn gathering(&self) -> Option<&Gathering> {
        match &self.duty {
            Duty::Whole { .. } => None,
            Duty::Share(gathering, _) => Some(gathering),
        }
    }

    /// Whether the channel still stands. If not, the broker delivers the message again, and doing
    /// its work here too would do it twice.
    pub fn is_live(&self) -> bool {
        match &self.duty {
            Duty::Whole { verdicts, .. } => !verdicts.sender.is_closed(),
            Duty::Share(gathering, _) => gathering.is_live(),
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
            self.is_done = true;
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
        self.is_done = true;
        match &self.duty {
            Duty::Whole { tag, verdicts } if returned => verdicts.take(Verdict::Return(*tag)),
            Duty::Whole { tag, verdicts } => verdicts.take(Verdict::Ack(*tag)),
            Duty::Share(gathering, _) => gathering.share_done(returned),
        }
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let metrics = match &self.duty {
            Duty::Whole { verdicts, .. } => &verdicts.metrics,
            Duty::Share(_, metrics) => metrics,
        };
        metrics.settlement_forgotten();
        error!(duty = ?self.duty, "a delivery was dropped unsettled; it will be delivered again.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_verdict_reaches_the_consumer_once() {
        let (verdicts, mut consumer) = mpsc::channel(1);
        let metrics = Metrics::new();
        let verdicts = Verdicts::new(verdicts, metrics.clone());
        Settlement::new(7, &verdicts).settle();
        assert_eq!(consumer.recv().await, Some(Verdict::Ack(7)));
        assert_eq!(Settlement::new(8, &verdicts).settle_here(), Some(8));
        Settlement::new(9, &verdicts).hand_back();
        assert_eq!(consumer.recv().await, Some(Verdict::Return(9)));
        drop(verdicts);
        assert_eq!(consumer.recv().await, None);
        assert!(metrics.encode().contains("rabbitline_settlements_forgotten_total 0"));
    }

    #[test]
    fn a_forgotten_one_is_counted_and_not_acknowledged() {
        let (verdicts, mut consumer) = mpsc::channel(1);
        let metrics = Metrics::new();
        drop(Settlement::new(7, &Verdicts::new(verdicts, metrics.clone())));
        assert!(consumer.try_recv().is_err());
        assert!(metrics.encode().contains("rabbitline_settlements_forgotten_total 1"));
    }

    #[test]
    fn one_of_a_dead_channel_is_not_live_and_settles_to_nothing() {
        let (verdicts, consumer) = mpsc::channel(1);
        let settlement = Settlement::new(7, &Verdicts::new(verdicts, Metrics::new()));
        assert!(settlement.is_live());
        drop(consumer);
        assert!(!settlement.is_live());
        settlement.settle();
    }
}
