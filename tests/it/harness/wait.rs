//! The one way to wait: ask again and again until a fact holds, and say which fact did not when the deadline is over.

use std::fmt::Display;
use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Long enough for a loaded two-core machine; a test that works never comes near it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(45);
/// Between two looks at a fact.
const POLL: Duration = Duration::from_millis(10);

/// Asks until `look` says `Ok`; panics with `what` and the last answer when `DEADLINE` is over.
#[track_caller]
pub(crate) fn eventually<T, E: Display>(what: &str, look: impl FnMut() -> Result<T, E>) -> T {
    within(DEADLINE, what, look)
}

/// `eventually` with a deadline of its own.
#[track_caller]
pub(crate) fn within<T, E: Display>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match look() {
            Ok(fact) => return fact,
            Err(seen) if Instant::now() >= end => {
                panic!("not within {deadline:?}: {what}; last seen: {seen}")
            }
            Err(_) => std::thread::park_timeout(POLL),
        }
    }
}

/// Runs a future of the AMQP client or of a fleet to its end.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

pub(crate) fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a tokio runtime")
    })
}
