//! `Refused`: what the broker could not take, until it is asked once more.
//!
//! When a node is killed, what is published to queues whose leader was there is refused for a second or so. A new
//! connection would cost more: on it every device is claimed anew.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::super::super::BrokerError;
use super::{Sent, Table};
use crate::cluster::Work;
use crate::command::Address;
use crate::order::Order;

/// The wait before the broker is asked once more.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How often that is in vain before the connection is given up for another: the next node may do better. Some ten seconds.
const ROUNDS_MAX: u32 = 20;

/// A command, and the bridge it is for if that is known.
type Passing = (Order, Option<Arc<str>>);

/// What the broker could not take.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Commands of each device, and what came behind them since.
    commands: HashMap<Address, VecDeque<Passing>>,
    claims: Vec<Address>,
    works: Vec<Work>,
    until: Option<Instant>,
    /// How often there was something since the broker took a command last.
    rounds: u32,
}

impl Refused {
    pub(super) fn is_empty(&self) -> bool {
        self.until.is_none()
    }

    /// The broker takes commands.
    pub(super) fn is_over(&mut self) {
        self.rounds = 0;
    }

    /// Gives the command back, unless one for the same device waits: then it waits behind that.
    pub(super) fn behind(&mut self, order: Order, to: Option<Arc<str>>) -> Option<Passing> {
        match self.commands.get_mut(&order.command().address) {
            Some(waiting) => {
                waiting.push_back((order, to));
                None
            }
            None => Some((order, to)),
        }
    }

    /// All commands, those of each device in their order.
    pub(super) fn take_commands(&mut self) -> impl Iterator<Item = Passing> + use<> {
        std::mem::take(&mut self.commands).into_values().flatten()
    }
}

impl Table<'_> {
    /// The broker could not take a message.
    pub(super) fn refused(&mut self, number: u64) -> Result<(), BrokerError> {
        let exchange = self.shared();
        let error = || BrokerError::Topology {
            object: format!("exchange `{exchange}`"),
            said: "the broker could not take a message".to_owned(),
            advice: "see what its log says of the queues behind it",
        };
        if self.refused.until.is_none() {
            self.refused.rounds += 1;
            if self.refused.rounds > ROUNDS_MAX {
                return Err(error());
            }
            warn!(again_in_ms = AGAIN_AFTER.as_millis(), "{}", error());
            self.refused.until = Some(Instant::now() + AGAIN_AFTER);
        }
        match self.sent.remove(&number) {
            Some(Sent::Command(order, to)) => {
                // A queue may have it all the same.
                order.facts.steps.may_be_elsewhere.store(true, Ordering::Relaxed);
                let address = order.command().address.clone();
                self.refused.commands.entry(address).or_default().push_back((order, to));
            }
            Some(Sent::Claim(address)) => {
                self.claimed -= 1;
                self.refused.claims.push(address);
            }
            Some(Sent::Parked(address)) => self.refused.works.push(Work::Parked(address)),
            Some(Sent::Overdue(overdue)) => self.cluster.hold_on(overdue),
            // It is asked every second.
            Some(Sent::Asked(_)) | None => {}
            // What it was is not kept; on another connection everything is said anew.
            Some(Sent::Said) => return Err(error()),
        }
        Ok(())
    }

    /// Asks the broker once more, if it is time for that.
    pub(super) fn look_at_refused(&mut self, now: Instant) -> Result<(), BrokerError> {
        if self.refused.until.is_none_or(|until| now < until) {
            return Ok(());
        }
        self.refused.until = None;
        self.again.extend(self.refused.claims.drain(..));
        for work in std::mem::take(&mut self.refused.works) {
            self.take_on(work)?;
        }
        for (order, to) in self.refused.take_commands() {
            self.pass_on(order, to)?;
        }
        Ok(())
    }
}
