//! `Listener`: takes up TCP connections and makes sessions of them.
//!
//! It survives a lack of file descriptors: it waits, longer each time, and never spins. The options
//! that find dead links are set on the listening socket, from which Linux gives them to every
//! connection, so that a connect costs no further system calls.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::session::Session;
use super::transport::Transport;
use super::{Devices, Rules};
use crate::command::Address;
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
pub struct Listener {
    listener: TcpListener,
    rules: Arc<Rules>,
}

/// A connection whose device is known.
struct Identified {
    address: Address,
    peer: SocketAddr,
    stream: TcpStream,
}

impl Listener {
    /// Binds the address that devices connect to, who will be held to `rules`.
    pub(crate) fn bind(listener: &settings::Listener, rules: Arc<Rules>) -> io::Result<Self> {
        let address = listener.address;
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            SockRef::from(&socket).set_only_v6(false)?;
        }
        set_options(&SockRef::from(&socket), &listener.device)?;
        socket.bind(address)?;
        Ok(Self { listener: socket.listen(BACKLOG)?, rules })
    }

    /// Its name in logs.
    pub(crate) fn name(&self) -> &str {
        &self.rules.listener
    }

    /// What its devices speak.
    pub(crate) fn wire(&self) -> Wire {
        self.rules.wire.clone()
    }

    /// The address it is bound to.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until `stop`; each session runs on its own under `sessions`.
    pub async fn run(self, devices: Arc<Devices>, sessions: TaskTracker, stop: CancellationToken) {
        let mut wait = ACCEPT_WAIT_MIN;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    wait = ACCEPT_WAIT_MIN;
                    admit(identify(stream, peer), &self.rules, &devices, &sessions);
                }
                Err(error) if is_of_one_connection(&error) => {
                    debug!(%error, "a connection ended before it was accepted.");
                }
                Err(error) => {
                    devices.metrics.accept_error();
                    warn!(%error, wait_ms = wait.as_millis(), "cannot accept connections; raise the limit on open files if this goes on.");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (wait * 2).min(ACCEPT_WAIT_MAX);
                }
            }
        }
    }
}

/// Keepalive finds a device that vanished while idle, TCP_USER_TIMEOUT one that vanished while data
/// was on its way; each alone misses the other case.
fn set_options(socket: &SockRef<'_>, device: &settings::Device) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(device.keepalive_idle)
        .with_interval(device.keepalive_interval)
        .with_retries(u32::from(device.keepalive_count.get()));
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(device.user_timeout))?;
    // What is in it when the link dies may or may not have arrived: so it is kept small.
    socket.set_send_buffer_size(device.send_buffer.0)?;
    socket.set_tcp_nodelay(true)
}

/// A device is who its IP address says.
fn identify(stream: TcpStream, peer: SocketAddr) -> Identified {
    Identified { address: Address::from(peer.ip()), peer, stream }
}

fn admit(
    identified: Identified,
    rules: &Arc<Rules>,
    devices: &Arc<Devices>,
    sessions: &TaskTracker,
) {
    let Identified { address, peer, stream } = identified;
    // Registered first, spawned then: a session that ends at once finds its own entry to remove.
    let session = devices.registry.admit(devices, |epoch| {
        Session::new(address, epoch, peer, stream, Transport::default(), Arc::clone(rules))
    });
    if let Some(session) = session {
        sessions.spawn(session.serve(Arc::clone(devices)));
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
