//! `FirstAnswers`: how many queues of parked commands are asked that have not answered on this connection yet.
//!
//! A queue that is sick makes the broker close the connection, and the broker need not say which one it was. So
//! the first is asked alone, and with each that answers one more may be asked at a time. Those that were being
//! asked when a connection was lost are suspects.

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::suspects::Suspects;
use crate::command::Address;

#[derive(Debug)]
pub(super) struct FirstAnswers<'a> {
    room: Semaphore,
    suspects: &'a Suspects,
}

/// The turn of one queue, until it has answered.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    of: &'a FirstAnswers<'a>,
    address: &'a Address,
    is_asked: bool,
    permit: Option<SemaphorePermit<'a>>,
}

impl<'a> FirstAnswers<'a> {
    /// One may be asked.
    pub(super) fn new(suspects: &'a Suspects) -> Self {
        Self { room: Semaphore::new(1), suspects }
    }

    /// Waits until one more may be asked.
    pub(super) async fn turn(&'a self, address: &'a Address) -> Turn<'a> {
        // It is never closed, so this is always there.
        let permit = self.room.acquire().await.ok();
        Turn { of: self, address, is_asked: false, permit }
    }
}

impl Turn<'_> {
    /// The queue is asked: from now on the connection may be lost for it.
    pub(super) fn ask(&mut self) {
        self.is_asked = true;
    }

    /// The queue has answered: one more may be asked at a time from now on.
    pub(super) fn answered(mut self) {
        self.is_asked = false;
        self.permit = None;
        self.of.room.add_permits(1);
        self.of.suspects.clear(self.address);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_asked {
            self.of.suspects.suspect(self.address, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_first_is_asked_alone_and_each_answer_makes_room_for_one_more() {
        let suspects = Suspects::default();
        let address = Address::from(IpAddr::from([127, 0, 0, 9]));
        let first = FirstAnswers::new(&suspects);
        let turn = || first.turn(&address).now_or_never();
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

    #[test]
    fn who_is_asked_and_does_not_answer_is_suspected() {
        let suspects = Suspects::default();
        let address = Address::from(IpAddr::from([127, 0, 0, 9]));
        let first = FirstAnswers::new(&suspects);
        let turn = || first.turn(&address).now_or_never().expect("nobody is asked");
        let is_suspected = || suspects.alone_until(&address, Instant::now()).is_some();
        drop(turn());
        assert!(!is_suspected(), "it was not asked");
        let mut asked = turn();
        asked.ask();
        drop(asked);
        assert!(is_suspected());
        let mut asked = turn();
        asked.ask();
        asked.answered();
        assert!(!is_suspected());
    }
}
