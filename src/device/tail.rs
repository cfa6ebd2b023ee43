//! `Tail`: what was written to a device and is not yet acknowledged by its TCP stack.
//!
//! Pure: it knows byte offsets of one connection's stream, counted from zero, and nothing of sockets.
//! When the connection ends, what is still in it may or may not have reached the device.

use std::collections::VecDeque;

/// What a session has written, from the oldest byte that is not acknowledged.
#[derive(Debug)]
pub(super) struct Tail<T> {
    sent: VecDeque<Sent<T>>,
    /// Bytes written to the stream so far.
    written: u64,
    /// Bytes of it that the peer's TCP stack has acknowledged.
    acknowledged: u64,
    /// Sum of the weights of what is in `sent`.
    weight: usize,
}

#[derive(Debug)]
struct Sent<T> {
    /// The offset behind its last byte.
    end: u64,
    weight: usize,
    item: T,
}

impl<T> Tail<T> {
    /// The tail of a new connection. It holds no memory until something is written.
    pub(super) fn new() -> Self {
        Self { sent: VecDeque::new(), written: 0, acknowledged: 0, weight: 0 }
    }

    /// Notes that the stream has taken so many bytes in all.
    pub(super) fn reached(&mut self, offset: u64) {
        debug_assert!(self.written <= offset);
        self.written = offset;
    }

    /// Keeps `item`, whose last byte is the last that was written. `weight` is what keeping it costs.
    pub(super) fn push(&mut self, item: T, weight: usize) {
        self.weight += weight;
        self.sent.push_back(Sent { end: self.written, weight, item });
    }

    /// Bytes written to the stream so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// How many commands are in it.
    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    /// What keeping them costs.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Notes that the peer has acknowledged the stream up to `offset`, which may be old news.
    pub(super) fn acknowledge(&mut self, offset: u64) {
        debug_assert!(offset <= self.written);
        self.acknowledged = self.acknowledged.max(offset);
    }

    /// The next one whose last byte is acknowledged, taken out.
    pub(super) fn next_acknowledged(&mut self) -> Option<T> {
        self.sent.front().filter(|sent| sent.end <= self.acknowledged)?;
        let sent = self.sent.pop_front()?;
        self.weight -= sent.weight;
        if self.sent.is_empty() {
            // An idle device owns no buffer.
            self.sent = VecDeque::new();
        }
        Some(sent.item)
    }

    /// Everything that is in it, oldest first.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.sent.iter_mut().map(|sent| &mut sent.item)
    }

    /// Takes everything out, oldest first.
    pub(super) fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.weight = 0;
        std::mem::take(&mut self.sent).into_iter().map(|sent| sent.item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_item_leaves_when_its_last_byte_is_acknowledged() {
        let mut tail = Tail::new();
        for (item, bytes) in [("a", 3), ("b", 2)] {
            tail.reached(tail.written() + bytes);
            tail.push(item, 10);
        }
        tail.acknowledge(2);
        assert_eq!(tail.next_acknowledged(), None);
        tail.acknowledge(4);
        assert_eq!(tail.next_acknowledged(), Some("a"));
        assert_eq!((tail.next_acknowledged(), tail.len(), tail.weight()), (None, 1, 10));
        tail.acknowledge(1); // old news
        tail.acknowledge(5);
        assert_eq!((tail.next_acknowledged(), tail.len(), tail.weight()), (Some("b"), 0, 0));
        assert_eq!(tail.sent.capacity(), 0, "an idle tail holds no memory");
    }

    proptest! {
        /// Whatever is acknowledged when: what left was acknowledged in full, what stayed was not,
        /// and both are in the order of the stream.
        #[test]
        fn what_left_and_what_stayed_are_told_apart_by_the_last_byte(
            lengths in prop::collection::vec(1usize..20, 1..40),
            acks in prop::collection::vec(0u64..400, 0..20),
        ) {
            let (mut tail, mut ends, mut left) = (Tail::new(), Vec::new(), Vec::new());
            let mut acks = acks.into_iter();
            let mut highest = 0;
            for (index, length) in lengths.iter().enumerate() {
                tail.reached(tail.written() + *length as u64);
                tail.push(index, *length);
                ends.push(tail.written());
                if let Some(ack) = acks.next() {
                    let ack = ack.min(tail.written());
                    highest = highest.max(ack);
                    tail.acknowledge(ack);
                    left.extend(std::iter::from_fn(|| tail.next_acknowledged()));
                }
            }
            let weight = tail.weight();
            let stayed: Vec<usize> = tail.take().collect();
            prop_assert!(left.iter().all(|index| ends[*index] <= highest));
            prop_assert!(stayed.iter().all(|index| ends[*index] > highest));
            prop_assert_eq!(weight, stayed.iter().map(|index| lengths[*index]).sum::<usize>());
            left.extend(stayed);
            prop_assert_eq!(left, (0..lengths.len()).collect::<Vec<_>>());
        }
    }
}
