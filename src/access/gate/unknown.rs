//! `Unknown`: the connections of which it is not known yet who they are.
//!
//! Beyond their limit the one that has waited longest is pushed out: an honest device says who it is
//! within a round trip or two, so a flood of silent connections pushes out itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// A bounded list of connections, in the order in which they came; its clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Unknown {
    max: usize,
    /// Held for a few map operations, never across an await.
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_number: BTreeMap<u64, CancellationToken>,
}

/// A connection's place in the list, until this is dropped.
#[derive(Debug)]
pub(crate) struct UnknownTicket {
    number: u64,
    pushed_out: CancellationToken,
    list: Unknown,
}

impl Unknown {
    /// Room for `max`, but for one at least.
    pub(crate) fn new(max: usize) -> Self {
        Self { max: max.max(1), waiting: Arc::default() }
    }

    /// Takes up one more connection; the one that has waited longest makes room if it must.
    pub(crate) fn enter(&self) -> UnknownTicket {
        let pushed_out = CancellationToken::new();
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        let longest =
            if waiting.by_number.len() >= self.max { waiting.by_number.pop_first() } else { None };
        waiting.by_number.insert(number, pushed_out.clone());
        // It wakes a task, which may want the list.
        drop(waiting);
        if let Some((_, longest)) = longest {
            longest.cancel();
        }
        UnknownTicket { number, pushed_out, list: self.clone() }
    }

    /// How many there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().by_number.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnknownTicket {
    /// Waits until the connection has to make room for another; it is to end then.
    pub(crate) async fn pushed_out(&self) {
        self.pushed_out.cancelled().await;
    }
}

impl Drop for UnknownTicket {
    fn drop(&mut self) {
        self.list.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_out(ticket: &UnknownTicket) -> bool {
        ticket.pushed_out().now_or_never().is_some()
    }

    #[test]
    fn the_one_that_has_waited_longest_makes_room() {
        let unknown = Unknown::new(2);
        let tickets = [(); 4].map(|()| unknown.enter());
        assert_eq!(tickets.each_ref().map(is_out), [true, true, false, false]);
        assert_eq!(unknown.len(), 2);
        let [_, _, third, fourth] = tickets;
        drop(third);
        let _fifth = unknown.enter();
        assert!(!is_out(&fourth), "there was room");
    }

    #[test]
    fn who_was_pushed_out_takes_no_place_with_it() {
        let unknown = Unknown::new(1);
        let (first, second) = (unknown.enter(), unknown.enter());
        drop(first);
        assert_eq!(unknown.len(), 1);
        assert!(!is_out(&second));
        drop(second);
        assert_eq!(unknown.len(), 0);
    }

    #[tokio::test]
    async fn its_task_learns_of_it() {
        let unknown = Unknown::new(1);
        let ticket = unknown.enter();
        let task = tokio::spawn(async move { ticket.pushed_out().await });
        tokio::task::yield_now().await;
        let _other = unknown.enter();
        task.await.expect("it ended");
    }
}
