//! `Moving`: devices whose bridge has ended, and which have not come back to any yet. Pure: the time is an argument.
//!
//! The bridge that ended told nobody that they are offline; whoever has them here does so when their time is over.
//! Meanwhile commands for them wait; not those for devices of a bridge that has died, which may be as dead as that.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::command::Address;
use crate::order::Order;

/// Devices that may be held, at some 200 bytes each. Of more their own bridge tells.
const MOVING_MAX: usize = 100_000;

/// A connection of a device, as bridges speak of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    pub(crate) address: String,
    pub(crate) epoch: u64,
    pub(crate) peer: SocketAddr,
    /// Whether its bridge has died.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) lost: bool,
}

/// The devices that are held.
#[derive(Debug, Default)]
pub(super) struct Moving {
    held: HashMap<Address, Held>,
}

#[derive(Debug)]
struct Held {
    epoch: u64,
    peer: SocketAddr,
    until: Instant,
    /// How much later than others this bridge tells of it.
    turn: Duration,
    /// Whether its bridge has died.
    lost: bool,
    waiting: VecDeque<Order>,
}

/// A device that has not come back in time, with what waited for it.
#[derive(Debug)]
pub(crate) struct Overdue {
    pub(crate) address: Address,
    pub(crate) epoch: u64,
    pub(crate) peer: SocketAddr,
    turn: Duration,
    pub(crate) lost: bool,
    pub(crate) waiting: VecDeque<Order>,
}

impl Moving {
    /// Holds a device until it is told that it is back, or `until`, which is by `turn` later than elsewhere. False if
    /// there is no room, or it is none.
    pub(super) fn hold(&mut self, ended: &Connection, until: Instant, turn: Duration) -> bool {
        let Ok(address) = Address::parse(&ended.address) else { return false };
        if self.held.len() >= MOVING_MAX && !self.held.contains_key(&address) {
            return false;
        }
        let Connection { epoch, peer, lost, .. } = *ended;
        let waiting = VecDeque::new();
        let held = self.held.entry(address);
        let held = held.or_insert(Held { epoch, peer, until, turn, lost, waiting });
        if held.epoch < epoch {
            let waiting = std::mem::take(&mut held.waiting);
            *held = Held { epoch, peer, until, turn, lost, waiting };
        }
        true
    }

    /// Holds one for longer that was overdue.
    pub(super) fn hold_on(&mut self, overdue: Overdue, until: Instant) {
        let Overdue { address, epoch, peer, turn, lost, mut waiting } = overdue;
        let new = Held { epoch, peer, until, turn, lost, waiting: VecDeque::new() };
        let held = self.held.entry(address).or_insert(new);
        waiting.append(&mut held.waiting);
        held.waiting = waiting;
    }

    /// What was told meanwhile was not heard: none is overdue before `from`, nor before its turn.
    pub(super) fn postpone(&mut self, from: Instant) {
        for held in self.held.values_mut() {
            held.until = held.until.max(from + held.turn);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.held.len()
    }

    /// Those of them for which commands wait.
    pub(super) fn devices(&self) -> impl Iterator<Item = &Address> {
        self.held.iter().filter(|(_, held)| !held.lost).map(|(address, _)| address)
    }

    /// Lets a command wait for a device that is held; gives it back if it is not.
    pub(super) fn wait(&mut self, order: Order) -> Result<(), Order> {
        match self.held.get_mut(&order.command().address) {
            Some(held) if !held.lost => {
                held.waiting.push_back(order);
                Ok(())
            }
            Some(_) | None => Err(order),
        }
    }

    /// A device that is held has connected here: gives what waited for it, which goes there.
    pub(super) fn release(&mut self, address: &Address) -> VecDeque<Order> {
        self.held.get_mut(address).map(|held| std::mem::take(&mut held.waiting)).unwrap_or_default()
    }

    /// It was told that a device has come, or has gone, with this epoch: gives what waited for it, if that ends its
    /// time here.
    pub(super) fn told(&mut self, address: &Address, epoch: u64, online: bool) -> VecDeque<Order> {
        let is_over = |held: &&mut Held| held.epoch < epoch || !online && held.epoch == epoch;
        if self.held.get_mut(address).filter(is_over).is_none() {
            return VecDeque::new();
        }
        self.held.remove(address).map(|held| held.waiting).unwrap_or_default()
    }

    /// Some of those whose time is over, at most `max`; no longer held.
    pub(super) fn overdue(&mut self, now: Instant, max: usize) -> Vec<Overdue> {
        let over = self.held.extract_if(|_, held| held.until <= now).take(max);
        over.map(|(address, held)| overdue(address, held)).collect()
    }

    /// Commands that wait and are not wanted any more: their ttl has ended, or the broker delivers them again.
    pub(super) fn unwanted(&mut self, now: Instant) -> Vec<Order> {
        let mut unwanted = Vec::new();
        for held in self.held.values_mut().filter(|held| !held.waiting.is_empty()) {
            let is_wanted =
                |order: &Order| order.settlement.is_live() && order.command().expires > now;
            let (kept, left) = held.waiting.drain(..).partition(is_wanted);
            held.waiting = kept;
            unwanted.extend::<VecDeque<_>>(left);
        }
        unwanted
    }

    /// All of them, no longer held, and how long the last of them would have been.
    pub(super) fn give_up(&mut self, now: Instant) -> (Vec<Overdue>, Duration) {
        let left = self.held.values().map(|held| held.until.saturating_duration_since(now)).max();
        let all = self.held.drain().map(|(address, held)| overdue(address, held)).collect();
        (all, left.unwrap_or_default())
    }
}

fn overdue(address: Address, held: Held) -> Overdue {
    let Held { epoch, peer, turn, lost, waiting, .. } = held;
    Overdue { address, epoch, peer, turn, lost, waiting }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(30);

    fn ended(address: &str, epoch: u64) -> Connection {
        let peer = SocketAddr::from(([10, 0, 0, 1], 5000));
        Connection { address: address.to_owned(), epoch, peer, lost: false }
    }

    fn device(address: &str) -> Address {
        Address::parse(address).expect("an address")
    }

    fn overdue(moving: &mut Moving, now: Instant) -> Vec<(String, u64)> {
        let overdue = moving.overdue(now, usize::MAX);
        overdue.iter().map(|it| (it.address.to_string(), it.epoch)).collect()
    }

    #[test]
    fn one_that_does_not_come_back_is_overdue_once() {
        let now = Instant::now();
        let mut moving = Moving::default();
        assert!(moving.hold(&ended("10.0.0.7", 5), now + WITHIN, Duration::ZERO));
        assert!(overdue(&mut moving, now).is_empty());
        assert_eq!(overdue(&mut moving, now + WITHIN), [("10.0.0.7".to_owned(), 5)]);
        assert!(overdue(&mut moving, now + WITHIN).is_empty());
    }

    #[test]
    fn one_that_was_told_later_is_not() {
        for (epoch, online, is_over) in [
            (5, true, false),
            (4, false, false),
            (4, true, false),
            (5, false, true),
            (6, true, true),
            (6, false, true),
        ] {
            let now = Instant::now();
            let mut moving = Moving::default();
            moving.hold(&ended("10.0.0.7", 5), now + WITHIN, Duration::ZERO);
            moving.hold(&ended("10.0.0.8", 5), now + WITHIN, Duration::ZERO);
            moving.told(&device("10.0.0.7"), epoch, online);
            let mut left: Vec<_> = overdue(&mut moving, now + WITHIN)
                .into_iter()
                .map(|(address, _)| address)
                .collect();
            left.sort();
            let expected: &[&str] = if is_over { &["10.0.0.8"] } else { &["10.0.0.7", "10.0.0.8"] };
            assert_eq!(left, expected, "{epoch} {online}");
        }
    }

    #[test]
    fn of_two_connections_the_later_counts() {
        let now = Instant::now();
        let mut moving = Moving::default();
        moving.hold(&ended("10.0.0.7", 5), now + WITHIN, Duration::ZERO);
        moving.hold(&ended("10.0.0.7", 7), now + 2 * WITHIN, Duration::ZERO);
        moving.hold(&ended("10.0.0.7", 6), now, Duration::ZERO);
        assert!(overdue(&mut moving, now + WITHIN).is_empty());
        let (all, left) = moving.give_up(now);
        assert_eq!((all.len(), all[0].epoch, left), (1, 7, 2 * WITHIN));
        assert_eq!(moving.count(), 0);
    }

    #[test]
    fn one_that_may_have_come_unheard_is_held_for_longer_and_each_bridge_has_its_turn() {
        const TURN: Duration = Duration::from_secs(2);
        let now = Instant::now();
        let mut moving = Moving::default();
        moving.hold(&ended("10.0.0.7", 5), now, TURN);
        let due = moving.overdue(now, 1).pop().expect("it is overdue");
        assert_eq!(moving.overdue(now, 1).len(), 0);
        moving.hold_on(due, now);
        moving.postpone(now);
        assert!(overdue(&mut moving, now).is_empty());
        assert_eq!(overdue(&mut moving, now + TURN), [("10.0.0.7".to_owned(), 5)]);
        for address in ["10.0.0.7", "10.0.0.8"] {
            moving.hold(&ended(address, 5), now, TURN);
        }
        assert_eq!((moving.overdue(now, 1).len(), moving.count()), (1, 1));
    }

    #[test]
    fn only_so_many_are_held_and_nobody_who_is_none() {
        let now = Instant::now();
        let mut moving = Moving::default();
        let address = |index: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 + index).to_string();
        for index in 0..u32::try_from(MOVING_MAX).expect("fits") {
            assert!(moving.hold(&ended(&address(index), 1), now, Duration::ZERO));
        }
        assert!(!moving.hold(&ended("11.0.0.1", 1), now, Duration::ZERO));
        assert!(moving.hold(&ended(&address(0), 2), now, Duration::ZERO), "it is held already");
        assert!(!Moving::default().hold(&ended("", 1), now, Duration::ZERO));
    }
}
