//! `Recent`: what has just happened to devices, for as long as something of it may be on its way.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::command::Address;

/// How long it is remembered. Far longer than a binding takes, or a command through an inbox; beyond it the broker knows
/// the way.
const FOR: Duration = Duration::from_secs(10);

/// Devices of which something is remembered, at some 150 bytes each; beyond it all are forgotten.
const MAX: usize = 20_000;

#[derive(Debug)]
pub(super) struct Recent<T>(HashMap<Address, (T, Instant)>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Recent<T> {
    pub(super) fn note(&mut self, address: &Address, what: T, now: Instant) {
        if self.0.len() >= MAX {
            self.0 = HashMap::new();
        }
        self.0.insert(address.clone(), (what, now));
    }

    pub(super) fn get(&mut self, address: &Address, now: Instant) -> Option<&T> {
        let is_over = self.0.get(address).is_some_and(|(_, at)| *at + FOR <= now);
        if is_over {
            self.0.remove(address);
        }
        self.0.get(address).map(|(what, _)| what)
    }

    pub(super) fn forget(&mut self, address: &Address) {
        self.0.remove(address);
    }

    pub(super) fn retain(&mut self, fits: impl Fn(&T) -> bool) {
        self.0.retain(|_, (what, _)| fits(what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_remembered_for_a_while() {
        let address = Address::parse("10.0.0.7").expect("an address");
        let (mut recent, now) = (Recent::default(), Instant::now());
        recent.note(&address, 1, now);
        recent.note(&address, 2, now + FOR / 2);
        assert_eq!(recent.get(&address, now + FOR), Some(&2), "from the last time on");
        assert_eq!(recent.get(&address, now + FOR + FOR / 2), None);
        assert!(recent.0.is_empty());
    }
}
