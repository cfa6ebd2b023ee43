//! `rabbitline record`: keep what bridges tell in a database until TERM or INT, then finish.

use std::process::ExitCode;

use tracing::{error, info};

use super::serve::end_on_panic;
use super::signals::Signals;
use crate::record::Recorder;
use crate::settings::Settings;
use crate::systemd;

pub(super) async fn run(settings: Settings) -> ExitCode {
    end_on_panic();
    let mut signals = match Signals::take_up() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot take up signals.");
            return ExitCode::FAILURE;
        }
    };
    let grace = settings.process.shutdown_grace;
    let recorder = Recorder::start(settings);
    systemd::ready();
    let watchdog = tokio::spawn(systemd::watchdog());
    let received = signals.next().await;
    info!(signal = received, grace = %humantime::format_duration(grace), "shutting down");
    systemd::stopping();
    let clean = recorder.shut_down(grace).await;
    watchdog.abort();
    info!(clean, "stopped");
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
