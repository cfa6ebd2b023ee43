//! The rows of a batch, and which of two about the same thing is the later one. Pure.

use serde::Serialize;

use super::event::{Address, Fate, Name, Number, Run, Text, Time};

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Online,
    Offline,
}

impl State {
    pub(super) fn of(online: bool) -> Self {
        if online { Self::Online } else { Self::Offline }
    }
}

/// What the batch knows of a bridge.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Bridge {
    pub(super) name: Name,
    pub(super) run: Run,
    pub(super) started: Option<Time>,
    pub(super) seq: Number,
    pub(super) heard: Option<Time>,
    pub(super) expires_ms: Option<Number>,
    pub(super) devices: Option<Number>,
    pub(super) state: State,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Device {
    pub(super) address: Address,
    pub(super) state: State,
    pub(super) silent: bool,
    pub(super) epoch: Number,
    pub(super) since: Option<Time>,
    pub(super) last_seen: Option<Time>,
    pub(super) reason: Text,
    pub(super) bridge: Name,
    pub(super) run: Run,
    pub(super) seq: Number,
    pub(super) peer: Option<Text>,
}

#[derive(Debug, Serialize)]
pub(super) struct Connection {
    pub(super) address: Address,
    pub(super) epoch: Number,
    pub(super) bridge: Name,
    pub(super) run: Run,
    pub(super) peer: Option<Text>,
    pub(super) since: Option<Time>,
    pub(super) until: Option<Time>,
    pub(super) reason: Option<Text>,
}

#[derive(Debug, Serialize)]
pub(super) struct Command {
    pub(super) bridge: Name,
    pub(super) run: Run,
    pub(super) number: Number,
    /// Empty if it does not say whom it is for; one for many is a row for each.
    pub(super) address: Address,
    pub(super) id: Option<Text>,
    pub(super) cmd: Option<Text>,
    pub(super) confirm: Option<Text>,
    pub(super) outcome: Fate,
    pub(super) reason: Option<Text>,
    pub(super) answer: Option<Text>,
    pub(super) answer_base64: Option<Text>,
    pub(super) published: Option<Time>,
    pub(super) taken: Option<Time>,
    pub(super) written: Option<Time>,
    pub(super) settled: Time,
    pub(super) trace: Option<Text>,
}

#[derive(Debug, Serialize)]
pub(super) struct Seen {
    pub(super) address: Address,
    pub(super) epoch: Number,
    pub(super) at: Time,
}

fn earlier(one: Option<Time>, other: Option<Time>) -> Option<Time> {
    one.into_iter().chain(other).min()
}

impl Bridge {
    /// A bridge of which something else than a heartbeat was heard.
    pub(super) fn heard_of(name: Name, run: Run, seq: Number) -> Self {
        let started = run.started();
        Self {
            name,
            run,
            started,
            seq,
            heard: None,
            expires_ms: None,
            devices: None,
            state: State::Online,
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        if other.run > self.run {
            *self = other;
        } else if other.run == self.run {
            let seq = self.seq.max(other.seq);
            if other.heard > self.heard {
                *self = other;
            }
            self.seq = seq;
        }
    }
}

impl Device {
    /// What makes of two events about a device the later one. Nothing comes behind the end of a
    /// connection but the next one.
    fn order(&self) -> (Number, State, Number) {
        (self.epoch, self.state, self.seq)
    }

    pub(super) fn merge(&mut self, other: Self) {
        let since = match other.epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Less => self.since,
            std::cmp::Ordering::Equal => earlier(self.since, other.since),
            std::cmp::Ordering::Greater => other.since,
        };
        let last_seen = self.last_seen.max(other.last_seen);
        if other.order() > self.order() {
            *self = other;
        }
        (self.since, self.last_seen) = (since, last_seen);
    }
}

impl Connection {
    pub(super) fn merge(&mut self, other: Self) {
        self.since = earlier(self.since, other.since);
        if self.until.is_none() {
            (self.until, self.reason) = (other.until, other.reason);
        }
    }
}

impl Seen {
    pub(super) fn merge(&mut self, other: Self) {
        self.at = self.at.max(other.at);
    }
}

impl Command {
    pub(super) fn merge(&mut self, mut other: Self) {
        let order = |it: &Self| (it.settled, it.outcome.rank());
        if order(&other) > order(self) {
            std::mem::swap(self, &mut other);
        }
        self.written = self.written.or(other.written);
    }
}
