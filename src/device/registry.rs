//! `Registry`: which session holds which address.
//!
//! Admitting and removing are each one critical section, in which the change is also told to
//! `Presence`: so events come in the order of what happened, and the end of an old connection never
//! overtakes the beginning of the next. An entry is removed only by the epoch that made it.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use super::fronted::Fronted;
use super::session::Session;
use super::{Devices, EndReason};
use crate::clock::Moment;
use crate::command::Address;
use crate::metrics::Metrics;
use crate::presence::{Change, Presence, Update};
use crate::settings::Second;
use crate::trail::{Connection, Trail};

/// Why a connection was not taken up.
#[derive(Debug)]
pub(super) enum NotAdmitted {
    /// The bridge is shutting down.
    Closed,
    /// Its device is connected.
    Taken(Address),
}

/// The devices that are connected.
#[derive(Debug)]
pub struct Registry {
    presence: Arc<Presence>,
    trail: Arc<Trail>,
    metrics: Metrics,
    /// Held for a lookup or one change, never across an await. Lock order: this, then a session's.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<Address, Arc<Session>>,
    /// Their addresses in order, so that a page is found without a look at all of them.
    order: BTreeSet<Address>,
    last_epoch: u64,
    closed: bool,
    fronted: Fronted,
}

impl State {
    /// Whether `session` is still the one of its address.
    fn holds(&self, session: &Session) -> bool {
        let held = self.sessions.get(session.address());
        held.is_some_and(|held| held.epoch() == session.epoch())
    }
}

impl Registry {
    /// An empty registry that reports to `presence`.
    pub(crate) fn new(presence: Arc<Presence>, trail: Arc<Trail>, metrics: Metrics) -> Self {
        Self { presence, trail, metrics, state: Mutex::default() }
    }

    /// The session of `address`, if it is connected.
    pub(crate) fn find(&self, address: &Address) -> Option<Arc<Session>> {
        self.lock().sessions.get(address).cloned()
    }

    /// Takes up a new connection, which `session` makes for the epoch it is given. An older one of
    /// the same address is closed, and what waited for it unwritten waits for the new one, behind
    /// what is parked; or the new one is not admitted, if `second` says so.
    pub(super) fn admit(
        &self,
        devices: &Devices,
        address: Address,
        second: Second,
        session: impl FnOnce(Address, u64) -> Session,
    ) -> Result<Arc<Session>, NotAdmitted> {
        let now = Moment::now();
        let mut state = self.lock();
        if state.closed {
            return Err(NotAdmitted::Closed);
        }
        if second == Second::Reject && state.sessions.contains_key(&address) {
            return Err(NotAdmitted::Taken(address));
        }
        // Microseconds since 1970, or one more than the last: epochs grow across restarts too.
        state.last_epoch = (state.last_epoch + 1).max(now.wall_ms.saturating_mul(1000));
        let session = Arc::new(session(address, state.last_epoch));
        let old = state.sessions.insert(session.address().clone(), Arc::clone(&session));
        if old.is_none() {
            state.order.insert(session.address().clone());
        }
        let inherited = old.as_ref().map(|old| old.supersede(devices));
        // After the old one has reported what has to be parked.
        devices.parking.arrived(session.address());
        if let Some(old) = old {
            let address = session.address();
            if state.fronted.replaced(address, old.since(), now.mono) {
                warn!(%address, "connections from one address take each other's place: if there are several devices behind it, a NAT or a proxy hides their addresses; see DEVICE_IDENTITY and DEVICE_PROXY_FROM.");
            }
            session.inherit(inherited.unwrap_or_default(), now.mono, devices);
            self.ended(&old, EndReason::Replaced, now);
        }
        self.presence.changed(Change {
            online: true,
            reason: "connected",
            ..offline(&session, EndReason::Closed, now)
        });
        self.metrics.device_connected(state.sessions.len());
        Ok(session)
    }

    /// Removes `session`, if it is still the one of its address.
    pub(crate) fn remove(&self, session: &Session, reason: EndReason) {
        let mut state = self.lock();
        if state.holds(session) {
            state.sessions.remove(session.address());
            self.ended(session, reason, Moment::now());
            self.metrics.devices(state.sessions.len());
            state.order.remove(session.address());
        }
    }

    /// Tells that `session` is silent, or was and is no longer, if it is still the one of its address.
    pub(super) fn update(&self, session: &Session, update: Update) {
        let state = self.lock();
        if state.holds(session) {
            session.set_silent(update == Update::Silent);
            let reason = match update {
                Update::Silent => "silent",
                Update::Heard => "heard",
            };
            let change = offline(session, EndReason::Closed, Moment::now());
            self.presence.changed(Change { online: true, update: Some(update), reason, ..change });
        }
    }

    fn ended(&self, session: &Session, reason: EndReason, now: Moment) {
        self.presence.changed(offline(session, reason, now));
        let connection = Connection {
            epoch: session.epoch(),
            peer: session.peer(),
            since_ms: session.snapshot().since_ms,
            until_ms: now.wall_ms,
            reason: reason.label(),
        };
        self.trail.connection(session.address(), connection);
    }

    /// All sessions.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// All sessions, and the `seq` of the last presence event whose change they show; or none while `Presence` allows no
    /// snapshot. Both of one moment: a change is here before its event has its `seq`, and what is seen here is
    /// not forgotten there.
    pub(crate) fn snapshot(&self) -> Option<(u64, Vec<Arc<Session>>)> {
        let state = self.lock();
        let seq = self.presence.snapshot()?;
        Some((seq, state.sessions.values().cloned().collect()))
    }

    /// How many devices are connected.
    pub(crate) fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Admits nobody any more and gives all sessions.
    pub(crate) fn close(&self) -> Vec<Arc<Session>> {
        self.lock().closed = true;
        self.all()
    }

    /// Up to `count` sessions in the order of their addresses, from behind `after`; and how many
    /// devices are connected in all. Costs as much as it gives: who wants many asks again.
    pub fn behind(&self, after: Option<&Address>, count: usize) -> (Vec<Arc<Session>>, usize) {
        let state = self.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let next = state.order.range((from, Bound::Unbounded)).take(count);
        let sessions = next.filter_map(|address| state.sessions.get(address).cloned()).collect();
        (sessions, state.sessions.len())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn offline(session: &Session, reason: EndReason, now: Moment) -> Change {
    Change {
        address: session.address().clone(),
        epoch: session.epoch(),
        online: false,
        update: None,
        at_ms: now.wall_ms,
        reason: reason.label(),
        peer: session.peer(),
    }
}
