//! What all tests share: started by the first that asks for it.

use std::panic::{UnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};

/// If it does not start, the first test says why, and the others need not try again.
#[track_caller]
pub(crate) fn shared<T>(
    cell: &OnceLock<Option<Arc<T>>>,
    what: &str,
    start: impl FnOnce() -> T + UnwindSafe,
) -> Arc<T> {
    let mut why = None;
    let shared = cell
        .get_or_init(|| catch_unwind(start).map(Arc::new).map_err(|panic| why = Some(panic)).ok());
    if let Some(panic) = why {
        resume_unwind(panic);
    }
    let Some(shared) = shared else { panic!("{what} did not start; another test says why") };
    Arc::clone(shared)
}
