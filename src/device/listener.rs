//! `Listener`: takes up TCP connections and makes sessions of them.
//!
//! It survives a lack of file descriptors: it waits, longer each time, and never spins. The options
//! that find dead links are set on the listening socket, from which Linux gives them to every
//! connection, so that a connect costs no further system calls.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::Devices;
use super::door::{Door, Refusal, Tickets};
use super::handshake::Known;
use super::options::Options;
use super::registry::NotAdmitted;
use super::session::Session;
use super::transport::Socket;
use crate::access::gate::flapping::Flapping;
use crate::access::gate::rate::AcceptRate;
use crate::access::gate::unknown::UnknownTicket;
use crate::access::gate::{Total, TotalTicket};
use crate::protocol::Wire;
use crate::settings;

/// Connections the kernel holds until they are accepted; it lowers this to `net.core.somaxconn`.
/// With tokio's own 128, a thousand devices that reconnect at once wait for SYN retransmits.
const BACKLOG: u32 = 65_535;
/// First and longest wait after a failure to accept. Descriptors come free when devices leave, so
/// a second is soon enough.
const ACCEPT_WAIT_MIN: Duration = Duration::from_millis(5);
const ACCEPT_WAIT_MAX: Duration = Duration::from_secs(1);

/// A bound socket that devices connect to.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    door: Arc<Door>,
    options: Options,
    rate: Option<AcceptRate>,
}

/// What every listener works with.
#[derive(Debug, Clone)]
pub(crate) struct Hall {
    pub(crate) devices: Arc<Devices>,
    pub(crate) total: Total,
    /// Where sessions run.
    pub(crate) sessions: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Listener {
    /// Binds the address that devices connect to, who will be held to what `door` asks.
    pub(crate) fn bind(listener: &settings::Listener, door: Door) -> io::Result<Self> {
        let address = listener.address;
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            SockRef::from(&socket).set_only_v6(false)?;
        }
        let options = Options::of(&listener.device);
        options.set(&SockRef::from(&socket))?;
        socket.bind(address)?;
        let rate = Door::accept_rate(listener);
        Ok(Self { listener: socket.listen(BACKLOG)?, door: Arc::new(door), options, rate })
    }

    /// Its name in logs.
    pub(crate) fn name(&self) -> &str {
        &self.door.rules.listener
    }

    /// What its devices speak.
    pub(crate) fn wire(&self) -> Wire {
        self.door.rules.wire.clone()
    }

    /// The address it is bound to.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until told to stop; each session runs on its own.
    pub(crate) async fn run(mut self, hall: Hall) {
        let mut wait = ACCEPT_WAIT_MIN;
        loop {
            let accepted = tokio::select! {
                biased;
                () = hall.stop.cancelled() => return,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    wait = ACCEPT_WAIT_MIN;
                    if let Err(error) = self.options.spread(&SockRef::from(&stream)) {
                        debug!(%peer, %error, "cannot set the options of a socket.");
                    }
                    self.take(stream, peer, &hall);
                }
                Err(error) if is_of_one_connection(&error) => {
                    debug!(%error, "a connection ended before it was accepted.");
                }
                Err(error) => {
                    hall.devices.metrics.accept_error();
                    warn!(%error, wait_ms = wait.as_millis(), "cannot accept connections; raise the limit on open files if this goes on.");
                    tokio::select! {
                        () = hall.stop.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (wait * 2).min(ACCEPT_WAIT_MAX);
                }
            }
        }
    }

    /// The next connection, no sooner than the rate allows.
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        if let Some(rate) = &mut self.rate {
            while let Err(wait) = rate.accept(Instant::now()) {
                tokio::time::sleep(wait).await;
            }
        }
        self.listener.accept().await
    }

    /// Admits a connection, at once or when it is known who it is.
    fn take(&self, stream: TcpStream, peer: SocketAddr, hall: &Hall) {
        if self.door.knows_at_once(peer.ip()) {
            self.door.take_known(stream, peer, Vec::new(), hall);
            return;
        }
        let Some(total) = hall.total.enter() else {
            hall.devices.metrics.refused(Refusal::Total);
            return;
        };
        let (door, hall) = (Arc::clone(&self.door), hall.clone());
        let sessions = hall.sessions.clone();
        // Here, not in the task: tasks need not begin in the order in which connections came.
        let place = door.unknown.enter();
        sessions.spawn(async move {
            match learn(&door, place, stream, peer, &hall).await {
                Ok(known) => door.admit(known, total, &hall),
                Err(Some(refusal)) => hall.devices.metrics.refused(refusal),
                Err(None) => {}
            }
        });
    }
}

/// Learns who a connection is; none if the bridge is shutting down.
async fn learn(
    door: &Door,
    place: UnknownTicket,
    stream: TcpStream,
    peer: SocketAddr,
    hall: &Hall,
) -> Result<Known, Option<Refusal>> {
    tokio::select! {
        biased;
        () = hall.stop.cancelled() => Err(None),
        () = place.pushed_out() => Err(Some(Refusal::PushedOut)),
        known = timeout(door.timeout, door.identify(stream, peer)) => {
            known.unwrap_or(Err(Refusal::Timeout)).map_err(Some)
        }
    }
}

impl Door {
    /// Admits a connection that is known for what it is at once; `rest` is what it has sent already.
    pub(crate) fn take_known(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        rest: Vec<u8>,
        hall: &Hall,
    ) {
        let entered = hall.total.enter().ok_or(Refusal::Total);
        match entered.and_then(|total| Ok((total, self.place(peer)?))) {
            Ok((total, place)) => {
                let (address, socket) = (self.name_of(peer), Socket::new(stream));
                self.admit(Known { address, peer, socket, rest, place }, total, hall);
            }
            Err(refusal) => hall.devices.metrics.refused(refusal),
        }
    }

    /// Makes a session of a connection whose device is known.
    fn admit(&self, known: Known, total: TotalTicket, hall: &Hall) {
        let Known { address, peer, socket, rest, place } = known;
        let devices = &hall.devices;
        let flaps = |flapping: &Flapping| !flapping.may_connect(&address, Instant::now());
        if self.flapping.as_ref().is_some_and(flaps) {
            info!(%address, %peer, "connection refused: its device connects too often.");
            devices.metrics.refused(Refusal::Flapping);
            return;
        }
        let tickets = Tickets { _total: total, _place: place };
        let rules = Arc::clone(&self.rules);
        // Registered first, spawned then: a session that ends at once finds its own entry to remove.
        let session = devices.registry.admit(devices, address, self.second, |address, epoch| {
            Session::new(address, epoch, peer, socket, tickets, rules)
        });
        match session {
            Ok(session) => {
                hall.sessions.spawn(session.serve(Arc::clone(devices), &rest));
            }
            Err(NotAdmitted::Closed) => {}
            Err(NotAdmitted::Taken(address)) => {
                info!(%address, %peer, "connection refused: its device is connected, and DEVICE_SECOND is reject.");
                devices.metrics.refused(Refusal::Taken);
            }
        }
    }
}

/// Whether the error is about the connection that was being accepted, not about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::Interrupted,
    ];
    kinds.contains(&error.kind())
}
