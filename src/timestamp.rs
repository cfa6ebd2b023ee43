//! Wall-clock times as text, in one form everywhere: RFC 3339, UTC, milliseconds.

use std::time::{Duration, UNIX_EPOCH};

/// `ms` milliseconds since 1970 as `2026-11-21T14:30:00.123Z`.
pub(crate) fn rfc3339(ms: u64) -> String {
    // humantime ends at the year 9999; a clock beyond it is set back there rather than a panic.
    const YEAR_9999_MS: u64 = 253_402_300_799_999;
    let time = UNIX_EPOCH + Duration::from_millis(ms.min(YEAR_9999_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_clock_can_be_shown() {
        assert_eq!(rfc3339(1_795_271_400_123), "2026-11-21T14:30:00.123Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
