//! Devices whose bridge has ended: what becomes of those that do not come back in time.
//!
//! Before one is told as offline it is claimed: this bridge may not have heard that another has it.

use tokio::time::Instant;

use super::super::super::BrokerError;
use super::{Sent, Table};
use crate::cluster::Overdue;
use crate::command::Outcome;
use crate::fate::Fate;

/// Devices that are claimed between two looks: a third of what may be unanswered at a time.
const OVERDUE_AT_ONCE: usize = 128;

impl Table<'_> {
    /// Claims those that have not come back in time; true if there may be more.
    pub(super) fn look_at_moving(&mut self, now: Instant) -> Result<bool, BrokerError> {
        let (overdue, unwanted) = self.cluster.overdue(now, OVERDUE_AT_ONCE);
        // It is looked at there why they are not wanted.
        self.cluster.go_on(unwanted);
        let is_full = overdue.len() == OVERDUE_AT_ONCE;
        for overdue in overdue {
            match self.devices().registry.find(&overdue.address) {
                // It is told as online soon, or has been.
                Some(session) if session.is_announced() => self.cluster.go_on(overdue.waiting),
                Some(_) => self.cluster.hold_on(overdue),
                None if overdue.lost && self.is_storm(now) => self.cluster.hold_on(overdue),
                None => {
                    // A bridge that was only taken for dead may have that one still, and is to keep it.
                    let epoch = overdue.epoch.saturating_sub(u64::from(overdue.lost));
                    let claim = self.claim_for(&overdue.address, epoch);
                    self.publish(claim, Sent::Overdue(overdue))?;
                }
            }
        }
        Ok(is_full)
    }

    /// No bridge has a device that has not come back in time.
    pub(super) fn stayed_away(&self, overdue: Overdue) {
        let devices = self.devices();
        devices.registry.tell_gone(&overdue);
        for order in overdue.waiting {
            let reason =
                "the bridge that had the device has ended, and the device has not come back";
            devices.reporter.report(order, Fate::new(Outcome::Offline, reason));
        }
    }
}
