//! The wire formats that devices speak, one file each, behind one small trait. Pure: bytes and a
//! `Port` come in, bytes go out; no socket, no clock, no lock.
//!
//! A protocol cuts what a device sends into frames and does what they ask for through the `Port` of
//! the device's session; and it writes what is said to a device in its own format. What is said to
//! many is encoded once for each format.

mod channel;
pub(crate) mod chat;
mod line;
mod partial;
#[cfg(any(test, fuzzing))]
pub(crate) mod recorder;
pub(crate) mod topic;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use serde_json::value::RawValue;

use crate::command::{Address, Reason};
use crate::settings::LineEnding;

pub(crate) use line::check as check_line;

/// A wire format, as the devices of one listener speak it. `max` is the longest frame in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    Line {
        ending: LineEnding,
        max: usize,
    },
    Channel {
        max: usize,
    },
    /// What nobody in particular says comes from `from`.
    Chat {
        max: usize,
        from: Arc<str>,
    },
    Topic {
        max: usize,
    },
}

/// What a wire format is, whatever its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    Line,
    Channel,
    Chat,
    Topic,
}

/// The bytes of one frame, shared by all it is written to.
pub(crate) type Frame = Bytes;

impl Wire {
    /// What a device reads when `payload` is said to it; else why it cannot be said.
    pub(crate) fn encode(&self, payload: &Payload) -> Result<Frame, Reason> {
        let frame = match self {
            Self::Line { ending, max } => line::encode(payload, *ending, *max)?,
            Self::Channel { .. } => channel::encode(payload)?,
            Self::Chat { from, .. } => chat::encode(payload, from)?,
            Self::Topic { .. } => topic::encode(payload)?,
        };
        Ok(frame.into())
    }

    /// Whether `payload` can be said at all; else why not.
    pub(crate) fn check(&self, payload: &Payload) -> Result<(), Reason> {
        match self {
            Self::Line { max, .. } => line::check(payload.content.text(), *max),
            Self::Channel { .. } | Self::Chat { .. } | Self::Topic { .. } => {
                self.encode(payload).map(drop)
            }
        }
    }

    /// The side of a device that goes by `id`.
    pub(crate) fn begin(&self, id: &str) -> Box<dyn Protocol> {
        match self {
            Self::Line { max, .. } => Box::new(line::Line::new(*max)),
            Self::Channel { max } => Box::new(channel::Channel::new(*max)),
            Self::Chat { max, .. } => Box::new(chat::Chat::new(id, *max)),
            Self::Topic { max } => Box::new(topic::Topic::new(*max)),
        }
    }

    pub(crate) fn format(&self) -> Format {
        match self {
            Self::Line { .. } => Format::Line,
            Self::Channel { .. } => Format::Channel,
            Self::Chat { .. } => Format::Chat,
            Self::Topic { .. } => Format::Topic,
        }
    }

    /// Whether devices say something to each other in it.
    pub(crate) fn is_for_talk(&self) -> bool {
        self.format() != Format::Line
    }

    /// Whether devices answer commands in it.
    pub(crate) fn has_answers(&self) -> bool {
        self.format() == Format::Line
    }
}

/// Something on its way to one device or to many.
#[derive(Debug, Clone)]
pub(crate) enum Spoken {
    ToOne(Payload),
    ToMany(Arc<Shared>),
}

/// What is said to many.
#[derive(Debug)]
pub(crate) struct Shared {
    payload: Payload,
    /// It is encoded once for each format: few, so they are looked through.
    frames: Mutex<Vec<(Wire, Frame)>>,
}

impl Spoken {
    pub(crate) fn new(payload: Payload) -> Self {
        match payload.reach {
            Reach::One => Self::ToOne(payload),
            Reach::Several | Reach::All => {
                Self::ToMany(Arc::new(Shared { payload, frames: Mutex::default() }))
            }
        }
    }

    pub(crate) fn payload(&self) -> &Payload {
        match self {
            Self::ToOne(payload) => payload,
            Self::ToMany(shared) => &shared.payload,
        }
    }

    /// What a device reads; else why it cannot be said in its format.
    pub(crate) fn in_wire(&self, wire: &Wire) -> Result<Frame, Reason> {
        let shared = match self {
            Self::ToOne(payload) => return wire.encode(payload),
            Self::ToMany(shared) => shared,
        };
        let mut frames = shared.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, frame)) = frames.iter().find(|(known, _)| known == wire) {
            return Ok(frame.clone());
        }
        let frame = wire.encode(&shared.payload)?;
        frames.push((wire.clone(), frame.clone()));
        Ok(frame)
    }
}

/// What a device is told, whatever its wire format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) content: Content,
    /// The group it was said to, if it was.
    pub(crate) group: Option<Arc<str>>,
    /// Who says it, where a format has a place for that.
    pub(crate) from: Option<Arc<str>>,
    /// To how many it was addressed.
    pub(crate) reach: Reach,
}

/// A string as its text, any other JSON value as JSON without white space between its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Text(Box<str>),
    Json(Box<str>),
}

impl Payload {
    /// What is said to one device, by nobody in particular.
    pub(crate) fn new(content: Content) -> Self {
        Self { content, group: None, from: None, reach: Reach::One }
    }
}

impl Content {
    /// A string's text, or the JSON of another value.
    pub(crate) fn text(&self) -> &str {
        let (Self::Text(text) | Self::Json(text)) = self;
        text
    }

    /// A JSON value as somebody wrote it.
    pub(crate) fn of(raw: &RawValue) -> Self {
        // A string that is no text, as `"\ud800"`, stays the JSON it is.
        match value(raw) {
            Some(text) => Self::Text(text),
            None => Self::Json(compact(raw.get()).into()),
        }
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            // Looked through once more: what is no JSON would garble the frame around it.
            Self::Json(json) => serde_json::from_str::<&RawValue>(json)
                .map_err(ser::Error::custom)?
                .serialize(serializer),
        }
    }
}

/// To how many something was addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reach {
    One,
    Several,
    All,
}

/// To whom a device wants something said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Audience {
    Group(Arc<str>),
    These(Vec<Address>),
    /// All that speak this.
    All(Format),
}

/// What a device can do besides reading: the part of its session that a protocol sees.
pub(crate) trait Port {
    /// Takes up something the device says to the backends: an answer, or uplink.
    fn line(&mut self, line: &[u8]);
    /// Sends a frame back to this device.
    fn reply(&mut self, frame: &[u8]);
    /// Makes it a member of a group, which begins with its first member; how many there are then.
    fn join(&mut self, group: &str) -> Result<usize, Reason>;
    /// Ends its membership; how many are left, or None if it was no member.
    fn leave(&mut self, group: &str) -> Option<usize>;
    /// How many are in a group; None if there is no such group.
    fn members(&self, group: &str) -> Option<usize>;
    /// Says something to others, and to itself if it is among them.
    fn say(&mut self, audience: Audience, payload: Payload);
    /// From now on, ends the connection when the device sends nothing for this long.
    fn end_if_silent_for(&mut self, limit: Duration);
}

/// One device's side of a wire format.
pub(crate) trait Protocol: fmt::Debug + Send {
    /// Takes up bytes as they come, in any pieces.
    fn feed(&mut self, bytes: &[u8], port: &mut dyn Port) -> Result<(), Broken>;
    /// If a frame has begun whose end has not come: how many came before it, to tell it from the next.
    fn amid(&self) -> Option<u64>;
}

/// Why a connection cannot go on: what follows could not be told apart from what came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A frame was longer than the limit.
    TooLong,
    /// It is not the format; the reason says what was expected.
    Malformed(Reason),
    /// The device ended it in an orderly way.
    Closed,
}

/// What the beginning of a connection says of who the device is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    /// Not enough has come.
    More,
    /// The first so many bytes say nothing of it and are dropped.
    Ignore(usize),
    /// The first so many bytes say this.
    Claim { length: usize, id: String, token: Option<String> },
}

/// The fields of a JSON object; else what is there instead.
fn object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Reason> {
    let text =
        std::str::from_utf8(bytes).map_err(|error| format!("expected UTF-8, got {error}"))?;
    // serde would take an array for the fields in order.
    if !text.trim_ascii_start().starts_with('{') {
        return Err("expected a JSON object".into());
    }
    serde_json::from_str(text)
        .map_err(|error| format!("expected a JSON object, got {error}").into())
}

/// What `raw` says, if it is of this type.
fn value<T: DeserializeOwned>(raw: &RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

/// A string's text.
fn text(name: &str, raw: Option<&RawValue>) -> Result<String, Reason> {
    let raw = raw.ok_or_else(|| missing(name))?;
    value(raw).ok_or_else(|| format!("{name}: expected a string").into())
}

/// A field that may be `null`, which serde would take for a missing one.
fn nullable<'de, D: Deserializer<'de>>(field: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

/// A frame's JSON.
fn json(frame: &impl Serialize) -> Result<String, Reason> {
    serde_json::to_string(frame).map_err(|error| format!("content: no JSON: {error}").into())
}

/// JSON without the white space between its tokens.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|c| {
            if in_string {
                in_string = escaped || *c != '"';
                escaped = !escaped && *c == '\\';
                return true;
            }
            in_string = *c == '"';
            !c.is_ascii_whitespace()
        })
        .collect()
}

fn missing(name: &str) -> Reason {
    format!("{name}: missing").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(json: &str) -> Content {
        Content::of(&RawValue::from_string(json.to_owned()).expect(json))
    }

    #[test]
    fn a_string_is_its_text_and_any_other_value_is_compact_json() {
        assert_eq!(content(r#""a \" \u00e9""#), Content::Text("a \" é".into()));
        let check = |json: &str, compact: &str| {
            assert_eq!(content(json), Content::Json(compact.into()));
        };
        check(r#"{ "z" : 1.50, "a" : [ true , "x \" y" ] }"#, r#"{"z":1.50,"a":[true,"x \" y"]}"#);
        check("12345678901234567890123", "12345678901234567890123");
        check("null", "null");
        check(r#""\ud800""#, r#""\ud800""#);
    }

    #[test]
    fn content_is_written_as_it_was_read() {
        for json in [r#""a\"b""#, "1.50", r#"{"b":1,"a":[]}"#, "null", r#""\ud800""#] {
            assert_eq!(super::json(&content(json)).as_deref(), Ok(json));
        }
    }

    #[test]
    fn content_that_is_no_json_is_not_written() {
        for garbled in ["", "{", "1 2", "}"] {
            let error = json(&Content::Json(garbled.into())).expect_err(garbled);
            assert!(error.starts_with("content: no JSON"), "{error}");
        }
    }
}
