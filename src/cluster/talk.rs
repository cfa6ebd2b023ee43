//! `Talk`: what devices here say to those of other bridges, on its way to the broker. It is kept for nobody: what there is
//! no room for, or no connection, is dropped and counted.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::command::{Address, Reason};
use crate::protocol::{Audience, Content, Format, Payload, Reach};

/// Bytes that may wait for the broker: what devices say in some tenths of a second on a busy bridge.
const WAITING_MAX: usize = 1 << 20;

/// What waits to be said at the other bridges.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    /// Held for a few moves, never across an await. Nothing is locked while it is.
    waiting: Mutex<Waiting>,
    more: Notify,
    /// Whether a device has been here that may say something to others.
    is_wanted: AtomicBool,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    said: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether there is a connection on which it can be said.
    is_open: bool,
}

/// Something that was said, as a message to the other bridges.
#[derive(Debug, Serialize, Deserialize)]
struct Message<'a> {
    bridge: Cow<'a, str>,
    to: To<'a>,
    /// Text, or else JSON.
    content: Cow<'a, str>,
    is_text: bool,
    from: Option<Cow<'a, str>>,
    reach: Reach,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum To<'a> {
    Group(Cow<'a, str>),
    These(Vec<String>),
    All(Format),
}

impl Talk {
    /// A device is here that may say something to others, and hear them.
    pub(crate) fn want(&self) {
        if !self.is_wanted.swap(true, Ordering::Relaxed) {
            self.wanted.notify_one();
        }
    }

    /// Waits for the first such device.
    pub(crate) async fn until_wanted(&self) {
        while !self.is_wanted.load(Ordering::Relaxed) {
            self.wanted.notified().await;
        }
    }

    /// There is a connection, or none any more: then nothing is kept until there is one.
    pub(crate) fn set_open(&self, is_open: bool) {
        *self.lock() = Waiting { is_open, ..Waiting::default() };
    }

    /// Has something said at the others than `bridge`, where a device says it; false if it is dropped.
    pub(crate) fn say(&self, bridge: &str, audience: &Audience, payload: &Payload) -> bool {
        let body = write(bridge, audience, payload);
        let mut waiting = self.lock();
        if !waiting.is_open || waiting.bytes + body.len() > WAITING_MAX {
            return false;
        }
        waiting.bytes += body.len();
        waiting.said.push_back(body);
        drop(waiting);
        self.more.notify_one();
        true
    }

    /// What was said first, up to so many, and at least one.
    pub(crate) async fn next(&self, max: usize) -> Vec<Vec<u8>> {
        loop {
            let next = self.take(max);
            if !next.is_empty() {
                return next;
            }
            self.more.notified().await;
        }
    }

    fn take(&self, max: usize) -> Vec<Vec<u8>> {
        let mut waiting = self.lock();
        let count = waiting.said.len().min(max);
        let next: Vec<_> = waiting.said.drain(..count).collect();
        waiting.bytes -= next.iter().map(Vec::len).sum::<usize>();
        next
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(bridge: &str, audience: &Audience, payload: &Payload) -> Vec<u8> {
    let to = match audience {
        Audience::Group(group) => To::Group((&**group).into()),
        Audience::These(devices) => To::These(devices.iter().map(ToString::to_string).collect()),
        Audience::All(format) => To::All(*format),
    };
    let message = Message {
        bridge: bridge.into(),
        to,
        content: payload.content.text().into(),
        is_text: matches!(payload.content, Content::Text(_)),
        from: payload.from.as_deref().map(Cow::Borrowed),
        reach: payload.reach,
    };
    // Strings and numbers: this cannot fail.
    serde_json::to_vec(&message).unwrap_or_default()
}

/// What was said at another bridge, and to whom; None if that was this one.
pub(crate) fn read(body: &[u8], own: &str) -> Result<Option<(Audience, Payload)>, Reason> {
    let message: Message<'_> = serde_json::from_slice(body)
        .map_err(|error| format!("expected what a device has said: {error}"))?;
    if *message.bridge == *own {
        return Ok(None);
    }
    let mut group: Option<Arc<str>> = None;
    let audience = match message.to {
        To::Group(name) => Audience::Group(Arc::clone(group.insert((&*name).into()))),
        To::These(devices) => {
            let devices = devices.iter().filter_map(|device| Address::parse(device).ok());
            Audience::These(devices.collect())
        }
        To::All(format) => Audience::All(format),
    };
    let content: Box<str> = message.content.into_owned().into();
    let content = if message.is_text { Content::Text(content) } else { Content::Json(content) };
    let from = message.from.map(|from| from.into_owned().into());
    Ok(Some((audience, Payload { content, group, from, reach: message.reach })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(content: Content, group: Option<&str>, reach: Reach) -> Payload {
        Payload { content, group: group.map(Into::into), from: Some("5551".into()), reach }
    }

    #[test]
    fn what_is_said_is_heard_as_it_was_and_not_by_the_bridge_that_says_it() {
        let device = Address::parse("5552").expect("an address");
        let text = |text: &str| Content::Text(text.into());
        let json = Content::Json(r#"{"on":true}"#.into());
        let said = [
            (Audience::Group("pumps".into()), payload(json, Some("pumps"), Reach::Several)),
            (Audience::These(vec![device]), payload(text("a \"b\"\n"), None, Reach::One)),
            (Audience::All(Format::Chat), payload(text("all"), None, Reach::All)),
        ];
        for (audience, payload) in said {
            let body = write("a", &audience, &payload);
            assert_eq!(read(&body, "b"), Ok(Some((audience, payload))));
            assert_eq!(read(&body, "a"), Ok(None));
        }
        assert!(read(b"{}", "a").is_err());
    }

    #[tokio::test]
    async fn what_there_is_no_room_or_no_connection_for_is_dropped() {
        let talk = Talk::default();
        let audience = Audience::Group("pumps".into());
        let large = payload(Content::Text("x".repeat(WAITING_MAX / 2).into()), None, Reach::All);
        let small = payload(Content::Text("y".into()), None, Reach::All);
        assert!(!talk.say("a", &audience, &small), "there is no connection");
        talk.set_open(true);
        assert!(talk.say("a", &audience, &large));
        assert!(!talk.say("a", &audience, &large), "there is no room");
        assert!(talk.say("a", &audience, &small));
        let lengths = async |max| talk.next(max).await.iter().map(Vec::len).collect::<Vec<_>>();
        assert!(lengths(1).await[0] > WAITING_MAX / 2);
        assert!(talk.say("a", &audience, &large), "there is room again");
        assert_eq!(lengths(9).await.len(), 2);
        talk.say("a", &audience, &small);
        talk.set_open(true);
        assert!(talk.take(9).is_empty(), "what was said on an earlier connection is forgotten");
    }
}
