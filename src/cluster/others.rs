//! Which other bridges there are, and whether they are there.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::bridges::Bridges;
use super::control::Control;
use super::{Cluster, Work};

impl Cluster {
    /// Another bridge has been heard of.
    pub(crate) fn heard_of(&self, bridge: &str) {
        if *bridge == *self.bridge {
            return;
        }
        let (is_new, count) = {
            let mut bridges = self.bridges();
            (bridges.heard_of(bridge), bridges.count())
        };
        if is_new {
            self.metrics.bridges(count);
            // It may have begun behind this one's last heartbeat.
            self.push(Work::Greet(bridge.into()));
            self.ask_too(bridge);
        }
    }

    /// The other bridges that are known.
    pub(crate) fn others(&self) -> Vec<Arc<str>> {
        self.bridges().names()
    }

    /// Whether no other bridge is known. One that is missing may be back already.
    pub(crate) fn is_alone(&self) -> bool {
        self.others().is_empty()
    }

    /// Whether a bridge is connected to the broker, as far as is known.
    pub(crate) fn is_present(&self, bridge: &str) -> bool {
        self.bridges().is_present(bridge)
    }

    /// Whether one of the known bridges is not.
    pub(crate) fn misses_one(&self) -> bool {
        self.bridges().miss_one()
    }

    /// A bridge is connected to the broker.
    pub(crate) fn is_there(&self, bridge: &str) {
        self.bridges().is_there(bridge);
    }

    /// A bridge is not.
    pub(crate) fn is_missing(&self, bridge: &str) {
        self.bridges().is_missing(bridge, Instant::now());
    }

    /// Nothing of a bridge is left at the broker, or another one sees to it.
    pub(crate) fn forget_bridge(&self, bridge: &str) {
        self.is_not_asked(bridge);
        let mut bridges = self.bridges();
        bridges.forget(bridge);
        self.metrics.bridges(bridges.count());
    }

    /// Whether the others are there is not known any more: this bridge itself was not.
    pub(crate) fn was_away(&self) {
        self.bridges().reset();
        self.missed_some();
    }

    /// A bridge that has been missing for so long, to be taken over from.
    pub(crate) fn take_gone(&self, after: Duration) -> Option<Arc<str>> {
        self.bridges().take_gone(after, Instant::now())
    }

    /// The bindings of a bridge lead nowhere: all others are to claim again what they claimed from it.
    pub(crate) fn left(&self, gone: &str) {
        self.is_lost(gone);
        for other in self.others().into_iter().filter(|other| **other != *gone) {
            self.push(Work::Say(other, Control::Left { bridge: gone.to_owned() }));
        }
        self.push(Work::ClaimAgain);
    }

    pub(super) fn bridges(&self) -> MutexGuard<'_, Bridges> {
        self.bridges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
