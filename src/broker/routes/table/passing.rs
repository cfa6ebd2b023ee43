//! Commands that are passed on: to whoever has their device, or to the bridge that is known to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapin::types::ShortString;
use tokio::time::Instant;
use tracing::debug;

use super::super::super::BrokerError;
use super::super::super::message::RouteMarks;
use super::super::super::publication::Publication;
use super::{Ending, Entry, Sent, Table};
use crate::clock::Moment;
use crate::command::Outcome;
use crate::fate::Fate;
use crate::order::{Order, Route, Steps};
use crate::router::Routed;

impl Table<'_> {
    /// Notes of a command that came by a binding whether another bridge may have had one of the same device, and so the
    /// same command: two have claimed it at once, or nodes of the broker disagree on what is bound for a while.
    fn note_copy(&self, order: &Order) {
        let address = &order.command().address;
        if !order.facts.origin.route.by_binding {
            return;
        }
        let is_bound = !matches!(self.entries.get(address), None | Some(Entry::Claiming));
        let unbinding = self.unbinding.get(address);
        let is_expected =
            is_bound || unbinding.is_some_and(|unbinding| !unbinding.gives_copies(Instant::now()));
        if self.cluster.is_shared(address) || !is_expected {
            order.facts.steps.may_be_elsewhere.store(true, Ordering::Relaxed);
        }
    }

    /// Passes a command on: to the bridge `to`, or to whoever has its device.
    pub(super) fn pass_on(
        &mut self,
        order: Order,
        to: Option<Arc<str>>,
    ) -> Result<(), BrokerError> {
        let devices = self.devices();
        if !order.settlement.is_live() {
            devices.hand_back_untouched(order);
            return Ok(());
        }
        if order.command().expires <= Instant::now() {
            let reason = "its ttl ended on the way to its device's bridge";
            devices.reporter.report(order, Fate::new(Outcome::Expired, reason));
            return Ok(());
        }
        let address = order.command().address.clone();
        if to.is_none() && self.is_here(&address) {
            self.deliver(order);
            return Ok(());
        }
        self.note_copy(&order);
        let route = order.facts.origin.route;
        let to = to.or_else(|| self.cluster.moved_to(&address));
        if to.is_none() {
            match self.entries.get_mut(&address) {
                Some(Entry::Ending(ending)) => {
                    ending.waiting.push_back(order);
                    return Ok(());
                }
                Some(entry @ (Entry::Bound | Entry::Binding)) => {
                    let waiting = VecDeque::from([order]);
                    *entry = Entry::Ending(Box::new(Ending { to: None, waiting }));
                    return Ok(());
                }
                // It would come again.
                None if route.by_binding && route.hops > 0 => self.unbind_stale(&address)?,
                Some(Entry::Claiming) | None => {}
            }
        }
        let Some((order, to)) = self.refused.behind(order, to) else { return Ok(()) };
        let order = match to {
            Some(_) => order,
            None => match self.cluster.wait_for_answer(order) {
                Ok(()) => return Ok(()),
                Err(order) => order,
            },
        };
        let message = self.routed(&order, to.as_deref());
        self.publish(message, Sent::Command(order, to))
    }

    fn routed(&self, order: &Order, to: Option<&str>) -> Publication {
        let (facts, now) = (&order.facts, Moment::now());
        let address = facts.command.address.to_string();
        let left = facts.command.expires.saturating_duration_since(now.mono);
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let hops = facts.origin.route.hops.saturating_add(1);
        let marks = RouteMarks {
            address: Some(address.clone()),
            until_ms: Some(now.wall_ms.saturating_add(left_ms)),
            redelivered: facts.may_be_repeated(),
            route: Route { hops, handed: to.is_some(), ..Route::default() },
        };
        let message = &facts.origin.message;
        let id = self.devices().reporter.id(&facts.origin);
        let (exchange, key) = match to {
            Some(bridge) => (ShortString::default(), self.inbox(bridge)),
            None => (self.shared().into(), address),
        };
        Publication {
            exchange,
            key: key.into(),
            properties: message.routed_properties(&marks, &id),
            body: message.body().into(),
            mandatory: true,
        }
    }

    /// Another bridge has a command now, whose sender hears of it from there.
    pub(super) fn passed_on(&self, order: Order) {
        let Order { facts, settlement, .. } = order;
        let devices = self.devices();
        Steps::take(&facts.steps.passed_on_ms, Moment::now());
        devices.metrics.passed_on();
        let id = devices.reporter.id(&facts.origin);
        debug!(%id, address = %facts.command.address, "command passed on to another bridge");
        if let Some(gathering) = settlement.gathering() {
            gathering.passed_on();
        }
        settlement.settle();
    }

    /// No queue took a command: that of the bridge it was for, or that of any.
    pub(super) fn came_back(
        &mut self,
        order: Order,
        was_for: Option<Arc<str>>,
    ) -> Result<(), BrokerError> {
        let address = order.command().address.clone();
        if let Some(bridge) = was_for {
            self.cluster.came_back(&address);
            self.cluster.is_no_heir(&bridge);
            return self.pass_on(order, None);
        }
        if self.is_here(&address) {
            self.deliver(order);
            return Ok(());
        }
        let Err(order) = self.cluster.wait_for(order) else { return Ok(()) };
        if let Some(heir) = self.cluster.heir() {
            return self.pass_on(order, Some(heir));
        }
        if let Err(order) = self.cluster.ask_for(order) {
            self.nobody_for(order);
        }
        Ok(())
    }

    /// No bridge has the device of a command.
    pub(super) fn nobody_for(&self, order: Order) {
        if self.is_here(&order.command().address) {
            return self.deliver(order);
        }
        self.devices().metrics.route_returned();
        let fate = Fate::new(Outcome::Offline, "the device is not connected to any bridge");
        self.devices().reporter.report(order, fate);
    }

    /// Gives a command to its device, which is here.
    pub(super) fn deliver(&self, order: Order) {
        match self.intake.router.route(order, Instant::now()) {
            Routed::Waiting | Routed::Written(None) => {}
            Routed::Written(Some(settlement)) => settlement.settle(),
            Routed::Concluded(order, fate) => self.devices().reporter.report(order, fate),
        }
    }
}
