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

    /// A device has connected for which other bridges may have parked something. True if the broker is to be
    /// asked whether there is a queue, until `answered`; what is known to be there is wanted at once. Until one
    /// or the other is done commands for the device wait.
    pub(crate) fn seek(&self, address: &Address) -> bool {
        let mut state = self.lock();
        let lot = state.lots.entry(address.clone()).or_default();
        if lot.len() > 0 || lot.missing.is_some() {
            self.want(&mut state, address);
            return false;
        }
        let asks = lot.fetching == Fetching::No;
        if asks {
            lot.fetching = Fetching::Asking;
        }
        self.counted(&state);
        asks
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

    /// Nobody is there to ask the broker: of all about which it was being asked, what is parked is wanted. Whoever
    /// fetches it finds out.
    pub(crate) fn found_out_by_fetching(&self) {
        let mut state = self.lock();
        let asking = |lot: &super::Lot| lot.fetching == Fetching::Asking;
        let sought = state.lots.iter().filter(|(_, lot)| asking(lot));
        let sought: Vec<Address> = sought.map(|(address, _)| address.clone()).collect();
        for address in sought {
            if let Some(lot) = state.lots.get_mut(&address) {
                lot.fetching = Fetching::No;
            }
            self.want(&mut state, &address);
        }
    }
}
