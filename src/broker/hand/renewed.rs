//! `Renewed`: consumers that are given nothing more, because all they were given waits; another runs in their place.
//!
//! Such a consumer is not cancelled as soon as another runs. When the node is lost that its channel is on, a quorum
//! queue takes back what a consumer had, but not what a cancelled one had: in RabbitMQ 3.10 that stays unacknowledged
//! until the queue has another leader. So each is cancelled only when all of what it was given is settled, or when some
//! of it has been for a while; and what is settled is acknowledged behind that, so that it is given nothing new.
//!
//! That is for quorum queues. Of a queue with a single active consumer the next is given nothing as long as the first
//! is not cancelled; so it is for those only that are known to be nothing but quorum queues.

use std::ops::Range;
use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;

/// How long what is settled may wait to be acknowledged, in case the rest is settled soon. It is more that comes
/// twice should the bridge die meanwhile.
const HELD_FOR: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Renewed(Vec<Consumer>);

#[derive(Debug)]
struct Consumer {
    name: ShortString,
    /// The tags of what it was given.
    given: Range<u64>,
    /// How many of them are not settled.
    open: usize,
    /// Those that are, and are not acknowledged.
    settled: Vec<u64>,
    due: Option<Instant>,
}

impl Renewed {
    /// Another consumer runs in the place of this one, of whose deliveries so many are not settled, and none is
    /// settled and not acknowledged.
    pub(super) fn add(&mut self, name: ShortString, given: Range<u64>, open: usize) {
        self.0.push(Consumer { name, given, open, settled: Vec::new(), due: None });
    }

    /// Takes up that a delivery is settled; false if it is of no consumer that is here.
    pub(super) fn settle(&mut self, tag: u64, now: Instant) -> bool {
        let Some(consumer) = self.0.iter_mut().find(|consumer| consumer.given.contains(&tag))
        else {
            return false;
        };
        consumer.open = consumer.open.saturating_sub(1);
        consumer.settled.push(tag);
        let due = *consumer.due.get_or_insert(now + HELD_FOR);
        consumer.due = Some(if consumer.open == 0 { now } else { due });
        true
    }

    /// How many deliveries are settled and not acknowledged.
    pub(super) fn settled_count(&self) -> usize {
        self.0.iter().map(|consumer| consumer.settled.len()).sum()
    }

    /// When the next is to be cancelled.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.iter().filter_map(|consumer| consumer.due).min()
    }

    /// One that is to be cancelled now, and which of its deliveries are to be acknowledged then.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(ShortString, Vec<u64>)> {
        let is_due = |consumer: &Consumer| consumer.due.is_some_and(|due| due <= now);
        let index = self.0.iter().position(is_due)?;
        let consumer = self.0.swap_remove(index);
        Some((consumer.name, consumer.settled))
    }

    /// One that is left, when all are to be cancelled.
    pub(super) fn take(&mut self) -> Option<(ShortString, Vec<u64>)> {
        self.0.pop().map(|consumer| (consumer.name, consumer.settled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_due_when_all_it_was_given_is_settled_or_some_has_been_for_long() {
        let now = Instant::now();
        let mut renewed = Renewed::default();
        renewed.add("a".into(), 1..3, 2);
        renewed.add("b".into(), 3..6, 2);
        assert_eq!(renewed.next_due(), None, "all waits");

        assert!(renewed.settle(4, now));
        assert_eq!(renewed.settled_count(), 1);
        assert_eq!(renewed.take_due(now), None);
        assert_eq!(renewed.next_due(), Some(now + HELD_FOR));
        assert!(renewed.settle(1, now));
        assert!(renewed.settle(2, now));
        assert_eq!(renewed.take_due(now), Some(("a".into(), vec![1, 2])));
        assert_eq!(renewed.take_due(now), None);
        assert_eq!(renewed.take_due(now + HELD_FOR), Some(("b".into(), vec![4])));
        assert!(!renewed.settle(5, now), "it is acknowledged at once from now on");
        assert!(!renewed.settle(6, now), "it is of the consumer that runs");
    }

    #[test]
    fn all_are_taken_at_the_end() {
        let mut renewed = Renewed::default();
        renewed.add("a".into(), 1..2, 1);
        renewed.add("b".into(), 2..4, 2);
        renewed.settle(3, Instant::now());
        assert_eq!(renewed.take(), Some(("b".into(), vec![3])));
        assert_eq!(renewed.take(), Some(("a".into(), vec![])));
        assert_eq!(renewed.take(), None);
    }
}
