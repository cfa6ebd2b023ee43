//! How a session takes what was parked for its device: before everything else, in the order it
//! comes.

use std::sync::Arc;

use tokio::time::Instant;

use super::Devices;
use super::lane::Waits;
use super::offer::Offer;
use super::session::{Session, Shared};
use crate::order::Order;

impl Session {
    /// Writes `order`, which was parked, now, or lets it wait before all that was not. Gives it back
    /// if the session is closed.
    pub(crate) fn offer_parked(
        self: &Arc<Self>,
        order: Order,
        now: Instant,
        devices: &Devices,
    ) -> Result<Offer, Order> {
        let mut shared = self.lock();
        if shared.closed || shared.end.is_some() {
            return Err(order);
        }
        let order = match self.rules.word(order, self.provable) {
            Ok(order) => order,
            Err((order, reason)) => return Ok(Offer::Refused(order, reason)),
        };
        let comes_first = shared.lane.first().is_none_or(|(first, begun)| {
            !begun && !first.goes_first() && first.number() > order.number()
        });
        let is_free = comes_first
            && shared.outbox.is_empty()
            && !shared.hold.greeting
            && !shared.hold.claiming
            && shared.has_room_for(&order, now, &self.rules);
        let (order, taken) = if is_free {
            match self.write_at_once(&mut shared, order, devices) {
                Ok(offer) => return Ok(offer),
                Err(unfinished) => unfinished,
            }
        } else {
            (order, 0)
        };
        if taken > 0 {
            shared.lane.begin(order, taken, now);
        } else {
            shared.lane.push_first(order, now);
        }
        devices.lanes_changed(1);
        self.wake.give();
        Ok(Offer::Waiting)
    }

    /// The broker has nothing more that is parked for the device: lets the others go, unless
    /// something is on its way there, or a newer connection holds them back now, for which is to be
    /// fetched then. True if it was so.
    pub(crate) fn finish_parked(&self, devices: &Devices) -> bool {
        let mut shared = self.lock();
        if shared.closed || !devices.parking.finish(&self.address) {
            return false;
        }
        self.let_others_go(&mut shared);
        true
    }

    /// The broker does not say what is parked for the device: lets the others go.
    pub(crate) fn pass_parked(&self) {
        self.let_others_go(&mut self.lock());
    }

    fn let_others_go(&self, shared: &mut Shared) {
        if std::mem::take(&mut shared.hold.parked) {
            shared.lane.restart_clock(Instant::now());
            self.wake.give();
        }
    }

    /// Whether nothing is taken up any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}
