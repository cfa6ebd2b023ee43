//! `Bridges`: the others, and since when they have been missing. Pure: the time is an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Other bridges that are watched. Each costs a message a second.
const BRIDGES_MAX: usize = 1000;

/// The other bridges.
#[derive(Debug, Default)]
pub(super) struct Bridges {
    known: HashMap<Arc<str>, Bridge>,
}

#[derive(Debug, Default)]
struct Bridge {
    missing_since: Option<Instant>,
    /// Whether it is being taken over from.
    in_hand: bool,
}

impl Bridges {
    /// One has been heard of; true if it was not known.
    pub(super) fn heard_of(&mut self, name: &str) -> bool {
        let is_new = self.known.len() < BRIDGES_MAX && !self.known.contains_key(name);
        if is_new {
            self.known.insert(name.into(), Bridge::default());
        }
        is_new
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.known.keys().cloned().collect()
    }

    /// Whether one has been heard of.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Whether one is there, as far as is known.
    pub(super) fn is_present(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|bridge| bridge.missing_since.is_none())
    }

    /// Whether one of them is not.
    pub(super) fn miss_one(&self) -> bool {
        self.known.values().any(|bridge| bridge.missing_since.is_some())
    }

    pub(super) fn is_there(&mut self, name: &str) {
        if let Some(bridge) = self.known.get_mut(name) {
            *bridge = Bridge::default();
        }
    }

    pub(super) fn is_missing(&mut self, name: &str, now: Instant) {
        if let Some(bridge) = self.known.get_mut(name) {
            bridge.missing_since.get_or_insert(now);
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.known.remove(name);
    }

    /// Whether they are there is not known any more.
    pub(super) fn reset(&mut self) {
        self.known.values_mut().for_each(|bridge| *bridge = Bridge::default());
    }

    /// One that has been missing for so long, to be taken over from.
    pub(super) fn take_gone(&mut self, after: Duration, now: Instant) -> Option<Arc<str>> {
        let is_gone = |bridge: &Bridge| {
            !bridge.in_hand && bridge.missing_since.is_some_and(|since| since + after <= now)
        };
        let (name, bridge) = self.known.iter_mut().find(|(_, bridge)| is_gone(bridge))?;
        bridge.in_hand = true;
        Some(Arc::clone(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_stays_away_is_taken_over_from_once() {
        const AFTER: Duration = Duration::from_secs(5);
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut bridges = Bridges::default();
        bridges.is_missing("b", at(0));
        assert_eq!(bridges.take_gone(AFTER, at(9)), None, "nobody knows it");
        assert!(bridges.heard_of("b"));
        bridges.is_missing("b", at(0));
        bridges.is_there("b");
        assert!(bridges.is_present("b"));
        bridges.is_missing("b", at(2));
        assert!(!bridges.is_present("b"));
        bridges.is_missing("b", at(3));
        assert_eq!(bridges.take_gone(AFTER, at(6)), None, "it was there in between");
        assert_eq!(bridges.take_gone(AFTER, at(7)).as_deref(), Some("b"));
        assert_eq!(bridges.take_gone(AFTER, at(9)), None, "it is in hand");
        assert!(!bridges.heard_of("b"));
        bridges.is_there("b");
        assert_eq!(bridges.take_gone(AFTER, at(99)), None);
        bridges.forget("b");
        assert!(bridges.names().is_empty());
    }

    #[test]
    fn only_so_many_are_watched() {
        let mut bridges = Bridges::default();
        let new = (0..BRIDGES_MAX + 5).filter(|number| bridges.heard_of(&number.to_string()));
        assert_eq!(new.count(), BRIDGES_MAX);
        assert_eq!(bridges.count(), BRIDGES_MAX);
    }
}
