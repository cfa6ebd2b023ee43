//! `Job`, `Deposit`: what is to be published once the fate of a command is known.
//!
//! Each is owed for as long as its delivery waits for it. The broker delivers again what a dead channel
//! held, and then another job is made of it.

use std::sync::Arc;

use crate::broker::Message;
use crate::command::{Address, Outcome, Reason};
use crate::parking::Place;
use crate::settlement::Settlement;

/// Something that is published before a delivery may be settled, if that is still open.
pub(crate) trait Owed: Sized {
    fn settlement(&self) -> Option<&Settlement>;

    fn into_settlement(self) -> Option<Settlement>;

    /// Itself, if it is owed still; else its delivery is given back.
    fn if_owed(self) -> Option<Self> {
        if self.settlement().is_none_or(Settlement::is_live) {
            return Some(self);
        }
        if let Some(settlement) = self.into_settlement() {
            settlement.hand_back();
        }
        None
    }
}

/// A receipt, a copy of an undelivered message, or both.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) message: Arc<Message>,
    pub(crate) settlement: Option<Settlement>,
    /// Why the message itself goes to the undelivered exchange, if it does.
    pub(crate) undelivered: Option<Undelivered>,
    /// The receipt as JSON, if the sender wants one.
    pub(crate) receipt: Option<Vec<u8>>,
}

/// Why a message is undelivered.
#[derive(Debug)]
pub(crate) struct Undelivered {
    pub(crate) outcome: Outcome,
    pub(crate) reason: Reason,
    /// For whom, if the message is for others, too.
    pub(crate) member: Option<Address>,
}

impl Owed for Job {
    fn settlement(&self) -> Option<&Settlement> {
        self.settlement.as_ref()
    }

    fn into_settlement(self) -> Option<Settlement> {
        self.settlement
    }
}

/// A copy of a message that goes to its device's own queue, and the receipt that says so.
#[derive(Debug)]
pub(crate) struct Deposit {
    pub(crate) settlement: Option<Settlement>,
    pub(crate) place: Place,
    /// The receipt as JSON, if the sender wants one.
    pub(crate) receipt: Option<Vec<u8>>,
}

impl Deposit {
    /// For whom it is.
    pub(crate) fn address(&self) -> &Address {
        &self.place.facts().command.address
    }
}

impl Owed for Deposit {
    fn settlement(&self) -> Option<&Settlement> {
        self.settlement.as_ref()
    }

    fn into_settlement(self) -> Option<Settlement> {
        self.settlement
    }
}
