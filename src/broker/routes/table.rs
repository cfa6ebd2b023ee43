//! `Table`: what the broker and the other bridges know of this bridge's devices, on one connection.
//!
//! A device is claimed, bound, and unbound when its connection has ended and everybody was told: only then
//! can another bridge find that nobody has it. What comes for it meanwhile waits behind the unbinding.

mod answered;
mod claims;
mod ending;
mod moving;
mod passing;
mod refused;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;

use self::ending::Unbinding;
use self::refused::Refused;
use super::super::BrokerError;
use super::super::intake::Intake;
use super::super::publication::Publication;
use super::super::stream::Courier;
use super::super::topology::Gate;
use crate::clock::Moment;
use crate::cluster::control::Control;
use crate::cluster::{Cluster, Overdue, Work};
use crate::command::Address;
use crate::device::Devices;
use crate::order::Order;

/// How long a bridge that may have a device has to answer before it is asked again, and what waits for the
/// device waits no longer. It takes some milliseconds; after this it is dead, or cut off.
const CLAIM_AGAIN: Duration = Duration::from_secs(5);

/// A binding takes some milliseconds, on a busy broker seconds. After this the device may have connected to another
/// bridge, which found nobody to claim it from. An unbinding that takes longer some of the nodes see before the others do.
const BINDING_IS_LATE: Duration = Duration::from_millis(100);

/// How often it is asked whether the other bridges are there.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How far a device of this bridge is known to the others.
#[derive(Debug)]
enum Entry {
    /// It is asked whether another bridge has it.
    Claiming,
    /// None has; the broker binds it.
    Binding,
    Bound,
    /// Its connection has ended. It is unbound when that is told. In a box because nearly all entries are bound.
    Ending(Box<Ending>),
}

/// A device whose connection has ended.
#[derive(Debug, Default)]
struct Ending {
    /// The bridge that is told when it is unbound, and the epoch the connection here had.
    to: Option<(Arc<str>, u64)>,
    /// What came for it since.
    waiting: VecDeque<Order>,
}

/// What the broker is asked for, one after the other.
#[derive(Debug)]
enum Asked {
    /// To bind a device, since then.
    Bind(Address, Instant),
    Unbind(Address),
    /// To cut off the next shard.
    Cut,
}

/// What a publication was.
#[derive(Debug)]
enum Sent {
    Command(Order, Option<Arc<str>>),
    Claim(Address),
    /// Whether another bridge has a device that has not come back in time.
    Overdue(Overdue),
    /// Whether this bridge is there.
    Asked(Arc<str>),
    /// To the bridge that has this device by now, if one has.
    Parked(Address),
    Said,
}

/// What is known of this bridge's devices.
pub(super) struct Table<'a> {
    intake: &'a Intake,
    cluster: &'a Cluster,
    /// To which devices are bound.
    gate: &'a Gate,
    pub(super) courier: Courier,
    /// When this began, which tells its claims from those of earlier connections.
    opened_ms: u64,
    entries: HashMap<Address, Entry>,
    /// Publications that are not confirmed, by their numbers.
    sent: HashMap<u64, Sent>,
    refused: Refused,
    /// Bindings and unbindings that are not answered, oldest first.
    asked_for: VecDeque<Asked>,
    /// How many of those are unbindings.
    unbindings: usize,
    /// Claims that are not answered by the broker.
    claimed: usize,
    /// Claims, and when to make them again.
    claims: VecDeque<(Instant, Address)>,
    /// Claims, and when they were made, as long as commands may wait for the answer.
    waited_for: VecDeque<(Instant, Address)>,
    /// Devices that are to be claimed again as soon as there is room.
    again: VecDeque<Address>,
    /// Devices that were neither bound nor leaving when this was looked at last.
    pending: usize,
    /// When the others were told last that devices are not bound yet.
    said_arriving: Option<Instant>,
    /// Devices that are unbound when nothing that was parked for them is in hand any more, and there is room.
    later: Vec<Address>,
    /// Devices that are unbound, and of which commands may still come that came before.
    unbinding: HashMap<Address, Unbinding>,
    /// How many of the shards are cut off, so that nothing comes by the bindings of their devices any more; and how many
    /// are, or are to be as soon as the broker has answered.
    cut: u32,
    cutting: u32,
    /// Whether what comes may have come by a binding of an earlier process, which leads nowhere now.
    hears_old: &'a AtomicBool,
    /// When the other bridges were asked last whether they are there.
    asked: Instant,
    /// Whether devices may be held here that have not come back in time.
    more_overdue: bool,
}

impl Drop for Table<'_> {
    /// The connection is lost, or nothing is left.
    fn drop(&mut self) {
        let mut sent: Vec<_> = self.sent.drain().collect();
        sent.sort_unstable_by_key(|(number, _)| *number);
        let sent = sent.into_iter().filter_map(|(_, sent)| match sent {
            Sent::Command(order, to) => {
                order.facts.steps.may_be_elsewhere.store(true, Ordering::Relaxed);
                Some(Work::Command(order, to))
            }
            Sent::Overdue(overdue) => {
                self.cluster.hold_on(overdue);
                None
            }
            Sent::Claim(_) | Sent::Asked(_) | Sent::Parked(_) | Sent::Said => None,
        });
        let (mut waiting, mut bound) = (Vec::new(), Vec::new());
        for (address, entry) in self.entries.drain() {
            match entry {
                Entry::Claiming => continue,
                Entry::Binding | Entry::Bound => {}
                Entry::Ending(ending) => {
                    let commands = ending.waiting;
                    waiting.extend(commands.into_iter().map(|order| Work::Command(order, None)));
                }
            }
            bound.push(address);
        }
        bound.extend(self.unbinding.drain().map(|(address, _)| address));
        let refused = self.refused.take_commands().map(|(order, to)| Work::Command(order, to));
        self.cluster.again(refused.chain(sent).chain(waiting).collect());
        bound.into_iter().for_each(|address| self.cluster.push(Work::Unbind(address)));
        self.intake.devices().metrics.route_pending(0);
    }
}

impl<'a> Table<'a> {
    pub(super) fn new(
        intake: &'a Intake,
        cluster: &'a Cluster,
        gate: &'a Gate,
        courier: Courier,
        hears_old: &'a AtomicBool,
    ) -> Self {
        Self {
            intake,
            cluster,
            gate,
            courier,
            opened_ms: Moment::now().wall_ms,
            entries: HashMap::new(),
            sent: HashMap::new(),
            refused: Refused::default(),
            asked_for: VecDeque::new(),
            claimed: 0,
            claims: VecDeque::new(),
            waited_for: VecDeque::new(),
            again: VecDeque::new(),
            pending: 0,
            said_arriving: None,
            unbindings: 0,
            later: Vec::new(),
            cut: 0,
            cutting: 0,
            unbinding: HashMap::new(),
            hears_old,
            asked: Instant::now(),
            more_overdue: false,
        }
    }

    /// Says to this bridge itself, behind all that came for an earlier process, that this one has begun.
    pub(super) fn begin(&mut self) -> Result<(), BrokerError> {
        if !self.hears_old.load(Ordering::Relaxed) {
            return Ok(());
        }
        let own = Arc::clone(&self.cluster.bridge);
        self.say(&own, &Control::Begun { bridge: own.to_string() })
    }

    /// Does what is to be done, as far as the connection takes it.
    pub(super) fn work(&mut self) -> Result<(), BrokerError> {
        self.claim_again()?;
        while self.courier.has_room() {
            // In turn, so that commands do not wait for all of a storm of connects.
            let changed = self.may_bind().then(|| self.cluster.next_changed()).flatten();
            let work = self.cluster.next_work();
            if changed.is_none() && work.is_none() {
                break;
            }
            if let Some(address) = changed {
                self.settle(address)?;
            }
            if let Some((changed, work)) = work {
                changed.map_or(Ok(()), |address| self.settle(address))?;
                self.take_on(work)?;
            }
        }
        self.courier.flush()
    }

    /// Looks at what nothing tells of.
    pub(super) fn look(&mut self) -> Result<(), BrokerError> {
        // Whatever is pending begins with a claim, and may be here for longer than that is looked after.
        if !self.claims.is_empty() || self.pending > 0 {
            let pending = |entry: &&Entry| matches!(entry, Entry::Claiming | Entry::Binding);
            self.pending = self.entries.values().filter(pending).count();
            self.devices().metrics.route_pending(self.pending);
        }
        for address in std::mem::take(&mut self.later) {
            self.try_to_end(address)?;
        }
        let now = Instant::now();
        self.look_at_refused(now)?;
        self.look_at_claims(now);
        self.look_at_arriving(now);
        self.cluster.look_at_answers();
        if self.more_overdue && self.courier.has_room() {
            self.more_overdue = self.look_at_moving(now)?;
        }
        if self.asked + ASK_EVERY <= now && self.courier.has_room() {
            self.asked = now;
            self.more_overdue = true;
            for bridge in self.cluster.others() {
                let key = self.intake.settings.mq.alive_queue(&bridge).into();
                // It vanishes in that queue.
                let what = Publication::control(ShortString::default(), key, &Control::Alive, true);
                self.publish(what, Sent::Asked(bridge))?;
            }
        }
        Ok(())
    }

    /// Whether no device is bound, and nothing on its way.
    pub(super) fn is_done(&self) -> bool {
        self.entries.is_empty()
            && self.courier.unanswered() == 0
            && self.refused.is_empty()
            && self.cluster.is_idle()
    }

    /// Closes the connection in good order.
    pub(super) async fn close(mut self) -> Result<(), BrokerError> {
        self.courier.close().await
    }

    fn take_on(&mut self, work: Work) -> Result<(), BrokerError> {
        match work {
            Work::Command(order, to) => self.pass_on(order, to),
            Work::Nobody(order) => {
                self.nobody_for(order);
                Ok(())
            }
            Work::Yield { address, to, epoch } => self.yield_to(address, to, epoch),
            Work::Say(to, control) => self.say(&to, &control),
            Work::Heard(address, control) => self.heard(address, control),
            Work::Greet(bridge) => {
                let registry = &self.devices().registry;
                self.cluster.greet(&bridge, registry.last_epoch(), &registry.announced());
                Ok(())
            }
            Work::ClaimAgain => {
                let claimed = |(_, entry): &(&Address, &Entry)| matches!(entry, Entry::Claiming);
                let all = self.entries.iter().filter(claimed);
                self.again.extend(all.map(|(address, _)| address.clone()));
                Ok(())
            }
            Work::Parked(address) => {
                let control = Control::Parked { address: address.to_string() };
                let (exchange, key) = (self.shared().into(), address.to_string().into());
                let message = Publication::control(exchange, key, &control, true);
                self.publish(message, Sent::Parked(address))
            }
            Work::Begun => {
                self.hears_old.store(false, Ordering::Relaxed);
                Ok(())
            }
            Work::Unbind(address) if self.entries.contains_key(&address) => Ok(()),
            Work::Unbind(address) => self.unbind_stale(&address),
        }
    }

    /// Brings what the others know of a device closer to the truth.
    fn settle(&mut self, address: Address) -> Result<(), BrokerError> {
        let registry = &self.devices().registry;
        let session = registry.find(&address);
        let is_here = session.as_ref().is_some_and(|session| !session.is_closed());
        match self.entries.get_mut(&address) {
            None if is_here && self.cluster.is_leaving() => Ok(()),
            None if is_here => {
                self.entries.insert(address.clone(), Entry::Claiming);
                self.cluster.release(&address);
                self.claim(address)
            }
            Some(Entry::Bound) if is_here => {
                registry.announce(self.devices(), &address);
                Ok(())
            }
            Some(Entry::Ending(ending)) if is_here && ending.to.is_none() => {
                let waiting = std::mem::take(&mut ending.waiting);
                self.entries.insert(address.clone(), Entry::Bound);
                self.devices().registry.announce(self.devices(), &address);
                waiting.into_iter().for_each(|order| self.deliver(order));
                Ok(())
            }
            Some(Entry::Ending(_)) => self.try_to_end(address),
            // It is told soon, and then this is looked at again.
            _ if session.is_some() => Ok(()),
            Some(Entry::Claiming) => {
                self.entries.remove(&address);
                Ok(())
            }
            Some(Entry::Bound | Entry::Binding) => {
                self.entries.insert(address.clone(), Entry::Ending(Box::default()));
                self.try_to_end(address)
            }
            None => Ok(()),
        }
    }

    fn is_here(&self, address: &Address) -> bool {
        let session = self.devices().registry.find(address);
        session.is_some_and(|session| !session.is_closed())
    }

    fn publish(&mut self, what: Publication, sent: Sent) -> Result<(), BrokerError> {
        let number = self.courier.publish(what)?;
        self.sent.insert(number, sent);
        Ok(())
    }

    fn devices(&self) -> &'a Devices {
        self.intake.devices()
    }

    /// The exchange that leads to all bridges.
    fn shared(&self) -> &'a str {
        &self.intake.settings.mq.route_exchange
    }

    fn inbox(&self, bridge: &str) -> String {
        self.intake.settings.mq.inbox(bridge)
    }
}
