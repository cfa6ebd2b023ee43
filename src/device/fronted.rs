//! `Fronted`: notices an IP address behind which there seem to be several devices. Pure.
//!
//! Where devices are named by their address, the connections of those behind one address take each
//! other's place, again and again: the sign of a NAT, a proxy or a balancer in front of them.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::command::Address;

/// A connection that is replaced sooner than this is no device that has come back: it was not gone.
const SOON: Duration = Duration::from_secs(10);
/// So many of them in a row for one address are said.
const ENOUGH: u32 = 5;
/// Addresses counted at a time; beyond it all counts begin anew.
const COUNTED_MAX: usize = 1000;

/// Connections of one address that were replaced soon.
#[derive(Debug, Default)]
pub(super) struct Fronted {
    in_a_row: HashMap<Address, u32>,
    is_said: bool,
}

impl Fronted {
    /// A connection that began at `since` is replaced; true if that is to be said, which is once.
    pub(super) fn replaced(&mut self, address: &Address, since: Instant, now: Instant) -> bool {
        if self.is_said || !matches!(address, Address::Ip(_)) {
            return false;
        }
        if since + SOON <= now {
            self.in_a_row.remove(address);
            return false;
        }
        if self.in_a_row.len() >= COUNTED_MAX {
            self.in_a_row = HashMap::new();
        }
        let count = self.in_a_row.entry(address.clone()).or_default();
        *count += 1;
        if *count < ENOUGH {
            return false;
        }
        self.in_a_row = HashMap::new();
        self.is_said = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_take_each_others_place_soon_are_said_once() {
        let (mut fronted, now) = (Fronted::default(), Instant::now());
        let nat = Address::parse("10.0.0.1").expect("an address");
        for _ in 1..ENOUGH {
            assert!(!fronted.replaced(&nat, now, now));
        }
        assert!(fronted.replaced(&nat, now, now));
        assert!(!fronted.replaced(&nat, now, now), "once");
    }

    #[test]
    fn a_device_that_comes_back_after_a_while_is_one() {
        let (mut fronted, now) = (Fronted::default(), Instant::now());
        let device = Address::parse("10.0.0.1").expect("an address");
        let named = Address::parse("p1").expect("a name");
        for _ in 0..3 * ENOUGH {
            for _ in 1..ENOUGH {
                assert!(!fronted.replaced(&device, now, now));
            }
            assert!(!fronted.replaced(&device, now, now + SOON));
            assert!(!fronted.replaced(&named, now, now), "its name is its own");
        }
    }
}
