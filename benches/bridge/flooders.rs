//! The inside of the process that floods a bridge: one thread, one epoll, a handful of system calls for a connect.
//!
//! It shares the processors with what is measured, so it must cost little. Every 10 ms it does its share of what
//! it does in a second, by the clock, and never makes up for more than a second.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, BufRead, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::mpsc::{self, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::{clock::now_us, process::cpu_of, simulator::connect_from};

/// Connections that are held: half of them say nothing, half send a byte a second, of a line that never ends.
const HELD: usize = 10_000;
const SLOW: u64 = HELD as u64 / 2;
/// Connections made a second, and reset as soon as they are there.
const RESETS: u64 = 2_000;

/// The connections held are made at this rate; later those that the bridge has closed are replaced at this one.
const HOLD: u64 = 5_000;
const REPLACE: u64 = 1_000;
/// Connections that the bridge's kernel does not take up wait; beyond so many the one that waits longest is given up.
const WAITING: usize = 4_000;

const TICK: Duration = Duration::from_millis(10);
const EVENTS: usize = 1024;
/// Addresses with the same second byte: 1 to 250 in the fourth, 0 to 249 in the third.
const A_NET: usize = 250 * 250;
/// The second byte of the addresses of connections that are held, and of those that are reset.
const HELD_NET: u8 = 2;
const RESET_NET: u8 = 3;

/// What it has done since it began.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Connections made and reset.
    pub(crate) resets: u64,
    /// Bytes sent, each by itself.
    pub(crate) bytes: u64,
    /// Connections that were refused or not taken up.
    pub(crate) failed: u64,
    /// Connections held that the bridge closed.
    pub(crate) closed: u64,
    /// Connections held now.
    pub(crate) held: usize,
    pub(crate) cpu: Duration,
    pub(crate) at_us: u64,
}

/// Floods the bridge at `port` until its standard input is closed. Each line there asks for the counts; the first
/// are told without, once every connection to be held was made.
pub(crate) fn run(port: u16) -> Result<()> {
    let (ask, asked) = mpsc::sync_channel(1);
    // Ends with the input; nobody waits for it.
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if line.is_err() || ask.send(()).is_err() {
                return;
            }
        }
    });
    let mut flood = Flood::new(port)?;
    flood.hold_all()?;
    flood.tell()?;
    let [mut resets, mut bytes, mut replaced] = [RESETS, SLOW, REPLACE].map(Pace::of);
    loop {
        flood.make_to_reset(resets.due())?;
        flood.send_bytes(bytes.due());
        flood.hold(replaced.due())?;
        match asked.try_recv() {
            Ok(()) => flood.tell()?,
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        flood.take_events()?;
    }
}

/// So much of something a second.
struct Pace {
    rate: u64,
    started: Instant,
    done: u64,
}

impl Pace {
    fn of(rate: u64) -> Self {
        Self { rate, started: Instant::now(), done: 0 }
    }

    /// How much is to be done now.
    fn due(&mut self) -> u64 {
        let all = self.started.elapsed().as_millis() as u64 * self.rate / 1_000;
        let due = all - std::mem::replace(&mut self.done, all);
        due.min(self.rate)
    }
}

struct Flood {
    poll: Poll,
    events: Events,
    bridge: SocketAddr,
    /// By place, which is the token, too. Those at even places are silent, so that both kinds take turns.
    held: Vec<Option<TcpStream>>,
    /// Places without a connection.
    free: VecDeque<usize>,
    /// Connections to be reset that are not there yet, by token, which grows.
    coming: BTreeMap<usize, TcpStream>,
    next_token: usize,
    next_slow: usize,
    counts: Counts,
}

impl Flood {
    fn new(port: u16) -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            bridge: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into(),
            held: std::iter::repeat_with(|| None).take(HELD).collect(),
            free: (0..HELD).collect(),
            coming: BTreeMap::new(),
            next_token: HELD,
            next_slow: 1,
            counts: Counts::default(),
        })
    }

    /// Makes every connection that is to be held, once.
    fn hold_all(&mut self) -> Result<()> {
        let mut pace = Pace::of(HOLD);
        let mut left = HELD as u64;
        while left > 0 {
            let due = pace.due().min(left);
            self.hold(due)?;
            left -= due;
            self.take_events()?;
        }
        Ok(())
    }

    /// Makes up to `count` of the connections that are missing.
    fn hold(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let Some(place) = self.free.pop_front() else { break };
            self.held[place] = Some(self.connect(HELD_NET, place, Token(place))?);
            self.counts.held += 1;
        }
        Ok(())
    }

    /// Makes connections that are reset as soon as they are there.
    fn make_to_reset(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let token = self.next_token;
            self.next_token += 1;
            let stream = self.connect(RESET_NET, token, Token(token))?;
            self.coming.insert(token, stream);
            if self.coming.len() > WAITING {
                self.coming.pop_first();
                self.counts.failed += 1;
            }
        }
        Ok(())
    }

    fn connect(&self, net: u8, number: usize, token: Token) -> Result<TcpStream> {
        let mut stream = connect_from(address(net, number)?, self.bridge)?;
        // Whoever closes such a connection resets it and leaves nothing in the kernel.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, token, interest)?;
        Ok(stream)
    }

    /// Sends a byte on as many of the slow connections, in turn.
    fn send_bytes(&mut self, count: u64) {
        for _ in 0..count {
            let place = self.next_slow;
            self.next_slow = if place + 2 < HELD { place + 2 } else { 1 };
            // One that is broken says so by an event.
            if let Some(stream) = &mut self.held[place]
                && stream.write(b"x").is_ok()
            {
                self.counts.bytes += 1;
            }
        }
    }

    /// Waits a tick, at most, and sees to what has come.
    fn take_events(&mut self) -> Result<()> {
        let until = Instant::now() + TICK;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.poll.poll(&mut self.events, Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            for event in &self.events {
                let token = event.token().0;
                let is_over = event.is_error() || event.is_read_closed();
                if token < HELD {
                    if is_over && self.held[token].take().is_some() {
                        self.free.push_back(token);
                        self.counts.held -= 1;
                        self.counts.closed += 1;
                    }
                } else if self.coming.remove(&token).is_some() {
                    let count = if event.is_error() {
                        &mut self.counts.failed
                    } else {
                        &mut self.counts.resets
                    };
                    *count += 1;
                }
            }
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    fn tell(&mut self) -> Result<()> {
        self.counts.cpu = cpu_of("self")?;
        self.counts.at_us = now_us();
        writeln!(io::stdout(), "{}", serde_json::to_string(&self.counts)?)
            .context("nobody listens to the flooders")
    }
}

/// A loopback address that no device has.
fn address(net: u8, number: usize) -> Result<IpAddr> {
    let number = number % A_NET;
    let (third, fourth) = (u8::try_from(number / 250)?, u8::try_from(number % 250 + 1)?);
    Ok(Ipv4Addr::new(127, net, third, fourth).into())
}
