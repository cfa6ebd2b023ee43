//! `rabbitline tap`: what happens, live, from anywhere the broker can be reached.

use std::process::ExitCode;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::signals::Signals;
use super::{EXIT_UNAVAILABLE, EXIT_USAGE};
use crate::broker::{BrokerError, Drop, Tapped};
use crate::live::Kinds;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only devices whose address begins with these whole parts, as in 10.2 for 10.2.0.0/16
    #[arg(long, value_name = "PREFIX")]
    address: Option<String>,
    /// Only these kinds, with commas between: command, outcome, line, presence
    #[arg(long, value_name = "KINDS", default_value = "command,outcome,line,presence")]
    kind: String,
    /// Print each event as JSON
    #[arg(long)]
    json: bool,
}

/// Why it has ended.
enum End {
    Asked,
    /// Whoever read us has gone.
    Unread,
    Missed(u64),
    Broker(BrokerError),
}

pub(super) async fn run(settings: Settings, args: Args) -> ExitCode {
    if let Err(reason) = Kinds::parse(&args.kind) {
        eprintln!("--{reason}");
        return ExitCode::from(EXIT_USAGE);
    }
    let kinds: Vec<&str> = args.kind.split(',').map(str::trim).collect();
    let prefix = args.address.as_deref().map(|prefix| prefix.trim_end_matches('.'));
    let tapped = match Tapped::open(&settings, &kinds, prefix).await {
        Ok(tapped) => tapped,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    let mut signals = match Signals::take_up() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("cannot take up signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    // What was missed is looked for also while nobody reads what is printed.
    let missed = tapped.until_missed();
    let end = tokio::select! {
        _ = signals.next() => End::Asked,
        missed = missed => missed.map_or_else(End::Broker, End::Missed),
        end = print(tapped, args.json) => end,
    };
    match end {
        End::Asked | End::Unread => ExitCode::SUCCESS,
        End::Missed(count) => {
            eprintln!("missed {count} events: they come faster than they are read");
            ExitCode::FAILURE
        }
        End::Broker(error) => {
            eprintln!("{error}");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
    }
}

async fn print(mut tapped: Tapped, json: bool) -> End {
    let mut out = tokio::io::stdout();
    loop {
        let (kind, body) = match tapped.next().await {
            Ok(Drop::Event(kind, body)) => (kind, body),
            Ok(Drop::Missed(count)) => return End::Missed(count),
            Err(error) => return End::Broker(error),
        };
        let event: Value = serde_json::from_slice(&body).unwrap_or_default();
        let line = if json { with_kind(&kind, event) } else { shown(&kind, &event) };
        if out.write_all(format!("{line}\n").as_bytes()).await.is_err()
            || out.flush().await.is_err()
        {
            return End::Unread;
        }
    }
}

fn with_kind(kind: &str, mut event: Value) -> String {
    event["kind"] = kind.into();
    event.to_string()
}

/// `2026-11-21T14:30:00.123Z  outcome   10.2.0.7  SET OUT1 ON: written`
fn shown(kind: &str, event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    let at = if kind == "command" { text("taken") } else { text("at") };
    let said = match kind {
        "presence" => text("reason").to_owned(),
        "line" if event["line"].is_null() => format!("base64 {}", text("line_base64")),
        "line" => text("line").to_owned(),
        "command" => text("cmd").to_owned(),
        _ => {
            let why = [text("reason"), text("answer")].into_iter().find(|text| !text.is_empty());
            let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
            format!("{}: {}{why}", text("cmd"), text("outcome"))
        }
    };
    format!("{at}  {kind:<8}  {}  {said}", text("address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_shown_on_one_line() {
        let event = serde_json::json!({
            "at": "T1", "taken": "T0", "address": "10.0.0.7", "cmd": "ON", "outcome": "offline",
            "reason": "gone", "line": "T=21",
        });
        assert_eq!(shown("outcome", &event), "T1  outcome   10.0.0.7  ON: offline (gone)");
        assert_eq!(shown("command", &event), "T0  command   10.0.0.7  ON");
        assert_eq!(shown("line", &event), "T1  line      10.0.0.7  T=21");
        assert_eq!(shown("presence", &event), "T1  presence  10.0.0.7  gone");
        assert!(with_kind("line", event).contains("\"kind\":\"line\""));
    }
}
