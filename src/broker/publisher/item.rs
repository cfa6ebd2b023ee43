//! `Item`: one thing to say, until the broker has it.

use tokio::sync::oneshot;

use super::super::publication::Publication;
use crate::command::Address;
use crate::settlement::Settlement;

/// One thing to say: what is published together, and what follows from its confirm.
#[derive(Debug, Default)]
pub(super) struct Item {
    pub(super) publications: Vec<Publication>,
    /// What may be settled then.
    pub(super) settlement: Option<Settlement>,
    /// Whether the message itself is among them, on its way to the undelivered exchange.
    pub(super) undelivered: bool,
    /// Whose presence it tells.
    pub(super) presence: Option<Address>,
    /// Who waits for it.
    pub(super) told: Option<oneshot::Sender<()>>,
    /// Whether it means nothing later, and is not said again.
    pub(super) fleeting: bool,
    /// How often the broker has refused it on this connection.
    pub(super) tries: u32,
}

impl Item {
    /// Nothing but this.
    pub(super) fn of(publication: Publication) -> Self {
        Self { publications: vec![publication], ..Self::default() }
    }

    /// Itself, if it is owed still: the broker delivers again what a dead channel held.
    pub(super) fn if_owed(self) -> Option<Self> {
        if self.settlement.as_ref().is_none_or(Settlement::is_live) {
            return Some(self);
        }
        if let Some(settlement) = self.settlement {
            settlement.hand_back();
        }
        None
    }
}
