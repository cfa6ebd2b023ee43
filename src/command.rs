//! The nouns: `Address`, `Command`, `Outcome`.
//!
//! They are parsed, not validated: an `Address` is canonical.
//! No I/O and no clock here; the policy that belongs to an outcome lives on the outcome.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::protocol::Spoken;
pub use crate::settings::{Confirm, IfOffline};

/// Why something is as it is, for people: part of receipts, headers and logs.
pub type Reason = Cow<'static, str>;

/// The longest name a device can have, in bytes. AMQP routing keys end at 255 bytes, and
/// `presence.` comes before the name.
pub const ADDRESS_MAX: usize = 200;

/// Devices that only whoever holds them can name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Whom {
    /// All in the group with this name.
    Group(Box<str>),
    /// All that are connected.
    All,
    /// All that are connected and speak `chat`.
    AllInChat,
}

/// What names a device: its IP address as the bridge sees it, or a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address in canonical form: `::ffff:10.0.0.7` is `10.0.0.7`.
    Ip(IpAddr),
    /// Any other name.
    Name(Arc<str>),
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip.to_canonical())
    }
}

impl Address {
    /// The address that `text` names; else what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Reason> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::from(ip));
        }
        if text.is_empty() {
            return Err("address: expected the name of a device, got an empty string".into());
        }
        if text.len() > ADDRESS_MAX {
            return Err(format!(
                "address: expected at most {ADDRESS_MAX} bytes, got {}",
                text.len()
            )
            .into());
        }
        if text.chars().any(char::is_control) {
            return Err("address: expected no control characters".into());
        }
        Ok(Self::Name(text.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// One command, checked, for one device.
#[derive(Debug, Clone)]
pub struct Command {
    /// The device it is for.
    pub address: Address,
    /// What the device is told.
    pub(crate) spoken: Spoken,
    /// It is not written after this moment.
    pub expires: Instant,
    /// What to do when the device is not connected.
    pub if_offline: IfOffline,
    /// How much proof makes it delivered.
    pub confirm: Confirm,
    /// How long after the write the proof may take.
    pub timeout: Duration,
    /// Whether it may be written at most once.
    pub once: bool,
}

/// What became of a command. A closed set: receipts, metrics, logs and docs use these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel took every byte of the line.
    Written,
    /// The device's TCP stack acknowledged every byte of the line.
    Received,
    /// The device sent a line back.
    Answered,
    /// The device was not connected; nothing was written.
    Offline,
    /// It waits in the broker for its device. A final outcome follows.
    Parked,
    /// The ttl ended before the write.
    Expired,
    /// It cannot be decoded, or cannot be one line.
    Invalid,
    /// The device does not read, and there is no room for one more to wait for it.
    Overloaded,
    /// It was written, but the proof it asked for did not come in time.
    Unanswered,
    /// The link broke after a part or all of the line was written, and before the proof.
    Uncertain,
}

/// What the AMQP message of a command is owed, once its outcome is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Acknowledge it.
    Ack,
    /// Publish it to the undelivered exchange, confirmed, and acknowledge it then.
    Undelivered,
    /// Put it into its device's own queue, confirmed, and acknowledge it then.
    Park,
}

impl Outcome {
    /// Every outcome there is.
    pub const ALL: [Self; 10] = [
        Self::Written,
        Self::Received,
        Self::Answered,
        Self::Offline,
        Self::Parked,
        Self::Expired,
        Self::Invalid,
        Self::Overloaded,
        Self::Unanswered,
        Self::Uncertain,
    ];

    /// Its place in `ALL`.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// The word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Received => "received",
            Self::Answered => "answered",
            Self::Offline => "offline",
            Self::Parked => "parked",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
            Self::Overloaded => "overloaded",
            Self::Unanswered => "unanswered",
            Self::Uncertain => "uncertain",
        }
    }

    /// Whether the sender may count the command as delivered.
    pub fn is_delivered(self) -> bool {
        match self {
            Self::Written | Self::Received | Self::Answered => true,
            Self::Offline
            | Self::Parked
            | Self::Expired
            | Self::Invalid
            | Self::Overloaded
            | Self::Unanswered
            | Self::Uncertain => false,
        }
    }

    /// The word `label` as an outcome.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.label() == label)
    }

    /// What the message is owed, given what its command wants when the device is not there and
    /// whether it may be tried again.
    pub fn disposition(self, if_offline: IfOffline, once: bool) -> Disposition {
        match self {
            Self::Written | Self::Received | Self::Answered => Disposition::Ack,
            Self::Parked => Disposition::Park,
            Self::Expired | Self::Invalid | Self::Unanswered => Disposition::Undelivered,
            // Parking it would be a second try.
            Self::Uncertain if once => Disposition::Undelivered,
            // Its device is connected, and commands that came before wait in the lane: parked, it would
            // overtake them.
            Self::Overloaded if if_offline == IfOffline::Park => Disposition::Undelivered,
            Self::Offline | Self::Overloaded | Self::Uncertain => match if_offline {
                IfOffline::Reject => Disposition::Undelivered,
                IfOffline::Park => Disposition::Park,
                IfOffline::Drop => Disposition::Ack,
            },
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_canonical() {
        let same = [("::ffff:10.0.0.7", "10.0.0.7"), ("0:0::1", "::1"), ("pump-1", "pump-1")];
        for (given, shown) in same {
            assert_eq!(Address::parse(given).map(|a| a.to_string()), Ok(shown.to_owned()));
        }
        for wrong in ["", "a\nb", &"x".repeat(ADDRESS_MAX + 1)] {
            assert!(Address::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_a_delivered_command_is_acknowledged_without_a_trace() {
        for outcome in Outcome::ALL {
            let acked = outcome.disposition(IfOffline::Reject, false) == Disposition::Ack;
            assert_eq!(acked, outcome.is_delivered(), "{outcome}");
        }
    }

    #[test]
    fn what_may_have_reached_its_device_is_not_tried_again_if_it_says_once() {
        let uncertain = |once| Outcome::Uncertain.disposition(IfOffline::Park, once);
        assert_eq!(
            (uncertain(true), uncertain(false)),
            (Disposition::Undelivered, Disposition::Park)
        );
    }

    #[test]
    fn every_outcome_is_known_by_its_word() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(Outcome::from_label(outcome.label()), Some(outcome));
            assert_eq!(outcome.index(), index);
        }
    }
}
