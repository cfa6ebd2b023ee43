//! The task of a session: reads what the device sends, writes what waits in the lane, learns what
//! is proved, and notices the end.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{Interest, Ready};
use tokio::time::Instant;
use tracing::info;

use super::answers::LineIs;
use super::desk::{Desk, Kept};
use super::lane::Head;
use super::offer::Offer;
use super::receipt;
use super::session::{Session, Shared};
use super::silence::{Due, Silence};
use super::{Devices, EndReason};
use crate::clock::{self, Moment};
use crate::command::Outcome;
use crate::fate::Fate;
use crate::presence::Update;
use crate::protocol::{Broken, Protocol};

/// Bytes read from a device at a time, on the stack: most lines come in one read.
const READ_BYTES: usize = 2048;
/// Reads in a row before the other tasks get their turn: a device that talks without end may not
/// keep the bridge from the others.
const READS_MAX: usize = 4;
/// How often a full socket is tried again where nothing tells that it has room. After the first
/// event of a socket's error queue, mio takes it for closed and tokio for writable ever after; then
/// the acknowledgement of what is in the socket is the usual sign, and this is for when none comes.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// What the task waits for besides the socket's own events.
struct Plan {
    interest: Interest,
    /// When to look again, and whether that is the end of the device's time to read.
    at: Option<Instant>,
}

/// What the task of a session keeps. There is one for each device, so it is kept small: each thing once, and
/// nothing that is needed only at the beginning.
struct Serving {
    session: Arc<Session>,
    devices: Arc<Devices>,
    protocol: Box<dyn Protocol>,
    kept: Kept,
    /// There is something to read that no event tells of.
    unread: bool,
}

impl Serving {
    fn new(session: Arc<Session>, devices: Arc<Devices>) -> Self {
        let protocol = session.rules.wire.begin(&session.address.to_string());
        if session.rules.wire.is_for_talk()
            && let Some(cluster) = &devices.cluster
        {
            cluster.talk.want();
        }
        let silence = Silence::new(session.rules.silence_limit, Instant::now());
        // What came with the handshake, and what TLS has taken off the socket, nothing else tells of.
        let unread = session.lock().transport.is_tls();
        Self { session, devices, protocol, kept: Kept::new(silence), unread }
    }

    /// Takes up what the device has sent behind its hello.
    fn begin(&mut self, rest: &[u8]) -> Result<(), EndReason> {
        let Self { session, devices, protocol, kept, .. } = self;
        let mut desk = Desk { session, devices, kept };
        protocol.feed(rest, &mut desk).map_err(|broken| session.ended_by(broken))
    }

    async fn run(&mut self) -> Result<Infallible, EndReason> {
        loop {
            let Self { session, devices, kept, unread, .. } = self;
            session.break_silence(&mut kept.silence, devices)?;
            let plan = session.plan(devices, kept.silence.deadline())?;
            let ready = tokio::select! {
                biased;
                () = session.wake.given() => {
                    session.flush(devices)?;
                    continue;
                }
                () = clock::until(plan.at) => {
                    session.flush(devices)?;
                    continue;
                }
                ready = session.stream.ready(plan.interest), if !*unread => ready.map_err(|error| EndReason::from_error(&error))?,
                () = tokio::task::yield_now(), if *unread => Ready::READABLE,
            };
            self.take_up(ready)?;
        }
    }

    /// Does what the socket is ready for.
    fn take_up(&mut self, ready: Ready) -> Result<(), EndReason> {
        let Self { session, devices, protocol, kept, unread } = self;
        if ready.is_error() {
            session.take_events(devices);
            session.flush(devices)?;
        } else if ready.is_writable() {
            session.flush(devices)?;
        }
        if ready.is_readable() || ready.is_read_closed() || ready.is_error() {
            if ready.is_readable() && kept.silence.heard(Instant::now()) {
                devices.registry.update(session, Update::Heard);
            }
            *unread = session.read(&mut **protocol, kept, devices)?;
            kept.silence.is_amid(protocol.amid(), Instant::now() + session.rules.line_timeout);
        }
        Ok(())
    }

    fn end(mut self, reason: EndReason) {
        let Self { session, devices, kept, .. } = &mut self;
        let (reason, waited) = session.close(reason, devices);
        kept.leave_all(session, devices);
        devices.registry.remove(session, reason);
        devices.metrics.device_ended(reason);
        info!(address = %session.address, peer = %session.peer, epoch = session.epoch(), %reason, waited, "device disconnected");
    }
}

impl Session {
    /// Serves the connection to its end, then takes it out of the registry.
    /// `rest` is what the device has sent behind its hello.
    pub(crate) fn serve(
        self: Arc<Self>,
        devices: Arc<Devices>,
        rest: &[u8],
    ) -> impl Future<Output = ()> + Send + use<> {
        info!(address = %self.address, peer = %self.peer, epoch = self.epoch(), "device connected");
        let mut serving = Serving::new(self, devices);
        let begun = serving.begin(rest);
        async move {
            let reason = match begun {
                Ok(()) => match serving.run().await {
                    Ok(never) => match never {},
                    Err(reason) => reason,
                },
                Err(reason) => reason,
            };
            serving.end(reason);
        }
    }

    /// Gives up what has run out of time, and says what to wait for.
    fn plan(&self, devices: &Devices, look_at: Option<Instant>) -> Result<Plan, EndReason> {
        let now = Instant::now();
        let mut shared = self.lock();
        if let Some(reason) = shared.end {
            return Err(reason);
        }
        let mut given_up = Vec::new();
        shared.proofs.expire(&self.rules.answer, now, &mut given_up);
        devices.conclude(given_up);
        let mut interest = Interest::READABLE;
        if self.provable {
            interest |= Interest::ERROR;
        }
        let mut at = shared.proofs.deadline().into_iter().chain(look_at).min();
        let mut by = |moment: Option<Instant>| at = at.into_iter().chain(moment).min();
        let write_timeout = self.rules.write_timeout;
        let lane = if shared.is_held(now, &self.rules) {
            shared.lane.restart_clock(now);
            by(shared.lane.next_expiry());
            None
        } else {
            shared.lane.deadline(write_timeout)
        };
        let stuck = [shared.outbox.stuck_since(), shared.transport.stuck_since()];
        let stuck = stuck.into_iter().flatten().map(|since| since + write_timeout);
        if let Some(deadline) = stuck.chain(lane).min() {
            if deadline <= now {
                return Err(EndReason::WriteTimeout);
            }
            by(Some(deadline));
            if shared.always_writable || shared.proofs.weight() >= self.rules.tail_max {
                by(Some(now + TRY_AGAIN));
            } else {
                interest |= Interest::WRITABLE;
            }
        }
        Ok(Plan { interest, at })
    }

    /// Does what is due about a device that has sent nothing for long.
    fn break_silence(&self, silence: &mut Silence, devices: &Devices) -> Result<(), EndReason> {
        match silence.due(Instant::now()) {
            None => Ok(()),
            Some(Due::End(reason)) => Err(reason),
            Some(Due::Silent) => {
                devices.registry.update(self, Update::Silent);
                Ok(())
            }
            Some(Due::Heartbeat) => {
                // A device that does not read what it is sent needs no more of it.
                let is_idle = {
                    let shared = self.lock();
                    shared.lane.is_empty() && shared.outbox.is_empty()
                };
                if let Some(line) = self.rules.heartbeat.as_ref().filter(|_| is_idle) {
                    self.tell(line, devices);
                }
                Ok(())
            }
        }
    }

    /// Takes up what the kernel tells of the device's acknowledgements.
    fn take_events(&self, devices: &Devices) {
        let mut proved = Vec::new();
        {
            let mut shared = self.lock();
            let mut ask = false;
            loop {
                match receipt::take_event(&self.stream) {
                    Ok(Some(low)) => {
                        let offset = receipt::widen(low, shared.proofs.written());
                        shared.proofs.acknowledged(offset, Moment::now(), &mut proved);
                    }
                    Ok(None) => ask = true,
                    // Empty. Any other error shows when the socket is read.
                    Err(_) => break,
                }
                shared.always_writable = true;
            }
            if ask {
                self.ask(&mut shared, devices);
            }
        }
        devices.conclude(proved);
    }

    /// Writes what the socket takes of what waits.
    pub(super) fn flush(self: &Arc<Self>, devices: &Devices) -> Result<(), EndReason> {
        let mut shared = self.lock();
        match shared.transport.flush(&self.stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            flushed => flushed.map_err(|error| EndReason::from_error(&error))?,
        }
        if shared.lane.is_empty() && shared.outbox.is_empty() {
            return Ok(());
        }
        let before = shared.lane.len();
        let result =
            self.send_outbox(&mut shared).and_then(|()| self.flush_lane(&mut shared, devices));
        let left = before - shared.lane.len();
        devices.lanes_changed(-i64::try_from(left).unwrap_or(i64::MAX));
        result
    }

    fn flush_lane(
        self: &Arc<Self>,
        shared: &mut Shared,
        devices: &Devices,
    ) -> Result<(), EndReason> {
        let expire = |order| {
            let fate = Fate::new(Outcome::Expired, "its ttl ended while it waited for the device");
            devices.reporter.report(order, fate);
        };
        if shared.proofs.weight() >= self.rules.tail_max {
            self.ask(shared, devices);
        }
        while shared.end.is_none() {
            let now = Instant::now();
            if shared.is_held(now, &self.rules) {
                shared.lane.take_expired(now).into_iter().for_each(expire);
                break;
            }
            let begun = shared.lane.first().is_some_and(|(_, begun)| begun);
            if shared.proofs.weight() >= self.rules.tail_max || !begun && !shared.outbox.is_empty()
            {
                break;
            }
            let from = match shared.lane.head(now) {
                Head::Empty => break,
                Head::Expired(order) => {
                    expire(order);
                    continue;
                }
                Head::Unwanted(order) => {
                    devices.hand_back_untouched(order);
                    continue;
                }
                Head::Write(from) => from,
            };
            let Some(order) = shared.lane.pop() else { break };
            match self.write(shared, &order, from, devices) {
                Ok(taken) => {
                    let is_out = shared.is_out(&order, from + taken);
                    if let Some(order) = shared.lane.wrote(order, from + taken, is_out, now) {
                        if let Offer::Written(Some(settlement)) = self.wrote(shared, order, devices)
                        {
                            settlement.settle();
                        }
                        // It may have had to wait for the rest of that line.
                        self.send_outbox(shared)?;
                    }
                }
                Err(error) => {
                    let unfinished = shared.lane.wrote(order, from, false, now);
                    debug_assert!(unfinished.is_none());
                    if error.kind() == io::ErrorKind::WouldBlock {
                        break;
                    }
                    return Err(EndReason::from_error(&error));
                }
            }
        }
        Ok(())
    }

    /// Reads what the device has sent; true if there may be more.
    fn read(
        &self,
        protocol: &mut dyn Protocol,
        kept: &mut Kept,
        devices: &Devices,
    ) -> Result<bool, EndReason> {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_MAX {
            let received = self.lock().transport.read(&self.stream, &mut buffer);
            let bytes = match received {
                Ok(0) => return Err(EndReason::Closed),
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(EndReason::from_error(&error)),
            };
            self.last_seen_ms.store(Moment::now().wall_ms, Ordering::Relaxed);
            let mut desk = Desk { session: self, devices, kept };
            protocol.feed(bytes, &mut desk).map_err(|broken| self.ended_by(broken))?;
        }
        Ok(true)
    }

    fn ended_by(&self, broken: Broken) -> EndReason {
        match broken {
            Broken::TooLong => EndReason::LineTooLong,
            Broken::Closed => EndReason::Closed,
            Broken::Malformed(reason) => {
                info!(address = %self.address, peer = %self.peer, %reason, "the device does not keep to its wire format.");
                EndReason::Malformed
            }
        }
    }

    /// Takes up a line that the device sent: an answer, or something of its own.
    pub(super) fn line(&self, line: &[u8], devices: &Devices) {
        // Devices send empty lines to keep their link alive; they say nothing.
        if line.is_empty() {
            return;
        }
        self.lines.fetch_add(1, Ordering::Relaxed);
        devices.metrics.uplink_line();
        let (is, at) = {
            let at = Moment::now();
            let mut shared = self.lock();
            let is = if shared.hold.greeting {
                LineIs::Uplink
            } else {
                shared.proofs.line(&self.rules.answer, line, at)
            };
            if std::mem::take(&mut shared.hold.greeting) || !matches!(is, LineIs::Uplink) {
                // What waits in the lane may go on.
                shared.lane.restart_clock(at.mono);
                self.wake.give();
            }
            (is, at)
        };
        let late = match is {
            LineIs::Answer(order) => {
                devices.conclude(vec![(order, Fate::answered(line, at))]);
                return;
            }
            LineIs::Late => true,
            LineIs::Uplink => false,
        };
        if let Some(uplink) = devices.uplink.as_ref().filter(|_| self.rules.uplink) {
            uplink.line(&self.address, self.epoch(), line, late);
        }
    }
}
