//! A message body becomes a `Decoded` command, or a reason why not. Pure: the time is an argument.
//!
//! Every error names its field and says what was expected. Fields that are not ours are ignored.
//! A `cmd` that is not a string goes out as the JSON it came as, without its white space: keys keep
//! their order and numbers their digits.

mod recipients;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

pub(crate) use recipients::Recipients;

use crate::clock::Moment;
use crate::command::{Address, Command, Confirm, IfOffline, Reason, Whom};
use crate::protocol::{Content, Payload, Reach, Spoken, Wire};
use crate::settings::Settings;

/// What the AMQP properties say that matters to a command.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stamps<'a> {
    /// The header `timestamp_in_ms`, which RabbitMQ can be told to set.
    pub(crate) timestamp_ms: Option<u64>,
    /// The property `timestamp`, in whole seconds.
    pub(crate) timestamp_s: Option<u64>,
    /// The property `expiration`, milliseconds as text.
    pub(crate) expiration: Option<&'a str>,
    /// Whether the message has an id of its own.
    pub(crate) has_id: bool,
}

/// What holds for a command that does not say so itself.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    pub(crate) ttl: Duration,
    pub(crate) if_offline: IfOffline,
    pub(crate) confirm: Confirm,
    pub(crate) timeout: Duration,
    /// Whether answers name the command they are for, so that it must have an id.
    pub(crate) answers_have_ids: bool,
    /// What devices speak; a command must be possible in one of these.
    pub(crate) wires: Vec<Wire>,
}

impl Defaults {
    /// What the settings say; `wires` is what devices speak.
    pub(crate) fn of(settings: &Settings, wires: Vec<Wire>) -> Self {
        let listeners = &settings.listeners;
        Self {
            ttl: settings.command.ttl,
            if_offline: settings.command.if_offline,
            confirm: settings.command.confirm,
            timeout: settings.command.timeout,
            answers_have_ids: listeners.iter().all(|it| it.device.answer_id.is_some()),
            wires,
        }
    }
}

/// A decoded command, and what belongs to its message rather than to it.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) recipients: Recipients,
    pub(crate) terms: Terms,
    pub(crate) id: Option<Box<str>>,
}

/// What a command is, but for whom it is for.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) spoken: Spoken,
    pub(crate) expires: Instant,
    pub(crate) if_offline: IfOffline,
    pub(crate) confirm: Confirm,
    pub(crate) timeout: Duration,
    pub(crate) once: bool,
}

impl Terms {
    /// The command for one device.
    pub(crate) fn with(self, address: Address) -> Command {
        let Self { spoken, expires, if_offline, confirm, timeout, once } = self;
        Command { address, spoken, expires, if_offline, confirm, timeout, once }
    }
}

/// Why a message is no command, and as much as could be read of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) reason: Reason,
    pub(crate) id: Option<Box<str>>,
    pub(crate) address: Option<Address>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    address: Option<&'a RawValue>,
    #[serde(borrow)]
    addresses: Option<&'a RawValue>,
    #[serde(borrow)]
    group: Option<&'a RawValue>,
    #[serde(borrow)]
    broadcast: Option<&'a RawValue>,
    #[serde(borrow)]
    from: Option<&'a RawValue>,
    #[serde(borrow)]
    command_id: Option<&'a RawValue>,
    #[serde(borrow)]
    chat_from: Option<&'a RawValue>,
    #[serde(borrow)]
    chat_to: Option<&'a RawValue>,
    #[serde(borrow)]
    chat_content: Option<&'a RawValue>,
    #[serde(borrow)]
    cmd: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    ttl_ms: Option<&'a RawValue>,
    #[serde(borrow)]
    confirm: Option<&'a RawValue>,
    #[serde(borrow)]
    if_offline: Option<&'a RawValue>,
    #[serde(borrow)]
    once: Option<&'a RawValue>,
    #[serde(borrow)]
    timeout_ms: Option<&'a RawValue>,
}

/// When the message was published, milliseconds since 1970, if its stamps say so. A stamp in whole
/// seconds stands for the end of its second, and no stamp is believed to lie in the future.
pub(crate) fn published_ms(stamps: &Stamps<'_>, now: Moment) -> Option<u64> {
    let seconds = stamps.timestamp_s.map(|s| s.saturating_mul(1000).saturating_add(999));
    Some(stamps.timestamp_ms.or(seconds)?.min(now.wall_ms))
}

/// Decodes one message.
pub(crate) fn decode(
    body: &[u8],
    stamps: &Stamps<'_>,
    defaults: &Defaults,
    now: Moment,
) -> Result<Decoded, Invalid> {
    let body = parse(body).map_err(|reason| Invalid { reason, id: None, address: None })?;
    let id = body.id.map(|raw| text("id", raw)).transpose();
    let id = match id {
        Ok(id) => id.map(|id| id.into_owned().into_boxed_str()),
        Err(reason) => {
            return Err(Invalid { reason, id: None, address: None });
        }
    };
    let recipients = match &body.chat() {
        Some(command) => recipients::read_chat(command, body.chat_to),
        None => recipients::read(&body),
    };
    let recipients = match recipients {
        Ok(recipients) => recipients,
        Err(reason) => {
            return Err(Invalid { reason, id, address: None });
        }
    };
    match terms(&body, &recipients, stamps, defaults, now) {
        Ok(terms) => Ok(Decoded { recipients, terms, id }),
        Err(reason) => {
            let address = match recipients {
                Recipients::One(address) => Some(address),
                Recipients::These(_) | Recipients::Members(_) => None,
            };
            Err(Invalid { reason, id, address })
        }
    }
}

impl Body<'_> {
    /// The command of a `chat` message as a backend writes it, if it is one.
    fn chat(&self) -> Option<&str> {
        self.command_id.filter(|_| self.cmd.is_none()).map(RawValue::get)
    }
}

fn parse(body: &[u8]) -> Result<Body<'_>, Reason> {
    let body =
        std::str::from_utf8(body).map_err(|error| format!("body: expected UTF-8, got {error}"))?;
    // serde would take an array for the fields in order.
    if !body.trim_ascii_start().starts_with('{') {
        return Err(format!("body: expected a JSON object, got {}", shown(body)).into());
    }
    serde_json::from_str(body)
        .map_err(|error| Cow::from(format!("body: expected a JSON object, got {error}")))
}

/// What a body says besides the id and whom it is for.
fn terms(
    body: &Body<'_>,
    recipients: &Recipients,
    stamps: &Stamps<'_>,
    defaults: &Defaults,
    now: Moment,
) -> Result<Terms, Reason> {
    let payload = payload(body, recipients)?;
    // Each of many has a format of its own.
    if let Recipients::One(_) = recipients {
        sayable(&payload, &defaults.wires)?;
    }
    let ttl_ms = body.ttl_ms.map(|raw| milliseconds("ttl_ms", raw)).transpose()?;
    let timeout = body.timeout_ms.map(|raw| milliseconds("timeout_ms", raw)).transpose()?;
    let timeout = timeout.map_or(defaults.timeout, |ms| Duration::from_millis(ms).min(FOREVER));
    let confirm =
        word("confirm", body.confirm, Confirm::from_word, "`written`, `received` or `answered`")?;
    let confirm = confirm.unwrap_or(defaults.confirm);
    if confirm == Confirm::Answered
        && defaults.answers_have_ids
        && body.id.is_none()
        && !stamps.has_id
    {
        return Err("id: missing; devices name the command they answer by its id".into());
    }
    let once = match body.once.map(RawValue::get) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(expected("once", "true or false", other)),
    };
    let if_offline =
        word("if_offline", body.if_offline, IfOffline::from_word, "`reject`, `park` or `drop`")?;
    let if_offline = if_offline.unwrap_or(defaults.if_offline);
    let ttl = ttl(ttl_ms, stamps, defaults.ttl);
    if if_offline == IfOffline::Park && ttl > PARK_TTL_MAX {
        let max = PARK_TTL_MAX.as_millis();
        return Err(format!(
            "ttl_ms: expected at most {max} for a command that may be parked, got {}",
            ttl.as_millis()
        )
        .into());
    }
    let expires = expiry(ttl, stamps, now);
    let spoken = Spoken::new(payload);
    Ok(Terms { spoken, expires, if_offline, confirm, timeout, once })
}

/// What devices are told.
fn payload(body: &Body<'_>, recipients: &Recipients) -> Result<Payload, Reason> {
    let (name, cmd, from) = match body.chat() {
        Some(_) => ("chat_content", body.chat_content, body.chat_from),
        None => ("cmd", body.cmd, body.from),
    };
    let cmd = cmd.ok_or_else(|| missing(name))?;
    let content = if cmd.get().starts_with('"') {
        Content::Text(text(name, cmd)?.into())
    } else {
        Content::of(cmd)
    };
    let from = from.map(|raw| text("from", raw)).transpose()?;
    let (reach, group) = match recipients {
        Recipients::One(_) => (Reach::One, None),
        Recipients::These(_) => (Reach::Several, None),
        Recipients::Members(Whom::Group(name)) => (Reach::Several, Some(Arc::from(&**name))),
        Recipients::Members(Whom::All | Whom::AllInChat) => (Reach::All, None),
    };
    Ok(Payload { content, group, from: from.map(|from| from.as_ref().into()), reach })
}

/// Whether some device could be told this; else why the first of the formats has no way to say it.
fn sayable(payload: &Payload, wires: &[Wire]) -> Result<(), Reason> {
    let mut reasons = wires.iter().map(|wire| wire.check(payload));
    match reasons.next() {
        Some(Err(reason)) if !reasons.any(|other| other.is_ok()) => Err(reason),
        _ => Ok(()),
    }
}

/// One of a few words.
fn word<T>(
    name: &str,
    raw: Option<&RawValue>,
    from_word: impl Fn(&str) -> Option<T>,
    words: &str,
) -> Result<Option<T>, Reason> {
    let Some(raw) = raw else { return Ok(None) };
    let word = text(name, raw)?;
    from_word(&word).map(Some).ok_or_else(|| expected(name, words, &word))
}

/// How long after its publication a command may be written: its own ttl or the default one, and the
/// AMQP expiration where that is shorter.
fn ttl(ttl_ms: Option<u64>, stamps: &Stamps<'_>, default: Duration) -> Duration {
    let ttl = ttl_ms.map_or(default, Duration::from_millis);
    let expiration =
        stamps.expiration.and_then(|text| text.parse().ok()).map(Duration::from_millis);
    expiration.map_or(ttl, |expiration| expiration.min(ttl))
}

/// The moment after which the command is not written.
fn expiry(ttl: Duration, stamps: &Stamps<'_>, now: Moment) -> Instant {
    let age = published_ms(stamps, now).map_or(0, |published| now.wall_ms - published);
    let left = ttl.saturating_sub(Duration::from_millis(age));
    // A ttl beyond what the clock can express never ends while this process lives.
    now.mono.checked_add(left).unwrap_or(now.mono + FOREVER)
}

/// The longest a command may be parked: the queues it is parked in vanish when nothing was put in or
/// fetched for a day longer than this, and what is in them would vanish untold.
pub(crate) const PARK_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A century: longer than any process, short enough for every clock.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn text<'a>(name: &str, raw: &'a RawValue) -> Result<Cow<'a, str>, Reason> {
    // A string without escapes is borrowed as it stands: what a string may not have in it was refused before.
    let quoted = raw.get().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    if let Some(plain) = quoted.filter(|text| !text.contains('\\')) {
        return Ok(Cow::Borrowed(plain));
    }
    serde_json::from_str::<String>(raw.get())
        .map(Cow::Owned)
        .map_err(|_| expected(name, "a string", raw.get()))
}

fn milliseconds(name: &str, raw: &RawValue) -> Result<u64, Reason> {
    raw.get().parse().map_err(|_| expected(name, "a whole number of milliseconds", raw.get()))
}

fn missing(name: &str) -> Reason {
    format!("{name}: missing").into()
}

fn expected(name: &str, what: &str, got: &str) -> Reason {
    format!("{name}: expected {what}, got {}", shown(got)).into()
}

/// The beginning of something a sender wrote, short enough for a log line and a header.
fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
pub(crate) mod tests;
