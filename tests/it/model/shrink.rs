//! Makes a schedule that fails shorter, by leaving out steps while it still fails.

use std::time::{Duration, Instant};

use super::schedule::Schedule;

/// A schedule that is long and fails is of more use than one that is short and comes late.
const LIMIT: Duration = Duration::from_secs(60);

/// The shortest found, and what is wrong with it. What depends on chance may not fail again; then it
/// stays as it was.
pub(super) fn shrink(
    schedule: &Schedule,
    wrong: &[String],
    mut run: impl FnMut(&Schedule) -> Result<(), Vec<String>>,
) -> (Schedule, Vec<String>) {
    let end = Instant::now() + LIMIT;
    let (mut best, mut best_wrong) = (schedule.clone(), wrong.to_vec());
    let mut size = best.steps.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.steps.len() {
            if Instant::now() >= end {
                return (best, best_wrong);
            }
            let mut shorter = best.clone();
            shorter.steps.drain(from..best.steps.len().min(from + size));
            match run(&shorter) {
                Err(wrong) => (best, best_wrong) = (shorter, wrong),
                Ok(()) => from += size,
            }
        }
        size /= 2;
    }
    (best, best_wrong)
}
