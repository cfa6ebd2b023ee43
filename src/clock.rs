//! Time: a moment on both clocks, as text, and waiting for one.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// One moment on both clocks: messages are stamped by the wall, waiting is measured by the other.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Milliseconds since 1970.
    pub wall_ms: u64,
    /// The same moment on the clock that never jumps.
    pub mono: Instant,
}

/// For so long the wall goes as the other clock does, so that most moments take one look at a clock, not two: a wall that is
/// set anew is noticed after no more than this.
const WALL_EVERY: Duration = Duration::from_millis(10);

thread_local! {
    /// The last look of this thread at both clocks.
    static BOTH: Cell<Option<(Duration, Instant)>> = const { Cell::new(None) };
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        let mono = Instant::now();
        let wall = BOTH.with(|both| match both.get() {
            Some((wall, then)) if mono - then < WALL_EVERY => wall + (mono - then),
            Some(_) | None => {
                let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                both.set(Some((wall, mono)));
                wall
            }
        });
        Self { wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX), mono }
    }
}

/// `ms` milliseconds since 1970 as text, in the one form used everywhere: RFC 3339, UTC, milliseconds,
/// as in `2026-11-21T14:30:00.123Z`.
pub(crate) fn rfc3339(ms: u64) -> String {
    // humantime ends at the year 9999; a clock beyond it is set back there rather than a panic.
    const YEAR_9999_MS: u64 = 253_402_300_799_999;
    let time = UNIX_EPOCH + Duration::from_millis(ms.min(YEAR_9999_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

/// Waits for `moment`, for ever if there is none.
pub(crate) async fn until(moment: Option<Instant>) {
    match moment {
        // Most have nothing to wait for, and then hold no timer.
        Some(moment) => Box::pin(tokio::time::sleep_until(moment)).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_tell_the_same_moment_at_every_look() {
        let wall_ms = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            u64::try_from(since.as_millis()).expect("not that late")
        };
        let end = Instant::now() + 3 * WALL_EVERY;
        let mut last = Moment::now();
        while last.mono < end {
            let before = wall_ms();
            let now = Moment::now();
            // A millisecond for the rounding of both.
            assert!((before.saturating_sub(1)..=wall_ms() + 1).contains(&now.wall_ms));
            assert!(last.mono <= now.mono);
            last = now;
        }
    }

    #[test]
    fn any_clock_can_be_shown() {
        assert_eq!(rfc3339(1_795_271_400_123), "2026-11-21T14:30:00.123Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
