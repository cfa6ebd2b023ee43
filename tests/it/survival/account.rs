//! What was sent and what was seen of it from the outside.

use std::fmt;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::{Dice, address};

/// Long enough that a parked command waits for its device through any outage, and short enough to wait for the end of one
/// whose device never comes.
const NEVER_TTL_MS: u64 = 4_000;

#[derive(Default)]
pub(super) struct Account {
    /// By number.
    pub(super) commands: Vec<Told>,
    /// What no check has to look for: it was wrong at once.
    pub(super) wrong: Vec<String>,
    pub(super) outages: Vec<Outage>,
    pub(super) doubles: Vec<Double>,
    /// When bridges lost a connection to the broker, as their logs say: RabbitMQ closes some long after a node was killed.
    pub(super) breaks_ms: Vec<u64>,
}

/// A time at which a bridge or a node was not there, or about to end.
#[derive(Debug, Clone)]
pub(super) struct Outage {
    pub(super) what: String,
    /// The bridge it was, if it was one.
    pub(super) bridge: Option<String>,
    /// Whether it was given the time to end.
    pub(super) orderly: bool,
    pub(super) at_ms: u64,
    /// When its process had ended.
    pub(super) ended_ms: u64,
    /// When it was there again; never, as long as it is not.
    pub(super) until_ms: u64,
}

impl Outage {
    /// When what it had in hand was given back: by a bridge when it had ended, killed or without order; by a node when
    /// it was one of the cluster's again, as nodes do not agree on what is bound until then.
    pub(super) fn cut_ms(&self) -> u64 {
        if self.bridge.is_some() { self.ended_ms } else { self.until_ms }
    }
}

/// A time at which a device had two connections, to two bridges.
#[derive(Debug, Clone, Copy)]
pub(super) struct Double {
    pub(super) device: usize,
    pub(super) from_ms: u64,
    /// When the earlier one ended.
    pub(super) to_ms: u64,
}

/// One command.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) spec: Spec,
    pub(super) published_ms: u64,
    pub(super) sent: Sent,
    pub(super) seen: Vec<Sight>,
    pub(super) receipts: Vec<Receipt>,
    /// The outcomes of its copies in the undelivered queue.
    pub(super) undelivered: Vec<String>,
}

/// What the broker said when it was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// Nothing, and the connection was lost: it may be there or not. Its sender sends another one.
    Unsure,
    Confirmed,
    /// No queue took it.
    Returned,
}

/// That a device has read it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    /// Which of its device's connections it came on, from where, and since when that was open.
    pub(super) connection: usize,
    pub(super) peer: SocketAddr,
    pub(super) since_ms: u64,
    pub(super) at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Receipt {
    pub(super) outcome: String,
    pub(super) bridge: String,
    pub(super) reason: String,
    pub(super) at_ms: u64,
}

/// What a command asks for.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) device: usize,
    /// Whether it is published to the route exchange, and not to the command queue.
    pub(super) direct: bool,
    pub(super) confirm: &'static str,
    pub(super) parks: bool,
    pub(super) once: bool,
    pub(super) ttl_ms: Option<u64>,
}

impl Spec {
    /// One of whatever kind, for one of `devices`, or one of `never` that never come.
    pub(super) fn draw(dice: &mut Dice, devices: usize, never: usize, park_one_in: usize) -> Self {
        let device = dice.below(devices + never);
        let parks = dice.once_in(park_one_in);
        let ttl_ms = dice.once_in(5).then(|| dice.one_of(&[300, 1_500, 4_000]));
        Self {
            device,
            direct: dice.once_in(6),
            confirm: dice.one_of(&["written", "written", "written", "received", "answered"]),
            parks,
            once: dice.once_in(5),
            ttl_ms: ttl_ms.or_else(|| (parks && device >= devices).then_some(NEVER_TTL_MS)),
        }
    }

    pub(super) fn body(&self, number: usize) -> Vec<u8> {
        let mut body = json!({
            "id": number.to_string(), "address": address(self.device), "cmd": self.line(number),
            "confirm": self.confirm, "once": self.once,
            "if_offline": if self.parks { "park" } else { "reject" },
        });
        if let Some(ttl_ms) = self.ttl_ms {
            body["ttl_ms"] = ttl_ms.into();
        }
        body.to_string().into_bytes()
    }

    /// A question mark asks for an answer.
    fn line(&self, number: usize) -> String {
        format!("c{number}{}", if self.confirm == "answered" { "?" } else { "" })
    }
}

impl Account {
    /// A device has read a line. Gives what it is to say to it, if it was asked.
    pub(super) fn line(&mut self, device: usize, line: &[u8], sight: Sight) -> Option<String> {
        let text = String::from_utf8_lossy(line);
        let number = text.strip_prefix('c').and_then(|rest| rest.split(['?', '\r']).next());
        let number: Option<usize> = number.and_then(|digits| digits.parse().ok());
        let Some((number, told)) =
            number.and_then(|number| Some((number, self.commands.get_mut(number)?)))
        else {
            self.wrong.push(format!("{} read {text:?}, which is no command", address(device)));
            return None;
        };
        if text.strip_suffix("\r\n") != Some(&told.spec.line(number)) {
            self.wrong.push(format!("c{number} is not one whole line: {text:?}"));
        }
        if told.spec.device != device {
            self.wrong.push(format!("c{number} was read by {}", address(device)));
        }
        told.seen.push(sight);
        (told.spec.confirm == "answered").then(|| format!("OK {number}\r\n"))
    }

    /// A receipt has come; the broker may deliver one again.
    pub(super) fn receipt(&mut self, receipt: &Value) {
        let text = |field: &str| receipt[field].as_str().unwrap_or_default().to_owned();
        let number = text("id").parse().ok();
        let Some(told) = number.and_then(|number: usize| self.commands.get_mut(number)) else {
            self.wrong.push(format!("a receipt of no command: {receipt}"));
            return;
        };
        if receipt["address"] != address(told.spec.device) {
            self.wrong.push(format!("a receipt of another device: {receipt}, {told}"));
        }
        if receipt["outcome"] == "answered" && receipt["answer"] != *format!("OK {}", text("id")) {
            self.wrong.push(format!("the answer to another command: {receipt}"));
        }
        let (outcome, bridge, reason) = (text("outcome"), text("bridge"), text("reason"));
        let receipt = Receipt { outcome, bridge, reason, at_ms: time_ms(&text("at")) };
        if !told.receipts.contains(&receipt) {
            told.receipts.push(receipt);
            // Bridges, and the connections of one, overtake each other.
            told.receipts.sort_by_key(|receipt| receipt.at_ms);
        }
    }

    /// A copy has come to the undelivered queue.
    pub(super) fn undelivered(&mut self, command: &Value, outcome: &str) {
        let number = command["id"].as_str().and_then(|id| id.parse::<usize>().ok());
        match number.and_then(|number| self.commands.get_mut(number)) {
            Some(told) => told.undelivered.push(outcome.to_owned()),
            None => self.wrong.push(format!("no command is undelivered: {command}")),
        }
    }

    /// Whether a bridge ended at `from_ms` or later, or may have lost its connection to the others.
    fn ended_since(&self, bridge: &str, from_ms: u64) -> bool {
        self.outages.iter().any(|outage| {
            let is_its = outage.bridge.as_deref().is_none_or(|other| other == bridge);
            is_its && outage.until_ms >= from_ms
        })
    }

    /// Why a command is not at its end yet, if it is not.
    pub(super) fn pending(&self, told: &Told, devices: usize) -> Option<&'static str> {
        if told.sent != Sent::Confirmed {
            return None;
        }
        match told.receipts.last() {
            None => Some("it has no receipt"),
            Some(last) if last.outcome == "parked" => {
                // What expires while it is parked is told by the bridge that parked it, if that still runs and
                // hears the others, and if the device was not at another one since.
                let excused =
                    told.spec.device < devices || self.ended_since(&last.bridge, last.at_ms);
                let expired = told.undelivered.iter().any(|word| word == "expired");
                (!(expired && excused)).then_some("it is parked still")
            }
            // What expires while it is parked is told when its time is over; when it is passed on is for the broker to
            // choose, which waits three minutes before it tries once more.
            Some(_) => told.is_to_come().then_some("it is not among the undelivered"),
        }
    }
}

impl Told {
    /// Whether its sender was told an outcome with which it should be among the undelivered, and is not.
    pub(super) fn is_to_come(&self) -> bool {
        self.receipts.iter().any(|receipt| {
            let word = receipt.outcome.as_str();
            let is_owed = !matches!(word, "written" | "received" | "answered" | "parked");
            is_owed && !self.undelivered.iter().any(|copy| copy == word)
        })
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spec { device, direct, confirm, parks, once, ttl_ms } = &self.spec;
        write!(f, "for {}, {confirm}", address(*device))?;
        let marks = [(*direct, "direct"), (*parks, "parks"), (*once, "once")];
        marks.iter().filter(|(is, _)| *is).try_for_each(|(_, mark)| write!(f, ", {mark}"))?;
        if let Some(ttl) = ttl_ms {
            write!(f, ", ttl {ttl} ms")?;
        }
        write!(f, "; published at {} ({:?})", clock(self.published_ms), self.sent)?;
        for Receipt { outcome, bridge, reason, at_ms } in &self.receipts {
            write!(f, "; {outcome} by {bridge} at {} {reason:?}", clock(*at_ms))?;
        }
        for sight in &self.seen {
            write!(f, "; read at {} on connection {}", clock(sight.at_ms), sight.connection)?;
        }
        write!(f, "; undelivered {:?}", self.undelivered)
    }
}

/// A time of this run, as seconds within an hour.
pub(super) fn clock(at_ms: u64) -> String {
    let second = at_ms / 1_000 % 3_600;
    format!("{:02}:{:02}.{:03}", second / 60, second % 60, at_ms % 1_000)
}

pub(super) fn now_ms() -> u64 {
    millis(SystemTime::now())
}

/// A time in an event or a receipt.
pub(super) fn time_ms(text: &str) -> u64 {
    millis(humantime::parse_rfc3339(text).expect("a time"))
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("milliseconds fit")
}
