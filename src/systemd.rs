//! What systemd is told: ready, stopping, still alive. Without systemd these do nothing.

use sd_notify::NotifyState;
use tracing::warn;

/// The listeners are bound and every part runs. The broker may still be away: the bridge waits for
/// it, and a unit that did not start because of it could only try the same.
pub(crate) fn ready() {
    notify(NotifyState::Ready);
}

/// The drain has begun.
pub(crate) fn stopping() {
    notify(NotifyState::Stopping);
}

/// Tells the watchdog, at half its period, that the runtime still gets to its tasks.
pub(crate) async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(period / 2);
    loop {
        ticks.tick().await;
        notify(NotifyState::Watchdog);
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot tell systemd.");
    }
}
