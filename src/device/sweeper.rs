//! `Sweeper`: asks the kernel, now and then, what devices have acknowledged of what was written.
//!
//! Nobody waits for it: it only lets sessions forget what has arrived. Events for each command would
//! cost as much as writing it. What has expired while it was parked is noticed here, too, and last
//! values whose time has come.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::Devices;
use super::session::{Session, Shared};

/// How often. What is written in this time stays in memory, some 600 bytes a command.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How often on shutdown, when somebody does wait.
const LAST_SWEEPS_EVERY: Duration = Duration::from_millis(10);

/// The sessions to which something was written.
#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    /// Bounded by the number of sessions: each is in it once, until it is swept clean.
    sessions: Mutex<Vec<Weak<Session>>>,
}

impl Sweeper {
    /// Remembers a session to which something was written.
    pub(super) fn remember(&self, session: &Arc<Session>, shared: &mut Shared) {
        if !std::mem::replace(&mut shared.swept, true) {
            self.lock().push(Arc::downgrade(session));
        }
    }

    /// Sweeps for as long as it is let.
    pub(crate) async fn run(devices: Arc<Devices>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            devices.sweeper.sweep(&devices);
            for facts in devices.parking.expire(Instant::now()) {
                devices.reporter.expired_while_parked(&facts);
            }
            if let Some(uplink) = &devices.uplink {
                uplink.expire(Instant::now());
            }
            devices.metrics.parked(devices.parking.total());
        }
    }

    /// Waits until devices have acknowledged all that was written to them, at most until `end`. True
    /// if they have.
    pub(crate) async fn until_clean(devices: &Devices, end: Instant) -> bool {
        loop {
            if devices.sweeper.sweep(devices) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(LAST_SWEEPS_EVERY).await;
        }
    }

    /// Sweeps once; true if nothing is left.
    fn sweep(&self, devices: &Devices) -> bool {
        let sessions = std::mem::take(&mut *self.lock());
        let mut left = Vec::new();
        for weak in sessions {
            let Some(session) = weak.upgrade() else { continue };
            let mut shared = session.lock();
            session.ask(&mut shared, devices);
            shared.swept = shared.proofs.in_flight() > 0 && !shared.closed;
            if shared.swept {
                left.push(weak);
            }
        }
        let clean = left.is_empty();
        self.lock().append(&mut left);
        clean
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
