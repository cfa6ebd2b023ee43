//! `Acks`: which deliveries of one channel are settled, and the fewest acknowledgements that say so.
//!
//! Pure. The consumer opens each delivery tag as it arrives, marks it settled, and from time to time
//! takes the acknowledgements that are due: one cumulative for the run of settled tags at the old
//! end, single ones for what is settled behind an open tag.

use std::collections::VecDeque;
use std::ops::Range;

/// One `basic.ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) tag: u64,
    pub(super) multiple: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Open,
    Settled,
    Acked,
}

/// The deliveries of one channel from the oldest that is not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// The tag of `slots[0]`. Tags of a channel count up by one.
    base: u64,
    slots: VecDeque<Slot>,
    open: usize,
    settled: usize,
    /// Tags that were settled while another was open, perhaps an older one.
    loose: Vec<u64>,
    /// First tag of the consumer that now runs: what came before it took no credit from it.
    consumer_first: u64,
    open_of_consumer: usize,
}

impl Acks {
    /// Takes up the delivery `tag`. False if it is not the next one, which a broker never does.
    pub(super) fn open(&mut self, tag: u64) -> bool {
        if self.slots.is_empty() && self.base == 0 {
            self.base = tag;
        }
        if tag != self.next_tag() {
            return false;
        }
        self.slots.push_back(Slot::Open);
        self.open += 1;
        self.open_of_consumer += 1;
        true
    }

    /// Marks `tag` settled; false if it was not open.
    pub(super) fn settle(&mut self, tag: u64) -> bool {
        let Some(index) = tag.checked_sub(self.base).and_then(|index| usize::try_from(index).ok())
        else {
            return false;
        };
        match self.slots.get_mut(index) {
            Some(slot @ Slot::Open) => *slot = Slot::Settled,
            Some(Slot::Settled | Slot::Acked) | None => return false,
        }
        self.open -= 1;
        self.settled += 1;
        if tag >= self.consumer_first {
            self.open_of_consumer -= 1;
        }
        if self.open > 0 {
            self.loose.push(tag);
        }
        true
    }

    /// Says that the next delivery comes through a new consumer with all its credit. Gives the tags of what the last one
    /// was given.
    pub(super) fn start_consumer(&mut self) -> Range<u64> {
        let given = self.consumer_first..self.next_tag();
        self.consumer_first = given.end;
        self.open_of_consumer = 0;
        given
    }

    /// How many deliveries are not settled.
    pub(super) fn open_count(&self) -> usize {
        self.open
    }

    /// How many of those take credit from the consumer that now runs.
    pub(super) fn open_of_consumer(&self) -> usize {
        self.open_of_consumer
    }

    /// How many are settled and not acknowledged yet.
    pub(super) fn due(&self) -> usize {
        self.settled
    }

    /// The acknowledgements that are due, oldest first.
    pub(super) fn take(&mut self, mut send: impl FnMut(Ack)) {
        if self.settled == 0 {
            return;
        }
        self.take_run(&mut send);
        for tag in std::mem::take(&mut self.loose) {
            // What the run above covered has left the window.
            let Some(index) = tag.checked_sub(self.base) else {
                continue;
            };
            let Some(slot) = usize::try_from(index).ok().and_then(|i| self.slots.get_mut(i)) else {
                continue;
            };
            if *slot == Slot::Settled {
                *slot = Slot::Acked;
                self.settled -= 1;
                send(Ack { tag, multiple: false });
            }
        }
    }

    /// Drops the run of settled and acknowledged tags at the old end. A cumulative ack must name a
    /// tag that is itself unacknowledged, or the broker closes the channel: so the last settled one.
    fn take_run(&mut self, send: &mut impl FnMut(Ack)) {
        let mut last = None;
        let mut covered = 0;
        while let Some(slot) = self.slots.front().copied().filter(|slot| *slot != Slot::Open) {
            if slot == Slot::Settled {
                last = Some(self.base);
                covered += 1;
            }
            self.slots.pop_front();
            self.base += 1;
        }
        if let Some(tag) = last {
            self.settled -= covered;
            send(Ack { tag, multiple: covered > 1 });
        }
    }

    fn next_tag(&self) -> u64 {
        self.base + self.slots.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn take(acks: &mut Acks) -> Vec<(u64, bool)> {
        let mut sent = Vec::new();
        acks.take(|ack| sent.push((ack.tag, ack.multiple)));
        sent
    }

    #[test]
    fn a_run_is_one_ack() {
        let mut acks = Acks::default();
        assert!((1..=4).all(|tag| acks.open(tag)));
        assert!([2, 1, 3].into_iter().all(|tag| acks.settle(tag)));
        assert_eq!(take(&mut acks), [(3, true)]);
        assert_eq!(take(&mut acks), []);
        assert!(acks.settle(4));
        assert_eq!(take(&mut acks), [(4, false)]);
    }

    #[test]
    fn what_is_settled_behind_an_open_one_is_acked_alone_and_once() {
        let mut acks = Acks::default();
        assert!((1..=4).all(|tag| acks.open(tag)));
        assert!(acks.settle(2) && acks.settle(3));
        assert_eq!(take(&mut acks), [(2, false), (3, false)]);
        assert!(acks.settle(1) && !acks.settle(1) && !acks.settle(2));
        assert_eq!(take(&mut acks), [(1, false)]);
    }

    #[test]
    fn what_is_settled_beyond_an_open_one_is_not_forgotten_behind_a_settled_front() {
        let mut acks = Acks::default();
        assert!((1..=3).all(|tag| acks.open(tag)));
        assert!(acks.settle(1) && acks.settle(3));
        assert_eq!(take(&mut acks), [(1, false), (3, false)]);
    }

    #[test]
    fn a_new_consumer_starts_with_all_its_credit() {
        let mut acks = Acks::default();
        assert!(acks.open(1));
        assert_eq!(acks.open_of_consumer(), 1);
        acks.start_consumer();
        assert_eq!((acks.open_of_consumer(), acks.open_count()), (0, 1));
        assert!(acks.open(2) && acks.settle(1));
        assert_eq!((acks.open_of_consumer(), acks.open_count()), (1, 1));
    }

    /// What a broker makes of acknowledgements: an unknown tag closes the channel.
    fn broker_accepts(unacked: &mut BTreeSet<u64>, ack: Ack) {
        assert!(unacked.contains(&ack.tag), "{ack:?} names a tag that is not outstanding");
        if ack.multiple {
            unacked.retain(|tag| *tag > ack.tag);
        } else {
            unacked.remove(&ack.tag);
        }
    }

    proptest! {
        #[test]
        fn the_broker_learns_of_what_is_settled_and_of_nothing_else(steps in prop::collection::vec(any::<(u8, u8)>(), 1..400)) {
            let mut acks = Acks::default();
            let (mut next, mut open, mut unacked) = (1, Vec::new(), BTreeSet::new());
            for (kind, pick) in steps {
                match kind % 4 {
                    0 | 1 => {
                        prop_assert!(acks.open(next));
                        open.push(next);
                        unacked.insert(next);
                        next += 1;
                    }
                    2 if !open.is_empty() => {
                        let tag = open.remove(usize::from(pick) % open.len());
                        prop_assert!(acks.settle(tag));
                    }
                    _ => {
                        acks.take(|ack| broker_accepts(&mut unacked, ack));
                        prop_assert_eq!(&unacked.iter().copied().collect::<Vec<_>>(), &open);
                    }
                }
                prop_assert_eq!(acks.open_count(), open.len());
            }
        }
    }
}
