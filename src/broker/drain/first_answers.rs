//! `FirstAnswers`: how many queues of parked commands are asked that have not answered on this connection yet.
//!
//! A queue that is sick makes the broker close the connection, and the broker need not say which one it was. So
//! the first is asked alone, and with each that answers one more may be asked at a time. Those that were being
//! asked when a connection was lost come last on the next: if it is always the same queue that costs the
//! connection, all others come through before it.

use tokio::sync::{Semaphore, SemaphorePermit};

#[derive(Debug)]
pub(super) struct FirstAnswers(Semaphore);

/// The turn of one queue, until it has answered.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    of: &'a FirstAnswers,
    permit: Option<SemaphorePermit<'a>>,
}

impl FirstAnswers {
    /// One may be asked.
    pub(super) fn new() -> Self {
        Self(Semaphore::new(1))
    }

    /// Waits until one more may be asked.
    pub(super) async fn turn(&self) -> Turn<'_> {
        // It is never closed, so this is always there.
        Turn { of: self, permit: self.0.acquire().await.ok() }
    }
}

impl Turn<'_> {
    /// The queue has answered: one more may be asked at a time from now on.
    pub(super) fn answered(self) {
        drop(self.permit);
        self.of.0.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_first_is_asked_alone_and_each_answer_makes_room_for_one_more() {
        let first = FirstAnswers::new();
        let turn = || first.turn().now_or_never();
        let one = turn().expect("nobody is asked");
        assert!(turn().is_none(), "one is asked and has not answered");
        one.answered();
        let (two, three) = (turn().expect("room for two"), turn().expect("room for two"));
        assert!(turn().is_none());
        drop(two);
        three.answered();
        let turns: Vec<_> = std::iter::from_fn(turn).collect();
        assert_eq!(turns.len(), 3, "one that was not asked in the end makes no room");
    }
}
