//! From an accepted connection to a device that is known: PROXY header, TLS, hello, token.
//!
//! Each connection has a task of its own for this, with one limit for all of it; nothing is registered
//! before the end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tracing::{debug, info};

use super::door::{Door, Refusal, Who};
use super::transport::{Socket, Transport};
use crate::access::gate::{Full, Ticket};
use crate::access::tokens::{Checked, Tokens};
use crate::access::{hello, proxy, tls};
use crate::command::Address;
use crate::protocol::{Broken, Hello, chat};

/// Bytes read at a time before a device is known.
const READ_BYTES: usize = 512;
/// How soon a PROXY header of which a part has come is looked at again.
const PEEK_AGAIN: Duration = Duration::from_millis(5);

/// A connection whose device is known.
pub(super) struct Known {
    pub(super) address: Address,
    /// Where it comes from, behind the proxy if there is one.
    pub(super) peer: SocketAddr,
    pub(super) socket: Socket,
    /// What the device has sent behind its hello.
    pub(super) rest: Vec<u8>,
    pub(super) place: Ticket,
}

impl Door {
    /// What names a device that does not say so itself.
    pub(super) fn name_of(&self, peer: SocketAddr) -> Address {
        match self.who {
            Who::Peer => {
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                Address::Name(peer.to_string().into())
            }
            Who::Ip | Who::Hello(..) | Who::Chat(_) | Who::Certificate(_) => {
                Address::from(peer.ip())
            }
        }
    }

    /// Counts a connection from there, if there is room.
    pub(super) fn place(&self, peer: SocketAddr) -> Result<Ticket, Refusal> {
        self.gate.enter(peer.ip()).map_err(|full| match full {
            Full::Ip => Refusal::PerIp,
            Full::Net => Refusal::PerNet,
        })
    }

    /// Learns who a connection is. What the device is owed for a hello is sent here.
    pub(super) async fn identify(
        &self,
        stream: TcpStream,
        proxy: SocketAddr,
    ) -> Result<Known, Refusal> {
        let mut socket = Socket::new(stream);
        let peer = if self.proxies.contain(proxy.ip()) {
            source(&socket.stream, proxy).await?
        } else {
            proxy
        };
        let place = self.place(peer)?;
        if let Some(tls) = &self.tls {
            let accepted = Transport::accept(&socket.stream, tls.get()).await;
            socket.transport = accepted.map_err(|error| no_tls(peer, &error))?;
        }
        let mut line = Line { socket, heard: Vec::new() };
        let address = match &self.who {
            Who::Ip | Who::Peer => self.name_of(peer),
            Who::Certificate(which) => {
                let name =
                    line.socket.transport.certificate().and_then(|it| tls::name_in(it, *which));
                let name = name.ok_or("the certificate has no such name".into());
                name.and_then(|name| Address::parse(&name)).map_err(|reason| {
                    info!(%peer, %reason, "connection refused: no name in its certificate.");
                    Refusal::Hello
                })?
            }
            Who::Hello(pattern, tokens) => {
                let max = self.rules.line_max;
                let look = |heard: &[u8]| hello::look(heard, &pattern.0, max);
                let (address, right) = line.hear(peer, look, tokens.as_ref()).await?;
                right?;
                address
            }
            Who::Chat(tokens) => loop {
                let look = |heard: &[u8]| chat::verify(heard, self.rules.line_max);
                let (address, right) = line.hear(peer, look, tokens.as_ref()).await?;
                line.say(&chat::verified(right.is_ok())).await?;
                if right.is_ok() {
                    break address;
                }
            },
        };
        let Line { socket, heard: rest } = line;
        Ok(Known { address, peer, socket, rest, place })
    }
}

/// A connection whose device is not known yet.
struct Line {
    socket: Socket,
    /// What has come and is not used up.
    heard: Vec<u8>,
}

impl Line {
    /// Waits until the device has said who it is; and whether that is right.
    async fn hear(
        &mut self,
        peer: SocketAddr,
        look: impl Fn(&[u8]) -> Result<Hello, Broken>,
        tokens: Option<&Tokens>,
    ) -> Result<(Address, Result<(), Refusal>), Refusal> {
        loop {
            let hello = look(&self.heard).map_err(|broken| {
                debug!(%peer, ?broken, "connection refused: what it sent is no hello.");
                Refusal::Hello
            })?;
            match hello {
                Hello::More => self.read().await?,
                Hello::Ignore(length) => drop(self.heard.drain(..length)),
                Hello::Claim { length, id, token } => {
                    self.heard.drain(..length);
                    let address = Address::parse(&id).map_err(|reason| {
                        info!(%peer, %reason, "connection refused: its name is none.");
                        Refusal::Hello
                    })?;
                    let right = match tokens {
                        None => Ok(()),
                        Some(tokens) => check(tokens, peer, &id, token.as_deref()).await,
                    };
                    return Ok((address, right));
                }
            }
        }
    }

    async fn read(&mut self) -> Result<(), Refusal> {
        let Socket { stream, transport, .. } = &mut self.socket;
        let mut buffer = [0; READ_BYTES];
        loop {
            match transport.read(stream, &mut buffer) {
                Ok(0) => return Err(Refusal::Left),
                Ok(count) => {
                    self.heard.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.readable().await.map_err(|_| Refusal::Left)?;
                }
                Err(_) => return Err(Refusal::Left),
            }
        }
    }

    async fn say(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        let Socket { stream, transport, .. } = &mut self.socket;
        loop {
            let done = if bytes.is_empty() {
                transport.flush(stream).map(|()| 0)
            } else {
                transport.write(stream, bytes, false)
            };
            match done {
                Ok(0) => return Ok(()),
                Ok(taken) => bytes = bytes.get(taken..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.writable().await.map_err(|_| Refusal::Left)?;
                }
                Err(_) => return Err(Refusal::Left),
            }
        }
    }
}

/// Where a connection comes from, by the PROXY header that it begins with.
async fn source(stream: &TcpStream, proxy: SocketAddr) -> Result<SocketAddr, Refusal> {
    let mut buffer = [0; proxy::HEADER_MAX];
    let mut seen = 0;
    loop {
        // Asked before: what comes meanwhile is not missed.
        let ready = stream.ready(Interest::READABLE).await.map_err(|_| Refusal::Left)?;
        // Looked at and left: what follows the header is for others.
        let count = stream.peek(&mut buffer).await.map_err(|_| Refusal::Left)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        let look = proxy::look(bytes).map_err(|reason| {
            info!(%proxy, %reason, "connection refused: no PROXY header.");
            Refusal::Proxy
        })?;
        match look {
            proxy::Look::Header { length, source } => {
                take(stream, length).await?;
                return Ok(source.unwrap_or(proxy));
            }
            proxy::Look::More if count == 0 => return Err(Refusal::Left),
            proxy::Look::More => {
                // The socket stays readable while anything is in it: nothing tells of more.
                if count == seen {
                    if ready.is_read_closed() {
                        return Err(Refusal::Left);
                    }
                    tokio::time::sleep(PEEK_AGAIN).await;
                }
                seen = count;
            }
        }
    }
}

async fn take(stream: &TcpStream, mut length: usize) -> Result<(), Refusal> {
    let mut buffer = [0; proxy::HEADER_MAX];
    while length > 0 {
        stream.readable().await.map_err(|_| Refusal::Left)?;
        let end = length.min(buffer.len());
        match stream.try_read(buffer.get_mut(..end).unwrap_or_default()) {
            Ok(0) => return Err(Refusal::Left),
            Ok(count) => length -= count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Refusal::Left),
        }
    }
    Ok(())
}

async fn check(
    tokens: &Tokens,
    peer: SocketAddr,
    id: &str,
    token: Option<&str>,
) -> Result<(), Refusal> {
    let refusal = match tokens.check(peer.ip(), id, token.unwrap_or_default()).await {
        Checked::Right => return Ok(()),
        Checked::Wrong => Refusal::Token,
        Checked::TooSoon => Refusal::TooSoon,
        Checked::Unknown(reason) => {
            info!(%peer, id, reason, "connection refused: nobody can say whether its token is right.");
            return Err(Refusal::TokensAway);
        }
    };
    info!(%peer, id, reason = refusal.label(), "connection refused: its token is wrong.");
    Err(refusal)
}

fn no_tls(peer: SocketAddr, error: &io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Refusal::Left;
    }
    debug!(%peer, %error, "connection refused: no TLS.");
    Refusal::Tls
}
