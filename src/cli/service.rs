//! What a service does whatever it is for: take up signals, say that it is ready, show the watchdog that
//! it lives, and end in time when it is told to.

use std::process::ExitCode;
use std::time::Duration;

use tracing::{error, info};

use super::signals::Signals;
use crate::systemd;

/// Starts a service and runs it until TERM or INT; then gives it `grace` to end, which says whether
/// all could be finished.
pub(super) async fn run<S>(
    grace: Duration,
    start: impl AsyncFnOnce() -> Result<S, ExitCode>,
    shut_down: impl AsyncFnOnce(S, Duration) -> bool,
) -> ExitCode {
    end_on_panic();
    // Taken up before anything is started, so that no signal finds the service half made.
    let mut signals = match Signals::take_up() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot take up signals.");
            return ExitCode::FAILURE;
        }
    };
    let service = match start().await {
        Ok(service) => service,
        Err(code) => return code,
    };
    systemd::ready();
    let watchdog = tokio::spawn(systemd::watchdog());
    let received = signals.next().await;
    info!(signal = received, grace = %humantime::format_duration(grace), "shutting down");
    systemd::stopping();
    let clean = shut_down(service, grace).await;
    watchdog.abort();
    info!(clean, "stopped");
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A panic is a bug. Half a service that goes on, with a part of it dead, would be worse than none:
/// the service manager starts a whole one, and the broker delivers again what was in hand.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
