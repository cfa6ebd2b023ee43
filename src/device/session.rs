//! `Session`: one device's connection, from admission to its end.
//!
//! The router offers orders from its own task: with an empty lane the bytes go straight to the
//! socket, and only what does not fit waits in the lane for the session's task. That task reads what
//! the device sends, writes what waits, and ends the session; it never waits for anything but its
//! own device, and the router never waits for it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::info;

use super::framing::Framer;
use super::lane::{Head, Lane};
use super::{Devices, EndReason};
use crate::clock::{self, Moment};
use crate::command::{Address, Outcome, Reason};
use crate::order::Order;

/// Bytes read from a device at a time, on the stack: most lines come in one read.
const READ_BYTES: usize = 2048;
/// Reads in a row before the other tasks get their turn: a device that talks without end may not
/// keep the bridge from the others.
const READS_MAX: usize = 4;

/// One device's connection.
#[derive(Debug)]
pub struct Session {
    address: Address,
    epoch: u64,
    peer: SocketAddr,
    since_ms: u64,
    stream: TcpStream,
    /// Held for a write that does not block, never across an await.
    shared: Mutex<Shared>,
    /// Tells the task that the lane is no longer empty, or that the session is to end.
    wake: Notify,
    commands: AtomicU64,
    lines: AtomicU64,
    last_seen_ms: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    lane: Lane<Order>,
    /// Set once: from then on nothing is offered, and the task ends the session.
    end: Option<EndReason>,
}

/// What became of an offer.
#[derive(Debug)]
pub(crate) enum Offer {
    /// The socket took it.
    Written(Order),
    /// It waits; the session reports it.
    Waiting,
    /// The session has ended.
    Gone(Order),
    /// It would have to wait, and so many wait for this device that no more may.
    LaneFull(Order, usize),
    /// It would have to wait, and too many wait for all devices together.
    NoRoom(Order),
}

/// What is known of a session at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// When it began, milliseconds since 1970.
    pub since_ms: u64,
    /// When its device last sent something, or when it began.
    pub last_seen_ms: u64,
    /// Commands that wait in its lane.
    pub lane: usize,
    /// Commands written to it.
    pub commands: u64,
    /// Lines received from it.
    pub lines: u64,
}

impl Session {
    pub(crate) fn new(address: Address, epoch: u64, peer: SocketAddr, stream: TcpStream) -> Self {
        let now = Moment::now();
        Self {
            address,
            epoch,
            peer,
            since_ms: now.wall_ms,
            stream,
            shared: Mutex::new(Shared { lane: Lane::new(now.mono), end: None }),
            wake: Notify::new(),
            commands: AtomicU64::new(0),
            lines: AtomicU64::new(0),
            last_seen_ms: AtomicU64::new(now.wall_ms),
        }
    }

    /// The address it is registered under.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Which connection of its address it is: later ones have higher epochs.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The socket's other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What is known of it now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            since_ms: self.since_ms,
            last_seen_ms: self.last_seen_ms.load(Ordering::Relaxed),
            lane: self.lock().lane.len(),
            commands: self.commands.load(Ordering::Relaxed),
            lines: self.lines.load(Ordering::Relaxed),
        }
    }

    /// Writes `order` now, or lets it wait if its turn has not come and `devices` has room.
    pub(crate) fn offer(
        &self,
        order: Order,
        now: Instant,
        devices: &Devices,
        may_wait: bool,
    ) -> Offer {
        let mut shared = self.lock();
        if shared.end.is_some() {
            return Offer::Gone(order);
        }
        let mut written = 0;
        if shared.lane.is_empty() {
            let bytes = order.command.line.bytes();
            match self.stream.try_write(bytes) {
                Ok(taken) if taken == bytes.len() => {
                    self.commands.fetch_add(1, Ordering::Relaxed);
                    return Offer::Written(order);
                }
                Ok(taken) => written = taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    shared.end = Some(EndReason::from_error(&error));
                    self.wake.notify_one();
                    return Offer::Gone(order);
                }
            }
        }
        // Half a line is on the wire: its rest has to follow, room or not.
        if written == 0 {
            if shared.lane.len() >= devices.lane_max {
                let waiting = shared.lane.len();
                return Offer::LaneFull(order, waiting);
            }
            if !may_wait {
                return Offer::NoRoom(order);
            }
        }
        shared.lane.push(order, written, now);
        devices.lanes_changed(1);
        self.wake.notify_one();
        Offer::Waiting
    }

    /// Ends it for `reason`, unless it has ended already. Its task does the rest.
    pub(crate) fn end(&self, reason: EndReason) {
        self.lock().end.get_or_insert(reason);
        self.wake.notify_one();
    }

    /// Ends it because a newer connection takes its place, and gives what waited unwritten.
    pub(super) fn supersede(&self) -> VecDeque<Order> {
        let mut shared = self.lock();
        shared.end.get_or_insert(EndReason::Replaced);
        let unwritten = shared.lane.take_unwritten();
        self.wake.notify_one();
        unwritten
    }

    /// Takes over what waited for the connection this one replaces. Called before anyone else
    /// knows of this session.
    pub(super) fn inherit(&self, orders: VecDeque<Order>, now: Instant) {
        let mut shared = self.lock();
        for order in orders {
            shared.lane.push(order, 0, now);
        }
    }

    /// Forgets what waits and is wanted no more, because the broker delivers it again.
    fn drop_unwanted(&self, devices: &Devices) {
        let unwanted = self.lock().lane.take_unwanted();
        devices.lanes_changed(-i64::try_from(unwanted.len()).unwrap_or(i64::MAX));
        unwanted.into_iter().for_each(|order| order.delivery.settlement.hand_back());
    }

    /// Serves the connection to its end, then takes it out of the registry and reports what waited.
    pub(crate) async fn serve(self: Arc<Self>, devices: Arc<Devices>) {
        info!(address = %self.address, peer = %self.peer, epoch = self.epoch, "device connected");
        let reason = match self.run(&devices).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        };
        // First no more offers, then out of the registry: an order that comes in between is told
        // that the connection has just ended.
        let (begun, unwritten) = {
            let mut shared = self.lock();
            shared.end.get_or_insert(reason);
            shared.lane.take()
        };
        devices.registry.remove(&self, reason);
        devices.metrics.device_ended(reason);
        let waited = usize::from(begun.is_some()) + unwritten.len();
        devices.lanes_changed(-i64::try_from(waited).unwrap_or(i64::MAX));
        info!(address = %self.address, peer = %self.peer, epoch = self.epoch, %reason, waited, "device disconnected");
        let waited = begun.map(|order| (order, Outcome::Uncertain)).into_iter();
        for (order, outcome) in
            waited.chain(unwritten.into_iter().map(|order| (order, Outcome::Offline)))
        {
            devices.settle_waiting(order, outcome, reason);
        }
    }

    async fn run(&self, devices: &Devices) -> Result<std::convert::Infallible, EndReason> {
        let mut framer = Framer::new(devices.line_max);
        loop {
            let deadline = {
                let shared = self.lock();
                if let Some(reason) = shared.end {
                    return Err(reason);
                }
                shared.lane.deadline(devices.write_timeout)
            };
            let interest = if deadline.is_some() {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let ready = tokio::select! {
                biased;
                () = self.wake.notified() => continue,
                () = clock::until(deadline) => return Err(EndReason::WriteTimeout),
                ready = self.stream.ready(interest) => ready.map_err(|error| EndReason::from_error(&error))?,
            };
            if ready.is_writable() && deadline.is_some() {
                self.flush(devices)?;
            }
            if ready.is_readable() || ready.is_read_closed() || ready.is_error() {
                let more = self.read(&mut framer, devices)?;
                if more {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Writes what the socket takes of what waits.
    fn flush(&self, devices: &Devices) -> Result<(), EndReason> {
        let mut done: Vec<(Order, Outcome, Reason)> = Vec::new();
        let mut unwanted = Vec::new();
        let mut result = Ok(());
        {
            let mut shared = self.lock();
            loop {
                let now = Instant::now();
                match shared.lane.head(now) {
                    Head::Empty => break,
                    Head::Expired(order) => {
                        done.push((
                            order,
                            Outcome::Expired,
                            "its ttl ended while the device did not read".into(),
                        ));
                    }
                    Head::Unwanted(order) => unwanted.push(order),
                    Head::Write(bytes) => match self.stream.try_write(bytes) {
                        Ok(taken) => {
                            if let Some(order) = shared.lane.wrote(taken, now) {
                                self.commands.fetch_add(1, Ordering::Relaxed);
                                done.push((order, Outcome::Written, Reason::default()));
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => {
                            result = Err(EndReason::from_error(&error));
                            break;
                        }
                    },
                }
            }
        }
        devices.lanes_changed(-i64::try_from(done.len() + unwanted.len()).unwrap_or(i64::MAX));
        for (order, outcome, reason) in done {
            devices.reporter.report(order, outcome, reason);
        }
        for order in unwanted {
            order.delivery.settlement.hand_back();
        }
        result
    }

    /// Reads what the device has sent; true if there may be more.
    fn read(&self, framer: &mut Framer, devices: &Devices) -> Result<bool, EndReason> {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_MAX {
            let bytes = match self.stream.try_read(&mut buffer) {
                Ok(0) => return Err(EndReason::Closed),
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(EndReason::from_error(&error)),
            };
            self.last_seen_ms.store(Moment::now().wall_ms, Ordering::Relaxed);
            let framed = framer.feed(bytes, |line| {
                // Devices send empty lines to keep their link alive; they say nothing.
                if line.is_empty() {
                    return;
                }
                self.lines.fetch_add(1, Ordering::Relaxed);
                devices.metrics.uplink_line();
                if let Some(uplink) = &devices.uplink {
                    uplink.line(&self.address, self.epoch, line);
                }
            });
            framed.map_err(|_| EndReason::LineTooLong)?;
        }
        Ok(true)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices {
    /// Forgets all orders whose AMQP channel is dead, so that they take no room from those that
    /// are delivered again.
    pub(crate) fn drop_unwanted(&self) {
        self.registry.all().iter().for_each(|session| session.drop_unwanted(self));
    }

    /// How many orders wait in lanes.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// So many more orders wait in lanes, or fewer.
    fn lanes_changed(&self, by: i64) {
        if by == 0 {
            return;
        }
        let change = usize::try_from(by.unsigned_abs()).unwrap_or(usize::MAX);
        if by > 0 {
            self.waiting.fetch_add(change, Ordering::Relaxed);
        } else {
            self.waiting.fetch_sub(change, Ordering::Relaxed);
        }
        self.metrics.lanes_changed(by);
    }

    /// Settles an order that waited for a connection that has ended. On shutdown it goes back to
    /// the queue, where the next bridge finds it: not even half a line is a command to a device.
    fn settle_waiting(&self, order: Order, outcome: Outcome, reason: EndReason) {
        if reason == EndReason::Shutdown || !order.delivery.settlement.is_live() {
            order.delivery.settlement.hand_back();
            return;
        }
        let how_far = if outcome == Outcome::Uncertain {
            "a part of the line was written"
        } else {
            "nothing was written"
        };
        self.reporter.report(order, outcome, format!("{how_far}: {}", reason.explained()).into());
    }
}
