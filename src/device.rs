//! The device side: how a TCP connection becomes a device, and what it goes through.
//!
//! ```text
//! accept -> Identified(address) -> Registry::admit -> Session::run -> EndReason -> Registry::remove
//!                                       |                 ^
//!                              presence: online     offers from the router
//! ```
//!
//! One task a device. A device without waiting commands and without half a line holds no buffer.

mod answers;
mod closing;
mod desk;
mod door;
mod fronted;
mod handshake;
mod lane;
mod listener;
mod nudge;
mod offer;
mod options;
mod outbox;
mod parked;
mod proofs;
mod receipt;
mod registry;
mod rules;
mod serve;
mod session;
mod silence;
mod sweeper;
mod tail;
mod transport;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use door::Refusal;
pub(crate) use door::{Door, Tickets};
pub(crate) use lane::Waits;
pub(crate) use listener::{Hall, Listener};
pub(crate) use offer::Offer;
pub(crate) use options::Options;
pub use receipt::supported as receipts_supported;
pub use registry::Registry;
pub(crate) use registry::Yielded;
pub(crate) use rules::Rules;
pub use session::{Session, Snapshot};
pub(crate) use sweeper::Sweeper;

use crate::cluster::Cluster;
use crate::command::Address;
use crate::fate::Fate;
use crate::groups::Groups;
use crate::metrics::Metrics;
use crate::order::Order;
use crate::parking::Parking;
use crate::protocol::Wire;
use crate::report::Reporter;
use crate::uplink::Uplink;

/// What every session needs, shared by all of them.
#[derive(Debug)]
pub struct Devices {
    pub(crate) registry: Registry,
    pub(crate) reporter: Arc<Reporter>,
    /// Where lines go; none if they are wanted of no device.
    pub(crate) uplink: Option<Arc<Uplink>>,
    pub(crate) metrics: Metrics,
    /// Whose commands wait in the broker.
    pub(crate) parking: Arc<Parking>,
    pub(crate) sweeper: Sweeper,
    /// Orders that wait in lanes, all devices together.
    pub(crate) waiting: AtomicUsize,
    /// Orders that are written and wait for their proof, all devices together.
    pub(crate) proving: AtomicUsize,
    /// Who is addressed together. No other lock is held while this is.
    pub(crate) groups: Groups,
    /// What the devices of all listeners speak.
    pub(crate) wires: Vec<Wire>,
    /// The other bridges, if this is one of several.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Whether the broker can say of all queues at once which of them are there.
    pub(crate) knocks: bool,
}

impl Devices {
    /// Forgets all orders whose AMQP channel is dead, so that they take no room from those that
    /// are delivered again.
    pub(crate) fn drop_unwanted(&self) {
        if self.waiting() > 0 {
            self.registry.all().iter().for_each(|session| session.drop_unwanted(self));
        }
    }

    /// Whether the device of `address` is connected, and no other bridge may have it still: then what is
    /// parked for it is wanted here.
    pub(crate) fn wants_parked(&self, address: &Address) -> bool {
        self.registry.find(address).is_some_and(|session| !session.is_claiming())
    }

    /// The device of `address` has connected, and no other bridge has it: what is parked for it is wanted.
    pub(crate) fn seek_parked(&self, address: &Address) {
        if self.knocks { self.parking.seek(address) } else { self.parking.arrived(address) }
    }

    /// How many orders wait in lanes.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many orders are written and wait for their proof.
    pub(crate) fn proving(&self) -> usize {
        self.proving.load(Ordering::Relaxed)
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

    /// Reports orders that were waiting for their proof.
    fn conclude(&self, orders: Vec<(Order, Fate)>) {
        self.proving.fetch_sub(orders.len(), Ordering::Relaxed);
        for (order, fate) in orders {
            self.reporter.report(order, fate);
        }
    }
}

/// Why a device's connection ended. A closed set: events, metrics, logs and docs use these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The device closed it.
    Closed,
    /// The device, or something on the way, reset it.
    Reset,
    /// The device answered neither keepalive probes nor data.
    Timeout,
    /// The device's socket did not take a line for `DEVICE_WRITE_TIMEOUT`.
    WriteTimeout,
    /// The device sent a line longer than `DEVICE_LINE_MAX`.
    LineTooLong,
    /// The device began a line or frame and did not end it for `DEVICE_LINE_TIMEOUT`.
    LineTimeout,
    /// The device sent what is not its wire format.
    Malformed,
    /// The device sends heartbeats, and sent none.
    HeartbeatTimeout,
    /// A newer connection of the same address took its place.
    Replaced,
    /// The bridge is shutting down.
    Shutdown,
    /// The socket failed in another way, which the log names.
    Error,
}

impl EndReason {
    /// Every reason there is.
    pub const ALL: [Self; 11] = [
        Self::Closed,
        Self::Reset,
        Self::Timeout,
        Self::WriteTimeout,
        Self::LineTooLong,
        Self::LineTimeout,
        Self::Malformed,
        Self::HeartbeatTimeout,
        Self::Replaced,
        Self::Shutdown,
        Self::Error,
    ];

    /// The word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::WriteTimeout => "write_timeout",
            Self::LineTooLong => "line_too_long",
            Self::LineTimeout => "line_timeout",
            Self::Malformed => "malformed",
            Self::HeartbeatTimeout => "heartbeat_timeout",
            Self::Replaced => "replaced",
            Self::Shutdown => "shutdown",
            Self::Error => "error",
        }
    }

    /// What it means for a command that waited for the device, as the second half of a sentence.
    fn explained(self) -> &'static str {
        match self {
            Self::Closed => "the device closed the connection",
            Self::Reset => "the connection was reset",
            Self::Timeout => "the device no longer answered",
            Self::WriteTimeout => "the device did not read in time and was disconnected",
            Self::LineTooLong => "the device sent too long a line and was disconnected",
            Self::LineTimeout => "the device did not end a line in time and was disconnected",
            Self::Malformed => "the device did not keep to its wire format and was disconnected",
            Self::HeartbeatTimeout => "the device's heartbeats stopped and it was disconnected",
            Self::Replaced => "a newer connection of the device took its place",
            Self::Shutdown => "the bridge is shutting down",
            Self::Error => "the connection failed",
        }
    }

    fn from_error(error: &io::Error) -> Self {
        // When a connection times out, Linux reports what an ICMP message last said of the way there, if one did.
        let timeout = [
            io::ErrorKind::TimedOut,
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::NetworkUnreachable,
        ];
        if timeout.contains(&error.kind()) {
            return Self::Timeout;
        }
        let reset = [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionAborted,
        ];
        if reset.contains(&error.kind()) {
            return Self::Reset;
        }
        // What is not TLS where it should be.
        if error.kind() == io::ErrorKind::InvalidData {
            return Self::Malformed;
        }
        // The end, without the goodbye of TLS.
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Closed } else { Self::Error }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
