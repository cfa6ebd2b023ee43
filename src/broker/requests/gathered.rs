//! `Gathered`: the receipts of one command, as far as they have come. Pure.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::command::Outcome;

/// Receipts that are kept of one command, as many as it may list devices; at some 200 bytes each that is
/// 2 MB. Of more, which only a group or a broadcast can have, the summary tells.
const RECEIPTS_MAX: usize = 10_000;

/// The receipts of one command, the last one of each device.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) is_for_one: bool,
    pub(crate) receipts: Vec<Box<RawValue>>,
    /// What came when all devices had their outcome.
    pub(crate) summary: Option<Box<RawValue>>,
    /// Devices whose receipts were not kept.
    pub(crate) left_out: usize,
    /// Where the receipt of a device is.
    at: HashMap<String, usize>,
    /// Devices for which it is parked.
    parked: HashSet<String>,
    /// How many receipts of devices are to come, if other bridges tell of some.
    expected: usize,
    /// Whether there is an outcome for the command as a whole, as for a group of nobody.
    is_settled: bool,
}

#[derive(Deserialize)]
struct Receipt<'a> {
    #[serde(borrow)]
    address: Option<Cow<'a, str>>,
    #[serde(borrow)]
    outcome: Option<Cow<'a, str>>,
    /// Of a summary.
    #[serde(default)]
    members: usize,
    #[serde(default)]
    passed_on: usize,
}

impl Gathered {
    pub(super) fn new(is_for_one: bool) -> Self {
        Self { is_for_one, ..Self::default() }
    }

    /// Takes up a receipt or a summary.
    pub(super) fn take(&mut self, body: &[u8]) {
        let Ok(raw) = serde_json::from_slice::<Box<RawValue>>(body) else { return };
        let Ok(receipt) = serde_json::from_str(raw.get()) else { return };
        let Receipt { address, outcome, members, passed_on } = receipt;
        let Some(outcome) = outcome else {
            self.expected = if passed_on > 0 { members } else { 0 };
            self.summary = Some(raw);
            return;
        };
        let is_parked = outcome == Outcome::Parked.label();
        let Some(address) = address.map(Cow::into_owned) else {
            self.is_settled |= !is_parked;
            self.receipts.push(raw);
            return;
        };
        self.is_settled |= self.is_for_one && !is_parked;
        if is_parked {
            self.parked.insert(address.clone());
        } else {
            self.parked.remove(&address);
        }
        let last = self.at.get(&address).copied();
        if let Some(last) = last.and_then(|at| self.receipts.get_mut(at)) {
            *last = raw;
        } else if self.receipts.len() < RECEIPTS_MAX {
            self.at.insert(address, self.receipts.len());
            self.receipts.push(raw);
        } else if !is_parked {
            // A parked one will come again.
            self.left_out += 1;
        }
    }

    /// Whether all have their final outcome.
    pub(crate) fn is_done(&self) -> bool {
        let all_are_here = self.at.len() + self.left_out >= self.expected;
        self.is_settled || (self.summary.is_some() && self.parked.is_empty() && all_are_here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(address: &str, outcome: &str) -> Vec<u8> {
        format!(r#"{{"id":"c","address":"{address}","outcome":"{outcome}"}}"#).into_bytes()
    }

    const SUMMARY: &[u8] = br#"{"id":"c","members":2,"outcomes":{"written":1,"parked":1}}"#;

    #[test]
    fn one_device_has_one_final_receipt_and_parked_is_none() {
        let mut gathered = Gathered::new(true);
        gathered.take(&receipt("p1", "parked"));
        assert!(!gathered.is_done());
        gathered.take(&receipt("p1", "written"));
        assert!(gathered.is_done());
        assert_eq!(gathered.receipts.len(), 1, "the last one");
        assert!(gathered.receipts[0].get().contains("written"));
    }

    #[test]
    fn several_are_done_with_their_summary_and_nothing_parked_in_any_order() {
        let mut gathered = Gathered::new(false);
        gathered.take(&receipt("p1", "written"));
        gathered.take(&receipt("p2", "parked"));
        gathered.take(SUMMARY);
        assert!(!gathered.is_done());
        gathered.take(&receipt("p2", "expired"));
        assert!(gathered.is_done() && gathered.receipts.len() == 2);
        let mut gathered = Gathered::new(false);
        gathered.take(&receipt("p2", "parked"));
        gathered.take(&receipt("p2", "written"));
        assert!(!gathered.is_done());
        gathered.take(SUMMARY);
        assert!(gathered.is_done());
    }

    #[test]
    fn what_other_bridges_tell_is_waited_for_behind_the_summary() {
        let mut gathered = Gathered::new(false);
        gathered.take(&receipt("p1", "written"));
        gathered.take(br#"{"id":"c","members":2,"passed_on":1,"outcomes":{"written":1}}"#);
        assert!(!gathered.is_done());
        gathered.take(&receipt("p2", "parked"));
        assert!(!gathered.is_done());
        gathered.take(&receipt("p2", "written"));
        assert!(gathered.is_done());
    }

    #[test]
    fn a_group_of_nobody_has_one_receipt_without_a_device() {
        let mut gathered = Gathered::new(false);
        gathered.take(br#"{"id":"c","outcome":"offline","reason":"nobody"}"#);
        assert!(gathered.is_done() && gathered.receipts.len() == 1);
    }

    #[test]
    fn no_more_than_so_many_are_kept_and_the_others_are_counted() {
        let mut gathered = Gathered::new(false);
        for number in 0..RECEIPTS_MAX + 7 {
            gathered.take(&receipt(&number.to_string(), "written"));
        }
        gathered.take(b"no JSON at all");
        assert_eq!((gathered.receipts.len(), gathered.left_out), (RECEIPTS_MAX, 7));
    }
}
