//! `Link`: one connection to the broker, opened and closed within limits.
//!
//! lapin's own connect has no timeout, and giving up on its future leaves its I/O thread waiting for
//! a silent peer. So the socket is made here, and shut down when its time is over: that ends the
//! thread. Recovery is left off; whoever holds a `Link` drops it on any trouble and opens another.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_compat::CompatExt;
use futures_util::{Stream, StreamExt};
use lapin::options::ConfirmSelectOptions;
use lapin::protocol::AMQPErrorKind;
use lapin::tcp::RustlsConnector;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind, Event};
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::BrokerError;
use super::nodes::Nodes;
use super::tls;
use crate::settings::{Broker, Endpoint};

/// A close that the broker does not answer is cut off after this: the connection is of no use then.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a connection is looked at whose end may not have been told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Data the broker does not acknowledge for this long ends the connection, as an AMQP heartbeat
/// would with the default of 10 s.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a channel is tried to be opened. A closed one whose number it got cannot be met many times in a row.
const OPEN_TRIES: usize = 5;

type Slot<T> = Arc<Mutex<Option<T>>>;

/// One connection.
pub(super) struct Link {
    connection: Connection,
    socket: Option<Socket>,
    nodes: Arc<Nodes>,
    host: Endpoint,
}

impl Link {
    /// Opens a connection to `host` for `purpose`, whose name it bears in RabbitMQ's own lists.
    pub(super) async fn open(
        nodes: &Arc<Nodes>,
        host: &Endpoint,
        bridge: &str,
        purpose: &str,
    ) -> Result<Self, BrokerError> {
        let mq = nodes.mq();
        let tls = tls::connector(mq, host)?;
        let socket: Slot<Socket> = Slot::default();
        let refusal: Slot<BrokerError> = Slot::default();
        let connect = {
            let host = host.clone();
            let (socket, refusal) = (Arc::clone(&socket), Arc::clone(&refusal));
            async move |_uri, _runtime| {
                let keep = |dialed: SockRef<'_>| {
                    put(&socket, dialed.try_clone()?);
                    Ok(())
                };
                dial(&host, tls.as_ref(), keep).await.map_err(|(error, kind)| {
                    put(&refusal, error);
                    lapin::Error::from(io::Error::from(kind))
                })
            }
        };
        let name = name(bridge, purpose);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime()
            .map_err(BrokerError::during("starting the connection"))?;
        let opening = Connection::connector(uri(mq, host), runtime, connect, properties);
        match timeout(mq.connect_timeout, opening).await {
            Ok(Ok(connection)) => {
                let (nodes, host) = (Arc::clone(nodes), host.clone());
                Ok(Self { connection, socket: take(&socket), nodes, host })
            }
            Ok(Err(error)) => {
                shut(take(&socket));
                Err(take(&refusal).unwrap_or_else(|| refused(mq, host, error)))
            }
            Err(_) => {
                shut(take(&socket));
                Err(silent(mq, host))
            }
        }
    }

    /// Where it leads.
    pub(super) fn host(&self) -> &Endpoint {
        &self.host
    }

    /// Something on it has failed that another host may do better: the next attempt of whatever connection
    /// begins elsewhere.
    pub(super) fn failed(&self) {
        self.nodes.failed(&self.host);
    }

    /// Closes it after what was done on it, whose error then names the host; and counts for one.
    pub(super) async fn end<T>(self, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        let result = result.map_err(|error| self.nodes.blame(&self.host, error));
        self.close().await;
        result
    }

    /// A new channel on it.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.open_channel().await.map_err(BrokerError::during("opening a channel"))
    }

    /// The same, with lapin's error, for whoever tells by it what the broker said.
    pub(super) async fn open_channel(&self) -> lapin::Result<Channel> {
        let mut tries = 1;
        loop {
            match self.connection.create_channel().await {
                Err(error) if is_of_another_channel(&error) && tries < OPEN_TRIES => tries += 1,
                opened => return opened,
            }
        }
    }

    /// A new channel on it, on which the broker confirms what is published.
    pub(super) async fn confirming_channel(&self) -> Result<Channel, BrokerError> {
        let channel = self.channel().await?;
        let confirm = channel.confirm_select(ConfirmSelectOptions { nowait: false }).await;
        confirm.map_err(BrokerError::during("asking for publisher confirms"))?;
        Ok(channel)
    }

    /// What happens to the connection as a whole.
    pub(super) fn events(&self) -> impl Stream<Item = Event> + Send + Unpin + 'static {
        Box::pin(self.connection.events_listener()).fuse()
    }

    /// Ends once the connection has, however that came about. lapin leaves calls without an answer when
    /// the connection is lost at the wrong moment: whoever makes one waits for this as well.
    pub(super) async fn lost(&self) -> BrokerError {
        let mut events = self.events();
        while self.connection.status().connected() {
            // What happened before is not told, so it is also looked at now and then.
            let told = timeout(LOOK_EVERY, events.next()).await;
            if matches!(told, Ok(None)) {
                break;
            }
        }
        let ended = io::Error::from(io::ErrorKind::ConnectionAborted);
        BrokerError::during("waiting for the broker")(ended.into())
    }

    /// Closes it in good order, or cuts it off if the broker does not answer.
    pub(super) async fn close(mut self) {
        let closing = self.connection.close(200, "done".into());
        if !matches!(timeout(CLOSE_TIMEOUT, closing).await, Ok(Ok(()))) {
            shut(self.socket.take());
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Whatever state lapin is in, its thread ends with its socket.
        shut(self.socket.take());
    }
}

/// Whether it is what the broker said of a channel that it has closed. lapin may hand that out to one that is
/// opened meanwhile under the same number; the connection is as good as before.
fn is_of_another_channel(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(said) = error.kind() else { return false };
    matches!(said.kind(), AMQPErrorKind::Soft(_))
}

/// What a connection is called in RabbitMQ's own lists.
pub(super) fn name(bridge: &str, purpose: &str) -> String {
    format!("rabbitline {bridge} {purpose}")
}

fn uri(mq: &Broker, host: &Endpoint) -> AMQPUri {
    let heartbeat = u16::try_from(mq.heartbeat.as_secs()).unwrap_or(u16::MAX);
    AMQPUri {
        scheme: if mq.tls.is_on() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: mq.username.clone(),
                password: mq.password.expose().to_owned(),
            },
            host: host.host.clone(),
            port: host.port,
        },
        vhost: mq.vhost.clone(),
        query: AMQPQueryString { heartbeat: Some(heartbeat), ..AMQPQueryString::default() },
    }
}

/// The broker has not answered in time.
pub(super) fn silent(mq: &Broker, host: &Endpoint) -> BrokerError {
    let limit = humantime::format_duration(mq.connect_timeout);
    BrokerError::Silent { address: host.to_string(), limit }
}

pub(super) type Dialed = AsyncTcpStream<async_compat::Compat<TcpStream>>;

/// Makes the TCP connection and, with `tls`, the session; `with` sees the socket before that.
pub(super) async fn dial(
    host: &Endpoint,
    tls: Option<&RustlsConnector>,
    with: impl FnOnce(SockRef<'_>) -> io::Result<()>,
) -> Result<Dialed, (BrokerError, io::ErrorKind)> {
    let unreachable = |source: io::Error| {
        let kind = source.kind();
        (BrokerError::Unreachable { address: host.to_string(), source }, kind)
    };
    let connecting = TcpStream::connect((host.host.as_str(), host.port));
    let stream = connecting.await.map_err(unreachable)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(USER_TIMEOUT / 2)
        .with_interval(USER_TIMEOUT / 8)
        .with_retries(4);
    let configured = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_user_timeout(Some(USER_TIMEOUT)))
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| with(socket));
    configured.map_err(unreachable)?;
    let plain = AsyncTcpStream::Plain(stream.compat());
    let Some(tls) = tls else { return Ok(plain) };
    plain.into_rustls(tls, &host.host).await.map_err(|source| {
        let kind = source.kind();
        (BrokerError::Tls { address: host.to_string(), source }, kind)
    })
}

/// Tells from lapin's error what the broker did not like.
pub(super) fn refused(mq: &Broker, host: &Endpoint, error: lapin::Error) -> BrokerError {
    const ACCESS_REFUSED: u16 = 403;
    const NOT_ALLOWED: u16 = 530;
    let ErrorKind::ProtocolError(amqp) = error.kind() else {
        return BrokerError::Handshake { address: host.to_string(), said: error.to_string() };
    };
    let (address, username, said) =
        (host.to_string(), mq.username.clone(), amqp.get_message().to_string());
    match amqp.get_id() {
        ACCESS_REFUSED => BrokerError::Login { address, username, said },
        NOT_ALLOWED => BrokerError::Vhost { address, vhost: mq.vhost.clone(), username, said },
        _ => BrokerError::during("connecting")(error),
    }
}

fn put<T>(slot: &Slot<T>, value: T) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
}

fn take<T>(slot: &Slot<T>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn shut(socket: Option<Socket>) {
    if let Some(socket) = socket {
        // It may be closed already, which is as good.
        socket.shutdown(Shutdown::Both).ok();
    }
}
