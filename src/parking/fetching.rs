//! Whose parked commands are fetched: asked for by those who see a device connect, done by the drainer.

use std::collections::HashSet;

use tokio::time::Instant;

use super::lot::Fetching;
use super::{Parking, State};
use crate::command::Address;

/// Devices known to have nothing parked, so that their next connect asks the broker nothing. At
/// about 60 bytes each; beyond it all are forgotten and asked about again.
const KNOWN_EMPTY_MAX: usize = 100_000;

/// What the drainer is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Fetch what is parked for this device, which is connected.
    Fetch(Address),
    /// Ask how many are parked for this one.
    Count(Address),
}

impl Parking {
    /// What is to be done next, once there is something.
    pub(crate) async fn next_work(&self) -> Work {
        loop {
            {
                let mut state = self.lock();
                if let Some(address) = state.wanted.pop_front() {
                    if let Some(lot) = state.lots.get_mut(&address) {
                        lot.fetching = Fetching::Running;
                    }
                    return Work::Fetch(address);
                }
                if let Some(address) = state.uncounted.pop_front() {
                    return Work::Count(address);
                }
            }
            self.work.notified().await;
        }
    }

    /// The broker is asked for the next one of `address`.
    pub(crate) fn asking(&self, address: &Address) {
        if let Some(lot) = self.lock().lots.get_mut(address) {
            lot.landed = false;
        }
    }

    /// The broker had nothing more for `address` when it was asked last: ends its lot, unless
    /// something is on its way there or has landed since. True if it is ended. Called under the
    /// lock of the device's session, so that nothing comes in between.
    pub(crate) fn finish(&self, address: &Address) -> bool {
        let mut state = self.lock();
        if state.lots.get(address).is_some_and(|lot| lot.publishing > 0 || lot.landed) {
            return false;
        }
        if let Some(lot) = state.lots.remove(address) {
            // What was counted and is not there has expired.
            state.total = state.total.saturating_sub(lot.len());
            let now = Instant::now();
            let expired = lot.held.into_values().filter(|held| held.expires <= now);
            state.expired.extend(expired.filter_map(|held| held.facts));
        }
        if state.known_empty.len() >= KNOWN_EMPTY_MAX {
            state.known_empty = HashSet::new();
        }
        if !self.in_cluster {
            state.known_empty.insert(address.clone());
        }
        self.counted(&state);
        true
    }

    /// Fetching starts anew, on another connection; gives the addresses it was going on for, each to be
    /// followed by `look_again`.
    pub(crate) fn restart(&self) -> Vec<Address> {
        let mut state = self.lock();
        let State { wanted, lots, .. } = &mut *state;
        // Those that waited come first. What is being asked is not asked on that connection.
        let mut addresses: Vec<Address> = wanted.drain(..).collect();
        let running = lots.iter().filter(|(_, lot)| lot.fetching == Fetching::Running);
        addresses.extend(running.map(|(address, _)| address.clone()));
        for address in &addresses {
            if let Some(lot) = lots.get_mut(address) {
                lot.fetching = Fetching::No;
            }
        }
        addresses
    }

    /// Whether commands of `address` are being fetched, so that some may be in hand here.
    pub(crate) fn is_fetching(&self, address: &Address) -> bool {
        let state = self.lock();
        state.lots.get(address).is_some_and(|lot| lot.fetching == Fetching::Running)
    }

    /// Another bridge has parked something for `address`, which is connected here.
    pub(crate) fn nudged(&self, address: &Address) {
        let mut state = self.lock();
        self.want(&mut state, address);
        if let Some(lot) = state.lots.get_mut(address) {
            lot.landed = true;
        }
        self.landing.notify_waiters();
    }

    /// `address` is connected to another bridge, which fetches what is parked for it: what this one has put
    /// there is no longer known.
    pub(crate) fn left_to_others(&self, address: &Address) {
        let mut state = self.lock();
        let State { lots, total, .. } = &mut *state;
        let Some(lot) = lots.get_mut(address) else { return };
        if lot.fetching == Fetching::No {
            *total = total.saturating_sub(lot.held.len() + lot.older);
            lot.held.clear();
            lot.older = 0;
            self.drop_if_idle(&mut state, address);
        }
    }

    /// It was not heard for a while which devices are connected to other bridges: the same, of all that are not here.
    pub(crate) fn all_left_to_others(&self) {
        let addresses: Vec<Address> = self.lock().lots.keys().cloned().collect();
        for address in addresses {
            self.left_to_others(&address);
        }
    }

    /// Fetching for `address` has ended before the broker had nothing more. To be followed by
    /// `look_again`.
    pub(crate) fn interrupted(&self, address: &Address) {
        if let Some(lot) = self.lock().lots.get_mut(address) {
            lot.fetching = Fetching::No;
        }
    }

    /// Wants what is parked for `address` if its device is connected, which is to be looked up
    /// after fetching has ended: one that connects later says so itself.
    pub(crate) fn look_again(&self, address: &Address, connected: bool) {
        let mut state = self.lock();
        if connected {
            self.want(&mut state, address);
        } else {
            self.drop_if_idle(&mut state, address);
        }
    }

    pub(super) fn want(&self, state: &mut State, address: &Address) {
        let lot = state.lots.entry(address.clone()).or_default();
        if lot.fetching == Fetching::No {
            lot.fetching = Fetching::Wanted;
            state.wanted.push_back(address.clone());
            self.work.notify_one();
        }
        self.counted(state);
    }

    /// Drops the lot of a device that is not connected and has nothing parked, as far as is known:
    /// the next connect asks.
    pub(super) fn drop_if_idle(&self, state: &mut State, address: &Address) {
        let now = Instant::now();
        if state.lots.get(address).is_some_and(|lot| lot.is_idle(now)) {
            state.lots.remove(address);
            self.counted(state);
        }
    }
}
