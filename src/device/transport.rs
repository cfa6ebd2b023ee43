//! `Transport`: what lies between a session and its socket: nothing, or TLS.
//!
//! Offsets, by which the device's TCP stack acknowledges, count what goes on the wire: with TLS that is
//! ciphertext. A record the kernel has not taken whole waits here, and nothing overtakes it; what is in
//! it counts as written only then.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::debug;

use super::receipt;

/// Bytes put into one record, which is the most that TLS allows.
const RECORD_MAX: usize = 16 * 1024;

/// Nothing, or TLS.
#[derive(Debug, Default)]
pub(super) struct Transport {
    tls: Option<Box<Tls>>,
    /// Bytes for the wire since the connection was accepted, those that wait here included.
    wire: u64,
}

/// A connection's socket, and how it is spoken on.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: TcpStream,
    pub(super) transport: Transport,
    /// Whether the kernel tells what the device acknowledges.
    pub(super) provable: bool,
}

impl Socket {
    /// A plain one on which nothing has been said. Has the kernel tell what is acknowledged, if it
    /// can: offsets count from here.
    pub(super) fn new(stream: TcpStream) -> Self {
        let prepared = receipt::prepare(&stream);
        if let Err(error) = &prepared {
            debug!(%error, "cannot learn what a device acknowledges.");
        }
        Self { stream, transport: Transport::default(), provable: prepared.is_ok() }
    }
}

#[derive(Debug)]
struct Tls {
    connection: ServerConnection,
    /// What the kernel has not taken yet.
    outgoing: Vec<u8>,
    /// Since when it has taken nothing of it.
    stuck_since: Option<Instant>,
    /// Whether the kernel is to tell when the end of it is acknowledged.
    marked: bool,
}

impl Transport {
    /// Agrees on TLS with the device.
    pub(super) async fn accept(stream: &TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut tls = Tls { connection, outgoing: Vec::new(), stuck_since: None, marked: false };
        let mut wire = 0;
        loop {
            tls.encrypt(&mut wire)?;
            match tls.flush(stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.writable().await?;
                    continue;
                }
                flushed => flushed?,
            }
            if !tls.connection.is_handshaking() {
                return Ok(Self { tls: Some(Box::new(tls)), wire });
            }
            stream.readable().await?;
            match tls.receive(stream) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    // The device is told why, as far as that can be done without waiting.
                    tls.encrypt(&mut wire).and_then(|()| tls.flush(stream)).ok();
                    return Err(error);
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Whether it is TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The certificate of the device, if it has shown one.
    pub(super) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.as_ref()?.connection.peer_certificates()?.first()
    }

    /// Writes as much as goes at once. With `mark` the kernel tells when that is acknowledged.
    pub(super) fn write(
        &mut self,
        stream: &TcpStream,
        bytes: &[u8],
        mark: bool,
    ) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            let taken =
                if mark { receipt::send_marked(stream, bytes) } else { send(stream, bytes) }?;
            self.wire += taken as u64;
            return Ok(taken);
        };
        tls.flush(stream)?;
        let record = bytes.get(..RECORD_MAX).unwrap_or(bytes);
        tls.connection.writer().write_all(record)?;
        tls.marked = mark;
        tls.encrypt(&mut self.wire)?;
        match tls.flush(stream) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(record.len()),
        }
    }

    /// Reads as much as there is and fits. `WouldBlock` when there is nothing.
    pub(super) fn read(&mut self, stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return stream.try_read(buffer) };
        loop {
            match tls.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            tls.receive(stream)?;
            // Answers of TLS itself. An error shows at the next write.
            tls.encrypt(&mut self.wire)?;
            tls.flush(stream).ok();
        }
    }

    /// Has the kernel take more of what waits. `WouldBlock` while there is some left.
    pub(super) fn flush(&mut self, stream: &TcpStream) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |tls| tls.flush(stream))
    }

    /// Bytes for the wire since the connection was accepted, those that wait here included: the offset
    /// of the end of what was written last.
    pub(super) fn wire(&self) -> u64 {
        self.wire
    }

    /// How much waits for the kernel.
    pub(super) fn pending(&self) -> usize {
        self.tls.as_ref().map_or(0, |tls| tls.outgoing.len())
    }

    /// Since when the kernel has taken nothing of what waits.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        self.tls.as_ref()?.stuck_since
    }

    /// Says goodbye, as far as that can be done without waiting.
    pub(super) fn close(&mut self, stream: &TcpStream) {
        if let Some(tls) = &mut self.tls {
            tls.connection.send_close_notify();
            tls.encrypt(&mut self.wire).and_then(|()| tls.flush(stream)).ok();
        }
    }
}

/// Writes as `try_write` does, but looks at what tokio knows of the socket only if it is full: of ten thousand
/// sockets that is in no cache.
fn send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match SockRef::from(stream).send(bytes) {
        // Tokio has to learn of it, so that it can tell when there is room.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.try_write(bytes),
        sent => sent,
    }
}

impl Tls {
    /// Makes records of what is to be said; adds their length to `wire`.
    fn encrypt(&mut self, wire: &mut u64) -> io::Result<()> {
        while self.connection.wants_write() {
            *wire += self.connection.write_tls(&mut self.outgoing)? as u64;
        }
        Ok(())
    }

    fn flush(&mut self, stream: &TcpStream) -> io::Result<()> {
        let mut sent = 0;
        let result = loop {
            let rest = self.outgoing.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            let taken = if self.marked {
                receipt::send_marked(stream, rest)
            } else {
                stream.try_write(rest)
            };
            match taken {
                Ok(taken) => sent += taken,
                Err(error) => break Err(error),
            }
        };
        if sent == self.outgoing.len() {
            // An idle device holds no buffer.
            self.outgoing = Vec::new();
            self.stuck_since = None;
        } else {
            self.outgoing.drain(..sent);
            if sent > 0 || self.stuck_since.is_none() {
                self.stuck_since = Some(Instant::now());
            }
        }
        result
    }

    /// Takes up what the device has sent; how many bytes of ciphertext, zero at the end.
    fn receive(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let count = self.connection.read_tls(&mut Incoming(stream))?;
        let processed = self.connection.process_new_packets();
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(count)
    }
}

/// The socket's bytes, as rustls reads them.
struct Incoming<'a>(&'a TcpStream);

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}
