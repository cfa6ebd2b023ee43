//! `rabbitline serve`: run the bridge until TERM or INT, then drain.

use std::process::ExitCode;

use tracing::{error, info};

use super::signals::Signals;
use crate::bridge::Bridge;
use crate::settings::Settings;
use crate::systemd;

pub(super) async fn run(settings: Settings) -> ExitCode {
    end_on_panic();
    // Taken up before anything is started, so that no signal finds the bridge half made.
    let mut signals = match Signals::take_up() {
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
    let received = signals.next().await;
    info!(signal = received, grace = %humantime::format_duration(grace), "shutting down");
    systemd::stopping();
    let clean = bridge.shut_down(grace).await;
    watchdog.abort();
    info!(clean, "stopped");
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A panic is a bug. Half a bridge that goes on, with a part of it dead, would be worse than none:
/// the service manager starts a whole one, and the broker delivers again what was in hand.
pub(super) fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
