//! `Recorder`: keeps what bridges tell in a database. A process of its own, `rabbitline record`.
//!
//! Events are taken off a durable queue in batches, each of which is one transaction, and acknowledged
//! when it is committed. So each is written at least once, and rows are such that more than once makes
//! no difference. Whatever is away, the broker's queue holds the rest.

mod batch;
mod event;
mod rows;
mod sql;
mod store;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::batch::Batch;
use self::event::Event;
use self::store::{Store, StoreError};
use self::watch::Watch;
use crate::broker::{Collector, Keeper, Letter, Nodes, Retry};
use crate::clock::{self, Moment};
use crate::settings::{Keep, Kinds, Settings};

/// How often it is looked whose heartbeats are missing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked for rows that are too old, and how soon again while there are more.
const SWEEP_EVERY: Duration = Duration::from_mins(1);
/// What comes after the shutdown grace: a transaction that is given up ends with its connection.
const GIVE_UP_WAIT: Duration = Duration::from_secs(2);

/// A recorder that runs.
#[derive(Debug)]
pub(crate) struct Recorder {
    records: Arc<Records>,
    /// Ends the taking of events.
    drain: CancellationToken,
    /// Ends the wait for the database.
    give_up: CancellationToken,
    collector: JoinHandle<bool>,
    housekeeper: JoinHandle<()>,
}

impl Recorder {
    /// Starts every part. The broker and the database may be away: they are waited for.
    pub(crate) fn start(settings: Settings) -> Self {
        let (drain, give_up) = (CancellationToken::new(), CancellationToken::new());
        let settings = Arc::new(settings);
        let records = Arc::new(Records::new(&settings, give_up.clone()));
        let nodes = Nodes::new(&settings.mq);
        let collector = Collector { settings, nodes, keeper: Arc::clone(&records) };
        let collector = tokio::spawn(collector.run(drain.clone()));
        let housekeeper = tokio::spawn(Arc::clone(&records).keep_house(drain.clone()));
        Self { records, drain, give_up, collector, housekeeper }
    }

    /// Finishes the batch in hand within `grace`. True if nothing was cut short.
    pub(crate) async fn shut_down(mut self, grace: Duration) -> bool {
        self.drain.cancel();
        let finished = timeout(grace, &mut self.collector).await;
        self.give_up.cancel();
        self.housekeeper.abort();
        let Ok(collected) = finished else {
            warn!("a batch was not kept in time; the broker keeps its events.");
            timeout(GIVE_UP_WAIT, self.collector).await.ok();
            return false;
        };
        self.records.state.lock().await.store.close().await;
        collected.unwrap_or(false)
    }
}

/// Whether the database could be used, as a sentence; changes nothing.
pub(crate) async fn check(settings: &Settings) -> Result<String, String> {
    let store = Store::new(settings.record.database.clone());
    store.look().await.map_err(|error| error.to_string())
}

/// Makes rows of events.
#[derive(Debug)]
struct Records {
    kinds: Kinds,
    keep: Option<Keep>,
    give_up: CancellationToken,
    /// Held for a transaction, also while it is tried again and again.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    store: Store,
    watch: Watch,
    /// Whether the watch knows the bridges that the database knows.
    loaded: bool,
    /// How many events could not be used.
    malformed: u64,
}

impl Keeper for Records {
    async fn keep(&self, letters: &[Letter]) -> bool {
        let mut state = self.state.lock().await;
        let events = state.read(letters);
        tokio::select! {
            () = self.give_up.cancelled() => false,
            () = self.write(&mut state, &events) => true,
        }
    }
}

impl Records {
    fn new(settings: &Settings, give_up: CancellationToken) -> Self {
        let record = &settings.record;
        let state = State {
            store: Store::new(record.database.clone()),
            watch: Watch::default(),
            loaded: false,
            malformed: 0,
        };
        Self { kinds: record.kinds, keep: record.keep, give_up, state: Mutex::new(state) }
    }

    /// Writes events, however long that takes. Those that the database will never have are found by
    /// halving, and left out.
    async fn write(&self, state: &mut State, events: &[(&Letter, Event)]) {
        let mut parts = vec![events];
        let mut retry = Retry::of("database");
        while let Some(part) = parts.pop() {
            let batch = self.fold(part);
            match state.commit(&batch).await {
                Ok(()) => {}
                Err(StoreError::Refused(said)) => {
                    if let [(letter, _)] = part {
                        state.refuse(&[(letter, format!("the database refuses it: {said}"))]);
                    } else {
                        let (first, second) = part.split_at(part.len() / 2);
                        parts.extend([second, first]);
                    }
                }
                Err(error) => {
                    parts.push(part);
                    retry.wait(&error, &self.give_up).await;
                    // Nobody was heard meanwhile, and that is not the bridges' fault.
                    state.watch.start_over(Instant::now());
                }
            }
        }
    }

    fn fold(&self, events: &[(&Letter, Event)]) -> Batch {
        let mut batch = Batch::default();
        for (_, event) in events {
            batch.take(event.clone(), self.kinds);
        }
        batch
    }

    /// Looks after what happens without an event: heartbeats that are missing, rows that grow old.
    async fn keep_house(self: Arc<Self>, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = Retry::of("database");
        let mut sweep_at = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => {}
            }
            let mut looked = self.state.lock().await.look().await;
            if looked.is_ok() && Instant::now() >= sweep_at {
                looked = self.sweep().await;
                sweep_at = Instant::now() + SWEEP_EVERY;
            }
            if let Err(error) = looked {
                retry.wait(&error, &stop).await;
            }
        }
    }

    /// Deletes what is too old, in portions with room for batches between them.
    async fn sweep(&self) -> Result<(), StoreError> {
        #[derive(Serialize)]
        struct Before {
            before: String,
        }
        let Some(Keep(keep)) = self.keep else {
            return Ok(());
        };
        let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        let before = clock::rfc3339(Moment::now().wall_ms.saturating_sub(keep));
        let rows = rows_of(&[Before { before }]);
        for statement in &sql::OLD {
            loop {
                let mut state = self.state.lock().await;
                let deleted = state.store.write(&[(statement, rows.clone())]).await?;
                debug!(rows = deleted, "{}", statement.name);
                if deleted == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl State {
    /// The events that can be used; tells of the others.
    fn read<'a>(&mut self, letters: &'a [Letter]) -> Vec<(&'a Letter, Event)> {
        let mut wrong = Vec::new();
        let mut events = Vec::with_capacity(letters.len());
        for letter in letters {
            match Event::read(&letter.key, &letter.body) {
                Ok(event) => events.push((letter, event)),
                Err(expected) => wrong.push((letter, expected)),
            }
        }
        self.refuse(&wrong);
        events
    }

    /// Tells of events that cannot be used: of the first, and how many there are. They are not kept, and
    /// acknowledged like the others: they would only come again.
    fn refuse(&mut self, wrong: &[(&Letter, String)]) {
        let Some((letter, expected)) = wrong.first() else { return };
        self.malformed += wrong.len() as u64;
        warn!(
            key = letter.key,
            count = wrong.len(),
            malformed = self.malformed,
            "an event cannot be recorded: {expected}."
        );
        for (letter, expected) in wrong {
            let body = String::from_utf8_lossy(&letter.body);
            debug!(key = letter.key, %body, "{expected}");
        }
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let steps = batch.steps(|name, run| self.watch.knows(name, run));
        let steps = steps.map_err(|error| StoreError::Refused(error.to_string()))?;
        self.store.write(&steps).await?;
        let now = Instant::now();
        for (name, bridge) in batch.bridges() {
            self.watch.heard(name, bridge, now);
        }
        Ok(())
    }

    /// Looks whose heartbeats are missing; their devices are unknown from now on.
    async fn look(&mut self) -> Result<(), StoreError> {
        if !self.loaded {
            for (name, run, expires_ms) in self.store.bridges().await? {
                self.watch.remember(name, run, expires_ms, Instant::now());
            }
            self.loaded = true;
        }
        let missing = self.watch.missing(Instant::now());
        if missing.is_empty() {
            return Ok(());
        }
        let rows = rows_of(&missing);
        let steps = [(&sql::BRIDGES_UNKNOWN, rows.clone()), (&sql::DEVICES_UNKNOWN, rows)];
        self.store.write(&steps).await?;
        for bridge in &missing {
            self.watch.told(bridge);
            warn!(bridge = %bridge.name, "the heartbeats of a bridge are missing; whether its devices are online is unknown.");
        }
        Ok(())
    }
}

/// Rows as a JSON array.
fn rows_of<T: Serialize>(rows: &[T]) -> String {
    // Strings only: this cannot fail.
    serde_json::to_string(rows).unwrap_or_default()
}
