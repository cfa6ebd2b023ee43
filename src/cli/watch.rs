//! `rabbitline watch`: every device that comes and goes, live.

use std::io::Write;
use std::process::ExitCode;

use futures_util::StreamExt;
use serde_json::Value;

use super::EXIT_UNAVAILABLE;
use super::signals::Signals;
use crate::broker::client;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only devices whose address begins with these whole parts, as in 10.2 for 10.2.0.0/16
    #[arg(long, value_name = "PREFIX")]
    address: Option<String>,
    /// Print each event as the JSON it is
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: Settings, args: Args) -> ExitCode {
    let prefix = args.address.as_deref().map(|prefix| prefix.trim_end_matches('.'));
    let key =
        prefix.map_or_else(|| "presence.#".to_owned(), |prefix| format!("presence.{prefix}.#"));
    let mut events = match client::watch(&settings, &key).await {
        Ok(events) => std::pin::pin!(events),
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
    loop {
        let event = tokio::select! {
            _ = signals.next() => return ExitCode::SUCCESS,
            Some(event) = events.next() => event,
        };
        let line = match event {
            Ok(body) if args.json => String::from_utf8_lossy(&body).into_owned(),
            Ok(body) => shown(&serde_json::from_slice(&body).unwrap_or_default()),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(EXIT_UNAVAILABLE);
            }
        };
        // Whoever read us may be gone, as with `| head`.
        if writeln!(std::io::stdout(), "{line}").is_err() {
            return ExitCode::SUCCESS;
        }
    }
}

/// `2026-11-21T14:30:00.123Z  online   10.2.0.7  connected`
fn shown(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
    let state = match (event["online"] == true, event["silent"] == true) {
        (true, true) => "silent ",
        (true, false) => "online ",
        (false, _) => "offline",
    };
    format!("{}  {state}  {}  {}", text("at"), text("address"), text("reason"))
}
