//! A message body becomes a `Command`, or a reason why not. Pure: the time is an argument.
//!
//! Every error names its field and says what was expected. Fields that are not ours are ignored.
//! A `cmd` that is not a string goes out as the JSON it came as, without its white space: keys keep
//! their order and numbers their digits.

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::clock::Moment;
use crate::command::{Address, Command, Confirm, IfOffline, Line, Reason};
use crate::settings::LineEnding;

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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) ttl: Duration,
    pub(crate) if_offline: IfOffline,
    pub(crate) confirm: Confirm,
    pub(crate) timeout: Duration,
    /// Whether answers name the command they are for, so that it must have an id.
    pub(crate) answers_have_ids: bool,
    pub(crate) line_ending: LineEnding,
    pub(crate) line_max: usize,
}

/// A decoded command, and what belongs to its message rather than to it.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) command: Command,
    pub(crate) id: Option<Box<str>>,
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
    let address = body
        .address
        .ok_or_else(|| missing("address"))
        .and_then(|raw| Address::parse(&text("address", raw)?));
    let address = match address {
        Ok(address) => address,
        Err(reason) => {
            return Err(Invalid { reason, id, address: None });
        }
    };
    match fields(&body, stamps, defaults, now) {
        Ok(fields) => {
            let Fields { line, expires, if_offline, confirm, timeout, once } = fields;
            let command = Command { address, line, expires, if_offline, confirm, timeout, once };
            Ok(Decoded { command, id })
        }
        Err(reason) => Err(Invalid { reason, id, address: Some(address) }),
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

/// What a body says besides the address and the id.
struct Fields {
    line: Line,
    expires: Instant,
    if_offline: IfOffline,
    confirm: Confirm,
    timeout: Duration,
    once: bool,
}

fn fields(
    body: &Body<'_>,
    stamps: &Stamps<'_>,
    defaults: &Defaults,
    now: Moment,
) -> Result<Fields, Reason> {
    let cmd = body.cmd.ok_or_else(|| missing("cmd"))?;
    let cmd =
        if cmd.get().starts_with('"') { text("cmd", cmd)? } else { compact(cmd.get()).into() };
    let line = Line::encode(&cmd, defaults.line_ending, defaults.line_max)?;
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
    Ok(Fields { line, expires, if_offline, confirm, timeout, once })
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
    // A string without escapes is borrowed as it stands.
    if let Ok(plain) = serde_json::from_str::<&str>(raw.get()) {
        return Ok(Cow::Borrowed(plain));
    }
    serde_json::from_str::<String>(raw.get())
        .map(Cow::Owned)
        .map_err(|_| expected(name, "a string", raw.get()))
}

fn milliseconds(name: &str, raw: &RawValue) -> Result<u64, Reason> {
    raw.get().parse().map_err(|_| expected(name, "a whole number of milliseconds", raw.get()))
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn defaults() -> Defaults {
        Defaults {
            ttl: Duration::from_secs(3600),
            if_offline: IfOffline::Reject,
            confirm: Confirm::Written,
            timeout: Duration::from_secs(10),
            answers_have_ids: false,
            line_ending: LineEnding::Lf,
            line_max: 32,
        }
    }

    fn at(wall_ms: u64) -> Moment {
        Moment { wall_ms, mono: Instant::now() + Duration::from_secs(3600) }
    }

    fn line_of(body: &str) -> String {
        let decoded = decode(body.as_bytes(), &Stamps::default(), &defaults(), at(0)).expect(body);
        String::from_utf8(decoded.command.line.bytes().to_vec()).expect("UTF-8")
    }

    #[test]
    fn a_string_goes_out_as_it_is_and_anything_else_as_compact_json() {
        let check = |cmd: &str, line: &str| {
            let body = format!(r#"{{"address":"10.0.0.7","cmd":{cmd}, "unknown": [1]}}"#);
            assert_eq!(line_of(&body), format!("{line}\n"));
        };
        check(r#""SET OUT1 ON""#, "SET OUT1 ON");
        check(r#""tab\t \u00e9""#, "tab\t é");
        check(r#"{ "z" : 1.50, "a" : [ true , "x \" y" ] }"#, r#"{"z":1.50,"a":[true,"x \" y"]}"#);
        check("12345678901234567890123", "12345678901234567890123");
        check("false", "false");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |body: &str, expected: &str| {
            let result = decode(body.as_bytes(), &Stamps::default(), &defaults(), at(0));
            let reason = result.expect_err(body).reason;
            assert!(reason.starts_with(expected), "{body}: {reason}");
        };
        check("", "body: expected a JSON object, got ");
        check("[\"10.0.0.7\",\"X\"]", "body: expected a JSON object, got [");
        check("{\"address\":", "body: expected a JSON object, got EOF");
        check("{} {}", "body: expected a JSON object, got trailing");
        check("{}", "address: missing");
        check(r#"{"address":5,"cmd":"x"}"#, "address: expected a string, got 5");
        check(r#"{"address":"","cmd":"x"}"#, "address: expected the name of a device");
        check(r#"{"address":"a"}"#, "cmd: missing");
        check(r#"{"address":"a","cmd":null}"#, "cmd: missing");
        check(r#"{"address":"a","cmd":"a\nb"}"#, "cmd: expected one line");
        check(r#"{"address":"a","cmd":"x","id":7}"#, "id: expected a string, got 7");
        check(r#"{"address":"a","cmd":"x","ttl_ms":"5"}"#, "ttl_ms: expected a whole number");
        check(r#"{"address":"a","cmd":"x","ttl_ms":-1}"#, "ttl_ms: expected a whole number");
        check(r#"{"address":"a","cmd":"x","timeout_ms":1.5}"#, "timeout_ms: expected a whole");
        check(r#"{"address":"a","cmd":"x","confirm":"maybe"}"#, "confirm: expected `written`");
        check(r#"{"address":"a","cmd":"x","once":1}"#, "once: expected true or false, got 1");
        check(r#"{"address":"a","cmd":"x","if_offline":"wait"}"#, "if_offline: expected `reject`");
        check(
            r#"{"address":"a","cmd":"x","if_offline":"park","ttl_ms":604800001}"#,
            "ttl_ms: expected at most 604800000 for a command that may be parked, got 604800001",
        );
        check(
            r#"{"address":"a","address":"b","cmd":"x"}"#,
            "body: expected a JSON object, got dup",
        );
        let not_utf8 = decode(b"{\"address\":\"\xff\"}", &Stamps::default(), &defaults(), at(0));
        assert!(not_utf8.expect_err("not UTF-8").reason.starts_with("body: expected UTF-8"));
    }

    #[test]
    fn what_a_command_asks_for_is_read_and_the_rest_is_the_default() {
        let read = |body: &str| {
            let decoded = decode(body.as_bytes(), &Stamps::default(), &defaults(), at(0));
            decoded.expect(body).command
        };
        let command = read(r#"{"address":"a","cmd":"x"}"#);
        assert_eq!(command.confirm, Confirm::Written);
        assert_eq!(command.timeout, Duration::from_secs(10));
        assert!(!command.once);
        let command = read(
            r#"{"address":"a","cmd":"x","confirm":"answered","timeout_ms":5,"once":true,"if_offline":"park"}"#,
        );
        assert_eq!(command.confirm, Confirm::Answered);
        assert_eq!(command.timeout, Duration::from_millis(5));
        assert!(command.once);
        assert_eq!(command.if_offline, IfOffline::Park);
    }

    #[test]
    fn where_answers_have_ids_a_command_that_wants_one_has_an_id() {
        let defaults = Defaults { answers_have_ids: true, ..defaults() };
        let reason = |stamps: Stamps<'_>| {
            let body = br#"{"address":"a","cmd":"x","confirm":"answered"}"#;
            decode(body, &stamps, &defaults, at(0)).err().map(|invalid| invalid.reason)
        };
        let missing = "id: missing; devices name the command they answer by its id";
        assert_eq!(reason(Stamps::default()), Some(missing.into()));
        assert_eq!(reason(Stamps { has_id: true, ..Stamps::default() }), None);
    }

    #[test]
    fn an_invalid_command_keeps_what_could_be_read() {
        let body = br#"{"address":"10.0.0.7","id":"7","cmd":null}"#;
        let invalid = decode(body, &Stamps::default(), &defaults(), at(0)).expect_err("no cmd");
        assert_eq!(invalid.id.as_deref(), Some("7"));
        assert_eq!(invalid.address.map(|a| a.to_string()).as_deref(), Some("10.0.0.7"));
    }

    #[test]
    fn the_soonest_end_counts_from_publication() {
        let now = at(100_000);
        let left = |ttl: &str, stamps: Stamps<'_>| {
            let body = format!(r#"{{"address":"a","cmd":"x"{ttl}}}"#);
            let decoded = decode(body.as_bytes(), &stamps, &defaults(), now).expect("valid");
            decoded.command.expires.duration_since(now.mono).as_millis()
        };
        let none = Stamps::default();
        assert_eq!(left("", none), 3_600_000);
        assert_eq!(left(r#","ttl_ms":500"#, none), 500);
        assert_eq!(left(r#","ttl_ms":500"#, Stamps { expiration: Some("200"), ..none }), 200);
        assert_eq!(left("", Stamps { expiration: Some("200"), ..none }), 200);
        let precise = Stamps { timestamp_ms: Some(99_900), ..none };
        assert_eq!(left(r#","ttl_ms":500"#, precise), 400);
        assert_eq!(left(r#","ttl_ms":50"#, precise), 0);
        // Published in second 98, at 98.999 at the latest.
        let coarse = Stamps { timestamp_s: Some(98), ..none };
        assert_eq!(left(r#","ttl_ms":5000"#, coarse), 3_999);
        // Published within this second: not a millisecond is lost.
        assert_eq!(left(r#","ttl_ms":500"#, Stamps { timestamp_s: Some(100), ..none }), 500);
        assert_eq!(left(r#","ttl_ms":500"#, Stamps { timestamp_s: Some(9_999_999), ..none }), 500);
        assert!(left(r#","ttl_ms":18446744073709551615"#, none) > 1_000_000_000_000);
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Err(invalid) = decode(&body, &Stamps::default(), &defaults(), at(0)) {
                prop_assert!(!invalid.reason.is_empty());
            }
        }

        #[test]
        fn every_string_that_is_a_line_arrives_unchanged(cmd in "[^\r\n\0]{1,8}") {
            let body = serde_json::json!({ "address": "a", "cmd": cmd }).to_string();
            prop_assert_eq!(line_of(&body), format!("{cmd}\n"));
        }
    }
}
