//! `Watch`: which bridges are due to be heard. Pure but for the moments it is given.
//!
//! It goes by when events come in, not by when they say they were made: clocks differ, and a recorder
//! that catches up with a long queue hears of everything late.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::event::{Name, Run};
use super::rows::{Bridge, State};

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
    /// Whether it was heard by this recorder, and is not only remembered.
    heard: bool,
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
        self.bridges.entry(name).or_insert(Heard {
            run,
            expires,
            heard: false,
            due: due(now, expires),
        });
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
        self.bridges
            .insert(name.clone(), Heard { run: bridge.run.clone(), expires, heard: true, due });
    }

    /// Whether this is the latest process of the bridge, and was heard before.
    pub(super) fn knows(&self, name: &Name, run: &Run) -> bool {
        self.bridges.get(name).is_some_and(|bridge| bridge.run == *run && bridge.heard)
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

#[cfg(test)]
mod tests {
    use super::super::batch::Batch;
    use super::super::event::Event;
    use super::*;
    use crate::settings::Kinds;

    const SECOND: Duration = Duration::from_secs(1);

    /// A heartbeat of bridge `b`, which is to be missed after a second.
    fn beat(watch: &mut Watch, run: &str, online: bool, now: Instant) {
        let event = serde_json::json!({"bridge": "b", "run": run, "seq": 1, "online": online,
            "at": "2026-11-21T14:30:00.123Z", "expires_ms": 1000});
        let event = Event::read("bridge.b", event.to_string().as_bytes()).expect("a heartbeat");
        let mut batch = Batch::default();
        batch.take(event, Kinds { outcome: false, uplink: false });
        batch.bridges().for_each(|(name, bridge)| watch.heard(name, bridge, now));
    }

    #[test]
    fn a_bridge_is_missed_once_and_again_after_it_was_heard() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        beat(&mut watch, "a1", true, start);
        assert!(watch.missing(start + SECOND / 2).is_empty());
        let missing = watch.missing(start + SECOND);
        assert_eq!(missing.len(), 1);
        watch.told(&missing[0]);
        assert!(watch.missing(start + SECOND * 9).is_empty());
        beat(&mut watch, "a1", true, start + SECOND * 9);
        assert_eq!(watch.missing(start + SECOND * 10).len(), 1);
    }

    #[test]
    fn one_that_ends_is_not_missed_and_an_older_process_counts_for_nothing() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        beat(&mut watch, "a2", true, start);
        beat(&mut watch, "a1", false, start);
        assert_eq!(watch.missing(start + SECOND).len(), 1);
        beat(&mut watch, "a2", false, start);
        assert!(watch.missing(start + SECOND).is_empty());
    }

    #[test]
    fn after_an_outage_of_the_database_all_have_their_time_again() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        beat(&mut watch, "a1", true, start);
        watch.start_over(start + SECOND);
        assert!(watch.missing(start + SECOND).is_empty());
        assert_eq!(watch.missing(start + SECOND * 2).len(), 1);
    }

    #[test]
    fn a_bridge_that_is_remembered_is_missed_and_its_process_has_yet_to_be_heard() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        watch.remember("b".to_owned(), "a1".to_owned(), 1000, start);
        let run = Run::try_from("a1".to_owned()).expect("a run");
        let name = Name::try_from("b".to_owned()).expect("a name");
        assert!(!watch.knows(&name, &run));
        assert_eq!(watch.missing(start + SECOND).len(), 1);
        beat(&mut watch, "a1", true, start);
        assert!(watch.knows(&name, &run));
    }
}
