//! `rabbitline explain`: what happened to a command or to a device, asked of the running bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::StatusCode;

use super::EXIT_UNAVAILABLE;
use crate::http::{CommandHistory, DeviceHistory, Timeline, first_token};
use crate::settings::{Http, Settings};

/// A bridge answers from memory; one that takes longer is not well.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id of a command, or address of a device
    what: String,
}

pub(super) async fn run(settings: Settings, args: Args) -> ExitCode {
    let asked = tokio::task::spawn_blocking(move || {
        let bridge = Bridge::of(&settings.http)?;
        let name = utf8_percent_encode(&args.what, NON_ALPHANUMERIC);
        let command = bridge.ask::<CommandHistory>(&format!("/commands/{name}"))?;
        let device = bridge.ask::<DeviceHistory>(&format!("/devices/{name}"))?;
        Ok::<_, String>((args.what, bridge.address, command, device))
    });
    let asked = match asked.await {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match asked {
        Err(error) => {
            eprintln!("cannot ask the bridge: {error}");
            ExitCode::from(EXIT_UNAVAILABLE)
        }
        Ok((what, bridge, None, None)) => {
            eprintln!("the bridge at {bridge} remembers no command and no device `{what}`");
            ExitCode::FAILURE
        }
        Ok((_, _, command, device)) => {
            command.iter().flat_map(|history| &history.commands).for_each(tell_command);
            device.iter().for_each(tell_device);
            ExitCode::SUCCESS
        }
    }
}

/// Where a bridge that listens on `listen` can be asked on this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if !listen.ip().is_unspecified() {
        return listen;
    }
    let loopback: IpAddr =
        if listen.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(loopback, listen.port())
}

/// The bridge that is asked.
struct Bridge {
    address: SocketAddr,
    agent: Agent,
    /// What says that we may.
    token: Option<String>,
}

impl Bridge {
    fn of(http: &Http) -> Result<Self, String> {
        let token = http.token_file.as_deref().map(first_token).transpose();
        let token = token.map_err(|error| format!("HTTP_TOKEN_FILE: {error}"))?;
        let config =
            Agent::config_builder().timeout_global(Some(LIMIT)).http_status_as_error(false).build();
        let agent = Agent::new_with_config(config);
        Ok(Self { address: reachable(http.listen), agent, token })
    }

    /// What it knows; None if it knows nothing of the kind.
    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, String> {
        let away = |error| format!("{error}; does it run here, and is HTTP_LISTEN the same?");
        let request = self.agent.get(format!("http://{}{path}", self.address));
        let request = match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        let mut answer = request.call().map_err(away)?;
        let text = answer.body_mut().read_to_string().map_err(away)?;
        if answer.status().is_success() {
            return Ok(serde_json::from_str(&text).ok());
        }
        if [StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST].contains(&answer.status()) {
            return Ok(None);
        }
        let problem: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        Err(problem["detail"].as_str().map_or_else(|| answer.status().to_string(), str::to_owned))
    }
}

fn tell_command(command: &Timeline) {
    let Timeline { id, address, line, confirm, if_offline, once, .. } = command;
    let once = if *once { ", once" } else { "" };
    println!("command {id} for {address}: {line}");
    println!("  asks for {confirm}, if offline {if_offline}{once}");
    let taken = match (command.from_parking, command.redelivered) {
        (true, _) => "taken (parked)",
        (false, true) => "taken (again)",
        (false, false) => "taken",
    };
    let outcome = command.outcome.as_deref().unwrap_or("settled");
    let steps = [
        (command.published.as_ref(), "published"),
        (Some(&command.taken), taken),
        (command.written.as_ref(), "written"),
        (command.acknowledged.as_ref(), "acknowledged by TCP"),
        (command.answered.as_ref(), "answered"),
        (command.passed_on.as_ref(), "passed on to another bridge"),
        (command.settled.as_ref(), outcome),
    ];
    let mut steps: Vec<_> =
        steps.into_iter().filter_map(|(at, step)| at.map(|at| (at, step))).collect();
    steps.sort_by_key(|(at, _)| *at);
    for (at, step) in steps {
        println!("  {at}  {step}");
    }
    if command.settled.is_none() {
        println!("  its outcome is not known yet");
    }
}

fn tell_device(device: &DeviceHistory) {
    match &device.connected {
        Some(now) => println!("device {} is connected: {now}", device.address),
        None => println!("device {} is not connected", device.address),
    }
    if let Some(last) = &device.last {
        let line = last.line.as_deref().or(last.line_base64.as_deref()).unwrap_or_default();
        println!("  last line, at {}: {line}", last.at);
    }
    for past in &device.connections {
        println!("  {} to {}  from {}: {}", past.since, past.until, past.peer, past.reason);
    }
    device.commands.iter().for_each(tell_command);
}
