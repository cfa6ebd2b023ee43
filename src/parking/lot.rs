//! What is known of one device's parked commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::order::Facts;

/// What is known of one device's parked commands.
#[derive(Debug, Default)]
pub(super) struct Lot {
    /// On their way to the broker.
    pub(super) publishing: usize,
    /// In the broker, put there by this process, by their numbers.
    pub(super) held: BTreeMap<u64, Held>,
    /// In the broker since before this process, as far as it is known.
    pub(super) older: usize,
    /// Whether something has landed in the broker since it was asked for more.
    pub(super) landed: bool,
    pub(super) fetching: Fetching,
    /// Whether the broker has not said for long what is in it. Then what comes now does not wait for it.
    pub(super) silent: bool,
    pub(super) missing: Option<Missing>,
}

/// What was in hand on a connection that is lost. The broker may not know of the loss yet; until it
/// does, it shows only what comes after.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) ids: Vec<Box<str>>,
    pub(super) until: Instant,
}

impl Lot {
    pub(super) fn len(&self) -> usize {
        self.publishing + self.held.len() + self.older
    }

    pub(super) fn is_missing_some(&self, now: Instant) -> bool {
        self.missing.as_ref().is_some_and(|missing| now < missing.until)
    }

    /// Whether nothing is lost when this is forgotten.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.len() == 0 && self.fetching == Fetching::No && !self.is_missing_some(now)
    }
}

/// One parked command.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) expires: Instant,
    /// What it takes to tell its sender that it expired, if that was asked for.
    pub(super) facts: Option<Arc<Facts>>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Fetching {
    #[default]
    No,
    /// The broker is asked whether there is a queue.
    Asking,
    Wanted,
    Running,
}
