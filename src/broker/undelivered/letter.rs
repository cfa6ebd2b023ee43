//! `Letter`: what can be told of a command that was not delivered; and what is sent when it is tried again.
//! Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::message::Message;
use crate::clock;
use crate::command::Reason;
use crate::uplink::text_or_base64;

/// What names a device in a body, one of which there is.
const RECIPIENTS: [&str; 4] = ["address", "addresses", "group", "broadcast"];
/// Bytes of a digest that make a key: nobody finds two messages with the same.
const KEY_BYTES: usize = 16;

/// A command that was not delivered.
#[derive(Debug, Serialize)]
pub(crate) struct Letter {
    /// Names this very message.
    key: String,
    pub(crate) id: Option<String>,
    /// The device that did not get it, if it is one.
    address: Option<String>,
    /// What the device was to be told.
    cmd: Option<String>,
    outcome: Option<String>,
    reason: Option<String>,
    /// When that outcome was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

#[derive(Default, Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    address: Option<&'a RawValue>,
    #[serde(borrow)]
    cmd: Option<&'a RawValue>,
    #[serde(borrow)]
    chat_content: Option<&'a RawValue>,
}

impl Letter {
    pub(super) fn of(message: &Message) -> Self {
        // What is no command has been refused as such, and is told as it is.
        let said: Body<'_> = serde_json::from_slice(&message.body).unwrap_or_default();
        let id = message.message_id().map(str::to_owned);
        let (body, body_base64) = text_or_base64(&message.body);
        Self {
            key: Self::key_of(message),
            id: said.id.map(text).or(id),
            address: message.member().or_else(|| said.address.map(text)),
            cmd: said.cmd.or(said.chat_content).map(text),
            outcome: message.outcome(),
            reason: message.reason(),
            at: message.at().or_else(|| message.parked_until().map(clock::rfc3339)),
            body: body.map(str::to_owned),
            body_base64,
        }
    }

    /// What names a message: all of it that stays as it is however often it is given back.
    pub(super) fn key_of(message: &Message) -> String {
        let properties = &message.properties;
        let word = |text: &Option<lapin::types::ShortString>| {
            text.as_ref().map(|text| text.as_str().to_owned())
        };
        let parts = [
            word(properties.message_id()),
            word(properties.correlation_id()),
            word(properties.reply_to()),
            properties.timestamp().map(|it| it.to_string()),
            message.member(),
            message.outcome(),
            message.reason(),
            message.at(),
            message.parked_until().map(|it| it.to_string()),
        ];
        let mut digest = Context::new(&SHA256);
        for part in parts {
            let part = part.unwrap_or_default();
            // So that what is in one part is not in the next.
            digest.update(&part.len().to_be_bytes());
            digest.update(part.as_bytes());
        }
        digest.update(&message.body);
        let digest = digest.finish();
        digest.as_ref().iter().take(KEY_BYTES).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What is sent when it is tried again: of a command for many, that for the one that did not get it.
pub(super) fn body_again(message: &Message) -> Result<Cow<'_, [u8]>, Reason> {
    let Some(member) = message.member() else { return Ok(Cow::Borrowed(&message.body)) };
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&message.body)
        .map_err(|error| format!("body: expected a JSON object, got {error}"))?;
    let is_chat = fields.contains_key("command_id") && !fields.contains_key("cmd");
    let member = serde_json::value::to_raw_value(&member).map_err(|error| error.to_string())?;
    if is_chat {
        // To one phone.
        fields.insert(
            "command_id".to_owned(),
            RawValue::from_string("102".to_owned()).map_err(|error| error.to_string())?,
        );
        fields.insert("chat_to".to_owned(), member);
    } else {
        for name in RECIPIENTS {
            fields.remove(name);
        }
        fields.insert("address".to_owned(), member);
    }
    let body = serde_json::to_vec(&fields).map_err(|error| error.to_string())?;
    Ok(Cow::Owned(body))
}

/// A string as it is, anything else as JSON.
fn text(raw: &RawValue) -> String {
    serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::decode::{self, Recipients, Stamps};
    use crate::clock::Moment;
    use crate::command::{Address, Outcome};

    fn undelivered(body: &str, member: Option<&str>) -> Message {
        let member = member.map(|member| Address::parse(member).expect("an address"));
        let original = Message::of_body(body.as_bytes());
        let properties =
            original.undelivered_properties(Outcome::Offline, &"away".into(), member.as_ref());
        Message { properties: properties.into(), ..original }
    }

    #[test]
    fn a_letter_tells_what_was_to_be_said_to_whom_and_why_it_was_not() {
        let message = undelivered(r#"{"address":"10.0.0.7","cmd":{"set": 1},"id":"c7"}"#, None);
        let letter = serde_json::to_value(Letter::of(&message)).expect("JSON");
        assert_eq!((&letter["id"], &letter["address"]), (&"c7".into(), &"10.0.0.7".into()));
        assert_eq!((&letter["outcome"], &letter["reason"]), (&"offline".into(), &"away".into()));
        assert_eq!(letter["cmd"], r#"{"set": 1}"#);
        assert!(letter["at"].is_string() && letter["body"].is_string(), "{letter}");
        let garbage =
            serde_json::to_value(Letter::of(&undelivered("no JSON", None))).expect("JSON");
        assert_eq!(
            (&garbage["body"], &garbage["cmd"]),
            (&"no JSON".into(), &serde_json::Value::Null)
        );
        let member = undelivered(r#"{"group":"pumps","cmd":"ON"}"#, Some("p1"));
        assert_eq!(serde_json::to_value(Letter::of(&member)).expect("JSON")["address"], "p1");
    }

    #[test]
    fn a_key_names_one_message_and_outlasts_its_return() {
        let message = undelivered(r#"{"address":"10.0.0.7","cmd":"ON"}"#, Some("p1"));
        let key = Letter::key_of(&message);
        assert_eq!(key.len(), 2 * KEY_BYTES);
        let properties = message.counted_by_a_quorum_queue(3);
        let counted = Message { properties: properties.into(), ..message };
        assert_eq!(Letter::key_of(&counted), key);
        let other = undelivered(r#"{"address":"10.0.0.7","cmd":"ON"}"#, Some("p2"));
        assert_ne!(Letter::key_of(&other), key);
    }

    #[test]
    fn of_a_command_for_many_only_the_one_is_tried_again() {
        for body in [
            r#"{"group":"pumps","cmd":"ON","id":"7"}"#,
            r#"{"addresses":["p1","p2"],"cmd":"ON"}"#,
            r#"{"broadcast":true,"cmd":"ON"}"#,
            r#"{"command_id":103,"chat_to":["p1","p2"],"chat_content":"ON"}"#,
            r#"{"command_id":104,"chat_content":"ON"}"#,
        ] {
            let message = undelivered(body, Some("p1"));
            let again = body_again(&message).expect("it can be sent");
            let (defaults, now) = (decode::tests::defaults(), Moment::now());
            let decoded = decode::decode(&again, &Stamps::default(), &defaults, now).expect(body);
            let one = Address::parse("p1").expect("an address");
            assert_eq!(decoded.recipients, Recipients::One(one), "{body}");
            assert_eq!(decoded.terms.spoken.payload().content.text(), "ON");
        }
        let whole = undelivered(r#"{"address": "p1"}"#, None);
        assert_eq!(&*body_again(&whole).expect("as it is"), br#"{"address": "p1"}"#);
    }
}
