//! `Requests`: commands that come over HTTP. Each is published as a backend would, confirmed, and its
//! receipts are gathered for who waits.
//!
//! On a connection of its own, opened when it is first needed and kept: what HTTP asks disturbs neither
//! what is consumed nor what is owed. Receipts come back over RabbitMQ's direct reply-to, told apart by
//! their correlation ids; so they come whichever bridge has the device.

mod gathered;
mod task;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ring::rand::{SystemRandom, generate};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

pub(crate) use gathered::Gathered;
pub(crate) use task::Requester;

use super::decode::{self, Defaults, Recipients, Stamps};
use crate::clock::Moment;
use crate::command::Reason;

/// Requests in flight, those that wait for receipts included. Each may hold a body of
/// `BODY_MAX` until it is published, and its receipts until it is answered.
const REQUESTS_MAX: usize = 256;
/// The largest body: a list of 10,000 addresses, or a line of some hundred thousand characters.
pub(crate) const BODY_MAX: usize = 1024 * 1024;
/// How long the broker may take to confirm once there is a connection: a disk that is slow is waited
/// for, one that is full is not.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

/// Why a command is not known to be published.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unpublished {
    /// It is no command, and was not published.
    Invalid(Reason),
    /// The broker is away or takes nothing; it was not published.
    Away(String),
    /// It was handed to the broker, which has not said what became of it.
    Unknown {
        /// The command's id.
        id: String,
        /// Why that is so.
        why: String,
    },
}

/// A command that is published, and what has come back in time.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) id: String,
    /// Nothing, if nobody was to wait.
    pub(crate) gathered: Gathered,
    /// Why no more receipts can come, if that is so.
    pub(crate) lost: Option<String>,
}

/// One request on its way to the task that publishes.
#[derive(Debug)]
struct Request {
    number: u64,
    body: Vec<u8>,
    /// The id that was made for it, if it came without one.
    made_id: Option<String>,
    wants_receipts: bool,
    told: oneshot::Sender<Result<(), Refusal>>,
}

/// Why something was not taken by the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    /// It was not published.
    Away(String),
    /// It may have been.
    Unknown(String),
}

/// Who waits for receipts, by the number of the request.
#[derive(Debug, Default)]
struct Waiters {
    /// Held for a map operation, never across an await.
    of: Mutex<HashMap<u64, Arc<Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    /// Held while a receipt is taken up, never across an await.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    gathered: Gathered,
    lost: Option<String>,
}

impl Waiter {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Waiter>>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A receipt has come.
    fn receipt(&self, number: u64, body: &[u8]) {
        let waiter = self.lock().get(&number).cloned();
        // Who has waited long enough is gone.
        let Some(waiter) = waiter else { return };
        let mut state = waiter.lock();
        state.gathered.take(body);
        if state.gathered.is_done() {
            waiter.changed.notify_one();
        }
    }

    /// No more can come: they go to the channel that published, and that is gone.
    fn lost(&self, why: &str) {
        for waiter in self.lock().values() {
            waiter.lock().lost = Some(why.to_owned());
            waiter.changed.notify_one();
        }
    }
}

/// The place of one request among the waiters, until this is dropped.
struct Place<'a> {
    waiters: &'a Waiters,
    number: u64,
    waiter: Arc<Waiter>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiters.lock().remove(&self.number);
    }
}

/// What HTTP hands commands to.
#[derive(Debug)]
pub(crate) struct Requests {
    defaults: Defaults,
    /// How long a command may take to be published, a connection included.
    limit: Duration,
    room: Arc<Semaphore>,
    queue: mpsc::Sender<Request>,
    waiters: Arc<Waiters>,
    numbers: AtomicU64,
}

impl Requests {
    /// Room for one more request, if there is; held until it is answered.
    pub(crate) fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Publishes a command, and waits for its final receipts for as long as `wait` says.
    pub(crate) async fn publish(
        &self,
        body: Vec<u8>,
        wait: Option<Duration>,
        _room: OwnedSemaphorePermit,
    ) -> Result<Published, Unpublished> {
        let end = wait.map(|wait| Instant::now() + wait);
        // What the bridge that takes it up would say, said before it is published.
        let stamps = Stamps { has_id: true, ..Stamps::default() };
        let decoded = decode::decode(&body, &stamps, &self.defaults, Moment::now())
            .map_err(|invalid| Unpublished::Invalid(invalid.reason))?;
        let made_id = match &decoded.id {
            Some(_) => None,
            None => Some(made_id().ok_or_else(|| Unpublished::Away(NO_RANDOM.to_owned()))?),
        };
        let id = decoded.id.map(String::from).or_else(|| made_id.clone()).unwrap_or_default();
        let is_for_one = matches!(decoded.recipients, Recipients::One(_));
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let place = end.map(|_| self.place(number, is_for_one));
        let (told, published) = oneshot::channel();
        let wants_receipts = place.is_some();
        let request = Request { number, body, made_id, wants_receipts, told };
        // There is room for as many as have a permit.
        self.queue.try_send(request).map_err(|_| Unpublished::Away(CLOSED.to_owned()))?;
        let unknown = |why: &str| Unpublished::Unknown { id: id.clone(), why: why.to_owned() };
        match timeout(self.limit, published).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(Refusal::Away(why)))) => return Err(Unpublished::Away(why)),
            Ok(Ok(Err(Refusal::Unknown(why)))) => return Err(unknown(&why)),
            Ok(Err(_)) => return Err(unknown(LOST)),
            Err(_) => return Err(unknown("the broker has not confirmed it in time")),
        }
        let (gathered, lost) = match (place, end) {
            (Some(place), Some(end)) => place.wait(end).await,
            _ => (Gathered::new(is_for_one), None),
        };
        Ok(Published { id, gathered, lost })
    }

    fn place(&self, number: u64, is_for_one: bool) -> Place<'_> {
        let state = State { gathered: Gathered::new(is_for_one), lost: None };
        let waiter = Arc::new(Waiter { state: Mutex::new(state), changed: Notify::new() });
        self.waiters.lock().insert(number, Arc::clone(&waiter));
        Place { waiters: &self.waiters, number, waiter }
    }
}

const CLOSED: &str = "the bridge is shutting down";
const NO_RANDOM: &str = "the system gives no random numbers";
const LOST: &str = "the connection to the broker was lost before it confirmed the command";

impl Place<'_> {
    /// What has been gathered when all is, or when `end` comes.
    async fn wait(self, end: Instant) -> (Gathered, Option<String>) {
        let until_done = async {
            loop {
                let changed = self.waiter.changed.notified();
                {
                    let state = self.waiter.lock();
                    if state.gathered.is_done() || state.lost.is_some() {
                        return;
                    }
                }
                changed.await;
            }
        };
        // What is known when the time is over is told, too.
        timeout_at(end, until_done).await.ok();
        let mut state = self.waiter.lock();
        (std::mem::take(&mut state.gathered), state.lost.take())
    }
}

/// An id for what came without one, that nobody else makes; None if the system gives no random numbers.
pub(super) fn made_id() -> Option<String> {
    let bytes: [u8; 16] = generate(&SystemRandom::new()).ok()?.expose();
    Some(format!("{:032x}", u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> (Requests, mpsc::Receiver<Request>, Arc<Waiters>) {
        let waiters = Arc::new(Waiters::default());
        let (queue, requests) = mpsc::channel(REQUESTS_MAX);
        let handle = Requests {
            defaults: decode::tests::defaults(),
            limit: Duration::from_millis(50),
            room: Arc::new(Semaphore::new(REQUESTS_MAX)),
            queue,
            waiters: Arc::clone(&waiters),
            numbers: AtomicU64::new(1),
        };
        (handle, requests, waiters)
    }

    const BODY: &[u8] = br#"{"address":"10.0.0.7","cmd":"ON"}"#;

    async fn publish(
        handle: &Requests,
        body: &[u8],
        wait_ms: u64,
    ) -> Result<Published, Unpublished> {
        let room = handle.room().expect("room");
        let wait = (wait_ms > 0).then(|| Duration::from_millis(wait_ms));
        handle.publish(body.to_vec(), wait, room).await
    }

    #[tokio::test]
    async fn what_is_no_command_is_never_published() {
        let (handle, mut requests, _) = parts();
        let wrong = publish(&handle, br#"{"address":"10.0.0.7"}"#, 0).await.expect_err("no cmd");
        assert_eq!(wrong, Unpublished::Invalid("cmd: missing".into()));
        assert!(requests.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_receipt_that_comes_before_the_confirm_counts_and_the_place_is_given_up() {
        let (handle, mut requests, waiters) = parts();
        let broker = async {
            let request = requests.recv().await.expect("a request");
            assert!(request.wants_receipts && request.made_id.is_some());
            waiters
                .receipt(request.number, br#"{"id":"x","address":"10.0.0.7","outcome":"written"}"#);
            request.told.send(Ok(())).expect("told");
        };
        let (published, ()) = tokio::join!(publish(&handle, BODY, 60_000), broker);
        let published = published.expect("published");
        assert!(published.gathered.is_done() && published.id.len() == 32);
        assert!(waiters.lock().is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_told_what_is_known_when_the_time_or_the_connection_ends() {
        let (handle, mut requests, waiters) = parts();
        let confirm = async |requests: &mut mpsc::Receiver<Request>| {
            requests.recv().await.expect("a request").told.send(Ok(())).expect("told");
        };
        let (published, ()) = tokio::join!(publish(&handle, BODY, 20), confirm(&mut requests));
        let published = published.expect("published");
        assert!(!published.gathered.is_done() && published.lost.is_none());
        let lose = async {
            confirm(&mut requests).await;
            waiters.lost("gone");
        };
        let (published, ()) = tokio::join!(publish(&handle, BODY, 60_000), lose);
        assert_eq!(published.expect("published").lost.as_deref(), Some("gone"));
    }

    #[tokio::test]
    async fn what_the_broker_does_not_confirm_is_unknown() {
        let (handle, mut requests, _) = parts();
        let late = publish(&handle, br#"{"address":"10.0.0.7","cmd":"ON","id":"7"}"#, 0).await;
        assert!(matches!(late, Err(Unpublished::Unknown { id, .. }) if id == "7"));
        let (lost, ()) = tokio::join!(publish(&handle, BODY, 0), async {
            // The one before has been given up.
            while let Some(request) = requests.recv().await {
                if !request.told.is_closed() {
                    return;
                }
            }
        });
        assert!(matches!(lost, Err(Unpublished::Unknown { why, .. }) if why == LOST));
    }

    #[test]
    fn there_is_room_for_only_so_many() {
        let (handle, _requests, _) = parts();
        let all: Vec<_> = (0..REQUESTS_MAX).map(|_| handle.room().expect("room")).collect();
        assert!(handle.room().is_none());
        drop(all);
        assert!(handle.room().is_some());
    }
}
