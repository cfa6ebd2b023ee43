//! One device: a TCP connection from a 127.x address of its own. Devices that behave badly are made of the same parts:
//! one that does not read, one that resets, one that sends half a line.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::wait::DEADLINE;

pub(crate) struct Device {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// What came of waiting for bytes.
enum Got {
    Bytes,
    End,
}

impl Device {
    /// Connects from `from` to the bridge's port on loopback.
    #[track_caller]
    pub(crate) fn connect(from: &str, port: u16) -> Self {
        Self::connect_to((Ipv4Addr::LOCALHOST, port).into(), from, None)
    }

    /// Connects with the smallest receive buffer the kernel grants, so that little fits before the bridge must wait.
    #[track_caller]
    pub(crate) fn narrow(from: &str, port: u16) -> Self {
        Self::connect_to((Ipv4Addr::LOCALHOST, port).into(), from, Some(1))
    }

    /// Connects from `from` to an address of the bridge's that need not be on loopback.
    #[track_caller]
    pub(crate) fn connect_to(
        bridge: SocketAddr,
        from: &str,
        receive_buffer: Option<usize>,
    ) -> Self {
        let dialled = dial(bridge, from, receive_buffer);
        let stream: TcpStream =
            dialled.unwrap_or_else(|error| panic!("{from} cannot connect: {error}")).into();
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self { stream, unread: Vec::new() }
    }

    /// The address and port that the bridge sees.
    pub(crate) fn local(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket")
    }

    /// The next line, with its terminator, as it came.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let line = self
            .line_or_end()
            .unwrap_or_else(|| panic!("{}: the bridge closed the connection", self.local()));
        String::from_utf8(line).expect("a line of UTF-8")
    }

    /// The next line, or nothing when the bridge has closed the connection. Half a line before the end is dropped.
    #[track_caller]
    pub(crate) fn line_or_end(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                return Some(self.unread.drain(..=end).collect());
            }
            match self.receive() {
                Got::Bytes => {}
                Got::End => return None,
            }
        }
    }

    /// Waits until the bridge has closed the connection; the lines that came before.
    #[track_caller]
    pub(crate) fn until_closed(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.line_or_end()).collect()
    }

    /// The lines that have come and were not taken yet; waits for nothing.
    pub(crate) fn so_far(&mut self) -> Vec<String> {
        self.stream.set_nonblocking(true).expect("O_NONBLOCK");
        let mut chunk = [0; 65_536];
        while let Ok(count @ 1..) = self.stream.read(&mut chunk) {
            self.unread.extend_from_slice(&chunk[..count]);
        }
        self.stream.set_nonblocking(false).expect("O_NONBLOCK");
        let mut lines = Vec::new();
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line = self.unread.drain(..=end).collect();
            lines.push(String::from_utf8(line).expect("a line of UTF-8"));
        }
        lines
    }

    /// Whether the bridge has closed the connection, as far as is known now.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("O_NONBLOCK");
        let mut chunk = [0; 65_536];
        let closed = loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(count) => self.unread.extend_from_slice(&chunk[..count]),
                Err(error) => break error.kind() != io::ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).expect("O_NONBLOCK");
        closed
    }

    /// Sends these bytes in a segment each.
    pub(crate) fn send_bytewise(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(&[*byte]);
        }
    }

    /// The connection itself, of which nothing was read.
    pub(crate) fn into_stream(self) -> TcpStream {
        assert!(self.unread.is_empty(), "{:?}", self.unread);
        self.stream
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .unwrap_or_else(|error| panic!("{}: cannot send: {error}", self.local()));
    }

    /// Sends line after line until the bridge closes the connection.
    pub(crate) fn talk_without_end(mut self) {
        std::thread::spawn(move || {
            while self.stream.write_all(b"BLAH BLAH BLAH BLAH BLAH BLAH BLAH\n").is_ok() {}
        });
    }

    /// Sends so small a piece again and again until the bridge's kernel takes no more.
    pub(crate) fn send_until_full(&mut self, piece: &[u8]) {
        self.stream.set_nonblocking(true).expect("O_NONBLOCK");
        while self.stream.write(piece).is_ok() {}
        self.stream.set_nonblocking(false).expect("O_NONBLOCK");
    }

    /// Breaks the connection with a reset instead of an orderly end.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    #[track_caller]
    fn receive(&mut self) -> Got {
        let end = Instant::now() + DEADLINE;
        let mut chunk = [0; 65_536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{}: nothing came within {DEADLINE:?}; unread: {:?}",
                self.local(),
                self.unread
            );
            self.stream.set_read_timeout(Some(left)).expect("SO_RCVTIMEO");
            match self.stream.read(&mut chunk) {
                Ok(0) => return Got::End,
                Ok(count) => {
                    self.unread.extend_from_slice(&chunk[..count]);
                    return Got::Bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Got::End,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => panic!("{}: cannot read: {error}", self.local()),
            }
        }
    }
}

/// A connection from `from`, whose port does not stand in the way of anybody who listens later.
pub(crate) fn dial(
    bridge: SocketAddr,
    from: &str,
    receive_buffer: Option<usize>,
) -> io::Result<Socket> {
    let from: IpAddr = from.parse().expect("an IP address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    socket.connect(&SockAddr::from(bridge))?;
    Ok(socket)
}
