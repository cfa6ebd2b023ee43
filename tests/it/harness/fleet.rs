//! Many devices in one process, each a connection from its own address that is made again whenever it ends, each
//! keeping every line it received in the order it received them.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::wait::runtime;

/// Between two attempts of a device to connect.
const RECONNECT: Duration = Duration::from_millis(50);

pub(crate) struct Fleet {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    port: u16,
    seen: Vec<Mutex<Seen>>,
    distinct: AtomicUsize,
    connections: AtomicUsize,
}

#[derive(Default)]
struct Seen {
    /// Every line, also those that came twice, without terminators.
    lines: Vec<String>,
    known: HashSet<String>,
}

/// The address of device `index`.
pub(crate) fn address(index: usize) -> String {
    ip(index).to_string()
}

fn ip(index: usize) -> Ipv4Addr {
    let byte = |number: usize| u8::try_from(number).expect("a fleet of at most 64,000");
    Ipv4Addr::new(127, 1, byte(index / 250), byte(1 + index % 250))
}

impl Fleet {
    /// All devices begin to connect at once.
    pub(crate) fn start(count: usize, port: u16) -> Self {
        let shared = Arc::new(Shared {
            port,
            seen: (0..count).map(|_| Mutex::default()).collect(),
            distinct: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let tasks =
            (0..count).map(|index| runtime().spawn(device(Arc::clone(&shared), index))).collect();
        Self { shared, tasks }
    }

    /// How many different lines have come, over all devices.
    pub(crate) fn distinct(&self) -> usize {
        self.shared.distinct.load(Ordering::Relaxed)
    }

    /// Whether at least so many different lines have come.
    pub(crate) fn has(&self, count: usize) -> Result<(), String> {
        let distinct = self.distinct();
        if distinct >= count { Ok(()) } else { Err(format!("{distinct} of {count} lines")) }
    }

    /// How many connections were made, over all devices and the whole time.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// All lines a device received, in order.
    pub(crate) fn lines(&self, index: usize) -> Vec<String> {
        self.shared.seen[index].lock().expect("no device panics").lines.clone()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn device(shared: Arc<Shared>, index: usize) {
    let mut attempts = tokio::time::interval(RECONNECT);
    attempts.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        attempts.tick().await;
        if let Ok(stream) = connect(index, shared.port).await {
            shared.connections.fetch_add(1, Ordering::Relaxed);
            receive(&shared, index, stream).await;
        }
    }
}

async fn connect(index: usize, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(IpAddr::V4(ip(index)), 0))?;
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await
}

/// Notes lines until the connection ends.
async fn receive(shared: &Shared, index: usize, stream: TcpStream) {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        match lines.read_line(&mut line).await {
            Ok(1..) if line.ends_with('\n') => {}
            Ok(_) | Err(_) => return,
        }
        let line = line.trim_end_matches(['\r', '\n']).to_owned();
        let mut seen = shared.seen[index].lock().expect("no device panics");
        if seen.known.insert(line.clone()) {
            shared.distinct.fetch_add(1, Ordering::Relaxed);
        }
        seen.lines.push(line);
    }
}
