//! The end of a session: what became of everything that was in its hands.
//!
//! It is reported in the order it was written and then in the order it waited, before anyone learns
//! that the session is closed: so what comes later for the device stays behind it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::proofs::Unproved;
use super::session::Session;
use super::{Devices, EndReason};
use crate::command::Outcome;
use crate::fate::Fate;
use crate::order::{Facts, Order};

/// What came of closing a session.
struct Retired {
    /// Why it ended.
    reason: EndReason,
    /// Commands that were not written or not proved.
    waited: usize,
    /// What waited unwritten and waits for the connection that takes its place.
    inherited: VecDeque<Order>,
}

impl Session {
    /// Closes it, unless somebody else has; gives why it ended and how many commands were not
    /// written or not proved.
    pub(super) fn close(&self, reason: EndReason, devices: &Devices) -> (EndReason, usize) {
        let Retired { reason, waited, inherited } = self.retire(reason, devices);
        debug_assert!(inherited.is_empty());
        (reason, waited)
    }

    /// Closes it because a newer connection takes its place, and gives what waited unwritten, which
    /// waits for that one now.
    pub(super) fn supersede(&self, devices: &Devices) -> VecDeque<Order> {
        self.retire(EndReason::Replaced, devices).inherited
    }

    fn retire(&self, reason: EndReason, devices: &Devices) -> Retired {
        let mut shared = self.lock();
        let reason = *shared.end.get_or_insert(reason);
        if std::mem::replace(&mut shared.closed, true) {
            return Retired { reason, waited: 0, inherited: VecDeque::new() };
        }
        self.wake.give();
        // The kernel's last word on what has arrived.
        self.ask(&mut shared, devices);
        shared.transport.close(&self.stream);
        let open = shared.proofs.open();
        let unproved = shared.proofs.take();
        devices.proving.fetch_sub(open, Ordering::Relaxed);
        let (begun, unwritten) = shared.lane.take();
        let left = usize::from(begun.is_some()) + unwritten.len();
        let waited = unproved.len() + left;
        for unproved in unproved {
            match unproved {
                Unproved::Settled(facts) => devices.revise(&facts, reason),
                Unproved::Open(order) => devices.lose(order, "the line was written", reason),
            }
        }
        if let Some(order) = begun {
            devices.lose(order, "a part of the line was written", reason);
        }
        let inherited = if reason == EndReason::Replaced {
            // Parked ones go back to their queue, and come again in their order.
            let (parked, kept): (VecDeque<_>, VecDeque<_>) =
                unwritten.into_iter().partition(|order| order.facts.origin.parked);
            parked.into_iter().for_each(|order| devices.hand_back_untouched(order));
            kept
        } else {
            unwritten.into_iter().for_each(|order| devices.refuse_waiting(order, reason));
            VecDeque::new()
        };
        // What is inherited goes on waiting.
        devices.lanes_changed(
            i64::try_from(inherited.len()).unwrap_or(i64::MAX)
                - i64::try_from(left).unwrap_or(i64::MAX),
        );
        Retired { reason, waited, inherited }
    }
}

impl Devices {
    /// A command whose message was settled as written, and which may never have arrived.
    fn revise(&self, facts: &Arc<Facts>, reason: EndReason) {
        let reason = format!(
            "the line was written, but not acknowledged by the device before the connection ended: {}",
            reason.explained()
        );
        self.reporter.revise(facts, Fate::new(Outcome::Uncertain, reason));
    }

    /// A command that was written, all or a part of it, and whose proof can no longer come.
    fn lose(&self, order: Order, how_far: &str, reason: EndReason) {
        let once = order.command().once;
        // The broker has it still, and in its place. On shutdown the next bridge finds it there.
        let is_kept = order.facts.origin.parked || reason == EndReason::Shutdown;
        if !order.settlement.is_live() || is_kept && !once {
            order.settlement.hand_back();
            return;
        }
        let reason = format!("{how_far}: {}", reason.explained());
        self.reporter.report(order, Fate::new(Outcome::Uncertain, reason));
    }

    /// A command of which nothing was written. On shutdown it goes to the bridge that holds the device, or back to the
    /// queue, where the next bridge finds it; a parked one has its place in the broker still.
    fn refuse_waiting(&self, order: Order, reason: EndReason) {
        let is_kept = order.facts.origin.parked || reason == EndReason::Shutdown;
        if let Some(cluster) = &self.cluster
            && is_kept
            && !order.facts.origin.parked
            && cluster.heir().is_some()
        {
            // Another bridge has the device soon.
            cluster.go_on([order]);
            return;
        }
        if is_kept || !order.settlement.is_live() {
            self.hand_back_untouched(order);
            return;
        }
        let reason = format!("nothing was written: {}", reason.explained());
        self.reporter.report(order, Fate::new(Outcome::Offline, reason));
    }

    /// Gives a command of which nothing was written here back to the broker.
    pub(crate) fn hand_back_untouched(&self, order: Order) {
        if !order.facts.steps.may_be_elsewhere.load(Ordering::Relaxed) {
            self.reporter.untouched(&order.facts);
        }
        order.settlement.hand_back();
    }
}
