//! What comes for a device: it is written at once, or waits, or is refused; and how much of it is proved.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::lane::Waits;
use super::proofs::Proofs;
use super::session::{Session, Shared};
use super::{Devices, EndReason, receipt};
use crate::clock::Moment;
use crate::command::{Confirm, IfOffline, Outcome, Reason};
use crate::fate::Fate;
use crate::order::Order;
use crate::settlement::Settlement;

/// Commands written since the kernel was last asked what it knows to be acknowledged: asking costs
/// a third of a small write, so it is done for some at a time. Not for more: what is kept meanwhile is in no
/// cache when it is forgotten, and the allocator takes back no more than seven of a size at once without a search.
const ASK_EVERY: usize = 8;

/// What became of an offer.
#[derive(Debug)]
pub(crate) enum Offer {
    /// The socket took it, and that is all it asks for: it is reported, and may be settled if its
    /// settlement is here.
    Written(Option<Settlement>),
    /// It waits, for the socket or for its proof; the session reports it.
    Waiting,
    /// Commands that are parked go first, and this one may wait among them.
    Park(Order),
    /// It would have to wait, and so many wait for this device that no more may.
    LaneFull(Order, usize),
    /// It would have to wait, and too many wait for all devices together.
    NoRoom(Order),
    /// This device cannot be told it, or not as it asks.
    Refused(Order, Reason),
}

impl Session {
    /// Writes `order` now, or lets it wait if its turn has not come and `devices` has room. Gives it
    /// back if the session is closed.
    pub(crate) fn offer(
        self: &Arc<Self>,
        order: Order,
        now: Instant,
        devices: &Devices,
        may_wait: bool,
    ) -> Result<Offer, Order> {
        let mut shared = self.lock();
        if shared.closed {
            return Err(order);
        }
        let order = match self.rules.word(order, self.provable) {
            Ok(order) => order,
            Err((order, reason)) => return Ok(Offer::Refused(order, reason)),
        };
        if devices.parking.gates(&self.address) {
            // Behind what waits in the lane already it keeps its place only there.
            if order.command().if_offline == IfOffline::Park && shared.lane.is_empty() {
                return Ok(Offer::Park(order));
            }
            shared.hold.parked = true;
        }
        let (order, taken) = if shared.is_free(&order, now, &self.rules) {
            match self.write_at_once(&mut shared, order, devices) {
                Ok(offer) => return Ok(offer),
                Err(unfinished) => unfinished,
            }
        } else {
            (order, 0)
        };
        // Half a line is on the wire: its rest has to follow, room or not.
        if taken == 0 {
            // What another bridge hands over waited in a lane there.
            let shares = if order.facts.origin.route.handed { 2 } else { 1 };
            if shared.lane.len() >= self.rules.lane_max * shares {
                let waiting = shared.lane.len();
                return Ok(Offer::LaneFull(order, waiting));
            }
            // Where the device itself is waited for there is a limit. A binding is waited for by what the broker has
            // delivered, and not for long.
            if !may_wait && !shared.hold.claiming {
                return Ok(Offer::NoRoom(order));
            }
        }
        if shared.hold.claiming
            && let Some(cluster) = &devices.cluster
        {
            cluster.hurry(&self.address);
        }
        if order.facts.origin.route.handed && shared.hold.claiming {
            shared.lane.push_handed(order, now);
        } else {
            shared.lane.push(order, taken, now);
        }
        devices.lanes_changed(1);
        self.wake.give();
        Ok(Offer::Waiting)
    }

    /// Writes `order` without letting it wait. Gives it back, with the number of bytes that the
    /// socket took, if that was not the whole line.
    pub(super) fn write_at_once(
        self: &Arc<Self>,
        shared: &mut Shared,
        order: Order,
        devices: &Devices,
    ) -> Result<Offer, (Order, usize)> {
        match self.write(shared, &order, 0, devices) {
            Ok(taken) if shared.is_out(&order, taken) => Ok(self.wrote(shared, order, devices)),
            Ok(taken) => Err((order, taken)),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    // It waits all the same, and whoever closes the session reports all that wait.
                    shared.end = Some(EndReason::from_error(&error));
                }
                Err((order, 0))
            }
        }
    }

    /// Writes what is left of a line behind its first `from` bytes, as much as the socket takes.
    pub(super) fn write(
        &self,
        shared: &mut Shared,
        order: &Order,
        from: usize,
        devices: &Devices,
    ) -> io::Result<usize> {
        let bytes = order.bytes().get(from..).unwrap_or_default();
        let mark = self.provable && (shared.always_writable || Proofs::needs_mark(order));
        let taken = shared.transport.write(&self.stream, bytes, mark)?;
        shared.proofs.reached(shared.transport.wire());
        if taken > 0 && !shared.is_out(order, from + taken) {
            // Should the broker deliver it again, it is not untouched.
            devices.reporter.begun(&order.facts);
        }
        Ok(taken)
    }

    /// The whole line of `order` is written. If that is all it asks for, it is reported before the
    /// session's lock is released: whoever closes the session then says more of it.
    pub(super) fn wrote(
        self: &Arc<Self>,
        shared: &mut Shared,
        order: Order,
        devices: &Devices,
    ) -> Offer {
        let at = Moment::now();
        self.commands.fetch_add(1, Ordering::Relaxed);
        if !Proofs::needs_mark(&order) && order.command().confirm == Confirm::Written {
            if shared.proofs.in_flight() % ASK_EVERY == ASK_EVERY - 1 {
                self.ask(shared, devices);
            }
        } else {
            devices.reporter.begun(&order.facts);
            devices.proving.fetch_add(1, Ordering::Relaxed);
        }
        if order.command().confirm != Confirm::Answered {
            // Marked ones too: the kernel drops what it has to tell when the receive buffer is full.
            devices.sweeper.remember(self, shared);
        }
        let before = shared.proofs.deadline();
        let written = shared.proofs.wrote(order, at);
        let deadline = shared.proofs.deadline();
        if deadline.is_some() && before.is_none_or(|before| deadline < Some(before)) {
            self.wake.give();
        }
        match written {
            Some(order) => {
                let fate = Fate::delivered(Outcome::Written, at);
                Offer::Written(devices.reporter.conclude(order, fate))
            }
            None => Offer::Waiting,
        }
    }

    /// Asks the kernel what the device has acknowledged.
    pub(super) fn ask(&self, shared: &mut Shared, devices: &Devices) {
        if let Ok(out) = receipt::unacknowledged(&self.stream) {
            let mut proved = Vec::new();
            let out = out + shared.transport.pending() as u64;
            let written = shared.proofs.written();
            let acknowledged = written.saturating_sub(out);
            shared.proofs.acknowledged(acknowledged, Moment::now(), &mut proved);
            devices.conclude(proved);
        }
    }

    /// Lets `order`, delivered again by the broker, take the place of the one it repeats, if that is
    /// still waited for here.
    pub(crate) fn adopt(&self, order: Order) -> Result<(), Order> {
        self.lock().proofs.adopt(order)
    }

    /// Takes over what waited for the connection this one replaces. Called before anyone else
    /// knows of this session.
    pub(super) fn inherit(&self, orders: VecDeque<Order>, now: Instant, devices: &Devices) {
        let mut shared = self.lock();
        shared.hold.parked = devices.parking.gates(&self.address);
        for order in orders {
            match self.rules.word(order, self.provable) {
                Ok(order) => shared.lane.push(order, 0, now),
                Err((order, reason)) => {
                    devices.lanes_changed(-1);
                    devices.reporter.report(order, Fate::new(Outcome::Invalid, reason));
                }
            }
        }
    }

    /// Forgets what waits and is wanted no more, because the broker delivers it again.
    pub(super) fn drop_unwanted(&self, devices: &Devices) {
        let unwanted = self.lock().lane.take_unwanted();
        devices.lanes_changed(-i64::try_from(unwanted.len()).unwrap_or(i64::MAX));
        unwanted.into_iter().for_each(|order| devices.hand_back_untouched(order));
    }
}
