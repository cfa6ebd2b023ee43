//! `Jobs`: publications that deliveries wait for, on their way to the task that publishes them.
//!
//! Bounded by nature: each unsettled delivery owes at most one for each of its recipients, and so does each command that was
//! settled as written and then lost with its link, of which `DEVICE_TAIL_MAX` bounds the number. What
//! a dead channel left behind is owed no more, since the broker delivers it again, and is cleared
//! out before the queue grows.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::job::Owed;

/// The queue of jobs.
#[derive(Debug)]
pub(crate) struct Jobs<T> {
    work: Arc<Notify>,
    /// More than this can only be there if some are owed no more, or if commands for many are among
    /// them, each of which may owe one to every recipient.
    live_max: usize,
    /// Held for one push or pop, never across an await.
    queue: Mutex<Queue<T>>,
}

#[derive(Debug)]
struct Queue<T> {
    jobs: VecDeque<T>,
    /// How many there may be until it is looked again which are owed still.
    look_at: usize,
}

impl<T: Owed> Jobs<T> {
    /// An empty queue; `work` is told when there is a job. `live_max` deliveries can be unsettled.
    pub(crate) fn new(work: Arc<Notify>, live_max: usize) -> Self {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), look_at: 0 });
        Self { work, live_max, queue }
    }

    /// What is told when there is a job.
    pub(crate) fn work(&self) -> Arc<Notify> {
        Arc::clone(&self.work)
    }

    /// Takes up a job.
    pub(crate) fn push(&self, job: T) {
        let mut queue = self.lock();
        if queue.jobs.len() >= queue.look_at.max(self.live_max) {
            for job in std::mem::take(&mut queue.jobs) {
                queue.jobs.extend(job.if_owed());
            }
            // Looking costs less than what has come since the last look.
            queue.look_at = 2 * queue.jobs.len();
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.work.notify_one();
    }

    /// The next job that is still owed.
    pub(crate) fn next(&self) -> Option<T> {
        let mut queue = self.lock();
        while let Some(job) = queue.jobs.pop_front() {
            if let Some(job) = job.if_owed() {
                return Some(job);
            }
        }
        None
    }

    /// Whether none is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().jobs.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
