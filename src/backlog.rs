//! `Backlog`: events that wait for the broker, bounded by their bytes.
//!
//! Between those who have something to tell, who never wait, and the publisher. When the broker is away or slow for
//! too long the newest are dropped, and that is said once in the log.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tracing::warn;

/// What it may hold, in bytes of JSON: some 200,000 short lines, or ten seconds of 1,000 devices that send
/// 1,600 bytes each second.
pub(crate) const BYTES_MAX: usize = 16 * 1024 * 1024;

/// One event: what its key begins with, the address that follows there, and its JSON.
pub(crate) type Told = (&'static str, String, Vec<u8>);

/// A queue of events.
#[derive(Debug)]
pub(crate) struct Backlog {
    /// What they are, for the log.
    what: &'static str,
    work: Arc<Notify>,
    bytes_max: usize,
    /// Held for one push or pop, never across an await.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Told>,
    bytes: usize,
    full: bool,
}

impl Backlog {
    /// An empty one; `work` is told when there is something to publish.
    pub(crate) fn new(what: &'static str, work: Arc<Notify>, bytes_max: usize) -> Self {
        Self { what, work, bytes_max, queue: Mutex::default() }
    }

    /// Takes up an event, if there is room.
    pub(crate) fn push(&self, event: Told) -> bool {
        let mut queue = self.lock();
        if queue.bytes + event.2.len() > self.bytes_max {
            if !std::mem::replace(&mut queue.full, true) {
                warn!(
                    bytes = queue.bytes,
                    "too many {} wait: more are dropped until the broker takes them.", self.what
                );
            }
            return false;
        }
        queue.bytes += event.2.len();
        queue.events.push_back(event);
        drop(queue);
        self.work.notify_one();
        true
    }

    /// The next event to publish.
    pub(crate) fn next(&self) -> Option<Told> {
        let mut queue = self.lock();
        let event = queue.events.pop_front()?;
        queue.bytes -= event.2.len();
        // Said again only after the queue has had real room.
        queue.full &= queue.bytes > self.bytes_max / 2;
        Some(event)
    }

    /// Whether everything has been taken out.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().events.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_not_taken_and_what_was_is_given_out_in_order() {
        let backlog = Backlog::new("events", Arc::new(Notify::new()), 10);
        let event = |n: u8| ("line", String::new(), vec![n; 4]);
        assert_eq!([1, 2, 3].map(|n| backlog.push(event(n))), [true, true, false]);
        assert_eq!(backlog.next(), Some(event(1)));
        assert!(backlog.push(event(4)));
        assert_eq!(
            (backlog.next(), backlog.next(), backlog.next()),
            (Some(event(2)), Some(event(4)), None)
        );
        assert!(backlog.is_empty());
    }
}
