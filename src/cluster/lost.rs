//! What becomes of the devices of a bridge that has died: whoever knows of them holds them, as if it had ended in good
//! order, and tells of those that do not come back.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::control::Control;
use super::elsewhere::{Elsewhere, Heard};
use super::heirs::DEVICES_A_MESSAGE;
use super::moving::Connection;
use super::{Cluster, Work};
use crate::command::Address;

/// How long a bridge may be told which devices are here, or that it was taken for dead: on a busy broker each of some thirty
/// messages takes up to a second.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// All bridges that have taken another one for dead tell it so, within one heartbeat of each other.
const SAID_WITHIN: Duration = Duration::from_secs(10);

impl Cluster {
    /// A bridge is there, in this run of its own.
    pub(crate) fn runs(&self, bridge: &str, run: &str) {
        if *bridge == *self.bridge {
            return;
        }
        let heard = self.change(|known| known.runs(bridge, run));
        self.heard(bridge, run, heard);
    }

    fn heard(&self, bridge: &str, run: &str, heard: Heard) {
        // Others may share the events and nothing more: they tell for themselves.
        let is_ours = || self.bridges().knows(bridge);
        match heard {
            Heard::Nothing => {}
            Heard::Restarted(_) | Heard::Back if !is_ours() => {}
            Heard::Restarted(lost) => {
                self.hold_lost(&lost);
                // It knows of nobody's devices.
                self.push(Work::Greet(bridge.into()));
            }
            Heard::Back => {
                let control = Control::WasLost { run: run.to_owned() };
                self.urgent.say(bridge, control, TOLD_WITHIN);
            }
        }
    }

    /// Another bridge says that a run was taken for dead: true if it is this one, and it has not been said just now.
    pub(crate) fn was_lost(&self, run: &str) -> bool {
        let now = Instant::now();
        let mut said = self.said_lost.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *run == *self.run && said.is_none_or(|at| at + SAID_WITHIN <= now);
        if is_news {
            *said = Some(now);
        }
        is_news
    }

    /// A device has come to another bridge.
    pub(crate) fn is_at(
        &self,
        bridge: &str,
        run: &str,
        address: &Address,
        epoch: u64,
        peer: SocketAddr,
    ) {
        let heard = self.change(|known| known.came(address.clone(), epoch, peer, (bridge, run)));
        self.heard(bridge, run, heard);
    }

    /// A device is at no other bridge any more.
    pub(crate) fn is_not_elsewhere(&self, address: &Address, epoch: u64) {
        self.change(|known| known.left(address, epoch));
    }

    /// A bridge is gone, and another acts for it.
    pub(crate) fn is_lost(&self, bridge: &str) {
        self.none_moved_to(bridge);
        let lost = self.change(|known| known.lost(bridge));
        self.hold_lost(&lost);
    }

    /// The devices that another bridge has, as far as is known.
    pub(super) fn devices_at(&self, bridge: &str) -> Vec<Address> {
        self.change(|known| known.at(bridge).cloned().collect())
    }

    /// Another bridge says which devices it has.
    pub(crate) fn has_these(&self, bridge: &str, run: &str, devices: Vec<Connection>) {
        self.heard_of(bridge);
        self.runs(bridge, run);
        for Connection { address, epoch, peer, .. } in devices {
            if let Ok(address) = Address::parse(&address) {
                self.is_at(bridge, run, &address, epoch, peer);
            }
        }
    }

    /// Tells a bridge that was not known that this one is there, and which devices are here. It may have no inbox yet.
    pub(crate) fn greet(&self, to: &Arc<str>, last_epoch: u64, devices: &[Connection]) {
        let control = Control::Here { bridge: self.bridge.to_string(), epoch: last_epoch };
        self.urgent.say(Arc::clone(to), control, TOLD_WITHIN);
        for devices in devices.chunks(DEVICES_A_MESSAGE) {
            let (bridge, run) = (self.bridge.to_string(), self.run.to_string());
            let control = Control::Devices { bridge, run, devices: devices.to_vec() };
            self.urgent.say(Arc::clone(to), control, TOLD_WITHIN);
        }
    }

    fn hold_lost(&self, lost: &[Connection]) {
        // All who know of them hold them, and tell one after the other.
        let turn = self.others().iter().filter(|other| ***other < *self.bridge).count();
        self.hold(lost, self.moving_for, u32::try_from(turn).unwrap_or(u32::MAX));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Elsewhere) -> T) -> T {
        let mut known = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut known);
        self.metrics.elsewhere(known.count());
        changed
    }
}
