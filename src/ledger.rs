//! `Ledger`: what this bridge knows of commands that the broker may deliver again.
//!
//! When an AMQP channel is lost, the broker delivers again what was not acknowledged there, whether
//! or not it was written. For commands that carry an id the ledger answers what became of the first
//! try, so that it is not repeated without need. It forgets the oldest first.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use crate::command::Outcome;
use crate::order::Facts;

/// Commands remembered. A lost connection brings back what was unsettled, at most 65,535 for the
/// prefetch and 65,535 for `MQ_STALLED_MAX`; at some 60 bytes each this is 8 MB, if all have ids.
const COMMANDS_MAX: usize = 131_072;

/// What is known of a command that was here before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing of it was written.
    Untouched,
    /// It came again when nothing of it was written, and is on its way.
    Again,
    /// Its line was written, and its proof is still waited for.
    Begun,
    /// Its outcome, and the answer if there was one.
    Done(Outcome, Option<Box<[u8]>>),
}

/// Commands with ids, and what became of them.
#[derive(Debug)]
pub(crate) struct Ledger {
    hasher: RandomState,
    max: usize,
    /// Held for one look or one change, never across an await.
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    known: HashMap<u64, Known>,
    /// Keys in the order they came.
    order: VecDeque<u64>,
}

impl Ledger {
    /// An empty ledger.
    pub(crate) fn new() -> Self {
        Self { hasher: RandomState::new(), max: COMMANDS_MAX, pages: Mutex::default() }
    }

    /// Notes what is known of a command. One without an id cannot be told from another.
    pub(crate) fn note(&self, facts: &Facts, known: Known) {
        let Some(key) = self.key(facts) else { return };
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.known.insert(key, known).is_none() {
            pages.order.push_back(key);
            if pages.order.len() > self.max
                && let Some(oldest) = pages.order.pop_front()
            {
                pages.known.remove(&oldest);
            }
        }
    }

    /// What is known of a command that has come again. Of several that do, one alone hears that nothing of it was
    /// written: they might all wait at once, and all be written then.
    pub(crate) fn recall(&self, facts: &Facts) -> Option<Known> {
        let key = self.key(facts)?;
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let known = pages.known.get_mut(&key)?;
        let heard = known.clone();
        if heard == Known::Untouched {
            *known = Known::Again;
        }
        Some(heard)
    }

    /// The id alone would not do: a sender may use it twice, and then the second command must not
    /// be taken for a repetition of the first.
    fn key(&self, facts: &Facts) -> Option<u64> {
        let id = facts.origin.id.as_deref()?;
        let mut hasher = self.hasher.build_hasher();
        id.hash(&mut hasher);
        if facts.origin.shared {
            facts.command.address.hash(&mut hasher);
        }
        facts.origin.message.fingerprint(&mut hasher);
        Some(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::facts;

    #[test]
    fn a_command_is_known_by_its_id_and_its_content() {
        let ledger = Ledger::new();
        ledger.note(&facts(Some("7"), "ON"), Known::Begun);
        ledger.note(&facts(Some("7"), "ON"), Known::Done(Outcome::Received, None));
        assert_eq!(
            ledger.recall(&facts(Some("7"), "ON")),
            Some(Known::Done(Outcome::Received, None))
        );
        assert_eq!(ledger.recall(&facts(Some("7"), "OFF")), None, "the id was used twice");
        assert_eq!(ledger.recall(&facts(Some("8"), "ON")), None);
        ledger.note(&facts(None, "ON"), Known::Begun);
        assert_eq!(ledger.recall(&facts(None, "ON")), None, "nothing to know it by");
    }

    #[test]
    fn of_two_that_come_again_one_may_be_written() {
        let (ledger, command) = (Ledger::new(), facts(Some("7"), "ON"));
        ledger.note(&command, Known::Untouched);
        assert_eq!(ledger.recall(&command), Some(Known::Untouched));
        assert_eq!(ledger.recall(&command), Some(Known::Again), "the first may be written yet");
        ledger.note(&command, Known::Untouched);
        assert_eq!(ledger.recall(&command), Some(Known::Untouched), "it was not");
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let ledger = Ledger { max: 2, ..Ledger::new() };
        for id in ["1", "2", "3"] {
            ledger.note(&facts(Some(id), "ON"), Known::Untouched);
        }
        let known = ["1", "2", "3"].map(|id| ledger.recall(&facts(Some(id), "ON")).is_some());
        assert_eq!(known, [false, true, true]);
    }
}
