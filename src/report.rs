//! `Reporter`: what is done once the fate of a command is known.
//!
//! Counts it, logs it, and says what is owed: an acknowledgement at once, or first a publication (a
//! receipt, the message itself to the undelivered exchange) that the broker must confirm. The
//! consumer and the device sessions call it; it never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tracing::{debug, info};

use crate::broker::{Jobs, Message};
use crate::clock::{self, Moment};
use crate::command::{Address, Disposition, IfOffline, Outcome, Reason};
use crate::metrics::Metrics;
use crate::order::{Delivery, Order};
use crate::settlement::Settlement;

/// A publication that is owed before its delivery may be acknowledged.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) message: Message,
    pub(crate) settlement: Settlement,
    /// The outcome and reason, if the message itself goes to the undelivered exchange.
    pub(crate) undelivered: Option<(Outcome, Reason)>,
    /// The receipt as JSON, if the sender wants one.
    pub(crate) receipt: Option<Vec<u8>>,
}

#[derive(Serialize)]
struct Receipt<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    bridge: &'a str,
    at: String,
}

/// Reports the fate of commands.
#[derive(Debug)]
pub struct Reporter {
    jobs: Arc<Jobs>,
    metrics: Metrics,
    bridge: Arc<str>,
    /// Ids for commands that came without one: this process's start, then a count.
    born_ms: u64,
    made_ids: AtomicU64,
}

impl Reporter {
    /// A reporter that hands what must be published to `jobs`.
    pub(crate) fn new(jobs: Arc<Jobs>, metrics: Metrics, bridge: Arc<str>) -> Self {
        let born_ms = Moment::now().wall_ms;
        Self { jobs, metrics, bridge, born_ms, made_ids: AtomicU64::new(0) }
    }

    /// Reports `order` and settles it, now or once what it owes is published. For any task but the
    /// consumer, which calls `conclude`.
    pub(crate) fn report(&self, order: Order, outcome: Outcome, reason: Reason) {
        if let Some(settlement) = self.conclude(order, outcome, reason) {
            settlement.settle();
        }
    }

    /// Reports `order`; gives its settlement back if it may be settled at once.
    pub(crate) fn conclude(
        &self,
        order: Order,
        outcome: Outcome,
        reason: Reason,
    ) -> Option<Settlement> {
        let Order { command, delivery } = order;
        self.finish(delivery, Some(command.address), outcome, reason, command.if_offline)
    }

    /// Reports a message that is no command.
    pub(crate) fn conclude_invalid(
        &self,
        delivery: Delivery,
        address: Option<Address>,
        reason: Reason,
    ) -> Option<Settlement> {
        self.finish(delivery, address, Outcome::Invalid, reason, IfOffline::Reject)
    }

    fn finish(
        &self,
        delivery: Delivery,
        address: Option<Address>,
        outcome: Outcome,
        reason: Reason,
        if_offline: IfOffline,
    ) -> Option<Settlement> {
        self.metrics.command(outcome);
        if outcome.is_delivered() {
            self.observe(&delivery);
        }
        let owed = outcome.disposition(if_offline);
        let wants_receipt = delivery.message.reply_to().is_some();
        // The usual case: nothing to say to anybody, not even to the log.
        if owed == Disposition::Ack
            && !wants_receipt
            && outcome.is_delivered()
            && !tracing::enabled!(tracing::Level::DEBUG)
        {
            return Some(delivery.settlement);
        }
        let id = self.id(&delivery);
        let address = address.map(|address| address.to_string());
        let shown = address.as_deref().unwrap_or("");
        if outcome.is_delivered() {
            debug!(%id, address = shown, outcome = outcome.label(), "command delivered");
        } else {
            info!(%id, address = shown, outcome = outcome.label(), %reason, "command not delivered");
        }
        let undelivered = (owed == Disposition::Undelivered).then(|| (outcome, reason.clone()));
        if undelivered.is_none() && !wants_receipt {
            return Some(delivery.settlement);
        }
        let receipt = wants_receipt.then(|| {
            let reason = Some(&*reason).filter(|_| !outcome.is_delivered());
            let at = clock::rfc3339(Moment::now().wall_ms);
            let receipt = Receipt {
                id: &id,
                address,
                outcome: outcome.label(),
                reason,
                bridge: &self.bridge,
                at,
            };
            // Strings and nothing else: this cannot fail.
            serde_json::to_vec(&receipt).unwrap_or_default()
        });
        let Delivery { message, settlement, .. } = delivery;
        self.jobs.push(Job { message, settlement, undelivered, receipt });
        None
    }

    fn observe(&self, delivery: &Delivery) {
        let from_arrival = delivery.arrived.mono.elapsed();
        let from_publish = delivery.published_ms.map(|published| {
            Duration::from_millis(delivery.arrived.wall_ms.saturating_sub(published)) + from_arrival
        });
        self.metrics.delivered(from_publish, from_arrival);
    }

    /// The command's own id, its message's, or one made here.
    fn id(&self, delivery: &Delivery) -> String {
        if let Some(id) = delivery.id.as_deref().or_else(|| delivery.message.message_id()) {
            return id.to_owned();
        }
        let count = self.made_ids.fetch_add(1, Ordering::Relaxed);
        format!("{}-{:x}-{count}", self.bridge, self.born_ms)
    }
}
