//! `Failures`: who gave a wrong token of late, and how long it has to wait. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::access::gate::network;

/// The wait after the first wrong token; it doubles with each.
const WAIT_MIN: Duration = Duration::from_millis(500);
/// The longest wait: some 1,400 guesses a day.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Failures are forgotten after this much time without one.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Pairs of peer and id that are remembered, at about 150 bytes each; beyond it the oldest is
/// forgotten. To look for it takes some 50 us, much less than to look for a token.
const REMEMBERED_MAX: usize = 10_000;

/// Who gave a wrong token of late.
#[derive(Debug, Default)]
pub(crate) struct Failures(HashMap<(IpAddr, Box<str>), Failure>);

#[derive(Debug)]
struct Failure {
    last: Instant,
    count: u32,
}

impl Failures {
    /// Whether this peer has to wait still before it may try for `id` again.
    pub(super) fn is_waiting(&self, peer: IpAddr, id: &str, now: Instant) -> bool {
        self.wait_left(peer, id, now).is_some()
    }

    /// How long this peer has to wait still before it may try for `id` again.
    pub(crate) fn wait_left(&self, peer: IpAddr, id: &str, now: Instant) -> Option<Duration> {
        let failure = self.0.get(&key(peer, id))?;
        let left = (failure.last + failure.wait()).saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    pub(crate) fn failed(&mut self, peer: IpAddr, id: &str, now: Instant) {
        let key = key(peer, id);
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(&key) {
            self.make_room();
        }
        let failure = self.0.entry(key).or_insert(Failure { last: now, count: 0 });
        if failure.last + FORGET_AFTER <= now {
            failure.count = 0;
        }
        failure.last = now;
        failure.count = failure.count.saturating_add(1);
    }

    pub(crate) fn succeeded(&mut self, peer: IpAddr, id: &str) {
        self.0.remove(&key(peer, id));
    }

    fn make_room(&mut self) {
        let oldest = self.0.iter().min_by_key(|(_, failure)| failure.last);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.0.remove(&key);
        }
    }
}

impl Failure {
    fn wait(&self) -> Duration {
        let doublings = self.count.saturating_sub(1).min(16);
        (WAIT_MIN * 2u32.pow(doublings)).min(WAIT_MAX)
    }
}

/// Of IPv6 the network counts: a host has all addresses of a /64 to choose from.
fn key(peer: IpAddr, id: &str) -> (IpAddr, Box<str>) {
    let peer = peer.to_canonical();
    (if peer.is_ipv6() { network(peer) } else { peer }, id.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_peer_that_guesses_waits_longer_each_time_for_that_id_alone() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        assert!(!failures.is_waiting(peer(1), "p1", start));
        failures.failed(peer(1), "p1", start);
        assert!(failures.is_waiting(peer(1), "p1", start));
        assert!(!failures.is_waiting(peer(1), "p2", start), "another device behind the address");
        assert!(!failures.is_waiting(peer(2), "p1", start), "the device itself, elsewhere");
        let second = start + WAIT_MIN;
        assert!(!failures.is_waiting(peer(1), "p1", second));
        failures.failed(peer(1), "p1", second);
        assert!(failures.is_waiting(peer(1), "p1", second + WAIT_MIN));
        assert!(!failures.is_waiting(peer(1), "p1", second + 2 * WAIT_MIN));
        for _ in 0..40 {
            failures.failed(peer(1), "p1", second);
        }
        assert!(failures.is_waiting(peer(1), "p1", second + WAIT_MAX - WAIT_MIN));
        assert!(!failures.is_waiting(peer(1), "p1", second + WAIT_MAX));
        failures.succeeded(peer(1), "p1");
        assert!(!failures.is_waiting(peer(1), "p1", second));
    }

    #[test]
    fn failures_are_forgotten_with_time() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        for _ in 0..9 {
            failures.failed(peer(1), "p1", start);
        }
        let later = start + FORGET_AFTER;
        failures.failed(peer(1), "p1", later);
        assert!(!failures.is_waiting(peer(1), "p1", later + WAIT_MIN), "as after the first");
    }

    #[test]
    fn a_host_cannot_change_its_address_to_guess_on() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let ip = |text: &str| text.parse().expect("an address");
        failures.failed(ip("2001:db8::1"), "p1", start);
        assert!(failures.is_waiting(ip("2001:db8::2"), "p1", start));
        assert!(!failures.is_waiting(ip("2001:db8:0:1::1"), "p1", start));
        failures.failed(ip("::ffff:10.0.0.1"), "p1", start);
        assert!(
            failures.is_waiting(peer(1), "p1", start) && !failures.is_waiting(peer(2), "p1", start)
        );
    }

    #[test]
    fn no_more_than_so_many_are_remembered() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let id = |number: u32| format!("p{number}");
        let at = |number: u32| start + Duration::from_micros(number.into());
        let all = u32::try_from(REMEMBERED_MAX).expect("fits") + 10;
        for number in 0..all {
            failures.failed(peer(1), &id(number), at(number));
        }
        assert_eq!(failures.0.len(), REMEMBERED_MAX);
        assert!(!failures.is_waiting(peer(1), &id(9), at(all)), "the oldest are forgotten");
        assert!(failures.is_waiting(peer(1), &id(10), at(all)));
    }
}
