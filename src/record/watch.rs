//! `Watch`: which bridges are due to be heard. Pure but for the moments it is given.
//!
//! It goes by when events come in, not by when they say they were made: clocks differ, and a recorder
//! that catches up with a long queue hears of everything late.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::batch::{Bridge, State};
use super::event::{Name, Run};

/// The bridges that say when they are to be missed.
#[derive(Debug, Default)]
pub(super) struct Watch {
    bridges: HashMap<Name, Heard>,
}

#[derive(Debug)]
struct Heard {
    run: Run,
    /// How long it may be silent; not known before its first heartbeat.
    expires: Option<Duration>,
    /// When it is missed; never if it has said that it ends, or is missed already.
    due: Option<Instant>,
}

/// A bridge that is missed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Missing {
    pub(super) name: Name,
    run: Run,
}

impl Watch {
    /// Takes up a bridge that the database knows.
    pub(super) fn remember(&mut self, name: String, run: String, expires_ms: i64, now: Instant) {
        let (Ok(name), Ok(run)) = (Name::try_from(name), Run::try_from(run)) else {
            return;
        };
        let expires = Some(Duration::from_millis(u64::try_from(expires_ms).unwrap_or_default()));
        self.bridges.entry(name).or_insert(Heard { run, expires, due: due(now, expires) });
    }

    /// Takes up that a bridge was heard.
    pub(super) fn heard(&mut self, name: &Name, bridge: &Bridge, now: Instant) {
        let known = self.bridges.get(name).filter(|known| known.run >= bridge.run);
        if known.is_some_and(|known| known.run > bridge.run) {
            return;
        }
        let told = bridge.expires_ms.map(|ms| Duration::from_millis(ms.get()));
        let expires = told.or_else(|| known.and_then(|known| known.expires));
        let ends = bridge.state == State::Offline;
        let due = if ends { None } else { due(now, expires) };
        self.bridges.insert(name.clone(), Heard { run: bridge.run.clone(), expires, due });
    }

    /// Gives those that are not missed yet as much time again as they had.
    pub(super) fn start_over(&mut self, now: Instant) {
        for bridge in self.bridges.values_mut().filter(|bridge| bridge.due.is_some()) {
            bridge.due = due(now, bridge.expires);
        }
    }

    /// Those that are missed and were not told of.
    pub(super) fn missing(&self, now: Instant) -> Vec<Missing> {
        let is_due = |(_, bridge): &(&Name, &Heard)| bridge.due.is_some_and(|due| due <= now);
        let missing = self.bridges.iter().filter(is_due);
        missing.map(|(name, it)| Missing { name: name.clone(), run: it.run.clone() }).collect()
    }

    /// That is known now.
    pub(super) fn told(&mut self, missing: &Missing) {
        if let Some(bridge) = self.bridges.get_mut(&missing.name) {
            bridge.due = None;
        }
    }
}

/// A time beyond the clock's end never comes.
fn due(now: Instant, expires: Option<Duration>) -> Option<Instant> {
    now.checked_add(expires?)
}
