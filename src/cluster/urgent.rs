//! What bridges say to each other past all that waits in their inboxes. Pure but for the wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::control::Control;

/// When a bridge that was not there is spoken to again: it may be connecting.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Something that is to be said at once.
#[derive(Debug, Clone)]
pub(crate) struct Urgent {
    /// The bridge it is for.
    pub(crate) to: Arc<str>,
    pub(crate) control: Control,
    /// When it is of no use any more.
    pub(crate) until: Instant,
}

/// What is to be said at once, until it is. Bounded by nature: what a bridge says that ends, an answer to each
/// such message of another, and to one that begins which devices are here.
#[derive(Debug, Default)]
pub(crate) struct UrgentQueue {
    /// Each with when it may be said.
    waiting: Mutex<VecDeque<(Instant, Urgent)>>,
    more: Notify,
}

impl UrgentQueue {
    /// Has this said to a bridge, which it is of use to for so long.
    pub(super) fn say(&self, to: impl Into<Arc<str>>, control: Control, within: Duration) {
        let now = Instant::now();
        let urgent = Urgent { to: to.into(), control, until: now + within };
        self.lock().push_back((now, urgent));
        self.more.notify_one();
    }

    /// What is to be said next, which stays until that is `done`; nothing that is of no use any more. One task speaks.
    pub(crate) async fn next(&self) -> Urgent {
        loop {
            if let Some(urgent) = self.first_due(Instant::now()) {
                return urgent;
            }
            let more = self.more.notified();
            if self.lock().is_empty() {
                more.await;
            } else {
                timeout(AGAIN_AFTER, more).await.ok();
            }
        }
    }

    fn first_due(&self, now: Instant) -> Option<Urgent> {
        let mut waiting = self.lock();
        waiting.retain(|(_, urgent)| urgent.until > now);
        let is_due = |(from, _): &(Instant, Urgent)| *from <= now;
        let hurries = |it: &(Instant, Urgent)| is_due(it) && !it.1.control.can_wait();
        let due = waiting.iter().position(hurries);
        let due = due.or_else(|| waiting.iter().position(is_due))?;
        waiting.swap(0, due);
        waiting.front().map(|(_, urgent)| urgent.clone())
    }

    /// The next has been said; or not, for nobody was there to hear it, and it is to be said again.
    pub(crate) fn done(&self, was_heard: bool) {
        let mut waiting = self.lock();
        if let Some((_, urgent)) = waiting.pop_front().filter(|_| !was_heard) {
            waiting.push_back((Instant::now() + AGAIN_AFTER, urgent));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Urgent)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(2);

    fn say(queue: &UrgentQueue, to: &str, within: Duration) {
        queue.say(to, Control::Alive, within);
    }

    fn next(queue: &UrgentQueue, now: Instant) -> Option<String> {
        queue.first_due(now).map(|urgent| urgent.to.to_string())
    }

    #[test]
    fn what_comes_too_late_is_not_said() {
        let queue = UrgentQueue::default();
        say(&queue, "a", WITHIN);
        say(&queue, "b", 2 * WITHIN);
        let later = Instant::now() + WITHIN;
        assert_eq!(next(&queue, later).as_deref(), Some("b"));
        assert_eq!(next(&queue, later + WITHIN), None);
    }

    #[test]
    fn one_that_does_not_hear_is_spoken_to_again_and_holds_up_nobody() {
        let queue = UrgentQueue::default();
        for to in ["deaf", "b", "deaf", "c"] {
            say(&queue, to, WITHIN);
        }
        let now = Instant::now();
        let mut said = Vec::new();
        while let Some(to) = next(&queue, now) {
            queue.done(to != "deaf");
            said.push(to);
        }
        said.sort();
        assert_eq!(said, ["b", "c", "deaf", "deaf"]);
        let again = Instant::now() + AGAIN_AFTER;
        for _ in 0..2 {
            assert_eq!(next(&queue, again).as_deref(), Some("deaf"));
            queue.done(true);
        }
        assert_eq!(next(&queue, again), None);
    }

    #[test]
    fn what_can_wait_lets_the_rest_pass() {
        let queue = UrgentQueue::default();
        let devices = || Control::Devices {
            bridge: "b1".to_owned(),
            run: "1f".to_owned(),
            devices: Vec::new(),
        };
        for control in [devices(), devices(), Control::Alive] {
            queue.say("a", control, WITHIN);
        }
        let mut said = Vec::new();
        while let Some(urgent) = queue.first_due(Instant::now()) {
            queue.done(true);
            said.push(urgent.control);
        }
        assert_eq!(said, [Control::Alive, devices(), devices()]);
    }

    #[tokio::test]
    async fn who_waits_is_told() {
        let queue = UrgentQueue::default();
        let (next, ()) = tokio::join!(queue.next(), async { say(&queue, "a", WITHIN) });
        assert_eq!(&*next.to, "a");
    }
}
