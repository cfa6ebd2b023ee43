//! `Reporter`: what is done once the fate of a command is known.
//!
//! Counts it, logs it, and says what is owed: an acknowledgement at once, or first a publication (a
//! receipt, the message itself to the undelivered exchange) that the broker must confirm. The
//! consumer and the device sessions call it; it never waits.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tracing::{debug, info};

use crate::backlog::Backlog;
use crate::broker::Jobs;
use crate::clock::{self, Moment};
use crate::command::{Address, Command, Disposition, IfOffline, Outcome, Reason};
use crate::fate::Fate;
use crate::gathering::Tally;
use crate::job::{Deposit, Job, Undelivered};
use crate::ledger::{Known, Ledger};
use crate::live::{Kind, Live};
use crate::metrics::Metrics;
use crate::order::{Facts, Order, Origin};
use crate::parking::{Parking, Place};
use crate::run::Run;
use crate::settlement::Settlement;
use crate::told::{self, End};
use crate::uplink::text_or_base64;

/// Where a copy of a message goes.
#[derive(Debug)]
enum Copy {
    /// To the undelivered exchange.
    Undelivered(Undelivered),
    /// To its device's own queue.
    Parked(Place),
}

#[derive(Serialize)]
struct Receipt<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_base64: Option<String>,
    bridge: &'a str,
    at: String,
}

/// What became of a command for many.
#[derive(Serialize)]
struct Summary<'a> {
    id: &'a str,
    members: usize,
    outcomes: BTreeMap<&'static str, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    passed_on: Option<NonZeroUsize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing_bridges: Vec<&'a str>,
    bridge: &'a str,
    at: String,
}

/// Reports the fate of commands.
#[derive(Debug)]
pub struct Reporter {
    jobs: Arc<Jobs<Job>>,
    deposits: Arc<Jobs<Deposit>>,
    ledger: Ledger,
    parking: Arc<Parking>,
    metrics: Metrics,
    pub(crate) live: Arc<Live>,
    /// What became of commands, on its way to the broker, if it is wanted there.
    pub(crate) outcomes: Option<Arc<Backlog>>,
    /// A part of the ids it makes.
    run: Run,
}

/// The parts of a report that do not depend on whether the message was a command.
struct Account<'a> {
    origin: &'a Origin,
    address: Option<&'a Address>,
    /// What is known of the command, if it is one.
    facts: Option<&'a Facts>,
    copy: Option<Copy>,
}

impl<'a> Account<'a> {
    fn of(facts: &'a Facts, copy: Option<Copy>) -> Self {
        let address = Some(&facts.command.address);
        Self { origin: &facts.origin, address, facts: Some(facts), copy }
    }
}

impl Reporter {
    /// A reporter that hands what must be published to `jobs`, and what is to be parked to `deposits`.
    pub(crate) fn new(
        jobs: Arc<Jobs<Job>>,
        deposits: Arc<Jobs<Deposit>>,
        parking: Arc<Parking>,
        metrics: Metrics,
        live: Arc<Live>,
        outcomes: Option<Arc<Backlog>>,
        run: Run,
    ) -> Self {
        Self { jobs, deposits, ledger: Ledger::new(), parking, metrics, live, outcomes, run }
    }

    /// Reports `order` and settles it, now or once what it owes is published. For any task but the
    /// consumer, which calls `conclude`.
    pub(crate) fn report(&self, order: Order, fate: Fate) {
        if let Some(settlement) = self.conclude(order, fate) {
            settlement.settle();
        }
    }

    /// Reports `order`; gives its settlement back if it may be settled at once.
    pub(crate) fn conclude(&self, order: Order, fate: Fate) -> Option<Settlement> {
        let Order { facts, settlement, .. } = order;
        self.tell(&facts, fate, Some(settlement))
    }

    /// Reports a command once more, whose message was settled when less was known.
    pub(crate) fn revise(&self, facts: &Arc<Facts>, fate: Fate) {
        let nothing = self.tell(facts, fate, None);
        debug_assert!(nothing.is_none());
    }

    /// Reports a message that is no command.
    pub(crate) fn conclude_invalid(
        &self,
        origin: &Origin,
        address: Option<&Address>,
        reason: Reason,
        settlement: Settlement,
    ) -> Option<Settlement> {
        let (outcome, member) = (Outcome::Invalid, None);
        let copy = Copy::Undelivered(Undelivered { outcome, reason: reason.clone(), member });
        let account = Account { origin, address, facts: None, copy: Some(copy) };
        self.finish(account, Fate::new(Outcome::Invalid, reason), Some(settlement))
    }

    /// Reports a command for many who are none.
    pub(crate) fn conclude_nobody(
        &self,
        origin: &Origin,
        if_offline: IfOffline,
        settlement: Settlement,
    ) -> Option<Settlement> {
        let fate = Fate::new(Outcome::Offline, "nobody is in the group, or connected");
        let (outcome, reason) = (fate.outcome, fate.reason.clone());
        let undelivered = Copy::Undelivered(Undelivered { outcome, reason, member: None });
        let copy = (if_offline != IfOffline::Drop).then_some(undelivered);
        self.finish(Account { origin, address: None, facts: None, copy }, fate, Some(settlement))
    }

    /// Settles the delivery of a command for many, behind a summary if its sender wants receipts.
    pub(crate) fn summarize(&self, origin: &Origin, tally: &Tally, delivery: Settlement) {
        if origin.message.reply_to().is_none() {
            delivery.settle();
            return;
        }
        let Tally { outcomes, passed_on, missing_bridges } = tally;
        let counted = Outcome::ALL.into_iter().zip(outcomes.iter().copied());
        let summary = Summary {
            id: &self.id(origin),
            members: outcomes.iter().sum::<usize>() + passed_on,
            outcomes: counted
                .filter(|(_, count)| *count > 0)
                .map(|(outcome, count)| (outcome.label(), count))
                .collect(),
            passed_on: NonZeroUsize::new(*passed_on),
            missing_bridges: missing_bridges.iter().map(|name| &**name).collect(),
            bridge: &self.run.bridge,
            at: clock::rfc3339(Moment::now().wall_ms),
        };
        // Strings and numbers: this cannot fail.
        let receipt = Some(serde_json::to_vec(&summary).unwrap_or_default());
        let message = Arc::clone(&origin.message);
        self.jobs.push(Job { message, settlement: Some(delivery), undelivered: None, receipt });
    }

    /// Reports a parked command that has expired in the broker, which has passed it on already.
    pub(crate) fn expired_while_parked(&self, facts: &Facts) {
        let fate = Fate::new(Outcome::Expired, "its ttl ended while it was parked");
        facts.steps.conclude(fate.outcome, fate.at);
        let account = Account::of(facts, None);
        let nothing = self.finish(account, fate, None);
        debug_assert!(nothing.is_none());
    }

    /// Tells those who look on that a command was taken up.
    pub(crate) fn taken(&self, facts: &Facts) {
        self.live.tell(Kind::Command, &facts.command.address, || {
            told::command(&self.run, &self.id(&facts.origin), facts, self.live.mask())
        });
    }

    /// Notes that the whole line of a command was written and its proof is waited for.
    pub(crate) fn begun(&self, facts: &Facts) {
        self.ledger.note(facts, Known::Begun);
    }

    /// Notes that nothing of a command was written before it is given back to the broker.
    pub(crate) fn untouched(&self, facts: &Facts) {
        self.ledger.note(facts, Known::Untouched);
    }

    /// What is known of a command that the broker has delivered before.
    pub(crate) fn recall(&self, facts: &Facts) -> Option<Known> {
        self.ledger.recall(facts)
    }

    fn tell(
        &self,
        facts: &Arc<Facts>,
        mut fate: Fate,
        settlement: Option<Settlement>,
    ) -> Option<Settlement> {
        let Command { if_offline, once, .. } = &facts.command;
        let copy = match fate.outcome.disposition(*if_offline, *once) {
            Disposition::Ack => None,
            Disposition::Undelivered => Some(undelivered(facts, &fate)),
            Disposition::Park => Some(self.park(facts, &mut fate)),
        };
        facts.steps.conclude(fate.outcome, fate.at);
        if let Some(gathering) = settlement.as_ref().and_then(Settlement::gathering) {
            gathering.count(fate.outcome);
        }
        if is_final_at_the_device(fate.outcome) {
            self.ledger.note(facts, Known::Done(fate.outcome, fate.answer.clone()));
        }
        let account = Account::of(facts, copy);
        self.finish(account, fate, settlement)
    }

    /// Parks a command, if there is room, and says so in its fate.
    fn park(&self, facts: &Arc<Facts>, fate: &mut Fate) -> Copy {
        match self.parking.begin(facts) {
            Ok(place) => {
                fate.outcome = Outcome::Parked;
                self.ledger.note(facts, Known::Untouched);
                Copy::Parked(place)
            }
            Err(full) => {
                // What may have reached its device stays uncertain.
                if fate.outcome != Outcome::Uncertain {
                    fate.outcome = Outcome::Overloaded;
                }
                fate.reason = format!("{}; {full}", fate.reason).into();
                undelivered(facts, fate)
            }
        }
    }

    fn finish(
        &self,
        account: Account<'_>,
        fate: Fate,
        settlement: Option<Settlement>,
    ) -> Option<Settlement> {
        let Account { origin, address, facts, copy } = account;
        let Fate { outcome, at, reason, answer } = fate;
        self.metrics.command(outcome);
        if outcome.is_delivered() {
            self.observe(origin, at);
        }
        let wants_receipt = origin.message.reply_to().is_some();
        // The usual case: nothing to say to anybody, not even to the log.
        if copy.is_none()
            && !wants_receipt
            && outcome.is_delivered()
            && !self.live.wants(Kind::Outcome)
            && self.outcomes.is_none()
            && !tracing::enabled!(tracing::Level::DEBUG)
        {
            return settlement;
        }
        let id = self.id(origin);
        let address = address.map(ToString::to_string);
        let shown = address.as_deref().unwrap_or("");
        let trace = origin.message.trace();
        if outcome.is_delivered() {
            debug!(%id, address = shown, outcome = outcome.label(), trace, "command delivered");
        } else if outcome == Outcome::Parked {
            info!(%id, address = shown, %reason, trace, "command parked");
        } else {
            info!(%id, address = shown, outcome = outcome.label(), %reason, trace, "command not delivered");
        }
        let answer = answer.as_deref();
        let end = End { outcome, reason: &reason, answer, at_ms: at.wall_ms };
        let told =
            |mask| told::outcome(&self.run, &id, address.as_deref(), origin, facts, &end, mask);
        self.live.tell(Kind::Outcome, shown, || told(Some(self.live.mask())));
        if let Some(outcomes) = &self.outcomes
            && !outcomes.push(("outcome", shown.to_owned(), told(None)))
        {
            self.metrics.outcome_event_dropped();
        }
        if copy.is_none() && !wants_receipt {
            return settlement;
        }
        let receipt = wants_receipt.then(|| {
            let (answer, answer_base64) = answer.map(text_or_base64).unwrap_or_default();
            let receipt = Receipt {
                id: &id,
                address: address.as_deref(),
                outcome: outcome.label(),
                reason: Some(&*reason).filter(|_| !outcome.is_delivered()),
                answer,
                answer_base64,
                bridge: &self.run.bridge,
                at: clock::rfc3339(at.wall_ms),
            };
            // Strings and nothing else: this cannot fail.
            serde_json::to_vec(&receipt).unwrap_or_default()
        });
        let undelivered = match copy {
            Some(Copy::Parked(place)) => {
                self.deposits.push(Deposit { settlement, place, receipt });
                return None;
            }
            Some(Copy::Undelivered(undelivered)) => Some(undelivered),
            None => None,
        };
        let message = Arc::clone(&origin.message);
        self.jobs.push(Job { message, settlement, undelivered, receipt });
        None
    }

    fn observe(&self, origin: &Origin, at: Moment) {
        let from_arrival = at.mono.saturating_duration_since(origin.arrived.mono);
        let from_publish = origin.published_ms.map(|published| {
            Duration::from_millis(origin.arrived.wall_ms.saturating_sub(published)) + from_arrival
        });
        self.metrics.delivered(from_publish, from_arrival);
    }

    /// What this bridge knows the command by when it is parked: no other process makes the same.
    pub(crate) fn parked_by(&self, origin: &Origin) -> String {
        format!("{}-{}", self.parked_prefix(), origin.number)
    }

    /// The number of a command that this process has parked; None if another did.
    pub(crate) fn number_parked_by(&self, by: &str) -> Option<u64> {
        by.strip_prefix(&self.parked_prefix())?.strip_prefix('-')?.parse().ok()
    }

    fn parked_prefix(&self) -> String {
        format!("{}-{}", self.run.bridge, self.run.name)
    }

    /// The id its sender gave it, or one made here, the same each time it is asked for.
    pub(crate) fn id(&self, origin: &Origin) -> String {
        match &origin.id {
            Some(id) => id.to_string(),
            None => self.parked_by(origin),
        }
    }
}

fn undelivered(facts: &Facts, fate: &Fate) -> Copy {
    let member = facts.origin.shared.then(|| facts.command.address.clone());
    let (outcome, reason) = (fate.outcome, fate.reason.clone());
    Copy::Undelivered(Undelivered { outcome, reason, member })
}

/// Whether bytes went out, so that a second try would be a repetition.
fn is_final_at_the_device(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Written
        | Outcome::Received
        | Outcome::Answered
        | Outcome::Unanswered
        | Outcome::Uncertain => true,
        Outcome::Offline
        | Outcome::Parked
        | Outcome::Expired
        | Outcome::Invalid
        | Outcome::Overloaded => false,
    }
}
