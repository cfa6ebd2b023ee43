//! `Facts` and `Order`: what is known of a command, and a command on its way to a device.
//!
//! The consumer makes an order of each message it can decode; the router and the lanes pass it on;
//! the reporter takes it apart when its fate is known. The facts outlive the order: a session keeps
//! those of every command whose bytes the device has not acknowledged yet, settled or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::Instant;

use crate::broker::Message;
use crate::clock::Moment;
use crate::command::{Command, Confirm, Outcome};
use crate::device::Waits;
use crate::protocol::Frame;
use crate::settlement::Settlement;

/// What is known of a command, whatever becomes of it.
#[derive(Debug)]
pub struct Facts {
    pub(crate) command: Command,
    pub(crate) origin: Origin,
    pub(crate) steps: Steps,
}

impl Facts {
    /// Whether somebody may have tried it before: the broker says so, or it may have been passed on already.
    pub(crate) fn may_be_repeated(&self) -> bool {
        self.origin.redelivered || self.steps.may_be_elsewhere.load(Ordering::Relaxed)
    }
}

/// Where a message came from. Messages that are no commands have this, too.
#[derive(Debug, Clone)]
pub struct Origin {
    pub(crate) message: Arc<Message>,
    /// Bytes the message keeps in memory, roughly.
    pub(crate) size: usize,
    /// When it arrived here.
    pub(crate) arrived: Moment,
    /// When it was published, milliseconds since 1970, if it says so.
    pub(crate) published_ms: Option<u64>,
    /// The id its sender gave it, in the body or as the message's own.
    pub(crate) id: Option<Box<str>>,
    /// Counts what this bridge took up, parked or not; zero for what another bridge parked. Makes an id
    /// for what came without one.
    pub(crate) number: u64,
    /// The same, in what is told of it; what another bridge parked has one of its own there.
    pub(crate) told_as: u64,
    /// Whether the broker has handed it to somebody before.
    pub(crate) redelivered: bool,
    /// Whether it waited in its device's own queue.
    pub(crate) parked: bool,
    /// Whether the message is for others, too.
    pub(crate) shared: bool,
    /// How it came here from other bridges.
    pub(crate) route: Route,
}

/// How a command came here from other bridges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Route {
    /// How many have passed it on.
    pub(crate) hops: u8,
    /// Whether the one that had its device before has handed it over.
    pub(crate) handed: bool,
    /// Whether it came to this bridge by a binding of its device.
    pub(crate) by_binding: bool,
}

/// When a command took which step, milliseconds since 1970; zero for a step not taken.
#[derive(Debug, Default)]
pub struct Steps {
    pub(crate) written_ms: AtomicU64,
    pub(crate) acknowledged_ms: AtomicU64,
    pub(crate) answered_ms: AtomicU64,
    pub(crate) passed_on_ms: AtomicU64,
    /// Whether another bridge may have it: the connection was lost before the broker said so.
    pub(crate) may_be_elsewhere: AtomicBool,
    pub(crate) concluded_ms: AtomicU64,
    /// One more than the index of the last outcome in `Outcome::ALL`.
    outcome: AtomicU64,
}

impl Steps {
    pub(crate) fn take(step: &AtomicU64, at: Moment) {
        step.store(at.wall_ms, Ordering::Relaxed);
    }

    pub(crate) fn conclude(&self, outcome: Outcome, at: Moment) {
        self.outcome.store(outcome.index() as u64 + 1, Ordering::Relaxed);
        Self::take(&self.concluded_ms, at);
    }

    /// When it was written; zero if it was not.
    pub(crate) fn written(&self) -> u64 {
        self.written_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        let index = usize::try_from(self.outcome.load(Ordering::Relaxed)).ok()?.checked_sub(1)?;
        Outcome::ALL.get(index).copied()
    }
}

/// A command on its way to its device, with the duty to settle its message.
#[derive(Debug)]
pub struct Order {
    pub(crate) facts: Arc<Facts>,
    pub(crate) settlement: Settlement,
    /// What its device reads, once it is known what format it speaks.
    pub(crate) frame: Option<Frame>,
}

impl Order {
    pub(crate) fn command(&self) -> &Command {
        &self.facts.command
    }
}

impl Waits for Order {
    fn bytes(&self) -> &[u8] {
        self.frame.as_deref().unwrap_or_default()
    }

    fn expires(&self) -> Instant {
        self.command().expires
    }

    fn is_wanted(&self) -> bool {
        self.settlement.is_live()
    }

    fn wants_answer(&self) -> bool {
        self.command().confirm == Confirm::Answered
    }

    fn goes_first(&self) -> bool {
        self.facts.origin.parked
    }

    fn was_handed(&self) -> bool {
        self.facts.origin.route.handed
    }

    fn number(&self) -> u64 {
        self.facts.origin.number
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;
    use crate::command::IfOffline;
    use crate::metrics::Metrics;
    use crate::protocol::{Content, Payload, Spoken};
    use crate::settlement::Verdicts;

    /// A command for 127.0.0.2 as it might have come.
    pub(crate) fn facts(id: Option<&str>, cmd: &str) -> Facts {
        let now = Moment::now();
        let command = Command {
            address: IpAddr::from([127, 0, 0, 2]).into(),
            spoken: Spoken::new(Payload::new(Content::Text(cmd.into()))),
            expires: now.mono + Duration::from_secs(60),
            if_offline: IfOffline::Reject,
            confirm: Confirm::Written,
            timeout: Duration::from_secs(10),
            once: false,
        };
        let message = Message::of_body(cmd.as_bytes());
        let origin = Origin {
            size: message.size(),
            message: Arc::new(message),
            arrived: now,
            published_ms: None,
            id: id.map(Into::into),
            number: 1,
            told_as: 1,
            redelivered: false,
            parked: false,
            shared: false,
            route: Route::default(),
        };
        Facts { command, origin, steps: Steps::default() }
    }

    /// One of this id on its way, of a channel that is lost.
    pub(crate) fn order(id: &str) -> Order {
        let (verdicts, _) = tokio::sync::mpsc::channel(1);
        let verdicts = Verdicts::new(verdicts, Metrics::new());
        let (facts, settlement) = (Arc::new(facts(Some(id), "ON")), Settlement::new(1, &verdicts));
        Order { facts, settlement, frame: None }
    }
}
