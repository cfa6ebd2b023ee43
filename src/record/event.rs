//! An event of a bridge, checked: bytes to values, or what was expected instead. Pure.

use serde::{Deserialize, Serialize, Serializer};

use crate::clock;
use crate::command::{Address as Known, Outcome as Word};

/// The longest name of a bridge, in bytes: names are parts of keys, which a database bounds.
const NAME_MAX: usize = 200;
/// Hexadecimal digits of a number of 64 bits.
const RUN_MAX: usize = 16;

/// One event.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Presence(Presence),
    Bridge(Heartbeat),
    Outcome(Box<Outcome>),
    Uplink(Line),
}

/// A device came, went, fell silent or was heard again.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Presence {
    pub(super) address: Address,
    pub(super) online: bool,
    #[serde(default)]
    pub(super) silent: bool,
    pub(super) epoch: Number,
    pub(super) bridge: Name,
    #[serde(default)]
    pub(super) run: Run,
    pub(super) seq: Number,
    pub(super) at: Time,
    pub(super) reason: Text,
    pub(super) peer: Option<Text>,
}

/// A bridge lives, or ends.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Heartbeat {
    pub(super) bridge: Name,
    pub(super) run: Run,
    pub(super) seq: Number,
    pub(super) online: bool,
    pub(super) devices: Option<Number>,
    pub(super) at: Time,
    pub(super) expires_ms: Number,
}

/// What became of a command, as far as is known.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Outcome {
    pub(super) bridge: Name,
    #[serde(default)]
    pub(super) run: Run,
    pub(super) number: Number,
    pub(super) id: Option<Text>,
    pub(super) address: Option<Address>,
    pub(super) cmd: Option<Text>,
    pub(super) confirm: Option<Text>,
    pub(super) outcome: Fate,
    pub(super) reason: Option<Text>,
    pub(super) answer: Option<Text>,
    pub(super) answer_base64: Option<Text>,
    pub(super) published: Option<Time>,
    pub(super) taken: Option<Time>,
    pub(super) written: Option<Time>,
    pub(super) at: Time,
    pub(super) trace: Option<Text>,
}

/// A line that a device sent; its row is the same.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Line {
    pub(super) bridge: Name,
    #[serde(default)]
    pub(super) run: Run,
    pub(super) number: Number,
    pub(super) address: Address,
    pub(super) epoch: Number,
    pub(super) at: Time,
    pub(super) line: Option<Text>,
    pub(super) line_base64: Option<Text>,
    #[serde(default)]
    pub(super) late: bool,
}

impl Event {
    /// The event that was published with `key`.
    pub(super) fn read(key: &str, body: &[u8]) -> Result<Self, String> {
        let kind = key.split('.').next().unwrap_or_default();
        let event = match kind {
            "presence" => serde_json::from_slice(body).map(Self::Presence),
            "bridge" => serde_json::from_slice(body).map(Self::Bridge),
            "outcome" => serde_json::from_slice(body).map(Self::Outcome),
            "uplink" => serde_json::from_slice(body).map(Self::Uplink),
            _ => {
                return Err(
                    "expected a key that begins with presence., bridge., outcome. or uplink."
                        .to_owned(),
                );
            }
        };
        event.map_err(|error| format!("expected a {kind} event: {error}"))
    }
}

/// What a device goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Address(String);

impl TryFrom<String> for Address {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Known::parse(&text).map(|address| Self(address.to_string())).map_err(|e| e.to_string())
    }
}

/// What a bridge goes by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Name(String);

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if (1..=NAME_MAX).contains(&text.len()) && !text.contains('\0') {
            return Ok(Self(text));
        }
        Err(format!("bridge: expected 1 to {NAME_MAX} bytes of text, got {} bytes", text.len()))
    }
}

/// One process of a bridge: when it started, in hexadecimal, so that a later one is greater. Empty if
/// the bridge does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Run(String);

impl Run {
    /// When the process started.
    pub(super) fn started(&self) -> Option<Time> {
        u64::from_str_radix(&self.0, 16).ok().map(Time)
    }
}

impl TryFrom<String> for Run {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let is_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() <= RUN_MAX && is_hex {
            return Ok(Self(text));
        }
        Err(format!("run: expected up to {RUN_MAX} digits 0-9a-f, got {text:?}"))
    }
}

/// A number that every database can hold.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u64")]
pub(super) struct Number(i64);

impl Number {
    pub(super) fn get(self) -> u64 {
        u64::try_from(self.0).unwrap_or_default()
    }
}

impl TryFrom<u64> for Number {
    type Error = String;
    fn try_from(number: u64) -> Result<Self, String> {
        i64::try_from(number).map(Self).map_err(|_| format!("expected at most {}", i64::MAX))
    }
}

/// A moment, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Time(u64);

impl TryFrom<String> for Time {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let expected = || format!("expected a time like 2026-11-21T14:30:00.123Z, got {text:?}");
        let time = humantime::parse_rfc3339(&text).map_err(|_| expected())?;
        let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| expected())?;
        u64::try_from(since.as_millis()).map(Self).map_err(|_| expected())
    }
}

/// As text, in the one form used everywhere: texts then sort as the times do.
impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&clock::rfc3339(self.0))
    }
}

/// Text that every database can hold: PostgreSQL has no place for the character NUL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub(super) struct Text(String);

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text })
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The word for what became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Fate(Word);

impl Fate {
    /// How final it is: of two that were told in the same millisecond, the greater came later.
    pub(super) fn rank(self) -> u8 {
        match self.0 {
            Word::Parked => 0,
            Word::Written => 1,
            Word::Received => 2,
            Word::Answered => 3,
            Word::Offline
            | Word::Expired
            | Word::Invalid
            | Word::Overloaded
            | Word::Unanswered
            | Word::Uncertain => 4,
        }
    }
}

impl TryFrom<String> for Fate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Word::from_label(&text).map(Self).ok_or_else(|| {
            let words = Word::ALL.map(Word::label).join(", ");
            format!("outcome: expected one of {words}, got {text:?}")
        })
    }
}

impl Serialize for Fate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.label())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(key: &str, body: &serde_json::Value) -> String {
        Event::read(key, body.to_string().as_bytes()).expect_err("malformed")
    }

    #[test]
    fn what_is_wrong_with_an_event_is_said_with_what_was_expected() {
        let mut event = json!({"address": "10.2.0.7", "online": true, "epoch": 1, "bridge": "b",
            "run": "19a", "seq": 1, "at": "2026-11-21T14:30:00.123Z", "reason": "connected"});
        assert!(Event::read("presence.10.2.0.7", event.to_string().as_bytes()).is_ok());
        let mut wrong = |field: &str, value: serde_json::Value, expected: &str| {
            let right = std::mem::replace(&mut event[field], value);
            let said = error("presence.10.2.0.7", &event);
            assert!(said.contains("presence") && said.contains(expected), "{said}");
            event[field] = right;
        };
        wrong("address", json!(""), "address: expected");
        wrong("address", json!("x".repeat(300)), "address: expected");
        wrong("epoch", json!("1"), "expected u64");
        wrong("epoch", json!(u64::MAX), "expected at most");
        wrong("bridge", json!(""), "bridge: expected");
        wrong("run", json!("start"), "run: expected");
        wrong("at", json!("yesterday"), "expected a time");
        assert!(error("presence.x", &json!({})).contains("missing field `address`"));
        assert!(error("last.x", &json!({})).contains("expected a key"));
        assert!(Event::read("bridge.b", b"\xff{").is_err());
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_an_event_or_told(kind in 0usize..5, body: Vec<u8>, text: String) {
            let key = ["presence.x", "bridge.b", "outcome.x", "uplink.x", ""][kind];
            assert!(Event::read(key, &body).is_err());
            let body = json!({"address": text, "bridge": text, "run": text, "at": text, "outcome": text});
            assert!(Event::read(key, body.to_string().as_bytes()).is_err());
        }
    }

    #[test]
    fn a_run_says_when_it_began_and_later_ones_are_greater() {
        let run = |text: &str| Run::try_from(text.to_owned()).expect("a run");
        assert_eq!(run("1a2b").started(), Some(Time(0x1a2b)));
        assert_eq!(run("").started(), None);
        assert!(run("") < run("19a9f5b3c00") && run("19a9f5b3c00") < run("19a9f5b3c0a"));
    }

    #[test]
    fn text_has_no_nul_and_times_have_one_form() {
        let json = |text: Text| serde_json::to_value(text).expect("JSON");
        assert_eq!(json("a\0b".to_owned().into()), "a\u{fffd}b");
        let time = Time::try_from("2026-11-21T14:30:00Z".to_owned()).expect("a time");
        assert_eq!(serde_json::to_value(time).expect("JSON"), "2026-11-21T14:30:00.000Z");
    }
}
