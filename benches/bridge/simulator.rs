//! The inside of the process of simulated devices: one thread, one epoll, one read for each line.
//!
//! It runs beside the broker and the bridge on the same processors, so it must cost little: no task and no
//! buffer for each device. It checks every line it receives.

use std::{
    io::{self, BufRead, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use socket2::{Domain, Socket, Type};

use crate::{
    clock::now_us,
    devices::{Answer, Connected, Percentiles, Received, Request},
    load::{Check, address},
    process::cpu_of,
};

/// When nothing happens for this long, nothing more will.
const SILENCE: Duration = Duration::from_secs(30);
const EVENTS: usize = 1024;
const READ: usize = 64 * 1024;

/// Serves the benchmark until it closes our standard input.
pub(crate) fn run(first: usize) -> Result<()> {
    let mut simulator = Simulator::new(first)?;
    for line in io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Request::Connect { port, count } => {
                simulator.connect(port, count).map(Answer::Connected)
            }
            Request::Receive { count } => say(&Answer::Receiving)
                .and_then(|()| simulator.receive(count))
                .map(Answer::Received),
        };
        say(&answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}"))))?;
    }
    Ok(())
}

fn say(answer: &Answer) -> Result<()> {
    writeln!(io::stdout(), "{}", serde_json::to_string(answer)?)
        .context("nobody listens to the simulated devices")
}

struct Simulator {
    poll: Poll,
    events: Events,
    /// The place of its first device among those of all simulators, which gives it its address.
    first: usize,
    devices: Vec<Device>,
    check: Check,
    buffer: Vec<u8>,
}

struct Device {
    stream: TcpStream,
    connected: bool,
    /// The beginning of a line whose end has not come yet; seldom anything.
    rest: Vec<u8>,
}

impl Simulator {
    fn new(first: usize) -> Result<Self> {
        Ok(Self {
            first,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            devices: Vec::new(),
            check: Check::for_devices(0),
            buffer: vec![0; READ],
        })
    }

    fn connect(&mut self, port: u16, count: usize) -> Result<Connected> {
        let started_us = now_us();
        let bridge = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
        let first = self.devices.len();
        for place in first..first + count {
            let mut stream = connect_from(address(self.first + place)?, bridge)
                .with_context(|| format!("device {place} cannot connect"))?;
            self.poll.registry().register(
                &mut stream,
                Token(place),
                Interest::READABLE | Interest::WRITABLE,
            )?;
            self.devices.push(Device { stream, connected: false, rest: Vec::new() });
        }
        self.check = Check::for_devices(self.devices.len());
        let mut connected = 0;
        while connected < count {
            self.wait().with_context(|| format!("{connected} of {count} devices are connected"))?;
            for event in self.events.iter().filter(|event| event.is_writable()) {
                let device = &mut self.devices[event.token().0];
                if let Some(error) = device.stream.take_error()? {
                    bail!("device {} cannot connect: {error}", event.token().0);
                }
                connected += usize::from(!std::mem::replace(&mut device.connected, true));
            }
        }
        Ok(Connected { started_us })
    }

    fn receive(&mut self, count: u64) -> Result<Received> {
        let cpu = cpu_of("self")?;
        let mut tally = Tally::new()?;
        while tally.lines < count {
            self.wait().with_context(|| format!("{} of {count} commands came", tally.lines))?;
            for event in self.events.iter().filter(|event| event.is_readable()) {
                let place = event.token().0;
                self.devices[place].read(&mut self.buffer, |line| {
                    tally.line(self.check.line(place, line)?);
                    Ok(())
                })?;
            }
        }
        ensure!(tally.lines == count, "{} commands came instead of {count}", tally.lines);
        tally.report(cpu_of("self")?.saturating_sub(cpu))
    }

    /// Waits for events, which are then in `self.events`.
    fn wait(&mut self) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(SILENCE)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        ensure!(!self.events.is_empty(), "then nothing for {SILENCE:?}");
        Ok(())
    }
}

impl Device {
    /// Reads what has come and hands on each whole line, its end included.
    fn read(&mut self, buffer: &mut [u8], mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        loop {
            let size = match self.stream.read(buffer) {
                Ok(0) => bail!("the bridge closed a device's connection"),
                Ok(size) => size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("a device's connection broke"),
            };
            for piece in buffer[..size].split_inclusive(|byte| *byte == b'\n') {
                if !piece.ends_with(b"\n") {
                    self.rest.extend_from_slice(piece);
                } else if self.rest.is_empty() {
                    take(piece)?;
                } else {
                    self.rest.extend_from_slice(piece);
                    take(&self.rest)?;
                    self.rest.clear();
                }
            }
            // A read that does not fill the buffer has emptied the socket; what comes later is a new event.
            if size < buffer.len() {
                return Ok(());
            }
        }
    }
}

/// A socket bound to this address, on its way to `bridge`.
pub(crate) fn connect_from(from: IpAddr, bridge: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    match socket.connect(&bridge.into()) {
        Err(error)
            if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            Err(error.into())
        }
        Ok(()) | Err(_) => Ok(TcpStream::from_std(socket.into())),
    }
}

/// What has come so far.
struct Tally {
    lines: u64,
    first_us: u64,
    latencies: Histogram<u64>,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self { lines: 0, first_us: 0, latencies: Percentiles::histogram()? })
    }

    /// Counts a line and, if it carried its intended time, how long it took.
    fn line(&mut self, intended: Option<u64>) {
        if self.lines == 0 {
            self.first_us = now_us();
        }
        self.lines += 1;
        if let Some(intended) = intended {
            self.latencies.saturating_record(now_us().saturating_sub(intended));
        }
    }

    fn report(self, cpu: Duration) -> Result<Received> {
        let latency = (!self.latencies.is_empty()).then(|| Percentiles::of(&self.latencies));
        Ok(Received { first_us: self.first_us, last_us: now_us(), cpu, latency })
    }
}

impl Percentiles {
    pub(crate) fn p50_p99(&self) -> (f64, f64) {
        (self.p50 as f64, self.p99 as f64)
    }

    /// For times up to a minute, to three digits.
    pub(crate) fn histogram() -> Result<Histogram<u64>> {
        Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
    }

    pub(crate) fn of(times: &Histogram<u64>) -> Self {
        Self {
            p50: times.value_at_quantile(0.5),
            p99: times.value_at_quantile(0.99),
            p999: times.value_at_quantile(0.999),
            max: times.max(),
        }
    }
}
