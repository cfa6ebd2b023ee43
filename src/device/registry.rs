//! `Registry`: which session holds which address.
//!
//! Admitting and removing are each one critical section, in which the change is also told to
//! `Presence`: so events come in the order of what happened, and the end of an old connection never
//! overtakes the beginning of the next. An entry is removed only by the epoch that made it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use super::fronted::Fronted;
use super::session::Session;
use super::{Devices, EndReason};
use crate::clock::Moment;
use crate::cluster::{Cluster, Connection as Known, Overdue};
use crate::command::Address;
use crate::metrics::Metrics;
use crate::order::Order;
use crate::presence::{Change, Presence, Update};
use crate::settings::Second;
use crate::trail::{Connection, Trail};

/// The reason of an `offline` that another bridge tells in the place of one that has died.
const BRIDGE_LOST: &str = "bridge_lost";

/// Why a connection was not taken up.
#[derive(Debug)]
pub(super) enum NotAdmitted {
    /// The bridge is shutting down.
    Closed,
    /// Its device is connected.
    Taken(Address),
}

/// What came of another bridge's claim to a device.
#[derive(Debug)]
pub(crate) enum Yielded {
    /// The connection here had this epoch and is closed; this waited for it, unwritten.
    Closed(u64, VecDeque<Order>),
    /// The connection here is later than that of the other bridge, and has this epoch.
    Later(u64),
    /// It is not connected here.
    Nothing,
}

/// The devices that are connected.
#[derive(Debug)]
pub struct Registry {
    cluster: Option<Arc<Cluster>>,
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
        held.is_some_and(|held| std::ptr::eq(Arc::as_ptr(held), session))
    }

    fn take_out(&mut self, session: &Session) {
        self.sessions.remove(session.address());
        self.order.remove(session.address());
    }
}

impl Registry {
    /// An empty registry that reports to `presence`.
    pub(crate) fn new(
        presence: Arc<Presence>,
        trail: Arc<Trail>,
        metrics: Metrics,
        cluster: Option<Arc<Cluster>>,
    ) -> Self {
        Self { cluster, presence, trail, metrics, state: Mutex::default() }
    }

    /// The session of `address`, if it is connected.
    pub(crate) fn find(&self, address: &Address) -> Option<Arc<Session>> {
        self.lock().sessions.get(address).cloned()
    }

    /// Takes up a new connection, which `session` makes for the epoch it is given. An older one of
    /// the same address is closed, and what waited for it unwritten waits for the new one, behind
    /// what is parked; or the new one is not admitted, if `second` says so. In a cluster it is announced
    /// only when no other bridge has the device.
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
        let is_ours = self.cluster.is_none() || old.as_ref().is_some_and(|old| old.is_announced());
        if is_ours {
            // After the old one has reported what has to be parked.
            devices.seek_parked(session.address());
        } else {
            session.hold();
        }
        if let Some(old) = old {
            let address = session.address();
            if state.fronted.replaced(address, old.since(), now.mono) {
                warn!(%address, "connections from one address take each other's place: if there are several devices behind it, a NAT or a proxy hides their addresses; see DEVICE_IDENTITY and DEVICE_PROXY_FROM.");
            }
            session.inherit(inherited.unwrap_or_default(), now.mono, devices);
            self.ended(&old, EndReason::Replaced, now);
        }
        if is_ours {
            self.tell_online(&session, now);
        }
        self.touch(session.address());
        self.metrics.device_connected(state.sessions.len());
        Ok(session)
    }

    /// Removes `session`, if it is still the one of its address.
    pub(crate) fn remove(&self, session: &Session, reason: EndReason) {
        let mut state = self.lock();
        if state.holds(session) {
            state.take_out(session);
            self.ended(session, reason, Moment::now());
            self.metrics.devices(state.sessions.len());
            self.touch(session.address());
        }
    }

    /// No other bridge has the device of `address`: its connection may be told, and take what waits.
    pub(crate) fn announce(&self, devices: &Devices, address: &Address) {
        let mut state = self.lock();
        let Some(session) = state.sessions.get(address).cloned() else { return };
        let is_doubted = session.is_doubted();
        if !session.set_announced(true) {
            if is_doubted {
                state.last_epoch += 1;
                session.set_epoch(state.last_epoch);
            }
            self.tell_online(&session, Moment::now());
            devices.seek_parked(address);
        }
        session.release(devices);
    }

    /// Another bridge that may have the device of `address` has not answered: what waits for it waits no longer.
    pub(crate) fn release(&self, devices: &Devices, address: &Address) {
        if let Some(session) = self.find(address) {
            session.release(devices);
        }
    }

    /// A connection of `address` at another bridge had this epoch: that of the one here is higher.
    pub(crate) fn outdo(&self, address: &Address, epoch: u64) {
        let mut state = self.lock();
        state.last_epoch = state.last_epoch.max(epoch);
        if let Some(session) = state.sessions.get(address)
            && session.epoch() <= epoch
            && !session.is_announced()
        {
            let session = Arc::clone(session);
            state.last_epoch += 1;
            session.set_epoch(state.last_epoch);
        }
    }

    /// The highest epoch that was given out, here or by a bridge that was heard.
    pub(crate) fn last_epoch(&self) -> u64 {
        self.lock().last_epoch
    }

    /// Another bridge has given out this epoch: those given out here from now on are higher.
    pub(crate) fn heard(&self, epoch: u64) {
        let mut state = self.lock();
        state.last_epoch = state.last_epoch.max(epoch);
    }

    /// Another bridge claims `address` for a connection of `epoch`: the connection here is closed, unless it
    /// is the later one. A claim may have waited while the device came back.
    pub(crate) fn yield_to(&self, devices: &Devices, address: &Address, epoch: u64) -> Yielded {
        let mut state = self.lock();
        state.last_epoch = state.last_epoch.max(epoch);
        let held = state.sessions.get(address).filter(|held| !held.is_closed()).cloned();
        let Some(session) = held else { return Yielded::Nothing };
        if session.epoch() > epoch {
            return Yielded::Later(session.epoch());
        }
        let unwritten = self.give_up(devices, &mut state, &session);
        Yielded::Closed(session.epoch(), unwritten)
    }

    /// Readers have heard of a later connection of `address`, at another bridge. One of this bridge that
    /// is older is closed, and nothing is said of its end; gives what waited for it, unwritten. One that has
    /// only a claim to the device is left to that, unless it is `lost`.
    pub(crate) fn evict(
        &self,
        devices: &Devices,
        address: &Address,
        epoch: u64,
        lost: bool,
    ) -> Option<VecDeque<Order>> {
        let mut state = self.lock();
        state.last_epoch = state.last_epoch.max(epoch);
        let older = |held: &&Arc<Session>| held.epoch() < epoch && (lost || held.is_announced());
        let session = state.sessions.get(address).filter(older).cloned()?;
        session.set_announced(false);
        let unwritten = self.give_up(devices, &mut state, &session);
        self.touch(address);
        Some(unwritten)
    }

    /// The epoch of the connection of `address` here, if that is later than one of `epoch` at another bridge.
    pub(crate) fn later_than(&self, address: &Address, epoch: u64) -> Option<u64> {
        let state = self.lock();
        let held = state.sessions.get(address).filter(|held| !held.is_closed())?;
        Some(held.epoch()).filter(|held| *held > epoch)
    }

    fn give_up(&self, devices: &Devices, state: &mut State, session: &Session) -> VecDeque<Order> {
        let unwritten = session.supersede(devices);
        devices.lanes_changed(-i64::try_from(unwritten.len()).unwrap_or(i64::MAX));
        state.take_out(session);
        self.ended(session, EndReason::Replaced, Moment::now());
        self.metrics.devices(state.sessions.len());
        unwritten
    }

    /// What the other bridges know of `address` may have to change.
    fn touch(&self, address: &Address) {
        if let Some(cluster) = &self.cluster {
            cluster.touch(address);
        }
    }

    fn tell_online(&self, session: &Session, now: Moment) {
        let change = offline(session, EndReason::Closed, now);
        self.presence.changed(Change { online: true, reason: "connected", ..change });
    }

    /// Tells that `session` is silent, or was and is no longer, if it is still the one of its address.
    pub(super) fn update(&self, session: &Session, update: Update) {
        let state = self.lock();
        if state.holds(session) {
            session.set_silent(update == Update::Silent);
            if !session.is_announced() {
                return;
            }
            let reason = match update {
                Update::Silent => "silent",
                Update::Heard => "heard",
            };
            let change = offline(session, EndReason::Closed, Moment::now());
            self.presence.changed(Change { online: true, update: Some(update), reason, ..change });
        }
    }

    fn ended(&self, session: &Session, reason: EndReason, now: Moment) {
        if session.was_told() {
            self.presence.changed(offline(session, reason, now));
        }
        let connection = Connection {
            epoch: session.epoch(),
            peer: session.peer(),
            since_ms: session.snapshot().since_ms,
            until_ms: now.wall_ms,
            reason: reason.label(),
        };
        self.trail.connection(session.address(), connection);
    }

    /// Whether all that was to be told of `address` is confirmed.
    pub(crate) fn is_told(&self, address: &Address) -> bool {
        self.presence.is_quiet(address)
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

    /// A connection ended with its bridge, and the device is at none: tells so, unless it is here.
    pub(crate) fn tell_gone(&self, gone: &Overdue) {
        let state = self.lock();
        if state.sessions.contains_key(&gone.address) {
            return;
        }
        self.presence.changed(Change {
            address: gone.address.clone(),
            epoch: gone.epoch,
            online: false,
            update: None,
            at_ms: Moment::now().wall_ms,
            reason: if gone.lost { BRIDGE_LOST } else { EndReason::Shutdown.label() },
            peer: gone.peer,
        });
    }

    /// Another bridge has taken this one for dead, and may have told that its devices are gone: each is told anew, as a later
    /// connection, once it is known to be at no other.
    pub(crate) fn tell_anew(&self) {
        let state = self.lock();
        for session in state.sessions.values().filter(|session| session.is_announced()) {
            session.doubt();
            self.touch(session.address());
        }
    }

    /// The connections readers know of, or did until just now, for other bridges.
    pub(crate) fn announced(&self) -> Vec<Known> {
        let sessions = self.all();
        let told = sessions.iter().filter(|session| session.was_told());
        told.map(|session| session.known()).collect()
    }

    /// How many devices are connected.
    pub(crate) fn count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Admits nobody any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
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
