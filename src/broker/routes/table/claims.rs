//! Who has which device: what is asked of the other bridges, and what they ask.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;

use super::super::super::BrokerError;
use super::super::super::publication::Publication;
use super::{Asked, CLAIM_AGAIN, Ending, Entry, Sent, Table};
use crate::cluster::control::Control;
use crate::command::Address;

/// Devices that are being claimed or bound, as far as the broker has not answered: enough for it to have always one more
/// at hand, and a third of all that may be on its way, so that of a busy broker bindings and commands each have a share.
/// In a storm of connects a command waits behind these and no more, as does the end of the bridge.
const BINDINGS_MAX: usize = 128;

/// Devices that are not bound, and how long a binding takes, from which on the other bridges are told: whoever finds
/// nobody for a command then asks before it takes the device for offline. Fewer are bound within milliseconds.
const ARRIVING_MANY: usize = 32;
const BINDING_IS_SLOW: Duration = Duration::from_millis(200);
/// How long commands wait for the answer to a claim while a bridge is missing, to which it may have gone: a dead one has
/// no connection of the device, and its bindings stay for seconds.
const ANSWER_OF_MISSING: Duration = Duration::from_millis(500);
/// How often they are told so, which they believe for six times as long.
const ARRIVING_EVERY: Duration = Duration::from_millis(500);

impl Table<'_> {
    /// Tells the other bridges that devices are not bound yet, if that takes its time.
    pub(super) fn look_at_arriving(&mut self, now: Instant) {
        let first = self.asked_for.front();
        let is_slow = first.is_some_and(
            |asked| matches!(asked, Asked::Bind(_, since) if *since + BINDING_IS_SLOW <= now),
        );
        let is_many = self.binds_many();
        let is_said = self.said_arriving.is_some_and(|at| now < at + ARRIVING_EVERY);
        if (is_slow || is_many) && !is_said && !self.cluster.is_leaving() {
            self.said_arriving = Some(now);
            self.cluster.say_arriving();
        }
    }

    fn binds_many(&self) -> bool {
        self.pending + self.cluster.changed() >= ARRIVING_MANY
    }

    /// Whether so many devices come to this bridge or another that it may be told late where one is.
    pub(super) fn is_storm(&self, now: Instant) -> bool {
        self.binds_many() || self.cluster.some_are_arriving(now)
    }

    /// Asks whether another bridge has a device.
    pub(super) fn claim(&mut self, address: Address) -> Result<(), BrokerError> {
        let Some(session) = self.devices().registry.find(&address) else { return Ok(()) };
        let now = Instant::now();
        self.claims.push_back((now + CLAIM_AGAIN, address.clone()));
        self.waited_for.push_back((now, address.clone()));
        let claim = self.claim_for(&address, session.epoch());
        self.claimed += 1;
        self.publish(claim, Sent::Claim(address))
    }

    /// Those that have not been answered in time are claimed once more, and what waits for them waits no longer.
    pub(super) fn look_at_claims(&mut self, now: Instant) {
        let patience = if self.cluster.misses_one() { ANSWER_OF_MISSING } else { CLAIM_AGAIN };
        while let Some((_, address)) = self.waited_for.pop_front_if(|(at, _)| *at + patience <= now)
        {
            if matches!(self.entries.get(&address), Some(Entry::Claiming)) {
                self.devices().registry.release(self.devices(), &address);
            }
        }
        while self.claims.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, address)) = self.claims.pop_front() else { break };
            if matches!(self.entries.get(&address), Some(Entry::Claiming)) {
                self.again.push_back(address);
            }
        }
    }

    /// Claims once more as many as there is room for.
    pub(super) fn claim_again(&mut self) -> Result<(), BrokerError> {
        if self.cluster.is_leaving() {
            self.again.clear();
        }
        while self.may_bind()
            && let Some(address) = self.again.pop_front()
        {
            if matches!(self.entries.get(&address), Some(Entry::Claiming)) {
                self.claim(address)?;
            }
        }
        Ok(())
    }

    /// Whether there is room for more devices to be claimed and bound.
    pub(super) fn may_bind(&self) -> bool {
        let bindings = self.asked_for.len() - self.unbindings;
        self.claimed + bindings < BINDINGS_MAX
    }

    /// That this bridge claims a device, for a connection of this epoch.
    pub(super) fn claim_for(&self, address: &Address, epoch: u64) -> Publication {
        let bridge = self.cluster.bridge.to_string();
        let (named, opened_ms) = (address.to_string(), self.opened_ms);
        let is_bound = matches!(self.entries.get(address), Some(Entry::Bound));
        let control = Control::Claim { address: named, bridge, epoch, opened_ms, is_bound };
        let (exchange, key) = (self.shared().into(), address.to_string().into());
        let mut message = Publication::control(exchange, key, &control, true);
        // It is made again then. The broker gives what has expired to whoever takes commands off the queue,
        // who learns from it that nobody reads that inbox.
        let expiration = CLAIM_AGAIN.as_millis().to_string();
        message.properties = message.properties.with_expiration(expiration.into());
        message
    }

    /// No bridge has a device that this one claims.
    pub(super) fn nobody_has(&mut self, address: Address) -> Result<(), BrokerError> {
        if !matches!(self.entries.get(&address), Some(Entry::Claiming)) {
            return Ok(());
        }
        if self.cluster.is_leaving() {
            self.entries.remove(&address);
            return Ok(());
        }
        self.entries.insert(address.clone(), Entry::Binding);
        let (exchange, key) = (self.shared().to_owned(), address.to_string());
        self.courier.bind(&exchange, &self.gate.shard_of(&address), &key)?;
        self.asked_for.push_back(Asked::Bind(address, Instant::now()));
        Ok(())
    }

    /// A claim of this bridge came to this bridge: by the binding of an earlier connection to the broker, which is as good
    /// as one that would be made now. But after a claim made on that earlier connection it may be gone since; and for
    /// an earlier connection of the device it may have been ended.
    fn came_home(
        &mut self,
        address: Address,
        epoch: u64,
        opened_ms: u64,
    ) -> Result<(), BrokerError> {
        let session = self.devices().registry.find(&address);
        let is_latest =
            opened_ms == self.opened_ms && session.is_some_and(|session| session.epoch() == epoch);
        match self.entries.get_mut(&address) {
            Some(entry @ Entry::Claiming) if is_latest => {
                *entry = Entry::Binding;
                self.bound(address)
            }
            Some(_) => self.nobody_has(address),
            None => self.unbind_stale(&address),
        }
    }

    pub(super) fn bound(&mut self, address: Address) -> Result<(), BrokerError> {
        if let Some(entry @ Entry::Binding) = self.entries.get_mut(&address) {
            *entry = Entry::Bound;
            self.cluster.came_back(&address);
            let session = self.devices().registry.find(&address);
            if let Some(session) = session {
                self.cluster.told(&address, session.epoch(), true);
            }
            self.settle(address)?;
        }
        Ok(())
    }

    /// Claims a device once more that is bound here: if another bridge has bound it meanwhile, one of both has a later
    /// connection of it, and the other lets it go.
    pub(super) fn check(&mut self, address: &Address) -> Result<(), BrokerError> {
        let session = self.devices().registry.find(address);
        match (self.entries.get(address), session) {
            (Some(Entry::Bound), Some(session)) => {
                let claim = self.claim_for(address, session.epoch());
                self.publish(claim, Sent::Said)
            }
            _ => Ok(()),
        }
    }

    /// Lets another bridge have a device, once it is told that the connection here has ended.
    pub(super) fn yield_to(
        &mut self,
        address: Address,
        bridge: Arc<str>,
        epoch: Option<u64>,
    ) -> Result<(), BrokerError> {
        let named = address.to_string();
        let held = epoch.unwrap_or_default();
        match self.entries.get_mut(&address) {
            Some(Entry::Bound | Entry::Binding) => {
                let ending = Ending { to: Some((bridge, held)), waiting: VecDeque::new() };
                self.entries.insert(address.clone(), Entry::Ending(Box::new(ending)));
                self.try_to_end(address)
            }
            Some(Entry::Ending(ending)) => {
                let Ending { to, waiting } = &mut **ending;
                let epoch = to.take().map_or(held, |(_, epoch)| epoch.max(held));
                *to = Some((Arc::clone(&bridge), epoch));
                let waiting = std::mem::take(waiting);
                self.cluster.moved(&address, &bridge);
                for order in waiting {
                    self.pass_on(order, Some(Arc::clone(&bridge)))?;
                }
                self.try_to_end(address)
            }
            Some(Entry::Claiming) => self.say(&bridge, &Control::Gone { address: named }),
            None if epoch.is_some() => {
                self.say(&bridge, &Control::Yielded { address: named, epoch: held })
            }
            None => {
                // The binding by which the claim came may be a stale one.
                self.unbind_stale(&address)?;
                self.say(&bridge, &Control::Gone { address: named })
            }
        }
    }

    pub(super) fn heard(&mut self, address: Address, control: Control) -> Result<(), BrokerError> {
        let devices = self.devices();
        match control {
            Control::Yielded { epoch, .. } => {
                devices.registry.outdo(&address, epoch);
                self.nobody_has(address)
            }
            Control::Claim { epoch, opened_ms, .. } => self.came_home(address, epoch, opened_ms),
            Control::Later { epoch, .. } => {
                self.cluster.is_held_no_longer(&address, epoch);
                if let Some(left) = devices.registry.evict(devices, &address, epoch, true) {
                    self.cluster.was_shared(&address);
                    self.cluster.go_on(left);
                }
                // The device may have connected here once more since it was claimed.
                let claims = matches!(self.entries.get(&address), Some(Entry::Claiming));
                if claims && self.is_here(&address) { self.claim(address) } else { Ok(()) }
            }
            Control::Gone { .. } => {
                if matches!(self.entries.get(&address), Some(Entry::Claiming)) {
                    self.claim(address)?;
                }
                Ok(())
            }
            Control::Emptied { to, epoch, .. } => {
                self.unbinding.remove(&address);
                let Some(to) = to else { return Ok(()) };
                let address = address.to_string();
                self.say(&to, &Control::Yielded { address, epoch })
            }
            Control::Left { .. }
            | Control::Begun { .. }
            | Control::Here { .. }
            | Control::Devices { .. }
            | Control::WasLost { .. }
            | Control::Arriving { .. }
            | Control::Wanted { .. }
            | Control::Has { .. }
            | Control::Call { .. }
            | Control::Called { .. }
            | Control::Alive
            | Control::Knock
            | Control::Leaving { .. }
            | Control::Moving { .. }
            | Control::Held { .. } => Ok(()),
            Control::Parked { .. } => {
                if devices.wants_parked(&address) {
                    devices.parking.nudged(&address);
                }
                Ok(())
            }
        }
    }

    /// Says something to a bridge.
    pub(super) fn say(&mut self, bridge: &str, control: &Control) -> Result<(), BrokerError> {
        let inbox = self.inbox(bridge).into();
        self.publish(
            Publication::control(ShortString::default(), inbox, control, false),
            Sent::Said,
        )
    }
}
