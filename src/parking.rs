//! `Parking`: for which devices commands wait in the broker, and which of those are being fetched.
//!
//! While a device has a lot here, new commands for it go behind what is parked. The reporter counts
//! what goes in, the publisher says when it is there, the drainer fetches it once the device is
//! connected. A lot ends when the broker has nothing more for it and nothing is on its way.

mod fetching;
mod lot;
mod place;
mod sought;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use fetching::Work;
use lot::{Held, Lot, Missing};
pub(crate) use place::{Full, Place};

use crate::command::Address;
use crate::order::Facts;

/// How long after its ttl a command counts as expired in the broker: its clock and ours need not agree,
/// and one that is being fetched at that moment is not expired.
const EXPIRY_MARGIN: Duration = Duration::from_secs(2);

/// How often, at most, the broker is asked how many of an earlier bridge's commands it holds still,
/// when there is no room: it does not tell when they expire.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// Where commands are parked and where they are fetched.
#[derive(Debug)]
pub(crate) struct Parking {
    device_max: usize,
    total_max: usize,
    /// How long the broker may take to notice that a connection is lost.
    returns_within: Duration,
    /// Whether other bridges park commands, too, and fetch them. Then what is known here may be outdated:
    /// for each device that connects the broker is asked.
    in_cluster: bool,
    /// How many lots there are, readable without the lock: usually none.
    count: AtomicUsize,
    /// Tells the drainer that there is something to fetch.
    work: Notify,
    /// Tells it that something which was on its way is no longer.
    landing: Notify,
    /// Tells the knocker that there is something to ask.
    seeking: Notify,
    /// Held for a few map operations, never across an await. Last in every lock order.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    usage: Usage,
    lots: HashMap<Address, Lot>,
    known_empty: HashSet<Address>,
    /// Commands parked in all, those on their way included, as far as it is known.
    total: usize,
    /// Addresses to fetch for, each at most once.
    wanted: VecDeque<Address>,
    /// Addresses about which the broker is to be asked whether there is a queue, each at most once.
    sought: VecDeque<Address>,
    /// Expired in the broker, and their senders are to be told.
    expired: Vec<Arc<Facts>>,
    /// Addresses for which the broker is to be asked how many it holds still.
    uncounted: VecDeque<Address>,
    /// When they were last chosen.
    counted: Option<Instant>,
}

/// Whether anything was ever parked at this broker.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Usage {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    NeverUsed,
    InUse,
}

impl Parking {
    /// Nothing parked; at most `device_max` commands for a device and `total_max` for all, at a broker
    /// that notices within `returns_within` when a connection is lost.
    pub(crate) fn new(
        device_max: usize,
        total_max: usize,
        returns_within: Duration,
        in_cluster: bool,
    ) -> Self {
        let usage = if in_cluster { Usage::InUse } else { Usage::Unknown };
        Self {
            device_max,
            total_max,
            returns_within,
            in_cluster,
            count: AtomicUsize::new(0),
            work: Notify::new(),
            landing: Notify::new(),
            seeking: Notify::new(),
            state: Mutex::new(State { usage, ..State::default() }),
        }
    }

    /// Notes that something was parked at this broker once, perhaps by an earlier bridge.
    pub(crate) fn set_in_use(&self) {
        self.lock().usage = Usage::InUse;
    }

    /// Notes that nothing was ever parked at this broker, unless it is known that something was. Then
    /// nothing waits for devices that have connected meanwhile.
    pub(crate) fn set_never_used(&self) {
        let mut state = self.lock();
        if state.usage == Usage::Unknown {
            state.usage = Usage::NeverUsed;
            state.lots.retain(|_, lot| lot.len() > 0);
            self.counted(&state);
        }
    }

    /// Whether it is to be found out if anything was ever parked.
    pub(crate) fn is_unknown(&self) -> bool {
        self.lock().usage == Usage::Unknown
    }

    /// Whether something may have been parked once. If not, nobody is asked about.
    pub(crate) fn may_be_in_use(&self) -> bool {
        self.lock().usage != Usage::NeverUsed
    }

    /// Whether parked commands of `address` go before others. Called for every command.
    pub(crate) fn gates(&self, address: &Address) -> bool {
        self.count.load(Ordering::Relaxed) > 0
            && self.lock().lots.get(address).is_some_and(|lot| !lot.silent)
    }

    /// Whether the broker has not said for long what is parked for `address`; true if that is new.
    pub(crate) fn set_silent(&self, address: &Address, silent: bool) -> bool {
        let mut state = self.lock();
        let lot = state.lots.get_mut(address);
        lot.is_some_and(|lot| std::mem::replace(&mut lot.silent, silent) != silent)
    }

    /// Commands parked in all, as far as it is known.
    pub(crate) fn total(&self) -> usize {
        self.lock().total
    }

    /// Makes room for one more command on its way to the broker.
    pub(crate) fn begin(self: &Arc<Self>, facts: &Arc<Facts>) -> Result<Place, Full> {
        let address = &facts.command.address;
        let mut state = self.lock();
        let lot = state.lots.get(address);
        let full = if state.total >= self.total_max {
            Some(Full::Total(self.total_max))
        } else if lot.is_some_and(|lot| lot.len() >= self.device_max) {
            Some(Full::Device(self.device_max))
        } else {
            None
        };
        if let Some(full) = full {
            self.count_again(&mut state, Instant::now());
            return Err(full);
        }
        state.total += 1;
        state.lots.entry(address.clone()).or_default().publishing += 1;
        state.known_empty.remove(address);
        self.counted(&state);
        Ok(Place::new(self, facts))
    }

    /// Has the broker asked how many it holds of those that this process has not put there.
    fn count_again(&self, state: &mut State, now: Instant) {
        if !state.uncounted.is_empty() || state.counted.is_some_and(|at| now < at + COUNT_EVERY) {
            return;
        }
        state.counted = Some(now);
        let older = state.lots.iter().filter(|(_, lot)| lot.older > 0);
        state.uncounted = older.map(|(address, _)| address.clone()).collect();
        self.work.notify_one();
    }

    /// One that was on its way is in the broker. `connected` says whether it is wanted at once.
    fn landed(&self, facts: &Arc<Facts>, connected: bool) {
        let address = &facts.command.address;
        let mut state = self.lock();
        if let Some(lot) = state.lots.get_mut(address) {
            lot.publishing = lot.publishing.saturating_sub(1);
            let wants_receipt = facts.origin.message.reply_to().is_some();
            let held = Held {
                expires: facts.command.expires,
                facts: wants_receipt.then(|| Arc::clone(facts)),
            };
            lot.held.insert(facts.origin.number, held);
            lot.landed = true;
        }
        if connected {
            self.want(&mut state, address);
        }
        self.landing.notify_waiters();
    }

    /// One that was on its way will not arrive: its message is delivered again instead.
    fn given_up(&self, address: &Address) {
        let mut state = self.lock();
        state.total = state.total.saturating_sub(1);
        if let Some(lot) = state.lots.get_mut(address) {
            lot.publishing = lot.publishing.saturating_sub(1);
        }
        self.drop_if_idle(&mut state, address);
        self.landing.notify_waiters();
    }

    /// Waits until nothing is on its way for `address`.
    pub(crate) async fn until_landed(&self, address: &Address) {
        loop {
            let mut landing = std::pin::pin!(self.landing.notified());
            landing.as_mut().enable();
            if self.lock().lots.get(address).is_none_or(|lot| lot.publishing == 0) {
                return;
            }
            landing.await;
        }
    }

    /// The broker says how many it holds for `address`.
    pub(crate) fn counted_at_broker(&self, address: &Address, count: usize) {
        let mut state = self.lock();
        let State { lots, total, .. } = &mut *state;
        if let Some(lot) = lots.get_mut(address) {
            *total = total.saturating_sub(lot.older);
            lot.older = count.saturating_sub(lot.held.len());
            *total += lot.older;
        }
    }

    /// The connection is lost on which those with these ids were in hand.
    pub(crate) fn lost(&self, address: &Address, ids: Vec<Box<str>>) {
        if let Some(lot) = self.lock().lots.get_mut(address) {
            lot.missing = Some(Missing { ids, until: Instant::now() + self.returns_within });
        }
    }

    /// What was given back is in its place again.
    pub(crate) fn returned(&self, address: &Address) {
        if let Some(lot) = self.lock().lots.get_mut(address) {
            lot.missing = None;
        }
    }

    /// Whether others may still have to come back before the one with the id `shown`, or before the
    /// broker's word that there is none.
    pub(crate) fn misses_some(&self, address: &Address, shown: Option<&str>, now: Instant) -> bool {
        let mut state = self.lock();
        let Some(lot) = state.lots.get_mut(address) else { return false };
        // They come back together.
        let is_one = |missing: &Missing| {
            shown.is_some_and(|shown| missing.ids.iter().any(|id| **id == *shown))
        };
        if lot.missing.as_ref().is_some_and(is_one) {
            lot.missing = None;
        }
        lot.is_missing_some(now)
    }

    /// One was fetched from the broker for good: the one with this number, if this process put it there.
    pub(crate) fn fetched(&self, address: &Address, number: Option<u64>) {
        let mut state = self.lock();
        let State { lots, total, .. } = &mut *state;
        let Some(lot) = lots.get_mut(address) else { return };
        if number.is_some_and(|number| lot.held.remove(&number).is_some()) {
            *total = total.saturating_sub(1);
        } else if lot.older > 0 {
            lot.older -= 1;
            *total = total.saturating_sub(1);
        }
    }

    /// Forgets what has expired in the broker; gives what its senders are to be told of.
    pub(crate) fn expire(&self, now: Instant) -> Vec<Arc<Facts>> {
        let mut state = self.lock();
        let mut expired = std::mem::take(&mut state.expired);
        let State { lots, total, .. } = &mut *state;
        lots.retain(|_, lot| {
            let before = lot.held.len();
            lot.held.retain(|_, held| {
                let is_past = held.expires + EXPIRY_MARGIN <= now;
                if is_past {
                    expired.extend(held.facts.take());
                }
                !is_past
            });
            *total = total.saturating_sub(before - lot.held.len());
            !lot.is_idle(now)
        });
        self.counted(&state);
        expired
    }

    fn counted(&self, state: &State) {
        self.count.store(state.lots.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
