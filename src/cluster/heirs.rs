//! What this bridge and the others do for each other's devices when one of them ends.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::control::Control;
use super::moving::{Connection, Moving, Overdue};
use super::{Cluster, Work};
use crate::command::Address;
use crate::order::Order;

/// Devices in one message: some 40 KiB.
pub(super) const DEVICES_A_MESSAGE: usize = 500;

/// For how long a bridge that ends may be told that its devices are held: longer than it waits for that.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Of several bridges that hold a device the first tells that it is offline, the next so much later if nobody has:
/// longer than an event takes from one to the other.
const TELL_LATER: Duration = Duration::from_secs(2);

/// Bridges that tell one after the other; beyond it they tell together.
const TURNS_MAX: u32 = 10;

/// How much longer a device is held which a bridge seems to have, and which is not told as online yet.
const ONCE_MORE: Duration = Duration::from_secs(1);

/// Who holds the devices of this bridge, which ends.
#[derive(Debug, Default)]
pub(super) struct Heirs {
    /// How many devices of each part each has said it holds.
    said: HashMap<Arc<str>, HashMap<u32, usize>>,
    /// One that holds all: what comes for them goes there.
    heir: Option<Arc<str>>,
}

impl Cluster {
    /// Tells the other bridges that this one ends, and has them hold these devices, each list for so long; true once
    /// one of them holds all. To be called once, behind `give_up_moving`, when no device may connect here any more.
    pub(crate) async fn hand_over(
        &self,
        lists: [(Vec<Connection>, Duration); 2],
        limit: Duration,
    ) -> bool {
        let count = lists.iter().map(|(list, _)| list.len()).sum();
        // Those too that are missing: one that was restarted has been back for up to a second before that is seen.
        let (others, until) = (self.others(), Instant::now() + limit);
        for (turn, other) in (0u32..).zip(&others) {
            let parts = lists.iter().flat_map(|(list, within)| {
                list.chunks(DEVICES_A_MESSAGE).map(move |devices| (devices, within))
            });
            for (part, (devices, within)) in (0u32..).zip(parts) {
                let control = Control::Moving {
                    bridge: self.bridge.to_string(),
                    part,
                    devices: devices.to_vec(),
                    within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
                    turn,
                };
                self.urgent.say(Arc::clone(other), control, limit);
            }
            let leaving = Control::Leaving { bridge: self.bridge.to_string() };
            self.push(Work::Say(Arc::clone(other), leaving));
        }
        let held = async {
            loop {
                let mut said = std::pin::pin!(self.held.notified());
                said.as_mut().enable();
                if self.heirs().choose(count) {
                    return;
                }
                said.await;
            }
        };
        count > 0 && !others.is_empty() && timeout_at(until, held).await.is_ok()
    }

    /// Tells a bridge that ends how many devices of a part of its own this one holds.
    pub(crate) fn tell_held(&self, to: &str, part: u32, count: usize) {
        let control = Control::Held { bridge: self.bridge.to_string(), part, count };
        self.urgent.say(to, control, ANSWER_WITHIN);
    }

    /// Another bridge says that it holds so many devices of a part of those of this one.
    pub(crate) fn held_by(&self, bridge: &str, part: u32, count: usize) {
        self.heirs().said.entry(bridge.into()).or_default().insert(part, count);
        self.held.notify_waiters();
    }

    /// The bridge that holds the devices of this one, which ends.
    pub(crate) fn heir(&self) -> Option<Arc<str>> {
        self.heirs().heir.clone()
    }

    /// A bridge cannot be reached: if it is the heir, there is none.
    pub(crate) fn is_no_heir(&self, bridge: &str) {
        self.heirs().heir.take_if(|heir| **heir == *bridge);
    }

    /// Holds devices of a bridge that ends; how many. So many bridges tell of them before this one.
    pub(crate) fn hold(&self, devices: &[Connection], within: Duration, turn: u32) -> usize {
        if self.is_leaving() {
            return 0;
        }
        let turn = TELL_LATER.saturating_mul(turn.min(TURNS_MAX));
        let until = Instant::now() + within + turn;
        let mut moving = self.moving();
        let count = devices.iter().filter(|ended| moving.hold(ended, until, turn)).count();
        self.metrics.moving(moving.count());
        count
    }

    /// Lets a command wait for a device whose bridge has ended and that may come back; gives it back if it is none.
    pub(crate) fn wait_for(&self, order: Order) -> Result<(), Order> {
        self.moving().wait(order)
    }

    /// A device has connected here that may be held: what waited for it goes to it. It is held until it is told as
    /// online.
    pub(crate) fn release(&self, address: &Address) {
        let waiting = self.moving().release(address);
        self.go_on(waiting);
    }

    /// It was told that a device has come, or has gone: what waited for it goes on.
    pub(crate) fn told(&self, address: &Address, epoch: u64, online: bool) {
        let waiting = {
            let mut moving = self.moving();
            let waiting = moving.told(address, epoch, online);
            self.metrics.moving(moving.count());
            waiting
        };
        self.go_on(waiting);
    }

    /// Another bridge has a device, with this epoch.
    pub(crate) fn is_held_no_longer(&self, address: &Address, epoch: u64) {
        self.told(address, epoch.saturating_add(1), true);
    }

    /// Holds a device for a little longer that has not come back in time.
    pub(crate) fn hold_on(&self, overdue: Overdue) {
        let mut moving = self.moving();
        moving.hold_on(overdue, Instant::now() + ONCE_MORE);
        self.metrics.moving(moving.count());
    }

    /// This bridge has not heard for some time what others tell: devices may have come back.
    pub(super) fn missed_some(&self) {
        self.moving().postpone(Instant::now() + ONCE_MORE);
    }

    /// Devices that have not come back in time, at most `max`, and commands that have waited for too long.
    pub(crate) fn overdue(&self, now: Instant, max: usize) -> (Vec<Overdue>, Vec<Order>) {
        let mut moving = self.moving();
        let found = (moving.overdue(now, max), moving.unwanted(now));
        self.metrics.moving(moving.count());
        found
    }

    /// Holds no devices of others any more: gives those it held, and how long the last of them would have been.
    pub(crate) fn give_up_moving(&self) -> (Vec<Overdue>, Duration) {
        self.leaving.store(true, Ordering::Relaxed);
        self.metrics.moving(0);
        self.moving().give_up(Instant::now())
    }

    /// Whether this bridge ends: devices are not bound any more, which would be for a moment.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    fn heirs(&self) -> std::sync::MutexGuard<'_, Heirs> {
        self.heirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn moving(&self) -> std::sync::MutexGuard<'_, Moving> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heirs {
    /// Chooses one that holds so many; true if there is one.
    fn choose(&mut self, count: usize) -> bool {
        let one = self.said.iter().find(|(_, parts)| parts.values().sum::<usize>() >= count);
        self.heir = one.map(|(bridge, _)| Arc::clone(bridge));
        self.heir.is_some()
    }
}
