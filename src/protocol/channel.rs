//! `Channel`: JSON objects, each ended by `##END##`. Devices join channels, leave them, and publish
//! to them. Pure, bounded, without memory between frames.

use std::sync::Arc;

use memchr::memmem;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::partial::Partial;
use super::{
    Audience, Broken, Content, Payload, Port, Protocol, Reach, json, missing, nullable, object,
    text,
};
use crate::command::Reason;

/// What ends a frame.
const END: &str = "##END##";

/// The end within a frame, where it can only stand in a string. Its last `#` is the escaped one, so
/// that it cannot begin another.
const ESCAPED_END: &str = "##END#\\u0023";

/// One device's side of the format.
#[derive(Debug)]
pub(crate) struct Channel {
    partial: Partial,
    max: usize,
}

impl Channel {
    /// Cuts frames of at most `max` bytes, white space before them and ends not counted.
    pub(crate) fn new(max: usize) -> Self {
        Self { partial: Partial::default(), max }
    }
}

impl Protocol for Channel {
    fn feed(&mut self, bytes: &[u8], port: &mut dyn Port) -> Result<(), Broken> {
        let Self { partial, max } = self;
        // What is here was searched when it came; only an end may have begun there.
        let mut searched = (partial.len() + 1).saturating_sub(END.len());
        partial.feed(bytes, |bytes| {
            let blank = bytes.len() - bytes.trim_ascii_start().len();
            if blank > 0 {
                return Ok(blank);
            }
            let unsearched = bytes.get(std::mem::take(&mut searched)..).unwrap_or_default();
            let Some(found) = memmem::find(unsearched, END.as_bytes()) else {
                // The last of them may belong to the end.
                let too_long = bytes.len() >= *max + END.len();
                return if too_long { Err(Broken::TooLong) } else { Ok(0) };
            };
            let length = bytes.len() - unsearched.len() + found;
            let frame = bytes.get(..length).unwrap_or_default();
            if length > *max {
                return Err(Broken::TooLong);
            }
            if !frame.is_empty() {
                take_up(frame, port);
            }
            Ok(length + END.len())
        })
    }

    fn amid(&self) -> Option<u64> {
        self.partial.amid()
    }
}

/// What a device asks. A field that is not there and one that is `null` are the same, but for the
/// message.
#[derive(Debug, Default, Deserialize)]
struct Question<'a> {
    #[serde(rename = "TYPE", borrow)]
    kind: Option<&'a RawValue>,
    #[serde(rename = "COMMAND", borrow)]
    command: Option<&'a RawValue>,
    #[serde(rename = "CHANNEL", borrow)]
    channel: Option<&'a RawValue>,
    #[serde(rename = "MSG", borrow, default, deserialize_with = "nullable")]
    message: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(rename = "TYPE")]
    kind: &'static str,
    #[serde(rename = "COMMAND")]
    command: &'a str,
    #[serde(rename = "CHANNEL")]
    channel: &'a str,
    #[serde(rename = "CNUM")]
    members: usize,
}

/// The answer to a question that cannot be: it repeats what was asked.
#[derive(Serialize)]
struct Refusal<'a> {
    #[serde(rename = "TYPE")]
    kind: &'static str,
    #[serde(rename = "QTYPE")]
    asked: Option<&'a RawValue>,
    #[serde(rename = "CHANNEL")]
    channel: Option<&'a RawValue>,
    #[serde(rename = "COMMAND")]
    command: Option<&'a RawValue>,
    #[serde(rename = "ERROR_MESSAGE")]
    reason: &'a str,
}

#[derive(Serialize)]
struct Publication<'a> {
    #[serde(rename = "TYPE")]
    kind: &'static str,
    #[serde(rename = "CHANNEL")]
    channel: &'a str,
    #[serde(rename = "MSG")]
    message: &'a Content,
}

/// What a device reads when this is said to it.
pub(crate) fn encode(payload: &Payload) -> Result<Vec<u8>, Reason> {
    let channel = payload.group.as_deref().unwrap_or_default();
    frame(&Publication { kind: "PUB", channel, message: &payload.content })
}

fn frame(object: &impl Serialize) -> Result<Vec<u8>, Reason> {
    let mut frame = json(object)?.replace(END, ESCAPED_END);
    frame.push_str(END);
    Ok(frame.into_bytes())
}

fn take_up(bytes: &[u8], port: &mut dyn Port) {
    let (question, done) = match object(bytes) {
        Ok(question) => {
            let done = obey(&question, port);
            (question, done)
        }
        Err(reason) => (Question::default(), Err(reason)),
    };
    let Err(reason) = done else { return };
    let Question { kind: asked, command, channel, .. } = question;
    if let Ok(frame) = frame(&Refusal { kind: "E", asked, channel, command, reason: &reason }) {
        port.reply(&frame);
    }
}

fn obey(question: &Question<'_>, port: &mut dyn Port) -> Result<(), Reason> {
    if text("TYPE", question.kind)? != "Q" {
        return Err("TYPE: expected Q".into());
    }
    let command = text("COMMAND", question.command)?;
    let channel = text("CHANNEL", question.channel);
    let answer = |members: usize, channel: &str| {
        frame(&Answer { kind: "R", command: &command, channel, members })
    };
    match command.as_str() {
        "JC" => {
            let channel = channel?;
            let members = port.join(&channel)?;
            port.reply(&answer(members, &channel)?);
        }
        "LC" => {
            let channel = channel?;
            let members = port.leave(&channel).ok_or_else(|| match port.members(&channel) {
                Some(_) => "CHANNEL: expected one that was joined".into(),
                None => unknown(),
            })?;
            port.reply(&answer(members, &channel)?);
        }
        "PUB" => {
            let channel = channel?;
            let content = Content::of(question.message.ok_or_else(|| missing("MSG"))?);
            let members = port.members(&channel).ok_or_else(unknown)?;
            // The answer comes before the publication, which may reach the device itself.
            port.reply(&answer(members, &channel)?);
            let group: Arc<str> = channel.into();
            let reach = Reach::Several;
            let payload = Payload { content, group: Some(Arc::clone(&group)), from: None, reach };
            port.say(Audience::Group(group), payload);
        }
        _ => return Err("COMMAND: expected JC, LC or PUB".into()),
    }
    Ok(())
}

fn unknown() -> Reason {
    "CHANNEL: expected one that exists".into()
}

#[cfg(test)]
mod tests;
