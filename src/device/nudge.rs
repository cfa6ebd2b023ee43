//! `Nudge`: tells the one task of a session to look again.
//!
//! What waits for it keeps nothing of its own, which a `Notify` would: some 60 bytes for each device.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use futures_util::task::AtomicWaker;

/// A sign that stays until it is seen. Of several given meanwhile one is seen.
#[derive(Debug, Default)]
pub(super) struct Nudge {
    given: AtomicBool,
    waker: AtomicWaker,
}

impl Nudge {
    /// Gives the sign.
    pub(super) fn give(&self) {
        self.given.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Waits for the sign and takes it. For one task: of two that wait the first would never learn of it.
    pub(super) fn given(&self) -> impl Future<Output = ()> + Send + '_ {
        poll_fn(|context| {
            if self.given.swap(false, Ordering::Acquire) {
                return Poll::Ready(());
            }
            self.waker.register(context.waker());
            // It may have been given before it could wake.
            if self.given.swap(false, Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_sign_is_seen_once_whenever_it_was_given() {
        let nudge = Nudge::default();
        assert!(nudge.given().now_or_never().is_none());
        nudge.give();
        nudge.give();
        assert!(nudge.given().now_or_never().is_some(), "given before it was waited for");
        assert!(nudge.given().now_or_never().is_none(), "two are one");
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let nudge = Arc::new(Nudge::default());
        let mut waiting = pin!(nudge.given());
        assert!(waiting.as_mut().now_or_never().is_none());
        let giver = Arc::clone(&nudge);
        tokio::spawn(async move { giver.give() }).await.expect("given");
        waiting.await;
    }
}
