//! `Flapping`: devices that connect again and again, and are refused for a while.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::command::Address;

/// Devices whose connects are counted, at about 100 bytes each. There may be more than so many in one
/// window only if they are made up, and then the limits on connections are what helps: those beyond it
/// are not counted.
const COUNTED_MAX: usize = 100_000;
/// How often devices that have been quiet are forgotten when there is no room: to look through all of
/// them takes a millisecond, which a flood must not cost for each connection.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// When a device that connects again and again is refused for a while.
#[derive(Debug, Clone)]
pub(crate) struct Flaps {
    /// So many connects...
    pub(crate) max: usize,
    /// ...in this time...
    pub(crate) within: Duration,
    /// ...and it is refused for this long after one more.
    pub(crate) pause: Duration,
}

/// How often devices have connected of late.
#[derive(Debug)]
pub(crate) struct Flapping {
    flaps: Flaps,
    /// Held for a few map operations, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    devices: HashMap<Address, Connects>,
    forgot: Option<Instant>,
}

#[derive(Debug)]
struct Connects {
    since: Instant,
    count: usize,
    refused_until: Option<Instant>,
}

impl Flapping {
    pub(crate) fn new(flaps: Flaps) -> Self {
        Self { flaps, state: Mutex::default() }
    }

    /// Counts a connect of a device; false if it is refused for connecting too often.
    pub(crate) fn may_connect(&self, address: &Address, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.devices.len() >= COUNTED_MAX && !state.devices.contains_key(address) {
            state.forget_the_quiet(&self.flaps, now);
            if state.devices.len() >= COUNTED_MAX {
                return true;
            }
        }
        let fresh = || Connects { since: now, count: 0, refused_until: None };
        let connects = state.devices.entry(address.clone()).or_insert_with(fresh);
        if connects.is_over(&self.flaps, now) {
            *connects = fresh();
        }
        if connects.refused_until.is_some() {
            return false;
        }
        connects.count += 1;
        if connects.count > self.flaps.max {
            connects.refused_until = Some(now + self.flaps.pause);
        }
        connects.refused_until.is_none()
    }
}

impl State {
    fn forget_the_quiet(&mut self, flaps: &Flaps, now: Instant) {
        if self.forgot.is_none_or(|forgot| forgot + FORGET_EVERY <= now) {
            self.forgot = Some(now);
            self.devices.retain(|_, connects| !connects.is_over(flaps, now));
        }
    }
}

impl Connects {
    /// Whether the pause is over, or else the time in which they count together.
    fn is_over(&self, flaps: &Flaps, now: Instant) -> bool {
        self.refused_until.unwrap_or(self.since + flaps.within) <= now
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn flapping() -> Flapping {
        Flapping::new(Flaps { max: 2, within: 10 * SECOND, pause: 5 * SECOND })
    }

    fn device(number: u32) -> Address {
        Address::from(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn who_connects_too_often_is_refused_for_a_while() {
        let (flapping, start) = (flapping(), Instant::now());
        let at = |seconds: u32| flapping.may_connect(&device(1), start + seconds * SECOND);
        assert_eq!([at(0), at(1), at(2), at(6)], [true, true, false, false]);
        assert_eq!([at(7), at(8)], [true, true], "the pause is over");
        assert_eq!([at(18), at(19), at(20)], [true, true, false], "a new count every ten seconds");
        assert!(flapping.may_connect(&device(2), start + 20 * SECOND), "another device");
    }

    #[test]
    fn no_more_than_so_many_are_counted_and_the_quiet_make_room() {
        let (flapping, start) = (flapping(), Instant::now());
        let count = || flapping.state.lock().expect("not poisoned").devices.len();
        let all = u32::try_from(COUNTED_MAX).expect("fits") + 1;
        for number in 0..all {
            assert!(flapping.may_connect(&device(number), start));
        }
        assert_eq!(count(), COUNTED_MAX);
        assert!(flapping.may_connect(&device(all), start + 10 * SECOND));
        assert_eq!(count(), 1);
    }
}
