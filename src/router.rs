//! `Router`: an order goes to its device's session, or back with an outcome. It never waits.

use std::sync::Arc;

use tokio::time::Instant;

use crate::command::{Outcome, Reason};
use crate::device::{Devices, Offer};
use crate::order::Order;

/// Where an order went.
#[derive(Debug)]
pub(crate) enum Routed {
    /// Onto the wire.
    Written(Order),
    /// Into its device's lane; its session reports it later.
    Waiting,
    /// Nowhere, and why.
    Refused(Order, Outcome, Reason),
}

/// Sends orders to devices.
#[derive(Debug)]
pub(crate) struct Router {
    devices: Arc<Devices>,
    waiting_max: usize,
}

impl Router {
    /// A router that lets at most `waiting_max` orders wait in lanes, all devices together.
    pub(crate) fn new(devices: Arc<Devices>, waiting_max: usize) -> Self {
        Self { devices, waiting_max }
    }

    /// Forgets what waits for devices on behalf of an AMQP channel that is dead.
    pub(crate) fn drop_unwanted(&self) {
        self.devices.drop_unwanted();
    }

    /// How many orders wait in lanes.
    pub(crate) fn waiting(&self) -> usize {
        self.devices.waiting()
    }

    /// Sends `order` to its device.
    pub(crate) fn route(&self, mut order: Order, now: Instant) -> Routed {
        if order.command.expires <= now {
            return Routed::Refused(
                order,
                Outcome::Expired,
                "its ttl ended before it could be written".into(),
            );
        }
        let may_wait = self.waiting() < self.waiting_max;
        let mut last_epoch = None;
        while let Some(session) = self.devices.registry.find(&order.command.address) {
            // A session that has ended stands in the registry until its task has run; a newer one
            // of the same device may have taken its place since it was looked up.
            if last_epoch == Some(session.epoch()) {
                return Routed::Refused(
                    order,
                    Outcome::Offline,
                    "the connection has just ended".into(),
                );
            }
            last_epoch = Some(session.epoch());
            order = match session.offer(order, now, &self.devices, may_wait) {
                Offer::Written(order) => return Routed::Written(order),
                Offer::Waiting => return Routed::Waiting,
                Offer::Gone(order) => order,
                Offer::LaneFull(order, waiting) => {
                    let reason =
                        format!("the device does not read: {waiting} commands wait for it already");
                    return Routed::Refused(order, Outcome::Overloaded, reason.into());
                }
                Offer::NoRoom(order) => {
                    let reason = format!(
                        "the device does not read, and {} commands wait for such devices already",
                        self.waiting_max
                    );
                    return Routed::Refused(order, Outcome::Overloaded, reason.into());
                }
            };
        }
        Routed::Refused(order, Outcome::Offline, "the device is not connected".into())
    }
}
