//! `Gate`: how many connections may come in, from where, and how often.
//!
//! Asked before a connection costs anything but its descriptor. It never waits: who has no room is
//! refused, counted by the reason, and may try again.

pub(crate) mod flapping;
pub(crate) mod rate;
pub(crate) mod unknown;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections there may be from one place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    /// From one IP address.
    pub(crate) per_ip: Option<usize>,
    /// From one network: a /24 of IPv4, a /64 of IPv6.
    pub(crate) per_net: Option<usize>,
}

/// The limits of a listener, and who counts against them now.
#[derive(Debug)]
pub(crate) struct Gate {
    limits: Limits,
    /// Held for a few map operations, never across an await. No larger than there are connections.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    by_ip: HashMap<IpAddr, usize>,
    by_net: HashMap<IpAddr, usize>,
}

/// A connection that counts, until this is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// None where nothing is counted.
    counted: Option<Box<Counted>>,
}

#[derive(Debug)]
struct Counted {
    gate: Arc<Gate>,
    ip: IpAddr,
}

/// Why a connection may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Ip,
    Net,
}

impl Gate {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, counts: Mutex::default() }
    }

    /// Counts one more connection from `ip`, if there is room.
    pub(crate) fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Ticket, Full> {
        let Limits { per_ip, per_net } = self.limits;
        if per_ip.is_none() && per_net.is_none() {
            return Ok(Ticket { counted: None });
        }
        let is_full = |map: &HashMap<IpAddr, usize>, key: IpAddr, max: Option<usize>| {
            max.is_some_and(|max| map.get(&key).copied().unwrap_or_default() >= max)
        };
        let ip = ip.to_canonical();
        let mut counts = self.lock();
        if is_full(&counts.by_ip, ip, per_ip) {
            return Err(Full::Ip);
        }
        if is_full(&counts.by_net, network(ip), per_net) {
            return Err(Full::Net);
        }
        *counts.by_ip.entry(ip).or_default() += 1;
        *counts.by_net.entry(network(ip)).or_default() += 1;
        Ok(Ticket { counted: Some(Box::new(Counted { gate: Arc::clone(self), ip })) })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(Counted { gate, ip }) = self.counted.as_deref() else { return };
        let mut counts = gate.lock();
        one_less(&mut counts.by_ip, *ip);
        one_less(&mut counts.by_net, network(*ip));
    }
}

fn one_less(map: &mut HashMap<IpAddr, usize>, key: IpAddr) {
    if let Some(count) = map.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            map.remove(&key);
        }
    }
}

/// The network an address is in: what one customer of a provider has, usually.
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) & 0xffff_ff00).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
    }
}

/// How many connections there may be in all, whichever listener they come to.
#[derive(Debug, Clone)]
pub(crate) struct Total(Arc<Semaphore>);

/// One of all connections, until this is dropped.
#[derive(Debug)]
pub(crate) struct TotalTicket {
    _permit: OwnedSemaphorePermit,
}

impl Total {
    /// Room for `max`; its clones share it.
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))))
    }

    /// Counts one more connection, if there is room.
    pub(crate) fn enter(&self) -> Option<TotalTicket> {
        let permit = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(TotalTicket { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(per_ip: Option<usize>, per_net: Option<usize>) -> Arc<Gate> {
        Arc::new(Gate::new(Limits { per_ip, per_net }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn there_is_room_for_so_many_of_an_address_and_of_a_network() {
        let gate = gate(Some(2), Some(3));
        let first = gate.enter(ip("10.0.0.1")).expect("room");
        let _second = gate.enter(ip("::ffff:10.0.0.1")).expect("room");
        assert_eq!(gate.enter(ip("10.0.0.1")).err(), Some(Full::Ip));
        let _third = gate.enter(ip("10.0.0.2")).expect("room");
        assert_eq!(gate.enter(ip("10.0.0.3")).err(), Some(Full::Net));
        assert!(gate.enter(ip("10.0.1.3")).is_ok(), "another network");
        drop(first);
        assert!(gate.enter(ip("10.0.0.3")).is_ok());
        let _more = [1, 2, 3].map(|last| gate.enter(ip(&format!("2001:db8::{last}"))));
        assert_eq!(gate.enter(ip("2001:db8::ffff:0:0:4")).err(), Some(Full::Net));
        assert!(gate.enter(ip("2001:db8:0:1::4")).is_ok(), "another network");
    }

    #[test]
    fn who_has_left_or_was_refused_leaves_no_trace() {
        let gate = gate(Some(1), None);
        let ticket = gate.enter(ip("10.0.0.1")).expect("room");
        assert!(gate.enter(ip("10.0.0.1")).is_err());
        drop(ticket);
        let counts = gate.lock();
        assert!(counts.by_ip.is_empty() && counts.by_net.is_empty());
    }

    #[test]
    fn nothing_is_counted_without_a_limit() {
        let gate = gate(None, None);
        let _tickets = [(); 9].map(|()| gate.enter(ip("10.0.0.1")).expect("room"));
        assert!(gate.lock().by_ip.is_empty());
    }

    #[test]
    fn all_listeners_share_one_total() {
        let one = Total::new(2);
        let other = one.clone();
        let first = one.enter().expect("room");
        let _second = other.enter().expect("room");
        assert!(one.enter().is_none() && other.enter().is_none());
        drop(first);
        assert!(other.enter().is_some());
    }
}
