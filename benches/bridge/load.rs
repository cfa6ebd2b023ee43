//! The commands: what is published, and what a device must then receive. The two stand side by side so that
//! they cannot disagree.
//!
//! Command `number` goes to device `number % devices`, the device's address is made from its place, and the
//! line carries the number, so a device knows of each line whether it is the very one that comes next to it.
//! A command that is shared, for all of them, has a number of its own kind: every device has each of these once.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    clock::{now_us, wait_until},
    publisher::Publisher,
};

/// The queue of the benchmark.
pub(crate) const QUEUE: &str = "bench";

const CMD: &str = "SET OUT1 ON ";
const SHARED: &str = "SET OUT1 OFF ";
/// Devices with the same third byte of their address, 1 to 250 in the fourth.
const A_SUBNET: usize = 250;
/// Of them with the same second byte, from 1.
const SUBNETS: usize = 250;

const FILL_POLL: Duration = Duration::from_millis(10);
const FILL_LIMIT: Duration = Duration::from_secs(60);

/// The loopback address of the device at this place.
pub(crate) fn address(place: usize) -> Result<IpAddr> {
    let subnet = place / A_SUBNET;
    let second = u8::try_from(subnet / SUBNETS + 1)
        .context("more devices than 127.0.0.0/8 has addresses for")?;
    let third = u8::try_from(subnet % SUBNETS)?;
    let fourth = u8::try_from(place % A_SUBNET + 1)?;
    Ok(Ipv4Addr::new(127, second, third, fourth).into())
}

/// Publishes commands to the devices in turn.
#[derive(Debug)]
pub(crate) struct Load {
    addresses: Vec<IpAddr>,
    published: u64,
    shared: u64,
    body: Vec<u8>,
}

impl Load {
    pub(crate) fn for_devices(count: usize) -> Result<Self> {
        Self::for_those(0..count)
    }

    /// For the devices at these places.
    pub(crate) fn for_those(places: Range<usize>) -> Result<Self> {
        let addresses = places.map(address).collect::<Result<_>>()?;
        Ok(Self { addresses, published: 0, shared: 0, body: Vec::with_capacity(128) })
    }

    /// Publishes the next command. A command that is timed carries the time at which it is meant to be sent.
    pub(crate) fn publish(
        &mut self,
        publisher: &mut Publisher,
        intended_us: Option<u64>,
    ) -> Result<()> {
        let number = self.published;
        let address = self.addresses[usize::try_from(number)? % self.addresses.len()];
        self.body.clear();
        write!(self.body, r#"{{"address":"{address}","cmd":"{CMD}{number:07}"#)?;
        if let Some(time) = intended_us {
            write!(self.body, " {time}")?;
        }
        self.body.extend_from_slice(br#""}"#);
        self.published += 1;
        publisher.publish(QUEUE, &self.body)
    }

    /// Publishes a command for all devices; its receipts go to the queue `reply_to`, if there is to be any. It carries
    /// the time at which it is sent, which is the answer.
    pub(crate) fn publish_shared(
        &mut self,
        publisher: &mut Publisher,
        id: &str,
        reply_to: Option<&str>,
    ) -> Result<u64> {
        let (number, sent_us) = (self.shared, now_us());
        self.body.clear();
        write!(
            self.body,
            r#"{{"broadcast":true,"id":"{id}","cmd":"{SHARED}{number:07} {sent_us}"}}"#
        )?;
        self.shared += 1;
        match reply_to {
            Some(queue) => publisher.publish_for_receipts(QUEUE, &self.body, queue)?,
            None => publisher.publish(QUEUE, &self.body)?,
        }
        publisher.flush()?;
        Ok(sent_us)
    }

    /// Fills the queue and waits until all of it is there; a consumer that is paused holds up to `held` of it.
    pub(crate) fn fill(&mut self, publisher: &mut Publisher, count: u64, held: u16) -> Result<()> {
        take_turns(&mut [self], publisher, count, u64::from(held))
    }
}

/// Fills the queue with so many commands of each load, in turn, and waits until all are there; consumers that are
/// paused hold up to `held` of them.
pub(crate) fn take_turns(
    loads: &mut [&mut Load],
    publisher: &mut Publisher,
    each: u64,
    held: u64,
) -> Result<()> {
    for _ in 0..each {
        for load in loads.iter_mut() {
            load.publish(publisher, None)?;
        }
    }
    let count = each * loads.len() as u64;
    wait_until("all commands wait in the queue", FILL_POLL, FILL_LIMIT, || {
        let waiting = u64::from(publisher.declare(QUEUE)?);
        ensure!(waiting <= count, "{waiting} commands wait in the queue, {count} were published");
        Ok(waiting + held >= count)
    })
}

/// Checks what the devices receive: each line is the one that comes next at its device, among its own or among
/// the shared ones.
#[derive(Debug)]
pub(crate) struct Check {
    next: Vec<u64>,
    next_shared: Vec<u64>,
}

impl Check {
    pub(crate) fn for_devices(count: usize) -> Self {
        Self { next: (0..count as u64).collect(), next_shared: vec![0; count] }
    }

    /// Takes a line as the device at `place` received it; the intended time, if the command carries one.
    pub(crate) fn line(&mut self, place: usize, line: &[u8]) -> Result<Option<u64>> {
        let Line { shared, number, time } = parse(line).with_context(|| {
            format!("device {place} received {:?}, not a command", String::from_utf8_lossy(line))
        })?;
        let (next, step, kind) = if shared {
            (&mut self.next_shared[place], 1, "shared command")
        } else {
            let step = self.next.len() as u64;
            (&mut self.next[place], step, "command")
        };
        ensure!(number == *next, "device {place} received {kind} {number} where {next} comes next");
        *next += step;
        Ok(time)
    }
}

/// What a line says.
struct Line {
    shared: bool,
    number: u64,
    time: Option<u64>,
}

/// Reads a line; its end must be there.
fn parse(line: &[u8]) -> Option<Line> {
    let own = line.strip_prefix(CMD.as_bytes());
    let rest = own.or_else(|| line.strip_prefix(SHARED.as_bytes()))?.strip_suffix(b"\r\n")?;
    let mut fields = std::str::from_utf8(rest).ok()?.split(' ');
    let number = fields.next()?.parse().ok()?;
    let time = fields.next().map(str::parse).transpose().ok()?;
    fields.next().is_none().then_some(Line { shared: own.is_none(), number, time })
}
