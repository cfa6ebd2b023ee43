//! `Router`: an order goes to its device's session, or back with its fate. It never waits.

use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::Arc;

use tokio::time::Instant;

use crate::command::Outcome;
use crate::device::{Devices, Offer, Session};
use crate::fate::Fate;
use crate::ledger::Known;
use crate::order::Order;
use crate::settlement::Settlement;

/// Where an order went.
#[derive(Debug)]
pub(crate) enum Routed {
    /// To its device's session, which reports it later.
    Waiting,
    /// Onto the wire, which is reported; it may be settled if its settlement is here.
    Written(Option<Settlement>),
    /// Nowhere any more: its fate is known.
    Concluded(Order, Fate),
}

/// Sends orders to devices.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) devices: Arc<Devices>,
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

    /// How many orders are written and wait for their proof.
    pub(crate) fn proving(&self) -> usize {
        self.devices.proving()
    }

    /// Sends `order` to its device.
    pub(crate) fn route(&self, order: Order, now: Instant) -> Routed {
        let mut order = match self.recall(order) {
            Continue(order) => order,
            Break(routed) => return routed,
        };
        if order.command().expires <= now {
            return expired(order);
        }
        let may_wait = self.waiting() < self.waiting_max;
        let mut last_epoch = None;
        while let Some(session) = self.devices.registry.find(&order.command().address) {
            // A session that is closed stands in the registry until its task has run; a newer one
            // of the same device may have taken its place since it was looked up.
            if last_epoch == Some(session.epoch()) {
                return self.elsewhere(order, "the connection has just ended");
            }
            last_epoch = Some(session.epoch());
            order = match session.offer(order, now, &self.devices, may_wait) {
                Ok(offer) => return self.taken(offer),
                Err(order) => order,
            };
        }
        self.elsewhere(order, "the device is not connected")
    }

    /// An order whose device is not here: another bridge may have it.
    fn elsewhere(&self, order: Order, reason: &'static str) -> Routed {
        let Some(cluster) = &self.devices.cluster else {
            return refused(order, Outcome::Offline, reason);
        };
        match cluster.pass_on(order) {
            Ok(()) => Routed::Waiting,
            Err((order, reason)) => refused(order, Outcome::Offline, reason),
        }
    }

    /// Sends an order that was parked to its device's session; gives it back if that is closed.
    pub(crate) fn route_parked(
        &self,
        order: Order,
        session: &Arc<Session>,
        now: Instant,
    ) -> Result<Routed, Order> {
        let order = match self.recall(order) {
            Continue(order) => order,
            Break(routed) => return Ok(routed),
        };
        if order.command().expires <= now {
            return Ok(expired(order));
        }
        Ok(self.taken(session.offer_parked(order, now, &self.devices)?))
    }

    fn taken(&self, offer: Offer) -> Routed {
        match offer {
            Offer::Written(settlement) => Routed::Written(settlement),
            Offer::Waiting => Routed::Waiting,
            Offer::Park(order) => {
                refused(order, Outcome::Parked, "commands parked for the device go first")
            }
            Offer::Refused(order, reason) => refused(order, Outcome::Invalid, reason),
            Offer::LaneFull(order, waiting) => {
                let reason =
                    format!("the device does not read: {waiting} commands wait for it already");
                refused(order, Outcome::Overloaded, reason)
            }
            Offer::NoRoom(order) => {
                let reason = format!(
                    "the device does not read, and {} commands wait for such devices already",
                    self.waiting_max
                );
                refused(order, Outcome::Overloaded, reason)
            }
        }
    }

    /// What became of the first try, if this is not it. Gives the order back if it is to be tried.
    fn recall(&self, order: Order) -> ControlFlow<Routed, Order> {
        // A publisher that loses its connection may park a command twice, or park it while the broker
        // delivers it again; the copies do not say so.
        let may_be_a_copy = order.facts.origin.parked && order.command().once;
        let may_be_repeated = order.facts.may_be_repeated();
        if !may_be_repeated && !may_be_a_copy {
            return Continue(order);
        }
        match self.devices.reporter.recall(&order.facts) {
            Some(Known::Untouched) => Continue(order),
            Some(Known::Done(outcome, answer)) => {
                let reason = "the broker delivered it again; this is what became of the first try";
                Break(Routed::Concluded(order, Fate { answer, ..Fate::new(outcome, reason) }))
            }
            Some(Known::Begun) => {
                let session = self.devices.registry.find(&order.command().address);
                let adopted = match session {
                    Some(session) => session.adopt(order),
                    None => Err(order),
                };
                match adopted {
                    Ok(()) => Break(Routed::Waiting),
                    Err(order) => try_again(order),
                }
            }
            Some(Known::Again) => try_again(order),
            None if may_be_repeated => try_again(order),
            None => Continue(order),
        }
    }
}

/// An order whose first try may have reached its device.
fn try_again(order: Order) -> ControlFlow<Routed, Order> {
    if order.command().once {
        let reason =
            "the broker delivered it again, and it is not known whether it was written before";
        return Break(refused(order, Outcome::Uncertain, reason));
    }
    Continue(order)
}

fn expired(order: Order) -> Routed {
    refused(order, Outcome::Expired, "its ttl ended before it could be written")
}

fn refused(order: Order, outcome: Outcome, reason: impl Into<crate::command::Reason>) -> Routed {
    Routed::Concluded(order, Fate::new(outcome, reason))
}
