//! `Cluster`: what this bridge owes the others, until the task that has the connection has done it.
//!
//! The registry and presence say which devices have come or gone, the router hands over commands whose
//! device is not here, and the consumer of the inbox what other bridges say. Bounded by nature: an
//! address is here once, each command is a delivery that is not settled, and what bridges say is taken out
//! before more of it is taken off the inbox.

mod arriving;
mod asking;
mod bridges;
pub(crate) mod control;
mod elsewhere;
mod heirs;
mod lost;
mod moving;
mod others;
mod recent;
mod roll_call;
pub(crate) mod shards;
pub(crate) mod talk;
mod urgent;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::error;

use self::arriving::Arriving;
use self::bridges::Bridges;
use self::control::Control;
use self::elsewhere::Elsewhere;
use self::heirs::Heirs;
use self::moving::Moving;
pub(crate) use self::moving::{Connection, Overdue};
use self::recent::Recent;
use self::roll_call::RollCalls;
pub(crate) use self::roll_call::{Called, RollCall};
use self::talk::Talk;
pub(crate) use self::urgent::Urgent;
use self::urgent::UrgentQueue;
use crate::command::{Address, Reason};
use crate::metrics::Metrics;
use crate::order::Order;
use crate::run::Run;
use crate::settings::Process;

/// How many bridges may pass a command on. One suffices; a device that moves while a command is on its way
/// takes one more each time, and where inboxes are read seconds late some do so twice or three times. More than this can
/// only be a circle.
pub(crate) const HOPS_MAX: u8 = 8;

/// How much may wait to be done when a command for many goes on to some more of them, of which each may be at another bridge.
const WORK_ENOUGH: usize = 1_000;

/// What the task is to do.
#[derive(Debug)]
pub(crate) enum Work {
    /// Pass a command on: to the bridge with this name, or to whoever has its device.
    Command(Order, Option<Arc<str>>),
    /// Another bridge claims a device. The connection here had this epoch and is closed; None if there was
    /// none.
    Yield { address: Address, to: Arc<str>, epoch: Option<u64> },
    /// No bridge has the device of a command: all that may have it have said so.
    Nobody(Order),
    /// Say this to a bridge.
    Say(Arc<str>, Control),
    /// Another bridge, or this one, has said this.
    Heard(Address, Control),
    /// Commands were parked for a device that no bridge had.
    Parked(Address),
    /// Unbind a device if it is not here: it was bound on a connection that is lost.
    Unbind(Address),
    /// All that came for an earlier process is read.
    Begun,
    /// Tell a bridge that was not known that this one is there.
    Greet(Arc<str>),
    /// Claim again what may have been claimed from a bridge that is gone.
    ClaimAgain,
}

impl Work {
    /// The device it is about, if it is about one.
    fn address(&self) -> Option<&Address> {
        match self {
            Self::Command(order, _) | Self::Nobody(order) => Some(&order.command().address),
            Self::Yield { address, .. }
            | Self::Heard(address, _)
            | Self::Parked(address)
            | Self::Unbind(address) => Some(address),
            Self::Say(..) | Self::Greet(_) | Self::ClaimAgain | Self::Begun => None,
        }
    }
}

/// What this bridge owes the others.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) bridge: Arc<str>,
    run: Arc<str>,
    metrics: Metrics,
    /// Whether the other bridges find the devices of this one.
    pub(crate) routing: AtomicBool,
    /// Tells the task that there is something to do.
    work: Notify,
    /// Each held for a few map operations, never across an await, and nothing is locked while it is.
    board: Mutex<Board>,
    /// What is to be said to other bridges past all that.
    pub(crate) urgent: UrgentQueue,
    bridges: Mutex<Bridges>,
    /// Devices whose bridge has ended, and for how long those are held whose bridge did not say.
    moving: Mutex<Moving>,
    moving_for: Duration,
    elsewhere: Mutex<Elsewhere>,
    /// When another bridge has said last that this one was taken for dead.
    said_lost: Mutex<Option<Instant>>,
    heirs: Mutex<Heirs>,
    /// Commands of whose devices other bridges are asked.
    arriving: Mutex<Arriving>,
    calls: RollCalls,
    /// What devices here say to those of other bridges.
    pub(crate) talk: Talk,
    /// Tells who waits for it that another bridge holds devices of this one.
    held: Notify,
    /// Tells who waits for it that not too much is to be done any more.
    room: Notify,
    /// Whether this bridge ends, and so holds no devices of others, and binds none of its own.
    leaving: AtomicBool,
}

#[derive(Debug, Default)]
struct Board {
    /// Devices of which the others may know something outdated, each once.
    changed: VecDeque<Address>,
    /// Those of them that are looked at first: commands wait for them.
    hurried: VecDeque<Address>,
    /// Whether each of them is among those.
    is_changed: HashMap<Address, bool>,
    work: VecDeque<Work>,
    /// Where devices were handed over to: what comes for one here meanwhile goes there directly.
    moved: Recent<Arc<str>>,
    /// Devices that another bridge had as well: what came for one here may have come there, too.
    shared: Recent<()>,
}

impl Cluster {
    /// Owes nothing yet.
    pub(crate) fn new(run: Run, metrics: Metrics, process: &Process) -> Self {
        let Run { bridge, name: run } = run;
        let moving_for = process.cluster_moving.0;
        let (routing, work) = (AtomicBool::new(false), Notify::new());
        let (board, bridges) = (Mutex::default(), Mutex::default());
        let elsewhere = Mutex::new(Elsewhere::new(Arc::clone(&bridge)));
        let (moving, heirs, arriving) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (held, leaving, said_lost) = (Notify::new(), AtomicBool::new(false), Mutex::default());
        let calls = RollCalls::new(process.bridge_heartbeat);
        let (urgent, room) = (UrgentQueue::default(), Notify::new());
        Self {
            bridge,
            run,
            metrics,
            routing,
            work,
            board,
            urgent,
            bridges,
            moving,
            moving_for,
            elsewhere,
            said_lost,
            heirs,
            arriving,
            calls,
            talk: Talk::default(),
            held,
            room,
            leaving,
        }
    }

    /// A device has come or gone, or what was to be said of it is said. While there is no connection nothing
    /// is noted: the next one begins with all devices.
    pub(crate) fn touch(&self, address: &Address) {
        if !self.routing.load(Ordering::Relaxed) {
            return;
        }
        let mut board = self.lock();
        if !board.is_changed.contains_key(address) {
            board.is_changed.insert(address.clone(), false);
            board.changed.push_back(address.clone());
            drop(board);
            self.work.notify_one();
        }
    }

    /// A command waits until a device is bound: if that is not begun, it is before those for which none does.
    pub(crate) fn hurry(&self, address: &Address) {
        let Board { hurried, is_changed, .. } = &mut *self.lock();
        if let Some(is_hurried @ false) = is_changed.get_mut(address) {
            *is_hurried = true;
            hurried.push_back(address.clone());
        }
    }

    /// Passes a command on whose device is not here; gives it back, with the reason, if too many have.
    pub(crate) fn pass_on(&self, order: Order) -> Result<(), (Order, Reason)> {
        let hops = order.facts.origin.route.hops;
        if hops >= HOPS_MAX {
            self.metrics.route_looped();
            let address = &order.command().address;
            error!(%address, hops, "a command was passed on from bridge to bridge too often: the broker has a binding for its device that no bridge stands behind.");
            let reason = format!("{hops} bridges have passed it on, and its device is at none");
            return Err((order, reason.into()));
        }
        self.go_on([order]);
        Ok(())
    }

    /// Commands that waited go on, each to whoever has its device by now.
    pub(crate) fn go_on(&self, orders: impl IntoIterator<Item = Order>) {
        for order in orders {
            self.push(Work::Command(order, None));
        }
    }

    /// What is to be done, behind all that is to be done already.
    pub(crate) fn push(&self, work: Work) {
        self.lock().work.push_back(work);
        self.work.notify_one();
    }

    /// What could not be done on a connection that is lost, in its order, before all that came since.
    pub(crate) fn again(&self, work: Vec<Work>) {
        let mut board = self.lock();
        for one in work.into_iter().rev() {
            board.work.push_front(one);
        }
    }

    /// Commands were parked for a device that no bridge had: one may have it since.
    pub(crate) fn parked(&self, address: Address) {
        self.push(Work::Parked(address));
    }

    /// The device is handed over to another bridge: what comes for it goes there.
    pub(crate) fn moved(&self, address: &Address, to: &Arc<str>) {
        self.lock().moved.note(address, Arc::clone(to), Instant::now());
    }

    /// Where the device went, if it has just gone.
    pub(crate) fn moved_to(&self, address: &Address) -> Option<Arc<str>> {
        self.lock().moved.get(address, Instant::now()).cloned()
    }

    /// The device was bound here and at another bridge at once.
    pub(crate) fn was_shared(&self, address: &Address) {
        self.lock().shared.note(address, (), Instant::now());
    }

    /// Whether it was, just now.
    pub(crate) fn is_shared(&self, address: &Address) -> bool {
        self.lock().shared.get(address, Instant::now()).is_some()
    }

    /// A bridge is gone: nothing goes to it directly any more, least of all what another one takes out of its inbox.
    pub(crate) fn none_moved_to(&self, gone: &str) {
        self.lock().moved.retain(|to| **to != *gone);
    }

    /// The device is here.
    pub(crate) fn came_back(&self, address: &Address) {
        self.lock().moved.forget(address);
    }

    /// A device of which the others may know something outdated.
    pub(crate) fn next_changed(&self) -> Option<Address> {
        let mut board = self.lock();
        loop {
            let hurried = board.hurried.pop_front();
            let address = hurried.or_else(|| board.changed.pop_front())?;
            // It may have been looked at since.
            if board.is_changed.remove(&address).is_some() {
                return Some(address);
            }
        }
    }

    /// How many devices are to be looked at.
    pub(crate) fn changed(&self) -> usize {
        self.lock().is_changed.len()
    }

    /// What is to be done next, and the device to be looked at before, of which the others may know something
    /// outdated: so a command for one that has just gone waits behind its unbinding.
    pub(crate) fn next_work(&self) -> Option<(Option<Address>, Work)> {
        let mut board = self.lock();
        let work = board.work.pop_front()?;
        if board.work.len() + 1 == WORK_ENOUGH {
            self.room.notify_one();
        }
        let changed = work.address().cloned();
        let changed = changed.filter(|address| board.is_changed.remove(address).is_some());
        Some((changed, work))
    }

    /// Waits until so little is to be done that a command for many may go on to some more of them.
    pub(crate) async fn until_room(&self) {
        while self.lock().work.len() >= WORK_ENOUGH {
            self.room.notified().await;
        }
    }

    /// Waits until there is something to do.
    pub(crate) async fn until_work(&self) {
        self.work.notified().await;
    }

    /// Whether nothing is to be done.
    pub(crate) fn is_idle(&self) -> bool {
        let board = self.lock();
        board.work.is_empty() && board.is_changed.is_empty() && self.is_answered()
    }

    /// The connection is there, or lost: whether devices that come and go are to be noted.
    pub(crate) fn set_routing(&self, routing: bool) {
        self.routing.store(routing, Ordering::Relaxed);
        self.calls.set_reach(routing);
        let mut board = self.lock();
        board.changed.clear();
        board.hurried.clear();
        board.is_changed.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
