//! Very many devices that connect to whichever of several bridges has the fewest connections, as behind a balancer, and to
//! another when they are cut off. By whim they leave for a while, or connect elsewhere without having closed anything. What
//! each reads is noted in the account, and so is where each is.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::account::{Account, Double, Sight, now_ms};
use super::descriptors;
use crate::harness::{Dice, address};

/// Devices of one thread. Each needs a descriptor, two while it moves, and a thread may have 20,000 in a container.
const THREAD_MAX: usize = 12_000;
/// Longer than any bridge that listens takes to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// The first wait of a device that was cut off is up to this, so that not all come back within a millisecond.
const BACKOFF_FIRST_MS: usize = 500;
const BACKOFF_MAX_MS: usize = 4_000;
/// How long a balancer sends nobody to a bridge at which a connection could not be made.
const LEFT_OUT_MS: u64 = 1_000;
/// How long a device that leaves by whim is away, at most.
const AWAY_MAX_MS: usize = 4_000;
/// A bridge closes the connection of a device that has closed its own end far sooner.
const CLOSING: Duration = Duration::from_secs(20);
/// How often a thread looks whether something has changed for all.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After which silence a device asks whether its connection is still there, and how often then: that many seconds and up
/// to as many more, by its number, so that not all ask at once.
const IDLE_SECONDS: u64 = 20;
const PROBE_SECONDS: u64 = 5;
/// Far more than loopback drops in a row.
const PROBES: u32 = 8;
/// As long as a line of ours can be, many times over.
const READ: usize = 1_024;

/// What the devices of a crowd know and are told.
pub(super) struct Shared {
    pub(super) account: Arc<Mutex<Account>>,
    ports: Vec<u16>,
    /// Connections to each of the bridges, as a balancer counts them: from before they are made.
    counts: Vec<AtomicUsize>,
    /// When each was last found to be away.
    refused_ms: Vec<AtomicU64>,
    here: Mutex<Vec<Option<Here>>>,
    away: AtomicUsize,
    /// Connections that a device has left behind and that their bridge has not closed yet.
    lingering: AtomicUsize,
    connections: AtomicUsize,
    /// What attempts to connect have failed with.
    failures: Mutex<BTreeMap<String, usize>>,
    phase: Mutex<Phase>,
    seed: u64,
    whim_ms: usize,
}

/// Where a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Here {
    pub(super) bridge: usize,
    pub(super) peer: SocketAddr,
}

pub(super) struct Crowd {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Devices have whims.
    Lively,
    /// All are to be there and to stay.
    Calm,
    Over,
}

impl Crowd {
    /// All of `count` devices begin to connect, and stay; once they are enlivened, each has a whim every `whim_ms` on average.
    pub(super) fn start(
        account: &Arc<Mutex<Account>>,
        count: usize,
        ports: Vec<u16>,
        whim_ms: usize,
        seed: u64,
    ) -> Self {
        let shared = Arc::new(Shared {
            account: Arc::clone(account),
            counts: ports.iter().map(|_| AtomicUsize::new(0)).collect(),
            refused_ms: ports.iter().map(|_| AtomicU64::new(0)).collect(),
            ports,
            here: Mutex::new(vec![None; count]),
            away: AtomicUsize::new(0),
            lingering: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            failures: Mutex::default(),
            phase: Mutex::new(Phase::Calm),
            seed,
            whim_ms,
        });
        let begins = (0..count).step_by(THREAD_MAX);
        let threads = begins.map(|begin| {
            let devices = begin..count.min(begin + THREAD_MAX);
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || run(&shared, devices))
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// From now on devices have whims.
    pub(super) fn enliven(&self) {
        self.shared.enter(Phase::Lively);
    }

    /// From now on all come, and stay where they are.
    pub(super) fn calm(&self) {
        self.shared.enter(Phase::Calm);
    }

    /// Where each device is.
    pub(super) fn here(&self) -> Vec<Option<Here>> {
        self.shared.here.lock().expect("no device panics").clone()
    }

    /// Whether all are connected that want to be, each once.
    pub(super) fn is_there(&self) -> Result<(), String> {
        self.misses_only(|| self.shared.away.load(Ordering::Relaxed))
    }

    /// Whether all are connected.
    pub(super) fn is_complete(&self) -> Result<(), String> {
        self.misses_only(|| 0)
    }

    /// Whether no more are missing than are `excused`, which is asked after they are counted.
    fn misses_only(&self, excused: impl FnOnce() -> usize) -> Result<(), String> {
        let missing = self.here().iter().filter(|here| here.is_none()).count();
        if missing <= excused() { Ok(()) } else { Err(format!("{missing} are not connected")) }
    }

    /// Connections that were left behind and are still open.
    pub(super) fn lingering(&self) -> usize {
        self.shared.lingering.load(Ordering::Relaxed)
    }

    /// What attempts to connect have failed with.
    pub(super) fn failures(&self) -> String {
        format!("{:?}", self.shared.failures.lock().expect("no device panics"))
    }

    /// How many connections were made in all.
    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.enter(Phase::Over);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("a thread of the crowd panicked");
            }
        }
    }
}

/// Runs devices in a thread of their own until all is over. Nothing outside may wake what runs here, which would write to a
/// file that has another number there: so the thread looks.
fn run(shared: &Arc<Shared>, devices: Range<usize>) {
    let runtime = descriptors::of_its_own(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("a tokio runtime")
    });
    let (phase, heard) = watch::channel(Phase::Calm);
    for index in devices {
        runtime.spawn(Device::new(Arc::clone(shared), index, heard.clone()).live());
    }
    runtime.block_on(async {
        while *phase.borrow() != Phase::Over {
            sleep(LOOK_EVERY).await;
            let now = *shared.phase.lock().expect("no panic with a phase");
            phase.send_if_modified(|phase| std::mem::replace(phase, now) != now);
        }
    });
}

impl Shared {
    fn enter(&self, phase: Phase) {
        *self.phase.lock().expect("no panic with a phase") = phase;
    }

    /// The bridge with the fewest connections, but for one that this device was at, and for those that are away as far as
    /// is known; it counts from now on.
    fn pick(&self, not: Option<usize>, dice: &mut Dice) -> usize {
        let first = dice.below(self.ports.len());
        let all = (0..self.ports.len()).map(|index| (first + index) % self.ports.len());
        let fits = all.filter(|index| Some(*index) != not);
        let now = now_ms();
        let rank = |index: &usize| {
            let refused = self.refused_ms[*index].load(Ordering::Relaxed);
            (now < refused + LEFT_OUT_MS, self.counts[*index].load(Ordering::Relaxed))
        };
        let picked = fits.min_by_key(rank).expect("more than one bridge");
        self.counts[picked].fetch_add(1, Ordering::Relaxed);
        picked
    }

    fn leave(&self, bridge: usize) {
        self.counts[bridge].fetch_sub(1, Ordering::Relaxed);
    }

    fn set_here(&self, index: usize, here: Option<Here>) {
        self.here.lock().expect("no device panics")[index] = here;
    }

    /// Reads once; what the device is to say to that. None at the end of the connection.
    fn read(&self, link: &mut Link) -> Option<Vec<u8>> {
        let mut bytes = [0; READ];
        match link.stream.try_read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => {
                link.unread.extend_from_slice(&bytes[..count]);
                let mut answers = Vec::new();
                while let Some(end) = link.unread.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = link.unread.drain(..=end).collect();
                    let sight = link.sight();
                    let mut account = self.account.lock().expect("no panic with the account");
                    if let Some(answer) = account.line(link.index, &line, sight) {
                        answers.extend_from_slice(answer.as_bytes());
                    }
                }
                Some(answers)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(Vec::new()),
            Err(_) => None,
        }
    }
}

/// One connection of a device.
struct Link {
    index: usize,
    number: usize,
    bridge: usize,
    peer: SocketAddr,
    since_ms: u64,
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Link {
    fn sight(&self) -> Sight {
        let Self { number: connection, peer, since_ms, .. } = *self;
        Sight { connection, peer, since_ms, at_ms: now_ms() }
    }

    /// Reads, and answers, until the connection ends.
    async fn run(&mut self, shared: &Shared) {
        while self.stream.readable().await.is_ok() {
            let Some(mut answers) = shared.read(self) else { return };
            while !answers.is_empty() && self.stream.writable().await.is_ok() {
                match self.stream.try_write(&answers) {
                    Ok(count) => drop(answers.drain(..count)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // What has come before the end is still to be read.
                    Err(_) => answers.clear(),
                }
            }
        }
    }
}

enum Whim {
    Leave,
    Move,
}

struct Device {
    shared: Arc<Shared>,
    index: usize,
    dice: Dice,
    phase: watch::Receiver<Phase>,
    links: usize,
    /// Whether it has left by a whim, and is not connected again.
    is_away: bool,
}

impl Device {
    fn new(shared: Arc<Shared>, index: usize, phase: watch::Receiver<Phase>) -> Self {
        let dice = Dice::of(shared.seed.wrapping_add(index as u64));
        Self { shared, index, dice, phase, links: 0, is_away: false }
    }

    async fn live(mut self) {
        let (mut failed, mut backoff) = (None, BACKOFF_FIRST_MS);
        loop {
            let wait = self.dice.below(backoff) as u64;
            sleep(Duration::from_millis(wait)).await;
            match self.connect(failed).await {
                Ok(link) => {
                    failed = Some(self.serve(link).await);
                    backoff = BACKOFF_FIRST_MS;
                }
                Err(bridge) => {
                    failed = Some(bridge);
                    backoff = BACKOFF_MAX_MS.min(backoff * 2);
                }
            }
        }
    }

    /// A new connection, or the bridge that could not be reached.
    async fn connect(&mut self, not: Option<usize>) -> Result<Link, usize> {
        let bridge = self.shared.pick(not, &mut self.dice);
        let dialling = timeout(CONNECT, dial(self.index, self.shared.ports[bridge])).await;
        match dialling.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                self.links += 1;
                self.shared.connections.fetch_add(1, Ordering::Relaxed);
                let peer = stream.local_addr().expect("a connected socket");
                self.shared.set_here(self.index, Some(Here { bridge, peer }));
                if std::mem::take(&mut self.is_away) {
                    self.shared.away.fetch_sub(1, Ordering::Relaxed);
                }
                let (index, number, since_ms) = (self.index, self.links, now_ms());
                Ok(Link { index, number, bridge, peer, since_ms, stream, unread: Vec::new() })
            }
            Err(error) => {
                let mut failures = self.shared.failures.lock().expect("no device panics");
                *failures.entry(error.kind().to_string()).or_default() += 1;
                self.shared.leave(bridge);
                self.shared.refused_ms[bridge].store(now_ms(), Ordering::Relaxed);
                Err(bridge)
            }
        }
    }

    /// Reads until a connection ends, or until the device comes back from where its whim led it; which bridge it was at.
    async fn serve(&mut self, mut link: Link) -> usize {
        let shared = Arc::clone(&self.shared);
        loop {
            let whim = tokio::select! {
                () = link.run(&shared) => {
                    shared.set_here(self.index, None);
                    shared.leave(link.bridge);
                    return link.bridge;
                }
                whim = self.whim() => whim,
            };
            match whim {
                Whim::Leave => {
                    self.leave(&mut link).await;
                    return link.bridge;
                }
                Whim::Move => match self.connect(Some(link.bridge)).await {
                    Ok(new) => {
                        let mut old = std::mem::replace(&mut link, new);
                        let (device, from_ms) = (self.index, link.since_ms);
                        let shared = Arc::clone(&shared);
                        shared.lingering.fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(async move {
                            old.run(&shared).await;
                            let double = Double { device, from_ms, to_ms: now_ms() };
                            shared.account.lock().expect("the account").doubles.push(double);
                            shared.leave(old.bridge);
                            shared.lingering.fetch_sub(1, Ordering::Relaxed);
                        });
                    }
                    Err(_stays) => {}
                },
            }
        }
    }

    /// Waits for a whim.
    async fn whim(&mut self) -> Whim {
        let wait = self.dice.below(2 * self.shared.whim_ms) as u64;
        let mut phase = self.phase.clone();
        loop {
            // It fails when nobody is left who could say so: then all is over.
            drop(phase.wait_for(|phase| *phase == Phase::Lively).await);
            tokio::select! {
                () = sleep(Duration::from_millis(wait)) => break,
                () = until_calm(&mut phase) => {}
            }
        }
        if self.dice.once_in(2) { Whim::Leave } else { Whim::Move }
    }

    /// Closes its end, reads what comes until the bridge has closed the other, and stays away for a while.
    async fn leave(&mut self, link: &mut Link) {
        let shared = Arc::clone(&self.shared);
        shared.away.fetch_add(1, Ordering::Relaxed);
        let socket = SockRef::from(&link.stream);
        if socket.shutdown(std::net::Shutdown::Write).is_ok()
            && timeout(CLOSING, link.run(&shared)).await.is_err()
        {
            let mut account = shared.account.lock().expect("no panic with the account");
            account.wrong.push(format!("{} left, and was not let go", address(self.index)));
        }
        shared.set_here(self.index, None);
        shared.leave(link.bridge);
        let away = Duration::from_millis(self.dice.below(AWAY_MAX_MS) as u64);
        // Either the time is over, or all are to come.
        tokio::select! {
            () = sleep(away) => {}
            () = until_calm(&mut self.phase) => {}
        }
        self.is_away = true;
    }
}

async fn until_calm(phase: &mut watch::Receiver<Phase>) {
    // It fails when nobody is left who could say so: then all is over.
    drop(phase.wait_for(|phase| *phase != Phase::Lively).await);
}

async fn dial(index: usize, port: u16) -> io::Result<TcpStream> {
    let from: IpAddr = address(index).parse().map_err(io::Error::other)?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    // A bridge that gives a connection up says so once. Loopback drops packets when thirty thousand connections are probed
    // in the same seconds, and then a device has to find out for itself, as any in the field has.
    SockRef::from(&socket).set_tcp_keepalive(&keepalive(index))?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await
}

fn keepalive(index: usize) -> TcpKeepalive {
    let spread = |seconds: u64| Duration::from_secs(seconds + index as u64 % seconds);
    TcpKeepalive::new()
        .with_time(spread(IDLE_SECONDS))
        .with_interval(spread(PROBE_SECONDS))
        .with_retries(PROBES)
}
