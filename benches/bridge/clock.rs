//! The time, as every process of one machine sees it: the benchmark stamps a command, a device's process
//! subtracts. And waiting for something with a limit.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};

/// Microseconds of the monotonic clock.
pub(crate) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Since the machine's start: never negative, and far below the limit.
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

/// Polls until `condition` holds.
pub(crate) fn wait_until(
    what: &str,
    every: Duration,
    within: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    while !condition()? {
        if started.elapsed() > within {
            bail!("waited {within:?} in vain until {what}");
        }
        thread::sleep(every);
    }
    Ok(())
}
