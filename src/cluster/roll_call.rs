//! `RollCall`: whom a command for a group or for all is for, as each bridge says of its own devices.
//!
//! The bridge that has the command asks the others, past all that waits in their inboxes, and goes on when all have
//! answered. One that stays silent is waited for no longer after a while: the sender is told which.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::Cluster;
use super::control::Control;
use super::heirs::DEVICES_A_MESSAGE;
use crate::command::{Address, Whom};

/// How long a bridge may be silent that has not answered, or not all. An answer takes milliseconds, on a busy broker up to
/// a second a message; after this it is dead, or cut off.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// How long it may take until a bridge that has begun has heard of another one that is there, beyond the time between two
/// heartbeats.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// How long a question or an answer is of use.
const SAID_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked whether a bridge has been silent for too long.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One question to all bridges.
#[derive(Debug)]
pub(crate) struct RollCall {
    number: u32,
    whom: Whom,
    /// Held for a few set operations, never across an await. Nothing is locked while it is.
    state: Mutex<State>,
    answered: Notify,
}

/// What has been answered.
#[derive(Debug, Default)]
struct State {
    members: BTreeSet<Address>,
    /// Bridges of which not all is heard.
    silent: HashMap<Arc<str>, Silent>,
    /// Those that are waited for no longer.
    missing: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Silent {
    /// The parts of its answer that are here.
    heard: HashSet<u32>,
    since: Instant,
}

/// Whom a command is for, and the bridges that have not said so.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) members: BTreeSet<Address>,
    pub(crate) missing_bridges: Vec<Arc<str>>,
}

/// The question that is open, if one is, and since when other bridges can be asked.
#[derive(Debug)]
pub(super) struct RollCalls {
    open: Mutex<Weak<RollCall>>,
    last: AtomicU32,
    reach: Mutex<Reach>,
    /// How long this bridge may not know of all others once it can hear them.
    acquainted_within: Duration,
}

/// Since when the other bridges can be reached.
#[derive(Debug, Default, Clone, Copy)]
struct Reach {
    since: Option<Instant>,
    /// When all that are there are known.
    acquainted: Option<Instant>,
}

impl State {
    /// Asks a bridge, or asks it again.
    fn ask(&mut self, bridge: &Arc<str>, now: Instant) {
        self.missing.retain(|missing| missing != bridge);
        let silent = Silent { heard: HashSet::new(), since: now };
        self.silent.insert(Arc::clone(bridge), silent);
    }

    /// A bridge has said a part of its answer.
    fn says(&mut self, bridge: &str, part: (u32, u32), members: Vec<Address>, now: Instant) {
        let (part, parts) = part;
        self.members.extend(members);
        let Some(silent) = self.silent.get_mut(bridge) else { return };
        silent.since = now;
        silent.heard.insert(part);
        if u32::try_from(silent.heard.len()).is_ok_and(|heard| heard >= parts) {
            self.silent.remove(bridge);
        }
    }

    /// A bridge will not answer any more.
    fn is_gone(&mut self, bridge: &str) {
        if let Some((bridge, _)) = self.silent.remove_entry(bridge) {
            self.missing.push(bridge);
        }
    }

    /// All that is known once all have answered, or have been silent for too long.
    fn take(&mut self, reach: Reach, now: Instant) -> Option<Called> {
        let (since, acquainted) = (reach.since?, reach.acquainted?);
        let is_late = |silent: &Silent| silent.since.max(since) + SILENT_MAX <= now;
        if now < acquainted || !self.silent.values().all(is_late) {
            return None;
        }
        self.missing.extend(self.silent.drain().map(|(bridge, _)| bridge));
        let (members, missing) = (&mut self.members, &mut self.missing);
        Some(Called { members: std::mem::take(members), missing_bridges: std::mem::take(missing) })
    }
}

impl RollCalls {
    /// Bridges say that they are there, each time after so long.
    pub(super) fn new(heartbeat: Duration) -> Self {
        let (open, last, reach) = (Mutex::default(), AtomicU32::default(), Mutex::default());
        Self { open, last, reach, acquainted_within: heartbeat + HEARD_WITHIN }
    }

    /// The other bridges can be reached now, or not any more.
    pub(super) fn set_reach(&self, reaches: bool) {
        let mut reach = self.reach();
        reach.since = reaches.then(Instant::now);
        let acquainted = reach.since.map(|since| since + self.acquainted_within);
        reach.acquainted = reach.acquainted.or(acquainted);
    }

    fn reach(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Option<Arc<RollCall>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

impl RollCall {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// Asks all other bridges whom a command is for; these of the devices here it is for. One question is open at a time.
    pub(crate) fn call(&self, whom: Whom, here: Vec<Address>) -> Arc<RollCall> {
        let number = self.calls.last.fetch_add(1, Ordering::Relaxed);
        let mut members: BTreeSet<Address> = here.into_iter().collect();
        if whom == Whom::All {
            // Readers take them for connected.
            members.extend(self.moving().devices().cloned());
        }
        let state = Mutex::new(State { members, ..State::default() });
        let call = Arc::new(RollCall { number, whom, state, answered: Notify::new() });
        *self.calls.open.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&call);
        for bridge in self.others() {
            self.ask(&call, bridge);
        }
        call
    }

    fn ask(&self, call: &RollCall, bridge: Arc<str>) {
        call.state().ask(&bridge, Instant::now());
        let (own, number, whom) = (self.bridge.to_string(), call.number, call.whom.clone());
        let control = Control::Call { bridge: own, number, whom };
        self.urgent.say(bridge, control, SAID_WITHIN);
    }

    /// A bridge was not known when the question was asked.
    pub(super) fn ask_too(&self, bridge: &str) {
        if let Some(call) = self.calls.open() {
            self.ask(&call, bridge.into());
        }
    }

    /// A bridge will not answer any more.
    pub(super) fn is_not_asked(&self, bridge: &str) {
        if let Some(call) = self.calls.open() {
            call.state().is_gone(bridge);
            call.answered.notify_one();
        }
    }

    /// Tells a bridge that asks whom of the devices here its command is for.
    pub(crate) fn answer_call(&self, to: &str, number: u32, members: &[Address]) {
        let none: &[Address] = &[];
        let chunks = members.chunks(DEVICES_A_MESSAGE);
        let parts = u32::try_from(chunks.len().max(1)).unwrap_or(u32::MAX);
        let chunks = chunks.chain(members.is_empty().then_some(none));
        for (part, addresses) in (0..parts).zip(chunks) {
            let addresses = addresses.iter().map(ToString::to_string).collect();
            let bridge = self.bridge.to_string();
            let control = Control::Called { bridge, number, part, parts, addresses };
            self.urgent.say(to, control, SAID_WITHIN);
        }
    }

    /// A bridge has told so, in a part of its answer.
    pub(crate) fn called(
        &self,
        bridge: &str,
        number: u32,
        part: (u32, u32),
        addresses: Vec<String>,
    ) {
        let Some(call) = self.calls.open().filter(|call| call.number == number) else { return };
        let members = addresses.iter().filter_map(|address| Address::parse(address).ok());
        call.state().says(bridge, part, members.collect(), Instant::now());
        call.answered.notify_one();
    }

    /// Waits until that may have changed whether all have answered.
    pub(crate) async fn until_answered(&self, call: &RollCall) {
        timeout(LOOK_EVERY, call.answered.notified()).await.ok();
    }

    /// Whom the command is for, once all bridges have said so, or have been silent for too long. Of one that has, those are
    /// taken that it had as far as is known, if the command is for all.
    pub(crate) fn take_call(&self, call: &RollCall) -> Option<Called> {
        let reach = *self.calls.reach();
        let mut called = call.state().take(reach, Instant::now())?;
        for bridge in &called.missing_bridges {
            warn!(bridge = %bridge, "a bridge does not say which of its devices a command is for.");
            if call.whom == Whom::All {
                called.members.extend(self.devices_at(bridge));
            }
        }
        Some(called)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(last: u8) -> Address {
        Address::from(std::net::IpAddr::from([10, 0, 0, last]))
    }

    fn asked(bridges: &[&str], now: Instant) -> State {
        let mut state = State::default();
        state.members.insert(device(1));
        bridges.iter().for_each(|bridge| state.ask(&Arc::from(*bridge), now));
        state
    }

    fn since(begun: Instant) -> Reach {
        Reach { since: Some(begun), acquainted: Some(begun) }
    }

    fn called(members: &[u8], missing: &[&str]) -> Option<Called> {
        let members = members.iter().copied().map(device).collect();
        let missing_bridges = missing.iter().copied().map(Arc::from).collect();
        Some(Called { members, missing_bridges })
    }

    #[test]
    fn all_are_known_once_all_bridges_have_said_all_parts() {
        let now = Instant::now();
        let mut state = asked(&["b", "c"], now);
        state.says("b", (0, 2), vec![device(2)], now);
        state.says("b", (0, 2), vec![device(2)], now);
        state.says("c", (0, 1), vec![], now);
        assert_eq!(state.take(since(now), now), None, "a part that came twice is one");
        state.says("b", (1, 2), vec![device(3), device(1)], now);
        assert_eq!(state.take(since(now), now), called(&[1, 2, 3], &[]));
    }

    #[test]
    fn one_that_stays_silent_is_missing_and_one_that_speaks_has_more_time() {
        let now = Instant::now();
        let mut state = asked(&["b", "c", "gone"], now);
        state.is_gone("gone");
        state.is_gone("never heard of");
        state.says("b", (0, 2), vec![device(2)], now + SILENT_MAX / 2);
        assert_eq!(state.take(since(now), now + SILENT_MAX), None);
        let late = now + SILENT_MAX + SILENT_MAX / 2;
        let mut found = state.take(since(now), late).expect("it is over");
        found.missing_bridges.sort();
        assert_eq!(Some(found), called(&[1, 2], &["b", "c", "gone"]));
    }

    #[test]
    fn nobody_is_late_while_none_can_be_reached() {
        let begun = Instant::now();
        let mut state = asked(&["b"], begun);
        let none = Reach { since: None, ..since(begun) };
        assert_eq!(state.take(none, begun + 2 * SILENT_MAX), None);
        let again = Reach { since: Some(begun + SILENT_MAX), ..since(begun) };
        assert_eq!(state.take(again, begun + SILENT_MAX), None);
        assert_eq!(state.take(again, begun + 2 * SILENT_MAX), called(&[1], &["b"]));
    }

    #[test]
    fn one_that_has_just_begun_asks_those_too_of_which_it_hears_later() {
        let begun = Instant::now();
        let calls = RollCalls::new(Duration::from_secs(3));
        assert_eq!(asked(&[], begun).take(*calls.reach(), begun), None, "it reaches nobody");
        calls.set_reach(true);
        let reach = *calls.reach();
        let acquainted = reach.acquainted.expect("it reaches the others");
        let mut state = asked(&[], begun);
        assert_eq!(state.take(reach, acquainted - HEARD_WITHIN), None, "another may be there");
        state.ask(&Arc::from("b"), begun);
        state.says("b", (0, 1), vec![device(2)], begun);
        assert_eq!(state.take(reach, acquainted), called(&[1, 2], &[]));
        calls.set_reach(false);
        calls.set_reach(true);
        assert_eq!(calls.reach().acquainted, Some(acquainted), "it knows them still");
    }
}
