//! Devices that have left: each is unbound when everybody was told, and at the end all at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::super::super::BrokerError;
use super::{Asked, BINDING_IS_LATE, Ending, Entry, Table};
use crate::cluster::control::Control;
use crate::cluster::shards::{SHARDS, shard_of};
use crate::command::Address;

/// Unbindings that the broker has not answered: enough for it to have always one more at hand. At its end a bridge
/// waits for no more than these.
const UNBINDINGS_MAX: usize = 128;

/// A device that is unbound, until nothing comes any more that came before.
#[derive(Debug)]
pub(super) struct Unbinding {
    /// Whether it had been bound, to all this bridge knows.
    was_bound: bool,
    since: Instant,
    /// How long the broker took for it.
    took: Option<Duration>,
}

impl Unbinding {
    pub(super) fn is_answered(&mut self, now: Instant) {
        self.took.get_or_insert(now.saturating_duration_since(self.since));
    }

    /// Whether what comes by the binding may be a copy of what another bridge has: it is one that nobody knows of, or its
    /// end is long in coming, so that on one node the device may be bound to the next bridge already.
    pub(super) fn gives_copies(&self, now: Instant) -> bool {
        let takes = self.took.unwrap_or_else(|| now.saturating_duration_since(self.since));
        !self.was_bound || takes >= BINDING_IS_LATE
    }
}

impl Table<'_> {
    /// Whether so many devices are bound that a bridge which ends had better shut its gate than wait until each is unbound.
    pub(in super::super) fn has_many(&self) -> bool {
        self.is_open() && self.entries.len() > UNBINDINGS_MAX
    }

    /// The gate is shut: nothing comes by any binding of this bridge any more.
    pub(in super::super) fn shut(&mut self) {
        (self.cut, self.cutting) = (SHARDS, SHARDS);
    }

    /// Whether the gate is not shut, nor all shards cut off.
    pub(in super::super) fn is_open(&self) -> bool {
        self.cut < SHARDS
    }

    /// Whether each device is unbound that has left, and so nothing is bound in the end.
    pub(in super::super) fn unbinds_each(&self) -> bool {
        self.cutting == 0
    }

    /// Cuts off so many of the shards, if there are many devices: their unbindings, thousands in some seconds, would
    /// take a busy broker a minute, and what is passed on meanwhile waits behind them.
    pub(in super::super) fn cut_off(&mut self, shards: u32) -> Result<(), BrokerError> {
        if self.unbinds_each() && !self.has_many() {
            return Ok(());
        }
        while self.cutting < shards.min(SHARDS) {
            self.courier.unbind(&self.gate.shard(self.cutting), self.gate.name(), "")?;
            self.asked_for.push_back(Asked::Cut);
            self.cutting += 1;
        }
        self.courier.flush()
    }

    /// Whether nothing comes by the binding of this device, should there be one.
    fn is_cut_off(&self, address: &Address) -> bool {
        shard_of(address) < self.cut
    }

    /// Unbinds a device whose connection has ended, if everybody was told and what was parked for it is
    /// where others find it.
    pub(super) fn try_to_end(&mut self, address: Address) -> Result<(), BrokerError> {
        let devices = self.devices();
        let Some(Entry::Ending(ending)) = self.entries.get(&address) else { return Ok(()) };
        let goes_on = ending.to.is_none() && devices.registry.find(&address).is_some();
        if goes_on || !devices.registry.is_told(&address) {
            return Ok(());
        }
        let is_soon = shard_of(&address) < self.cutting;
        let has_room = !is_soon && self.unbindings < UNBINDINGS_MAX;
        if !(self.is_cut_off(&address) || has_room) || devices.parking.is_fetching(&address) {
            self.later.push(address);
            return Ok(());
        }
        let Some(Entry::Ending(ending)) = self.entries.remove(&address) else { return Ok(()) };
        let Ending { to, waiting } = *ending;
        self.unbind(&address, true)?;
        for order in waiting {
            self.pass_on(order, None)?;
        }
        let is_wanted = to.is_some();
        self.say_emptied(&address, to)?;
        if is_wanted {
            self.cluster.touch(&address);
        }
        Ok(())
    }

    /// Unbinds a device. What is published behind this does not come here any more; `say_emptied` has to
    /// follow.
    fn unbind(&mut self, address: &Address, was_bound: bool) -> Result<(), BrokerError> {
        let is_cut_off = self.is_cut_off(address);
        if !is_cut_off {
            let (exchange, key) = (self.shared().to_owned(), address.to_string());
            self.courier.unbind(&exchange, &self.gate.shard_of(address), &key)?;
            self.asked_for.push_back(Asked::Unbind(address.clone()));
            self.unbindings += 1;
        }
        let took = is_cut_off.then_some(Duration::ZERO);
        self.unbinding
            .insert(address.clone(), Unbinding { was_bound, since: Instant::now(), took });
        Ok(())
    }

    /// Says to this bridge itself, behind all that came by the binding of a device, that it is unbound; and to whom
    /// it is told then, with the epoch the connection here had. If it is cut off and nobody is to be told, that is no
    /// matter: nothing comes by any binding, and the bridge ends.
    fn say_emptied(
        &mut self,
        address: &Address,
        to: Option<(Arc<str>, u64)>,
    ) -> Result<(), BrokerError> {
        if self.is_cut_off(address) && to.is_none() {
            return Ok(());
        }
        let own = Arc::clone(&self.cluster.bridge);
        let (to, epoch) = to.map_or((None, 0), |(to, epoch)| (Some(to.to_string()), epoch));
        self.say(&own, &Control::Emptied { address: address.to_string(), to, epoch })
    }

    /// Unbinds a device that is bound, though this bridge does not know of it. Nothing is done if it is being unbound:
    /// an unbinding may take the broker long, and each that comes on top of it makes all others later. Nor if the binding may
    /// be one that leads nowhere any more.
    pub(super) fn unbind_stale(&mut self, address: &Address) -> Result<(), BrokerError> {
        if self.unbinding.contains_key(address) || self.hears_old.load(Ordering::Relaxed) {
            return Ok(());
        }
        debug!(%address, "something came by a binding of a device that is not here; it is unbound");
        self.unbind(address, false)?;
        self.say_emptied(address, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_that_is_long_in_ending_gives_copies() {
        let since = Instant::now();
        let later = since + BINDING_IS_LATE;
        let unbinding = |was_bound| Unbinding { was_bound, since, took: None };
        let (mut quick, mut slow) = (unbinding(true), unbinding(true));
        assert!(unbinding(false).gives_copies(since), "another bridge may have the device");
        quick.is_answered(since);
        assert!(!quick.gives_copies(later));
        assert!(!slow.gives_copies(since));
        assert!(slow.gives_copies(later), "the broker has not answered");
        slow.is_answered(later);
        assert!(slow.gives_copies(later), "it answered late");
    }
}
