//! `Chat`: JSON bodies behind a header of three numbers, for devices that say to one, several or all
//! others what they have to say. Pure, bounded, without memory between frames.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::debug;

use super::partial::Partial;
use super::{
    Audience, Broken, Content, Format, Hello, Payload, Port, Protocol, Reach, json, missing,
    nullable, object, value,
};
use crate::command::{Address, Reason};

/// How long a frame's header is: its whole length, the version of the format and what it is about,
/// four bytes each.
const HEADER: usize = 12;

/// The version that is written. Any is read.
const VERSION: u32 = 1;

/// How long a device may be silent that has told that it lives: the format says so.
const HEARTBEAT_SILENCE: Duration = Duration::from_secs(4);

/// What a frame is about.
mod about {
    pub(super) const VERIFY: u32 = 1;
    pub(super) const TO_ONE: u32 = 2;
    pub(super) const TO_SEVERAL: u32 = 3;
    pub(super) const TO_ALL: u32 = 4;
    pub(super) const HEARTBEAT: u32 = 5;
    pub(super) const VERIFIED: u32 = 101;
    pub(super) const SAID_TO_ONE: u32 = 102;
    pub(super) const SAID_TO_SEVERAL: u32 = 103;
    pub(super) const SAID_TO_ALL: u32 = 104;
}

/// A verified device's side of the format.
#[derive(Debug)]
pub(crate) struct Chat {
    partial: Partial,
    /// The phone number it was verified with.
    id: Box<str>,
    max: usize,
}

impl Chat {
    /// Reads bodies of at most `max` bytes from the device that was verified with this number.
    pub(crate) fn new(id: &str, max: usize) -> Self {
        Self { partial: Partial::default(), id: id.into(), max }
    }
}

impl Protocol for Chat {
    fn feed(&mut self, bytes: &[u8], port: &mut dyn Port) -> Result<(), Broken> {
        let Self { partial, id, max } = self;
        partial.feed(bytes, |bytes| {
            let Some(frame) = first(bytes, *max)? else { return Ok(0) };
            if let Err(reason) = take_up(&frame, id, port) {
                debug!(%reason, about = frame.about, "a frame is ignored");
            }
            Ok(frame.length)
        })
    }

    fn amid(&self) -> Option<u64> {
        self.partial.amid()
    }
}

/// What the beginning of a connection says of who the device is.
pub(crate) fn verify(bytes: &[u8], max: usize) -> Result<Hello, Broken> {
    let Some(frame) = first(bytes, max)? else { return Ok(Hello::More) };
    let length = frame.length;
    let claim = match frame.about {
        about::VERIFY => claim(frame.body),
        _ => Err("expected a frame that verifies".into()),
    };
    match claim {
        Ok((id, token)) => Ok(Hello::Claim { length, id, token: Some(token) }),
        Err(reason) => {
            debug!(%reason, about = frame.about, "a frame is ignored");
            Ok(Hello::Ignore(length))
        }
    }
}

/// The answer to a device that verifies itself.
pub(crate) fn verified(success: bool) -> Vec<u8> {
    frame(about::VERIFIED, if success { br#"{"code":1}"# } else { br#"{"code":0}"# })
}

/// What a device reads when this is said to it.
pub(crate) fn encode(payload: &Payload, default_from: &str) -> Result<Vec<u8>, Reason> {
    let about = match payload.reach {
        Reach::One => about::SAID_TO_ONE,
        Reach::Several => about::SAID_TO_SEVERAL,
        Reach::All => about::SAID_TO_ALL,
    };
    let from = payload.from.as_deref().unwrap_or(default_from);
    let body = json(&Said { from, content: &payload.content })?;
    Ok(frame(about, body.as_bytes()))
}

#[derive(Deserialize)]
struct Verification<'a> {
    #[serde(borrow)]
    phone_number: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Saying<'a> {
    #[serde(rename = "chat_from", borrow)]
    from: Option<&'a RawValue>,
    #[serde(rename = "chat_to", borrow)]
    to: Option<&'a RawValue>,
    #[serde(rename = "chat_content", borrow, default, deserialize_with = "nullable")]
    content: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Said<'a> {
    #[serde(rename = "chat_from")]
    from: &'a str,
    #[serde(rename = "chat_content")]
    content: &'a Content,
}

struct Frame<'a> {
    about: u32,
    body: &'a [u8],
    /// Header and body.
    length: usize,
}

/// The frame that `bytes` begin with, once it is whole.
fn first(bytes: &[u8], max: usize) -> Result<Option<Frame<'_>>, Broken> {
    let Some((length, _)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Broken::TooLong)?;
    let Some(body) = length.checked_sub(HEADER) else {
        let reason = format!("length: expected at least {HEADER}, got {length}");
        return Err(Broken::Malformed(reason.into()));
    };
    if body > max {
        return Err(Broken::TooLong);
    }
    let whole = bytes.get(..length).and_then(<[u8]>::split_first_chunk::<HEADER>);
    Ok(whole.map(|(&[_, _, _, _, _, _, _, _, a, b, c, d], body)| Frame {
        about: u32::from_be_bytes([a, b, c, d]),
        body,
        length,
    }))
}

fn frame(about: u32, body: &[u8]) -> Vec<u8> {
    let length = HEADER + body.len();
    let mut frame = Vec::with_capacity(length);
    // What is said has come in one message, and none is nearly as long as the four bytes can tell.
    for number in [u32::try_from(length).unwrap_or(u32::MAX), VERSION, about] {
        frame.extend_from_slice(&number.to_be_bytes());
    }
    frame.extend_from_slice(body);
    frame
}

fn take_up(frame: &Frame<'_>, id: &str, port: &mut dyn Port) -> Result<(), Reason> {
    match frame.about {
        about::VERIFY => {
            let (claimed, _) = claim(frame.body)?;
            port.reply(&verified(claimed == id));
            Ok(())
        }
        about::TO_ONE => say(frame.body, Reach::One, port),
        about::TO_SEVERAL => say(frame.body, Reach::Several, port),
        about::TO_ALL => say(frame.body, Reach::All, port),
        about::HEARTBEAT => {
            port.end_if_silent_for(HEARTBEAT_SILENCE);
            Ok(())
        }
        _ => Err("expected a number from 1 to 5".into()),
    }
}

/// The phone number and the token of a device that verifies itself.
fn claim(body: &[u8]) -> Result<(String, String), Reason> {
    let body: Verification<'_> = object(body)?;
    Ok((word("phone_number", body.phone_number)?, word("token", body.token)?))
}

fn say(body: &[u8], reach: Reach, port: &mut dyn Port) -> Result<(), Reason> {
    let body: Saying<'_> = object(body)?;
    let from = word("chat_from", body.from)?;
    let content = Content::of(body.content.ok_or_else(|| missing("chat_content"))?);
    let audience = match reach {
        Reach::One => Audience::These(vec![Address::parse(&word("chat_to", body.to)?)?]),
        Reach::Several => Audience::These(several(body.to)?),
        Reach::All => Audience::All(Format::Chat),
    };
    port.say(audience, Payload { content, group: None, from: Some(from.into()), reach });
    Ok(())
}

/// Those in a list that are devices' names.
fn several(to: Option<&RawValue>) -> Result<Vec<Address>, Reason> {
    let to = to.ok_or_else(|| missing("chat_to"))?;
    let to: Vec<&RawValue> =
        serde_json::from_str(to.get()).map_err(|_| "chat_to: expected a list")?;
    let names = to.into_iter().filter_map(|name| word("chat_to", Some(name)).ok());
    let devices: Vec<Address> = names.filter_map(|name| Address::parse(&name).ok()).collect();
    if devices.is_empty() {
        return Err("chat_to: expected the name of a device".into());
    }
    Ok(devices)
}

/// A string's text, or a number's digits.
fn word(name: &str, raw: Option<&RawValue>) -> Result<String, Reason> {
    let raw = raw.ok_or_else(|| missing(name))?;
    let is_number = raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit());
    if is_number {
        return Ok(raw.get().to_owned());
    }
    value(raw).ok_or_else(|| format!("{name}: expected a string or a number").into())
}

#[cfg(test)]
mod tests;
