//! `rabbitline serve`: run the bridge until TERM or INT, then drain.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

use crate::bridge::Bridge;
use crate::settings::Settings;
use crate::systemd;

pub(super) async fn run(settings: Settings) -> ExitCode {
    // Taken up before anything is started, so that no signal finds the bridge half made.
    let (mut terminate, mut interrupt) = match signals() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot take up signals.");
            return ExitCode::FAILURE;
        }
    };
    let grace = settings.process.shutdown_grace;
    let bridge = match Bridge::start(settings).await {
        Ok(bridge) => bridge,
        Err(error) => {
            error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    systemd::ready();
    let watchdog = tokio::spawn(systemd::watchdog());
    let received = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal = received, grace = %humantime::format_duration(grace), "shutting down");
    systemd::stopping();
    let clean = bridge.shut_down(grace).await;
    watchdog.abort();
    info!(clean, "stopped");
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn signals() -> std::io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}
