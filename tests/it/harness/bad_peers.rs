//! Devices that behave badly for as long as a test lets them, each on a thread of its own. Each keeps what it read,
//! connection by connection.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Dice;
use super::device::dial;
use super::wait::DEADLINE;

/// Between two looks at whether to stop, and between two attempts to connect.
const POLL: Duration = Duration::from_millis(10);

/// A device that behaves badly until it is stopped or dropped.
pub(crate) struct BadPeer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    read: Mutex<Vec<Vec<u8>>>,
}

/// What the thread of a bad peer works with.
struct Peer {
    from: String,
    port: u16,
    receive_buffer: Option<usize>,
    shared: Arc<Shared>,
}

impl BadPeer {
    /// Reads a byte a second. When it is stopped it reads the rest up to the end of the connection.
    pub(crate) fn reads_a_byte_a_second(from: &str, port: u16) -> Self {
        Self::start(from, port, Some(1), |peer| {
            let Some(mut stream) = peer.connect() else { return };
            peer.begin();
            while peer.read(&mut stream, 1) > 0 {
                std::thread::park_timeout(Duration::from_secs(1));
            }
            peer.drain(&mut stream);
        })
    }

    /// Breaks the connection with a reset in the middle of a line, and connects again.
    pub(crate) fn resets_mid_line(from: &str, port: u16) -> Self {
        let mut dice = Dice::new();
        Self::start(from, port, Some(1), move |peer| {
            while let Some(mut stream) = peer.connect() {
                peer.begin();
                let few = dice.below(8) != 0;
                let mut left = 1 + dice.below(if few { 40 } else { 200_000 });
                while left > 0 {
                    match peer.read(&mut stream, left) {
                        0 => break,
                        count => left -= count,
                    }
                }
                while peer.is_between_lines() && peer.read(&mut stream, 1) > 0 {}
                let socket = socket2::SockRef::from(&stream);
                socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
            }
        })
    }

    /// Reads a few lines or none, ends the connection, and connects again.
    pub(crate) fn leaves_and_returns(from: &str, port: u16) -> Self {
        let mut dice = Dice::new();
        Self::start(from, port, None, move |peer| {
            while let Some(mut stream) = peer.connect() {
                peer.begin();
                peer.read_lines(&mut stream, dice.below(4));
            }
        })
    }

    /// Reads a few lines or none, connects again without an end to the connection it has, and then reads that one up
    /// to the end that the bridge makes.
    pub(crate) fn replaces_itself(from: &str, port: u16) -> Self {
        let mut dice = Dice::new();
        Self::start(from, port, None, move |peer| {
            let mut older: Option<TcpStream> = None;
            while let Some(mut stream) = peer.connect() {
                if let Some(mut older) = older {
                    peer.drain(&mut older);
                }
                peer.begin();
                peer.read_lines(&mut stream, dice.below(4));
                older = Some(stream);
            }
        })
    }

    fn start(
        from: &str,
        port: u16,
        receive_buffer: Option<usize>,
        behave: impl FnOnce(&Peer) + Send + 'static,
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let peer =
            Peer { from: from.to_owned(), port, receive_buffer, shared: Arc::clone(&shared) };
        let thread = std::thread::spawn(move || behave(&peer));
        Self { shared, thread: Some(thread) }
    }

    /// How many connections it has begun to read from.
    pub(crate) fn connections(&self) -> usize {
        self.shared.read().len()
    }

    /// How many whole lines it has read.
    pub(crate) fn lines(&self) -> usize {
        self.shared.read().iter().flatten().filter(|byte| **byte == b'\n').count()
    }

    /// Has it end; what it read, connection by connection.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Vec<Vec<u8>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("stopped once");
        thread.thread().unpark();
        thread.join().expect("a bad peer does not panic");
        std::mem::take(&mut *self.shared.read())
    }
}

impl Drop for BadPeer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn read(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.read.lock().expect("no panic under this lock")
    }
}

impl Peer {
    /// A connection; none when it is to stop.
    fn connect(&self) -> Option<TcpStream> {
        while !self.stopped() {
            let bridge = (Ipv4Addr::LOCALHOST, self.port).into();
            // A port of its own for each connection: now and then one is still taken by a connection that has ended.
            if let Ok(socket) = dial(bridge, &self.from, self.receive_buffer) {
                let stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(POLL)).expect("SO_RCVTIMEO");
                return Some(stream);
            }
            std::thread::park_timeout(POLL);
        }
        None
    }

    /// What is read from now on is of the next connection.
    fn begin(&self) {
        self.shared.read().push(Vec::new());
    }

    /// Waits for bytes, and reads at most `limit`; 0 if the connection has ended or it is to stop.
    fn read(&self, stream: &mut TcpStream, limit: usize) -> usize {
        while !self.stopped() {
            if let Some(count) = self.try_read(stream, limit) {
                return count;
            }
        }
        0
    }

    fn read_lines(&self, stream: &mut TcpStream, count: usize) {
        for _ in 0..count {
            while self.read(stream, 1) > 0 && !self.is_between_lines() {}
        }
    }

    /// Reads to the end of the connection, which the bridge has made or is about to make.
    fn drain(&self, stream: &mut TcpStream) {
        let end = Instant::now() + DEADLINE;
        while self.try_read(stream, usize::MAX) != Some(0) {
            assert!(
                Instant::now() < end,
                "{}: the bridge does not close the connection",
                self.from
            );
        }
    }

    /// Reads at most `limit` bytes, 0 at the end of the connection; none if nothing comes for a moment.
    fn try_read(&self, stream: &mut TcpStream, limit: usize) -> Option<usize> {
        let mut chunk = [0; 65_536];
        let limit = limit.min(chunk.len());
        match stream.read(&mut chunk[..limit]) {
            Ok(count) => {
                let mut read = self.shared.read();
                read.last_mut().expect("a connection").extend_from_slice(&chunk[..count]);
                Some(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Some(0),
            Err(error) => panic!("{}: cannot read: {error}", self.from),
        }
    }

    fn is_between_lines(&self) -> bool {
        self.shared.read().last().is_none_or(|read| read.last().is_none_or(|byte| *byte == b'\n'))
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }
}
