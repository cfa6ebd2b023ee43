//! `Topic`: JSON in WebSocket text messages. Devices subscribe to topics and publish to them. Pure,
//! bounded, without memory between messages.

mod websocket;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha1::{Digest, Sha1};

use super::{
    Audience, Broken, Content, Payload, Port, Protocol, Reach, json, missing, nullable, object,
    text,
};
use crate::command::Reason;
use websocket::{Message, WebSocket};

/// One device's side of the format, from the upgrade of its connection on.
#[derive(Debug)]
pub(crate) struct Topic {
    websocket: WebSocket,
}

impl Topic {
    /// Reads messages of at most `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self { websocket: WebSocket::new(max) }
    }
}

impl Protocol for Topic {
    fn feed(&mut self, bytes: &[u8], port: &mut dyn Port) -> Result<(), Broken> {
        self.websocket.feed(bytes, port, take_up)
    }

    fn amid(&self) -> Option<u64> {
        self.websocket.amid()
    }
}

#[derive(Debug, Default, Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    action: Option<&'a RawValue>,
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "nullable")]
    message: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Publication<'a> {
    action: &'static str,
    topic: &'a str,
    message: &'a Content,
}

#[derive(Serialize)]
struct Refusal<'a> {
    action: &'static str,
    topic: Option<&'a RawValue>,
    error: &'a str,
}

/// What a device reads when this is said to it.
pub(crate) fn encode(payload: &Payload) -> Result<Vec<u8>, Reason> {
    let topic = payload.group.as_deref().unwrap_or_default();
    let message = &payload.content;
    Ok(websocket::text(&json(&Publication { action: "publish", topic, message })?))
}

/// What a server answers, in the header Sec-WebSocket-Accept, to a client's Sec-WebSocket-Key.
pub(crate) fn accept_key(key: &str) -> String {
    /// By this a client knows that the server speaks WebSocket (RFC 6455, 1.3).
    const WEBSOCKET: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(WEBSOCKET).finalize())
}

fn take_up(message: Message<'_>, port: &mut dyn Port) {
    let (request, done) = match message {
        Message::Text(text) => match object(text.as_bytes()) {
            Ok(request) => {
                let done = obey(&request, port);
                (request, done)
            }
            Err(reason) => (Request::default(), Err(reason)),
        },
        Message::Binary => (Request::default(), Err("expected a text message".into())),
    };
    let Err(error) = done else { return };
    let refusal = Refusal { action: "error", topic: request.topic, error: &error };
    if let Ok(json) = json(&refusal) {
        port.reply(&websocket::text(&json));
    }
}

fn obey(request: &Request<'_>, port: &mut dyn Port) -> Result<(), Reason> {
    let action = text("action", request.action)?;
    let topic = text("topic", request.topic);
    match action.as_str() {
        "subscribe" => {
            port.join(&topic?)?;
        }
        "unsubscribe" => {
            port.leave(&topic?).ok_or("topic: expected one that was subscribed to")?;
        }
        "publish" => {
            let group: Arc<str> = topic?.into();
            let content = Content::of(request.message.ok_or_else(|| missing("message"))?);
            let reach = Reach::Several;
            let payload = Payload { content, group: Some(Arc::clone(&group)), from: None, reach };
            port.say(Audience::Group(group), payload);
        }
        _ => return Err("action: expected subscribe, unsubscribe or publish".into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
