//! `rabbitline explain`: what happened to a command or to a device, asked of the running bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;

use super::EXIT_UNAVAILABLE;
use crate::http::{CommandHistory, DeviceHistory, Timeline};
use crate::settings::Settings;

/// A bridge answers from memory; one that takes longer is not well.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id of a command, or address of a device
    what: String,
}

pub(super) async fn run(settings: Settings, args: Args) -> ExitCode {
    let asked = tokio::task::spawn_blocking(move || {
        let bridge = reachable(settings.http.listen);
        let name = utf8_percent_encode(&args.what, NON_ALPHANUMERIC);
        let command = ask::<CommandHistory>(&format!("http://{bridge}/commands/{name}"))?;
        let device = ask::<DeviceHistory>(&format!("http://{bridge}/devices/{name}"))?;
        Ok::<_, ureq::Error>((args.what, bridge, command, device))
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
            eprintln!(
                "cannot ask the bridge: {error}; does it run here, and is HTTP_LISTEN the same?"
            );
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

/// What the bridge knows; None if it knows nothing of the kind.
fn ask<T: DeserializeOwned>(url: &str) -> Result<Option<T>, ureq::Error> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(LIMIT))
        .http_status_as_error(false)
        .build();
    let mut answer = ureq::Agent::new_with_config(config).get(url).call()?;
    if !answer.status().is_success() {
        return Ok(None);
    }
    let text = answer.body_mut().read_to_string()?;
    Ok(serde_json::from_str(&text).ok())
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
