//! `Suspects`: the queues of parked commands that had been asked and had not answered when a connection was lost.
//!
//! Any of them may have cost it. Each is left alone for a while, longer from loss to loss, so that one queue that
//! is sick leaves the others a connection to be fetched on.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::ExponentialBackoff;
use tokio::time::Instant;

use crate::broker::retry::waits_between;
use crate::command::Address;

/// First and longest time a queue is left alone. The jitter adds up to as much again, so that of those that
/// were asked together each is once asked without the others.
const ALONE_MIN: Duration = Duration::from_millis(250);
const ALONE_MAX: Duration = Duration::from_secs(10);
/// A queue that has not answered for this long holds up no other command of its device. A quorum queue whose leader is
/// lost has another one sooner.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// A queue that nobody asks this long after it was left alone is forgotten: its device is gone.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Suspects(Mutex<HashMap<Address, Suspicion>>);

#[derive(Debug)]
struct Suspicion {
    since: Instant,
    waits: ExponentialBackoff,
    until: Instant,
}

impl Suspects {
    /// When the queue of `address` may be asked, if that is not at once.
    pub(super) fn alone_until(&self, address: &Address, now: Instant) -> Option<Instant> {
        let suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.get(address).map(|suspicion| suspicion.until).filter(|until| *until > now)
    }

    /// Whether the queue of `address` has not answered for so long that nothing is to wait for it any more.
    pub(super) fn is_silent(&self, address: &Address, now: Instant) -> bool {
        let suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.get(address).is_some_and(|suspicion| now >= suspicion.since + SILENT_AFTER)
    }

    /// A connection was lost while the queue of `address` was asked.
    pub(super) fn suspect(&self, address: &Address, now: Instant) {
        let mut suspects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.retain(|_, suspicion| now < suspicion.until + FORGOTTEN_AFTER);
        let waits = || waits_between(ALONE_MIN, ALONE_MAX);
        let new = || Suspicion { since: now, waits: waits(), until: now };
        let suspicion = suspects.entry(address.clone()).or_insert_with(new);
        suspicion.until = now + suspicion.waits.next().unwrap_or(ALONE_MAX);
    }

    /// The queue of `address` has answered.
    pub(super) fn clear(&self, address: &Address) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_queue_is_left_alone_for_longer_from_loss_to_loss_until_it_answers() {
        let suspects = Suspects::default();
        let address = Address::from(IpAddr::from([127, 0, 0, 9]));
        let start = Instant::now();
        assert_eq!(suspects.alone_until(&address, start), None);
        let waits: Vec<Duration> = (0..20)
            .map(|_| {
                suspects.suspect(&address, start);
                suspects.alone_until(&address, start).expect("suspected") - start
            })
            .collect();
        assert!(waits[0] >= ALONE_MIN && waits[0] <= 2 * ALONE_MIN, "{waits:?}");
        assert!(waits[19] >= ALONE_MAX && waits[19] <= 2 * ALONE_MAX, "{waits:?}");
        assert_eq!(suspects.alone_until(&address, start + 2 * ALONE_MAX), None, "it is its turn");
        assert!(!suspects.is_silent(&address, start));
        assert!(suspects.is_silent(&address, start + SILENT_AFTER));
        suspects.clear(&address);
        assert_eq!(suspects.alone_until(&address, start), None);
        assert!(!suspects.is_silent(&address, start + SILENT_AFTER));
    }

    #[test]
    fn what_nobody_asks_any_more_is_forgotten() {
        let suspects = Suspects::default();
        let start = Instant::now();
        let address = |last| Address::from(IpAddr::from([127, 0, 0, last]));
        suspects.suspect(&address(1), start);
        suspects.suspect(&address(2), start + 2 * FORGOTTEN_AFTER);
        assert_eq!(suspects.0.lock().expect("not poisoned").len(), 1);
    }
}
