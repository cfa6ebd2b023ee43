//! `rabbitline send`: publish one command as a backend would, and print its receipt.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{EXIT_NO_ANSWER, EXIT_UNAVAILABLE, EXIT_USAGE};
use crate::broker::client;
use crate::command::Outcome;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The device: its IP address as the bridge sees it
    address: String,
    /// The command line for the device
    cmd: String,
    /// Read CMD as JSON instead of as text: the device gets it as compact JSON
    #[arg(long)]
    json: bool,
    /// Id of the command in receipts and logs
    #[arg(long)]
    id: Option<String>,
    /// Do not write the command later than this after now, as in 500ms or 30s
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How much proof makes it delivered
    #[arg(long, value_parser = ["written", "received", "answered"])]
    confirm: Option<String>,
    /// How long after the write the proof may take, as in 500ms or 30s
    #[arg(long, value_parser = humantime::parse_duration)]
    proof_timeout: Option<Duration>,
    /// What becomes of it if the device is not connected
    #[arg(long, value_parser = ["reject", "park", "drop"])]
    if_offline: Option<String>,
    /// Never write it twice: if it may have reached the device, say so instead
    #[arg(long)]
    once: bool,
    /// If it is parked, go on waiting for its final receipt
    #[arg(long)]
    wait: bool,
    /// How long to wait for the receipt, or with --wait for the final one
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Serialize)]
struct Body<'a> {
    address: &'a str,
    cmd: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_offline: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    once: bool,
}

pub(super) async fn run(settings: Settings, args: Args) -> ExitCode {
    // JSON is sent as it was typed, its keys in their order.
    let cmd = if args.json {
        RawValue::from_string(args.cmd)
    } else {
        serde_json::value::to_raw_value(&args.cmd)
    };
    let cmd = match cmd {
        Ok(cmd) => cmd,
        Err(error) => {
            eprintln!("CMD: expected JSON, because of --json: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let body = Body {
        address: &args.address,
        cmd: &cmd,
        id: args.id.as_deref(),
        ttl_ms: args.ttl.map(milliseconds),
        confirm: args.confirm.as_deref(),
        timeout_ms: args.proof_timeout.map(milliseconds),
        if_offline: args.if_offline.as_deref(),
        once: args.once,
    };
    // Strings, a number and JSON: this cannot fail.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let mut outcome = None;
    let print = |receipt: &[u8]| {
        println!("{}", String::from_utf8_lossy(receipt));
        let receipt: Value = serde_json::from_slice(receipt).unwrap_or_default();
        outcome = receipt["outcome"].as_str().and_then(Outcome::from_label);
        args.wait && outcome == Some(Outcome::Parked)
    };
    match client::send(&settings, body, args.timeout, print).await {
        Ok(true) => match outcome {
            Some(outcome) if outcome.is_delivered() => ExitCode::SUCCESS,
            Some(_) | None => ExitCode::FAILURE,
        },
        Ok(false) if outcome == Some(Outcome::Parked) => {
            let limit = humantime::format_duration(args.timeout);
            eprintln!(
                "no final receipt within {limit}: the command is parked until its device connects"
            );
            ExitCode::from(EXIT_NO_ANSWER)
        }
        Ok(false) => {
            let limit = humantime::format_duration(args.timeout);
            eprintln!(
                "no receipt within {limit}: the command is in queue `{}` or on its way; does a bridge run?",
                settings.mq.queue
            );
            ExitCode::from(EXIT_NO_ANSWER)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
