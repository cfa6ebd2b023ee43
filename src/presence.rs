//! `Presence`: which devices came and went, kept until the broker has been told.
//!
//! The registry reports every connection and its end, in order, inside its own critical section; the
//! publisher takes the events out one by one. Per address they alternate between online and offline
//! and end in the truth. While the broker is away, memory stays bounded: an address keeps at most
//! `PENDING_MAX` events, and what goes first is a connection that came and went unseen.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;

use crate::clock;
use crate::cluster::Cluster;
use crate::command::Address;
use crate::live::{Kind, Live};
use crate::run::Run;

/// Events kept for one address: the end of the connection readers know of, one more connection, and
/// the present one, with one to spare.
const PENDING_MAX: usize = 4;

/// Addresses with events kept for the broker. Beyond it, connections that came and went while the
/// broker was away are forgotten at once. At about 300 bytes each this bounds memory to 30 MB.
const ADDRESSES_MAX: usize = 100_000;

/// Room for addresses that is kept when nothing waits.
const ROOM_KEPT: usize = 64;

/// What changes about a device that stays connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Update {
    /// It has sent nothing for longer than `DEVICE_SILENCE_LIMIT`.
    Silent,
    /// It was silent and has sent something.
    Heard,
}

/// One change of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) address: Address,
    pub(crate) epoch: u64,
    pub(crate) online: bool,
    /// What changed if it is neither that it came nor that it went.
    pub(crate) update: Option<Update>,
    pub(crate) at_ms: u64,
    pub(crate) reason: &'static str,
    pub(crate) peer: SocketAddr,
}

#[derive(Serialize)]
struct Event<'a> {
    address: String,
    online: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    silent: bool,
    epoch: u64,
    bridge: &'a str,
    run: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    at: String,
    reason: &'static str,
    peer: String,
}

/// The changes the broker has not been told of.
#[derive(Debug)]
pub struct Presence {
    run: Run,
    work: Arc<Notify>,
    live: Arc<Live>,
    /// Who waits until what was to be said of a device is said, if anybody does.
    cluster: Option<Arc<Cluster>>,
    /// Held for a few map operations at a time, never across an await.
    board: Mutex<Board>,
}

impl Presence {
    /// An empty board; `work` is told when there is something to publish.
    pub(crate) fn new(
        run: Run,
        work: Arc<Notify>,
        live: Arc<Live>,
        cluster: Option<Arc<Cluster>>,
    ) -> Self {
        Self { run, work, live, cluster, board: Mutex::new(Board::new(ADDRESSES_MAX)) }
    }

    /// Takes up a change. Those who look on learn of it at once, also while the broker is away, and so without
    /// the `seq` that its event gets at last.
    pub(crate) fn changed(&self, change: Change) {
        self.live.tell(Kind::Presence, &change.address, || self.json(&change, None));
        self.lock().push(change);
        self.work.notify_one();
    }

    /// The next event to publish: the address it is about and its JSON.
    pub(crate) fn next(&self) -> Option<(Address, Vec<u8>)> {
        let (change, seq) = {
            let mut board = self.lock();
            let popped = board.pop()?;
            if self.cluster.is_some() {
                *board.unconfirmed.entry(popped.0.address.clone()).or_default() += 1;
            }
            popped
        };
        let json = self.json(&change, Some(seq));
        Some((change.address, json))
    }

    /// The broker has confirmed an event about `address`.
    pub(crate) fn confirmed(&self, address: &Address) {
        let Some(cluster) = &self.cluster else { return };
        let mut board = self.lock();
        if let Some(count) = board.unconfirmed.get_mut(address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                board.unconfirmed.remove(address);
            }
        }
        let quiet = board.is_quiet(address);
        drop(board);
        if quiet {
            cluster.touch(address);
        }
    }

    /// Whether all that was to be said of `address` is confirmed.
    pub(crate) fn is_quiet(&self, address: &Address) -> bool {
        self.lock().is_quiet(address)
    }

    fn json(&self, change: &Change, seq: Option<u64>) -> Vec<u8> {
        let event = Event {
            address: change.address.to_string(),
            online: change.online,
            silent: change.update == Some(Update::Silent),
            epoch: change.epoch,
            bridge: &self.run.bridge,
            run: &self.run.name,
            seq,
            at: clock::rfc3339(change.at_ms),
            reason: change.reason,
            peer: change.peer.to_string(),
        };
        // Strings, numbers and a bool: this cannot fail.
        serde_json::to_vec(&event).unwrap_or_default()
    }

    /// The `seq` of the last event that was taken out.
    pub(crate) fn seq(&self) -> u64 {
        self.lock().seq
    }

    /// Somebody is about to learn from the registry who is connected: gives the `seq` of the last event whose change
    /// is there already. To be asked while the registry is locked. None if too much waits for the broker: what
    /// readers of a snapshot know must not be forgotten, and there is no room for more of it.
    pub(crate) fn snapshot(&self) -> Option<u64> {
        let mut board = self.lock();
        if board.is_crowded() {
            return None;
        }
        board.seen = board.pushed;
        Some(board.seq)
    }

    /// Whether everything has been taken out.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().order.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Board {
    /// What is pending of each address, with the number of each change.
    pending: HashMap<Address, VecDeque<(u64, Change)>>,
    /// Events taken out and not confirmed by the broker, of each address; only in a cluster.
    unconfirmed: HashMap<Address, usize>,
    /// Addresses with something pending, each once.
    order: VecDeque<Address>,
    addresses_max: usize,
    /// Grows by one with each event that is published, so it is given out at the last moment.
    seq: u64,
    /// How many changes there were: the number of the last.
    pushed: u64,
    /// The number of the last change before a snapshot. A connection that it may show has not come and gone unseen.
    seen: u64,
}

impl Board {
    fn new(addresses_max: usize) -> Self {
        Self {
            pending: HashMap::new(),
            unconfirmed: HashMap::new(),
            order: VecDeque::new(),
            addresses_max,
            seq: 0,
            pushed: 0,
            seen: 0,
        }
    }

    fn push(&mut self, change: Change) {
        let crowded = self.is_crowded();
        self.pushed += 1;
        let address = change.address.clone();
        let pending = self.pending.entry(address.clone()).or_default();
        if pending.is_empty() {
            self.order.push_back(address.clone());
        }
        // Only the last update counts, and none once the connection has ended.
        if pending
            .back()
            .is_some_and(|(_, last)| last.update.is_some() && last.epoch == change.epoch)
        {
            pending.pop_back();
        }
        let ends_unseen = !change.online
            && pending.back().is_some_and(|(number, last)| {
                last.online && last.epoch == change.epoch && *number > self.seen
            });
        if crowded && ends_unseen {
            pending.pop_back();
            if pending.is_empty() {
                self.pending.remove(&address);
                self.order.retain(|other| *other != address);
            }
            return;
        }
        pending.push_back((self.pushed, change));
        if pending.len() > PENDING_MAX {
            forget_one_connection(pending);
        }
    }

    fn is_quiet(&self, address: &Address) -> bool {
        !self.pending.contains_key(address) && !self.unconfirmed.contains_key(address)
    }

    fn is_crowded(&self) -> bool {
        self.pending.len() > self.addresses_max
    }

    fn pop(&mut self) -> Option<(Change, u64)> {
        let address = self.order.pop_front()?;
        let pending = self.pending.get_mut(&address)?;
        let (_, change) = pending.pop_front()?;
        if pending.is_empty() {
            self.pending.remove(&address);
        } else {
            self.order.push_back(address);
        }
        if self.pending.is_empty() && self.pending.capacity() > ROOM_KEPT {
            // Many came or went at once; that leaves no memory behind.
            self.pending = HashMap::new();
            self.order = VecDeque::new();
        }
        self.seq += 1;
        Some((change, self.seq))
    }
}

/// Drops the oldest connection that both began and ended while the broker was away. Another has come since, so
/// whoever has seen this one in a snapshot learns from that one's epoch that it is over.
fn forget_one_connection(pending: &mut VecDeque<(u64, Change)>) {
    let whole = |first: &Change, second: &Change| {
        first.online && !second.online && first.epoch == second.epoch
    };
    let found = pending.iter().zip(pending.iter().skip(1)).position(|((_, a), (_, b))| whole(a, b));
    if let Some(at) = found {
        pending.drain(at..at + 2);
    }
}

#[cfg(test)]
mod tests;
