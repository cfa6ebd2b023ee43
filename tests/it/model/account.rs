//! What was done and what was seen of it from the outside: by devices, senders and readers of events.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::schedule::{DEVICES, Spec, name};

#[derive(Default)]
pub(super) struct Account {
    /// By number.
    pub(super) commands: Vec<Told>,
    /// What no check has to look for: it was wrong at once.
    pub(super) wrong: Vec<String>,
    pub(super) presence: Vec<Value>,
    /// Lines of the bridges' logs.
    pub(super) logs: Vec<String>,
    /// How many commands had been published when a bridge ended without having finished.
    pub(super) killed: Vec<usize>,
    /// The same, when a bridge ended at all.
    pub(super) ended: Vec<usize>,
    /// The same, when a connection to the broker last broke, or the broker last learned of it.
    pub(super) links_broke: Option<usize>,
    /// The same, when a device's connection ended, by device.
    pub(super) device_lost: [Vec<usize>; DEVICES],
    /// The same, when it ended with bytes unread that nobody knows.
    pub(super) lost_unread: [Vec<usize>; DEVICES],
}

/// One command.
pub(super) struct Told {
    pub(super) spec: Spec,
    pub(super) published_ms: u64,
    /// Where and when its device has read it, or has had it unread when its connection was reset.
    pub(super) seen: Vec<Sight>,
    /// The outcomes in its receipts.
    pub(super) words: Vec<String>,
    /// Whether a receipt says that it was written and may never have arrived.
    pub(super) taken_back: bool,
    /// Whether one says that it was parked because the device, which was connected, had no room.
    pub(super) had_no_room: bool,
    /// The outcomes of its copies in the undelivered queue.
    pub(super) undelivered: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sight {
    /// Which connection of its device, and which line of it.
    pub(super) connection: usize,
    pub(super) line: usize,
    pub(super) at_ms: u64,
    /// Whether the device has read that connection all the time, so that this was soon after the write.
    pub(super) promptly: bool,
}

impl Account {
    /// How many commands have been published: what serves as the time.
    pub(super) fn now(&self) -> usize {
        self.commands.len()
    }

    pub(super) fn publish(&mut self, spec: Spec, published_ms: u64) {
        let (seen, words, undelivered) = (Vec::new(), Vec::new(), Vec::new());
        let (taken_back, had_no_room) = (false, false);
        self.commands.push(Told {
            spec,
            published_ms,
            seen,
            words,
            taken_back,
            had_no_room,
            undelivered,
        });
    }

    /// A device has read a line. Gives what it is to say to it, if it was asked.
    pub(super) fn line(&mut self, device: usize, text: &str, sight: Sight) -> Option<String> {
        let number = text
            .strip_prefix('c')
            .and_then(|rest| rest.split([' ', '?']).next())
            .and_then(|digits| digits.parse::<usize>().ok());
        let Some((number, told)) =
            number.and_then(|number| Some((number, self.commands.get_mut(number)?)))
        else {
            self.wrong.push(format!("2: device {device} read {text:?}, which is no command"));
            return None;
        };
        if text.strip_suffix("\r\n") != Some(&told.spec.line(number)) {
            self.wrong.push(format!("2: c{number} is not one whole line: {text:?}"));
        }
        if told.spec.device != device {
            self.wrong.push(format!("2: c{number} was read by device {device}"));
        }
        told.seen.push(sight);
        (told.spec.confirm == "answered").then(|| name(number))
    }

    /// The command that a message is about, by its correlation id.
    pub(super) fn about(&mut self, correlation_id: Option<&str>) -> &mut Told {
        let number = correlation_id.and_then(|id| id.parse::<usize>().ok());
        let told = number.and_then(|number| self.commands.get_mut(number));
        told.unwrap_or_else(|| panic!("a message about {correlation_id:?}"))
    }

    /// Whether something in `times` happened when a command was published already.
    fn after(times: &[usize], number: usize) -> bool {
        times.iter().any(|time| *time > number)
    }

    pub(super) fn killed_after(&self, number: usize) -> bool {
        Self::after(&self.killed, number)
    }

    pub(super) fn ended_after(&self, number: usize) -> bool {
        Self::after(&self.ended, number)
    }

    pub(super) fn device_lost_after(&self, number: usize) -> bool {
        Self::after(&self.device_lost[self.commands[number].spec.device], number)
    }

    pub(super) fn lost_unread_after(&self, number: usize) -> bool {
        Self::after(&self.lost_unread[self.commands[number].spec.device], number)
    }

    /// Why the command with this number is not at its end yet, if it is not.
    pub(super) fn pending(&self, number: usize) -> Option<String> {
        let told = &self.commands[number];
        let is_known = match told.words.last().map(String::as_str) {
            // What expires while it is parked is told by the bridge that parked it, if it lives.
            Some("parked") => {
                self.ended_after(number) && told.undelivered.iter().any(|word| word == "expired")
            }
            Some(_) => true,
            None => {
                !told.spec.receipt
                    && (!told.seen.is_empty()
                        || !told.undelivered.is_empty()
                        || told.spec.if_offline == "drop"
                        || self.lost_unread_after(number)
                        || self.killed_after(number))
            }
        };
        (!is_known).then(|| self.describe(number))
    }

    pub(super) fn describe(&self, number: usize) -> String {
        let Told { spec, seen, words, undelivered, .. } = &self.commands[number];
        let seen: Vec<_> = seen.iter().map(|s| format!("{}.{}", s.connection, s.line)).collect();
        format!(
            "c{number} {spec}: receipts {words:?}, undelivered {undelivered:?}, read at {seen:?}"
        )
    }

    /// The presence events of each bridge, in the order of their `seq`, each once.
    pub(super) fn presence_by_bridge(&self) -> BTreeMap<String, BTreeMap<u64, &Value>> {
        let mut all: BTreeMap<String, BTreeMap<u64, &Value>> = BTreeMap::new();
        for event in &self.presence {
            let bridge = event["bridge"].as_str().expect("a bridge").to_owned();
            let seq = event["seq"].as_u64().expect("a seq");
            all.entry(bridge).or_default().insert(seq, event);
        }
        all
    }
}

pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("milliseconds fit")
}
