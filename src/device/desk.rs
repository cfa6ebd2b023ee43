//! `Desk`: what a protocol may do on behalf of its device; and how a session says what is no command.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::session::{Session, Shared};
use super::silence::Silence;
use super::{Devices, EndReason};
use crate::command::{Address, Reason};
use crate::protocol::{Audience, Frame, Payload, Port, Spoken};

/// Groups one connection may be in: more than any use of them, and few enough to leave them all.
const JOINED_MAX: usize = 1000;

/// What a session's task keeps for its protocol.
#[derive(Debug)]
pub(super) struct Kept {
    /// The groups its device has joined.
    joined: Vec<Arc<str>>,
    /// How long its device has sent nothing.
    pub(super) silence: Silence,
}

impl Kept {
    pub(super) fn new(silence: Silence) -> Self {
        Self { joined: Vec::new(), silence }
    }

    /// Leaves all groups, at the end of the connection.
    pub(super) fn leave_all(&mut self, session: &Session, devices: &Devices) {
        for group in self.joined.drain(..) {
            devices.groups.leave(&group, &session.address, session.number);
        }
    }
}

/// The part of a session that its protocol sees.
pub(super) struct Desk<'a> {
    pub(super) session: &'a Session,
    pub(super) devices: &'a Devices,
    pub(super) kept: &'a mut Kept,
}

impl Port for Desk<'_> {
    fn line(&mut self, line: &[u8]) {
        self.session.line(line, self.devices);
    }

    fn reply(&mut self, frame: &[u8]) {
        self.session.tell(&Frame::copy_from_slice(frame), self.devices);
    }

    fn join(&mut self, group: &str) -> Result<usize, Reason> {
        let Session { address, number, .. } = self.session;
        let is_new = !self.kept.joined.iter().any(|joined| **joined == *group);
        if is_new && self.kept.joined.len() >= JOINED_MAX {
            return Err(format!("expected at most {JOINED_MAX} memberships of one device").into());
        }
        let (count, name) = self.devices.groups.join(group, address, *number)?;
        if is_new {
            self.kept.joined.push(name);
        }
        Ok(count)
    }

    fn leave(&mut self, group: &str) -> Option<usize> {
        let Session { address, number, .. } = self.session;
        self.kept.joined.retain(|joined| **joined != *group);
        self.devices.groups.leave(group, address, *number)
    }

    fn members(&self, group: &str) -> Option<usize> {
        let here = self.devices.groups.count(group);
        // Those at other bridges are not known here.
        if self.devices.cluster.is_some() { Some(here.unwrap_or(0)) } else { here }
    }

    fn say(&mut self, audience: Audience, payload: Payload) {
        self.devices.pass_on(&audience, &payload);
        self.devices.hear(audience, payload);
    }

    fn end_if_silent_for(&mut self, limit: Duration) {
        self.kept.silence.end_after(limit);
    }
}

impl Devices {
    /// Says something to those of the devices here that it is for.
    pub(crate) fn hear(&self, audience: Audience, payload: Payload) {
        let find = |address| self.registry.find(&address);
        let listeners: Vec<Arc<Session>> = match audience {
            Audience::Group(group) => {
                self.groups.joined(&group).into_iter().filter_map(find).collect()
            }
            Audience::These(addresses) => addresses.into_iter().filter_map(find).collect(),
            Audience::All(format) => {
                let mut all = self.registry.all();
                all.retain(|other| other.rules.wire.format() == format);
                all
            }
        };
        let spoken = Spoken::new(payload);
        for listener in listeners {
            if let Ok(frame) = spoken.in_wire(&listener.rules.wire) {
                listener.tell(&frame, self);
            }
        }
    }

    /// Has what a device says said at the other bridges, too, where some of those may be that it is for.
    fn pass_on(&self, audience: &Audience, payload: &Payload) {
        let Some(cluster) = &self.cluster else { return };
        let is_elsewhere = |address: &&Address| self.registry.find(address).is_none();
        let said = match audience {
            Audience::These(addresses) => {
                let elsewhere: Vec<_> = addresses.iter().filter(is_elsewhere).cloned().collect();
                elsewhere.is_empty()
                    || cluster.talk.say(&cluster.bridge, &Audience::These(elsewhere), payload)
            }
            Audience::Group(_) | Audience::All(_) => {
                cluster.talk.say(&cluster.bridge, audience, payload)
            }
        };
        if !said {
            self.metrics.message_dropped();
        }
    }
}

impl Session {
    /// Says something that is no command: at once, or when the socket takes it. A device that does not
    /// read misses what is too much.
    pub(super) fn tell(&self, frame: &Frame, devices: &Devices) {
        let mut shared = self.lock();
        if shared.closed || shared.end.is_some() {
            return;
        }
        if shared.outbox.push(frame.clone(), Instant::now()).is_err() {
            devices.metrics.message_dropped();
            return;
        }
        if let Err(reason) = self.send_outbox(&mut shared) {
            shared.end = Some(reason);
        }
        if !shared.outbox.is_empty() || shared.end.is_some() {
            self.wake.give();
        }
    }

    /// Sends what the socket takes of what is no command, unless a line is to be finished first.
    pub(super) fn send_outbox(&self, shared: &mut Shared) -> Result<(), EndReason> {
        if shared.lane.first().is_some_and(|(_, begun)| begun) {
            return Ok(());
        }
        while let Some(next) = shared.outbox.next() {
            match shared.transport.write(&self.stream, next, false) {
                Ok(taken) => {
                    shared.proofs.reached(shared.transport.wire());
                    shared.outbox.took(taken, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(EndReason::from_error(&error)),
            }
        }
        Ok(())
    }
}
