//! `Proofs`: the commands written to one device whose proof is still out, and what proves them.
//!
//! A `received` command is proved by the acknowledgement of its last byte, an `answered` one by a
//! line. A `written` one needs no proof, but is remembered until its last byte is acknowledged: if
//! the link breaks before, it may never have arrived. Knows no sockets; the session feeds it.

use std::sync::Arc;

use tokio::time::Instant;

use super::answers::{Answers, LineIs, Rule};
use super::tail::Tail;
use crate::clock::Moment;
use crate::command::{Confirm, Outcome};
use crate::fate::Fate;
use crate::order::{Facts, Order, Steps};

/// What keeping a command in the tail costs besides its message, in bytes: its facts, properties and
/// entries, measured roughly.
const ENTRY_BYTES: usize = 512;

/// The proofs that are out for one device.
#[derive(Debug)]
pub(super) struct Proofs {
    tail: Tail<Sent>,
    /// None while none is awaited: an idle device holds no memory for them.
    answers: Option<Box<Answers<Order>>>,
    /// When to look for commands whose time has run out: not later than the first of them does.
    deadline: Option<Instant>,
    /// Orders in tail and answers that are not settled.
    open: usize,
}

/// A command in the tail.
#[derive(Debug)]
enum Sent {
    /// Its message is settled.
    Settled(Arc<Facts>),
    /// Its message is settled once it is acknowledged, or given up after the moment. Boxed: most are settled, and
    /// each has room for the largest.
    Open(Box<Open>),
    /// It was given up, or proved otherwise.
    Past,
}

/// A command whose message is not settled.
#[derive(Debug)]
struct Open {
    order: Order,
    deadline: Option<Instant>,
}

impl Sent {
    fn open(order: Order, deadline: Option<Instant>) -> Self {
        Self::Open(Box::new(Open { order, deadline }))
    }
}

/// What a session that ends leaves unproved.
pub(super) enum Unproved {
    /// Its message was settled as written.
    Settled(Arc<Facts>),
    /// Its message is not settled.
    Open(Order),
}

impl Proofs {
    pub(super) fn new() -> Self {
        Self { tail: Tail::new(), answers: None, deadline: None, open: 0 }
    }

    /// Whether the kernel is to tell when `order` is acknowledged.
    pub(super) fn needs_mark(order: &Order) -> bool {
        order.command().confirm == Confirm::Received || order.facts.origin.parked
    }

    /// So much has been written in all, what is no command included.
    pub(super) fn reached(&mut self, offset: u64) {
        self.tail.reached(offset);
    }

    /// The socket has taken the whole line of `order`. Gives it back if that is all it asks for.
    pub(super) fn wrote(&mut self, order: Order, at: Moment) -> Option<Order> {
        Steps::take(&order.facts.steps.written_ms, at);
        let now = at.mono;
        let command = order.command();
        let (confirm, timeout) = (command.confirm, command.timeout);
        let weight = ENTRY_BYTES + order.facts.origin.size;
        match confirm {
            Confirm::Answered => {
                let facts = Arc::clone(&order.facts);
                let answers = self.answers.get_or_insert_with(|| Box::new(Answers::new()));
                answers.begin(order, facts.origin.id.as_deref(), timeout, now);
                self.opened(Some(now + timeout));
                None
            }
            Confirm::Received => {
                self.tail.push(Sent::open(order, Some(now + timeout)), weight);
                self.opened(Some(now + timeout));
                None
            }
            // It stays in the broker until it has arrived, so that it keeps its place there.
            Confirm::Written if order.facts.origin.parked => {
                self.tail.push(Sent::open(order, None), weight);
                self.opened(None);
                None
            }
            Confirm::Written => {
                self.tail.push(Sent::Settled(Arc::clone(&order.facts)), weight);
                Some(order)
            }
        }
    }

    fn opened(&mut self, deadline: Option<Instant>) {
        self.open += 1;
        self.deadline = self.deadline.into_iter().chain(deadline).min();
    }

    /// Orders that are not settled.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Commands written and not known to be acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.tail.len()
    }

    /// What keeping them costs, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.tail.weight()
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.tail.written()
    }

    /// Whether a command that wants an answer may be written now.
    pub(super) fn may_ask(&self, rule: &Rule, now: Instant) -> bool {
        self.answers.as_ref().is_none_or(|answers| answers.may_begin(rule, now))
    }

    /// The device's TCP stack has acknowledged the stream up to `offset`: what that proves.
    pub(super) fn acknowledged(
        &mut self,
        offset: u64,
        at: Moment,
        proved: &mut Vec<(Order, Fate)>,
    ) {
        self.tail.acknowledge(offset);
        while let Some(sent) = self.tail.next_acknowledged() {
            match sent {
                Sent::Settled(facts) => Steps::take(&facts.steps.acknowledged_ms, at),
                Sent::Past => {}
                Sent::Open(open) => {
                    let order = open.order;
                    Steps::take(&order.facts.steps.acknowledged_ms, at);
                    let outcome = match order.command().confirm {
                        Confirm::Received => Outcome::Received,
                        Confirm::Written | Confirm::Answered => Outcome::Written,
                    };
                    self.open -= 1;
                    proved.push((order, Fate::delivered(outcome, at)));
                }
            }
        }
    }

    /// The device has sent a line: what it is.
    pub(super) fn line(&mut self, rule: &Rule, line: &[u8], at: Moment) -> LineIs<Order> {
        let Some(answers) = &mut self.answers else { return LineIs::Uplink };
        let is = answers.line(rule, line, at.mono);
        if let LineIs::Answer(order) = &is {
            Steps::take(&order.facts.steps.answered_ms, at);
            self.open -= 1;
        }
        self.answers.take_if(|answers| answers.is_idle());
        is
    }

    /// When to call `expire`.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Gives up what has waited for its proof too long.
    pub(super) fn expire(&mut self, rule: &Rule, now: Instant, given_up: &mut Vec<(Order, Fate)>) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        while let Some(order) =
            self.answers.as_mut().and_then(|answers| answers.next_expired(rule, now))
        {
            let fate = Fate::new(Outcome::Unanswered, "no answer came in time");
            given_up.push((order, fate));
            self.open -= 1;
        }
        if let Some(answers) = &mut self.answers {
            answers.forget_doubt(now);
        }
        self.answers.take_if(|answers| answers.is_idle());
        let mut next = self.answers.as_ref().and_then(|answers| answers.deadline());
        for sent in self.tail.iter_mut() {
            match sent {
                Sent::Open(open) if open.deadline.is_some_and(|deadline| deadline <= now) => {
                    if let Sent::Open(open) = std::mem::replace(sent, Sent::Past) {
                        let fate = Fate::new(
                            Outcome::Unanswered,
                            "the device's TCP stack did not acknowledge it in time",
                        );
                        given_up.push((open.order, fate));
                        self.open -= 1;
                    }
                }
                Sent::Open(open) => next = next.into_iter().chain(open.deadline).min(),
                Sent::Settled(_) | Sent::Past => {}
            }
        }
        self.deadline = next;
    }

    /// Lets `order`, delivered again by the broker, take the place of the one it repeats, whose AMQP
    /// channel is gone. Gives it back if that is not here.
    pub(super) fn adopt(&mut self, order: Order) -> Result<(), Order> {
        let repeats = |other: &Order| {
            other.facts.origin.id == order.facts.origin.id && !other.settlement.is_live()
        };
        let in_tail = self.tail.iter_mut().find_map(|sent| match sent {
            Sent::Open(open) if repeats(&open.order) => Some(&mut open.order),
            Sent::Open(_) | Sent::Settled(_) | Sent::Past => None,
        });
        let mut awaited = self.answers.iter_mut().flat_map(|answers| answers.iter_mut());
        let Some(other) = in_tail.or_else(|| awaited.find(|other| repeats(other))) else {
            return Err(order);
        };
        std::mem::replace(&mut other.settlement, order.settlement).hand_back();
        Ok(())
    }

    /// Takes out everything that is not proved, in the order it was written.
    pub(super) fn take(&mut self) -> Vec<Unproved> {
        self.open = 0;
        self.deadline = None;
        let unproved = |sent| match sent {
            Sent::Settled(facts) => Some(Unproved::Settled(facts)),
            Sent::Open(open) => Some(Unproved::Open(open.order)),
            Sent::Past => None,
        };
        let tail = self.tail.take().filter_map(unproved);
        let awaited = self.answers.take().into_iter().flat_map(|mut answers| answers.take());
        let mut all: Vec<Unproved> = tail.chain(awaited.map(Unproved::Open)).collect();
        // A stable sort by the moment of writing would not do: milliseconds are too coarse.
        all.sort_by_key(|unproved| match unproved {
            Unproved::Settled(facts) => facts.origin.number,
            Unproved::Open(order) => order.facts.origin.number,
        });
        all
    }
}
