//! `Gathering`: the delivery of a command for many, settled once each of them has its outcome.
//!
//! Each order of such a command holds a share of the delivery's settlement. The last share settles it,
//! behind a summary for the sender; if any was given back, the broker keeps the delivery.

use std::sync::{Arc, Mutex, PoisonError};

use crate::command::Outcome;
use crate::order::Origin;
use crate::report::Reporter;
use crate::settlement::Settlement;

/// How many of a command's recipients had which outcome, in the order of `Outcome::ALL`.
type Tally = [usize; Outcome::ALL.len()];

/// What became of a command for many, as far as this bridge knows.
#[derive(Debug)]
pub(crate) struct Gathered<'a> {
    pub(crate) tally: Tally,
    pub(crate) passed_on: usize,
    pub(crate) missing_bridges: &'a [Arc<str>],
}

/// A delivery that several orders share.
#[derive(Debug)]
pub(crate) struct Gathering {
    reporter: Arc<Reporter>,
    origin: Origin,
    /// Bridges of whose devices it is not known whether it is for them.
    missing_bridges: Vec<Arc<str>>,
    /// Held for a few counts, never across an await. Nothing is locked while it is.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: usize,
    tally: Tally,
    passed_on: usize,
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
            tally: Tally::default(),
            passed_on: 0,
            returned: false,
            delivery: Some(delivery),
        };
        Arc::new(Self { reporter, origin, missing_bridges, state: Mutex::new(state) })
    }

    /// Whether the delivery may still be settled.
    pub(crate) fn is_live(&self) -> bool {
        self.lock().delivery.as_ref().is_some_and(Settlement::is_live)
    }

    /// Counts an outcome.
    pub(crate) fn count(&self, outcome: Outcome) {
        if let Some(count) = self.lock().tally.get_mut(outcome.index()) {
            *count += 1;
        }
    }

    /// Another bridge has a recipient, and tells its outcome.
    pub(crate) fn passed_on(&self) {
        self.lock().passed_on += 1;
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
        let (tally, passed_on) = (state.tally, state.passed_on);
        drop(state);
        match delivery {
            Some(delivery) if returned => delivery.hand_back(),
            Some(delivery) => {
                let missing_bridges = &self.missing_bridges;
                let gathered = Gathered { tally, passed_on, missing_bridges };
                self.reporter.summarize(&self.origin, &gathered, delivery);
            }
            None => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
