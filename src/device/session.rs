//! `Session`: one device's connection, from admission to its end.
//!
//! The router offers orders from its own task: with an empty lane the bytes go straight to the
//! socket, and only what does not fit waits in the lane for the session's task. That task reads what
//! the device sends, writes what waits, and ends the session; it never waits for anything but its
//! own device, and the router never waits for it. What is written stays in `Proofs` until it is
//! proved. Whoever ends a session reports all of that, in order, before anyone learns of the end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::lane::{Lane, Waits};
use super::nudge::Nudge;
use super::outbox::Outbox;
use super::proofs::Proofs;
use super::transport::{Socket, Transport};
use super::{Devices, EndReason, Rules, Tickets};
use crate::clock::Moment;
use crate::cluster::Connection;
use crate::command::Address;
use crate::order::Order;
use crate::protocol::Wire;

/// One device's connection.
#[derive(Debug)]
pub struct Session {
    pub(super) address: Address,
    /// Tells it from every other connection of its address here, whatever epoch it is told by.
    pub(super) number: u64,
    epoch: AtomicU64,
    /// Whether readers of presence know of it, or are about to.
    announced: AtomicBool,
    /// Whether they may have been told since that it is over, though it is not.
    doubted: AtomicBool,
    pub(super) peer: SocketAddr,
    pub(super) rules: Arc<Rules>,
    _tickets: Tickets,
    since_ms: u64,
    since: Instant,
    pub(super) stream: TcpStream,
    /// Whether the kernel tells what the device has acknowledged.
    pub(super) provable: bool,
    /// Held for a write that does not block, never across an await.
    shared: Mutex<Shared>,
    /// Tells the task that something it waits for is to be looked at again.
    pub(super) wake: Nudge,
    pub(super) commands: AtomicU64,
    pub(super) lines: AtomicU64,
    pub(super) last_seen_ms: AtomicU64,
    silent: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) lane: Lane<Order>,
    pub(super) proofs: Proofs,
    pub(super) outbox: Outbox,
    pub(super) transport: Transport,
    /// What waits in the lane has to go on waiting: for the device's greeting, or for what is parked.
    pub(super) hold: Hold,
    /// Whether the sweeper knows that something was written.
    pub(super) swept: bool,
    /// Whether the error queue was used, so that the socket seems writable for ever.
    pub(super) always_writable: bool,
    /// Set once: from then on nothing is written, and the session is closed soon.
    pub(super) end: Option<EndReason>,
    /// Set once what was in hand is reported: from then on nothing is taken up.
    pub(super) closed: bool,
}

/// Why what waits in a lane may not be written yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hold {
    /// The device has not sent its first line.
    pub(super) greeting: bool,
    /// Commands that are parked go first.
    pub(super) parked: bool,
    /// Another bridge may have the device still; what it hands over goes first.
    pub(super) claiming: bool,
}

/// What is known of a session at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// When it began, milliseconds since 1970.
    pub since_ms: u64,
    /// When its device last sent something, or when it began.
    pub last_seen_ms: u64,
    /// Whether its device has sent nothing for longer than it should.
    pub silent: bool,
    /// Commands that wait in its lane.
    pub lane: usize,
    /// Commands written and not known to be acknowledged by its TCP stack, or not answered.
    pub in_flight: usize,
    /// Commands written to it.
    pub commands: u64,
    /// Lines received from it.
    pub lines: u64,
}

impl Session {
    pub(super) fn new(
        address: Address,
        epoch: u64,
        peer: SocketAddr,
        socket: Socket,
        tickets: Tickets,
        rules: Arc<Rules>,
    ) -> Self {
        let Socket { stream, transport, provable } = socket;
        let now = Moment::now();
        let mut proofs = Proofs::new();
        // What was said before it was known who the device is counts, too.
        proofs.reached(transport.wire());
        let shared = Shared {
            lane: Lane::new(now.mono),
            proofs,
            outbox: Outbox::default(),
            transport,
            hold: Hold { greeting: rules.wait_for_greeting, parked: false, claiming: false },
            swept: false,
            always_writable: false,
            end: None,
            closed: false,
        };
        Self {
            address,
            number: epoch,
            epoch: AtomicU64::new(epoch),
            announced: AtomicBool::new(true),
            doubted: AtomicBool::new(false),
            peer,
            rules,
            _tickets: tickets,
            since_ms: now.wall_ms,
            since: now.mono,
            stream,
            provable,
            shared: Mutex::new(shared),
            wake: Nudge::default(),
            commands: AtomicU64::new(0),
            lines: AtomicU64::new(0),
            last_seen_ms: AtomicU64::new(now.wall_ms),
            silent: AtomicBool::new(false),
        }
    }

    /// The address it is registered under.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Which connection of its address it is: later ones have higher epochs.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Readers know of one with this epoch already: this one is later. Only before it is announced.
    pub(super) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Whether readers of presence know of it, or are about to.
    pub(crate) fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Relaxed)
    }

    /// Notes whether they are; gives whether they were.
    pub(super) fn set_announced(&self, announced: bool) -> bool {
        self.doubted.store(false, Ordering::Relaxed);
        self.announced.swap(announced, Ordering::Relaxed)
    }

    /// Readers may have been told that it is over: it is to be told anew.
    pub(super) fn doubt(&self) {
        self.set_announced(false);
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// Whether readers know of it, or did until just now.
    pub(super) fn was_told(&self) -> bool {
        self.is_announced() || self.is_doubted()
    }

    /// Whether it was told, and is to be told anew.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }

    /// As bridges speak of it.
    pub(crate) fn known(&self) -> Connection {
        let address = self.address.to_string();
        Connection { address, epoch: self.epoch(), peer: self.peer, lost: false }
    }

    /// From now on what comes waits, until `release`: another bridge may have the device still. Called
    /// before anyone else knows of this session.
    pub(super) fn hold(&self) {
        self.set_announced(false);
        self.lock().hold.claiming = true;
    }

    /// Lets what waited for another bridge go, behind what is parked.
    pub(super) fn release(&self, devices: &Devices) {
        let mut shared = self.lock();
        shared.hold.parked |= devices.parking.gates(&self.address);
        if std::mem::take(&mut shared.hold.claiming) {
            shared.lane.restart_clock(Instant::now());
            self.wake.give();
        }
    }

    /// Whether another bridge may have the device still.
    pub(crate) fn is_claiming(&self) -> bool {
        self.lock().hold.claiming
    }

    /// When it began.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// What its device speaks.
    pub(crate) fn wire(&self) -> &Wire {
        &self.rules.wire
    }

    /// The socket's other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What is known of it now.
    pub fn snapshot(&self) -> Snapshot {
        let (lane, in_flight) = {
            let shared = self.lock();
            (shared.lane.len(), shared.proofs.in_flight())
        };
        Snapshot {
            since_ms: self.since_ms,
            last_seen_ms: self.last_seen_ms.load(Ordering::Relaxed),
            silent: self.silent.load(Ordering::Relaxed),
            lane,
            in_flight,
            commands: self.commands.load(Ordering::Relaxed),
            lines: self.lines.load(Ordering::Relaxed),
        }
    }

    /// Notes whether its device is silent.
    pub(super) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    /// Whether its device has sent nothing for longer than it is to.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Ends it because the bridge does, once the device has acknowledged all that was written to it and nothing waits,
    /// or `at_once`; false if it goes on. If the device is `held` by other bridges nobody is told.
    pub(crate) fn let_go(&self, devices: &Devices, held: bool, at_once: bool) -> bool {
        let mut shared = self.lock();
        if shared.closed || shared.end.is_some() {
            return true;
        }
        self.ask(&mut shared, devices);
        let is_clean = shared.proofs.in_flight() == 0 && shared.lane.is_empty();
        if !is_clean && !at_once {
            return false;
        }
        if held {
            self.set_announced(false);
        }
        shared.end = Some(EndReason::Shutdown);
        self.wake.give();
        true
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Whether the first bytes of `order` may go to the socket now.
    pub(super) fn is_free(&self, order: &Order, now: Instant, rules: &Rules) -> bool {
        self.end.is_none()
            && self.lane.is_empty()
            && self.outbox.is_empty()
            && !self.hold.any()
            && self.has_room_for(order, now, rules)
    }

    /// Whether the tail has room for one more, and `order` may ask for an answer if it wants one.
    pub(super) fn has_room_for(&self, order: &Order, now: Instant, rules: &Rules) -> bool {
        self.proofs.weight() < rules.tail_max
            && (!order.wants_answer() || self.proofs.may_ask(&rules.answer, now))
    }

    /// Whether the kernel has the whole line of `order`, of which so much is written: with TLS the
    /// record with its end may still wait for room.
    pub(super) fn is_out(&self, order: &Order, written: usize) -> bool {
        written == order.bytes().len() && self.transport.pending() == 0
    }

    /// Whether what is next in the lane has to wait for something that is not the socket.
    pub(super) fn is_held(&self, now: Instant, rules: &Rules) -> bool {
        let Some((first, begun)) = self.lane.first() else { return false };
        if begun {
            return false;
        }
        self.hold.greeting
            || self.hold.claiming
            // Before a parked one that has been fetched may stand only what came earlier.
            || self.hold.parked && !self.lane.has_one_that_goes_first()
            || first.wants_answer() && !self.proofs.may_ask(&rules.answer, now)
    }
}

impl Hold {
    fn any(self) -> bool {
        self.greeting || self.parked || self.claiming
    }
}
