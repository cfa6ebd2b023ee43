//! Whether anything is parked for a device that has connected: who finds out, and what follows.

use super::lot::Fetching;
use super::{Parking, Usage};
use crate::command::Address;

impl Parking {
    /// A device has connected: what is parked for it is wanted, if there may be something.
    pub(crate) fn arrived(&self, address: &Address) {
        let mut state = self.lock();
        let may_have = state.lots.contains_key(address)
            || state.usage != Usage::NeverUsed && !state.known_empty.contains(address);
        if may_have {
            self.want(&mut state, address);
        }
    }

    /// A device has connected for which other bridges may have parked something. What is known to be there is wanted at
    /// once; else the broker is asked whether there is a queue, until `found` or `finish`. Until one or the other is
    /// done commands for the device wait.
    pub(crate) fn seek(&self, address: &Address) {
        let mut state = self.lock();
        let lot = state.lots.entry(address.clone()).or_default();
        if lot.len() > 0 || lot.missing.is_some() {
            self.want(&mut state, address);
        } else if lot.fetching == Fetching::No {
            lot.fetching = Fetching::Asking;
            state.sought.push_back(address.clone());
            self.seeking.notify_one();
        }
        self.counted(&state);
    }

    /// The next one about which the broker is to be asked.
    pub(crate) fn next_sought(&self) -> Option<Address> {
        self.lock().sought.pop_front()
    }

    /// Ends once there may be such a one.
    pub(crate) async fn until_sought(&self) {
        self.seeking.notified().await;
    }

    /// Whether the broker is being asked about `address`.
    pub(crate) fn is_sought(&self, address: &Address) -> bool {
        let state = self.lock();
        state.lots.get(address).is_some_and(|lot| lot.fetching == Fetching::Asking)
    }

    /// There may be a queue for `address`, about which the broker was asked: what is in it is wanted.
    pub(crate) fn found(&self, address: &Address) {
        if self.is_sought(address) {
            self.interrupted(address);
            self.look_again(address, true);
        }
    }
}
