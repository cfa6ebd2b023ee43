//! `Gathering`: the delivery of a command for many, settled once each of them has its outcome.
//!
//! Each order of such a command holds a share of the delivery's settlement. The last share settles it,
//! behind a summary for the sender; if any was given back, the broker keeps the delivery.

use std::sync::{Arc, Mutex, PoisonError};

use crate::command::Outcome;
use crate::order::Origin;
use crate::report::Reporter;
use crate::settlement::Settlement;

/// What became of a command's recipients, as far as this bridge knows.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// How many had which outcome, in the order of `Outcome::ALL`.
    pub(crate) outcomes: [usize; Outcome::ALL.len()],
    /// How many other bridges have, and tell of.
    pub(crate) passed_on: usize,
    /// Bridges of whose devices it is not known whether it is for them.
    pub(crate) missing_bridges: Vec<Arc<str>>,
}

/// A delivery that several orders share.
#[derive(Debug)]
pub(crate) struct Gathering {
    reporter: Arc<Reporter>,
    origin: Origin,
    /// Held for a few counts, never across an await. Nothing is locked while it is.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: usize,
    tally: Tally,
    returned: bool,
    /// There until the last share is settled.
    delivery: Option<Settlement>,
}

impl Gathering {
    /// Shares `delivery` among `count` orders.
    pub(crate) fn new(
        reporter: Arc<Reporter>,
        origin: Origin,
        delivery: Settlement,
        count: usize,
        missing_bridges: Vec<Arc<str>>,
    ) -> Arc<Self> {
        let state = State {
            open: count,
            tally: Tally { missing_bridges, ..Tally::default() },
            returned: false,
            delivery: Some(delivery),
        };
        Arc::new(Self { reporter, origin, state: Mutex::new(state) })
    }

    /// Whether the delivery may still be settled.
    pub(crate) fn is_live(&self) -> bool {
        self.lock().delivery.as_ref().is_some_and(Settlement::is_live)
    }

    /// Counts an outcome.
    pub(crate) fn count(&self, outcome: Outcome) {
        if let Some(count) = self.lock().tally.outcomes.get_mut(outcome.index()) {
            *count += 1;
        }
    }

    /// Another bridge has a recipient, and tells its outcome.
    pub(crate) fn passed_on(&self) {
        self.lock().tally.passed_on += 1;
    }

    /// One share is settled, or given back.
    pub(crate) fn share_done(&self, returned: bool) {
        let mut state = self.lock();
        state.returned |= returned;
        state.open = state.open.saturating_sub(1);
        if state.open > 0 {
            return;
        }
        let (delivery, returned) = (state.delivery.take(), state.returned);
        let tally = std::mem::take(&mut state.tally);
        drop(state);
        match delivery {
            Some(delivery) if returned => delivery.hand_back(),
            Some(delivery) => self.reporter.summarize(&self.origin, &tally, delivery),
            None => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
