//! Devices whose bridge has ended: what becomes of those that do not come back in time.

use tokio::time::Instant;

use super::Table;
use crate::cluster::{Ended, Overdue, Work};
use crate::command::Outcome;
use crate::fate::Fate;

/// How much longer a device is held that has connected here and is not told as online yet.
const ONCE_MORE: std::time::Duration = std::time::Duration::from_secs(1);

impl Table<'_> {
    /// Tells that those are offline which have not come back in time, and what that means for commands.
    pub(super) fn look_at_moving(&self, now: Instant) {
        let (overdue, unwanted) = self.cluster.overdue(now);
        let devices = self.devices();
        // It is looked at there why they are not wanted.
        unwanted.into_iter().for_each(|order| self.cluster.push(Work::Command(order, None)));
        for Overdue { address, epoch, peer, waiting } in overdue {
            if let Some(session) = devices.registry.find(&address) {
                if !session.is_announced() {
                    let ended = Ended { address: address.to_string(), epoch, peer };
                    self.cluster.hold(&[ended], ONCE_MORE);
                }
                waiting.into_iter().for_each(|order| self.cluster.push(Work::Command(order, None)));
                continue;
            }
            devices.registry.tell_gone(&address, epoch, peer);
            for order in waiting {
                let reason =
                    "the bridge that had the device has ended, and the device has not come back";
                devices.reporter.report(order, Fate::new(Outcome::Offline, reason));
            }
        }
    }
}
