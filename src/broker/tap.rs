//! `Tap`: what happens, published to the tap exchange for as long as somebody listens there.
//!
//! RabbitMQ tells no publisher who has bound what. So an empty message is published for each kind once a second,
//! mandatory: if it comes back, nobody listens, and nothing of that kind is put into words. Whoever taps binds the key of
//! that message besides those of the events. Nothing here is confirmed or kept. All of it is on a connection of its own, so that
//! no trouble here is trouble for what else is published: not a refusal, and not a queue that takes too much
//! of the broker's time.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::connection::Link;
use super::nodes::Nodes;
use super::{BrokerError, topology};
use crate::live::{Event, Heard, Kind, Kinds, Live, Reader};
use crate::run::Run;
use crate::settings::Settings;

/// What the keys of probes begin with; the kind follows.
pub(super) const PROBE: &str = "probe";
/// What the key begins with of the message that says how many events were not published; the bridge's name follows.
pub(super) const MISSED: &str = "missed";
/// How often it is asked whether anybody listens: so long may it take until a tap sees something.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Between two attempts to connect; the publisher is back sooner.
const RECONNECT: Duration = Duration::from_secs(5);
/// Between two attempts if it is not the connection that is wrong, as with a user who may not declare the exchange.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Publishes what happens.
#[derive(Debug)]
pub(crate) struct Tap {
    settings: Arc<Settings>,
    nodes: Arc<Nodes>,
    run: Run,
    live: Arc<Live>,
    /// Whether it was said that there can be none.
    said: AtomicBool,
}

impl Tap {
    pub(crate) fn new(
        settings: Arc<Settings>,
        nodes: Arc<Nodes>,
        run: Run,
        live: Arc<Live>,
    ) -> Self {
        Self { settings, nodes, run, live, said: AtomicBool::new(false) }
    }

    /// Publishes on a connection of its own until `finish`.
    pub(crate) async fn run(self, finish: CancellationToken) {
        loop {
            let opening = self.nodes.open(&self.run.bridge, "tap");
            let opened = tokio::select! {
                opened = opening => opened,
                () = finish.cancelled() => return,
            };
            let mut wait = RECONNECT;
            // If the broker is away, the publisher says so.
            if let Ok(link) = opened {
                let ended = tokio::select! {
                    Err(error) = self.attempt(&link) => Some(error),
                    error = link.lost() => Some(error),
                    () = finish.cancelled() => None,
                };
                if link.lost().now_or_never().is_some() {
                    link.failed();
                } else if let Some(error) = &ended {
                    self.complain(error);
                    wait = TRY_AGAIN;
                }
                link.close().await;
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = finish.cancelled() => return,
            }
        }
    }

    /// Says once that nobody can tap.
    fn complain(&self, error: &BrokerError) {
        if self.said.swap(true, Ordering::Relaxed) {
            debug!(%error, "still nobody can tap what happens");
        } else {
            warn!(%error, "nobody can tap what happens; all else goes on.");
        }
    }

    async fn attempt(&self, link: &Link) -> Result<Infallible, BrokerError> {
        topology::prepare_tap(link, &self.settings).await?;
        let probes = link.confirming_channel().await?;
        let events = link.channel().await?;
        let (tell, wanted) = watch::channel(Kinds::default());
        tokio::select! {
            ended = self.probe(&probes, &tell) => ended,
            ended = self.follow(&events, wanted) => ended,
        }
    }

    fn exchange(&self) -> ShortString {
        self.settings.mq.tap_exchange.as_str().into()
    }

    /// Finds out, again and again, who listens to what.
    async fn probe(
        &self,
        channel: &Channel,
        tell: &watch::Sender<Kinds>,
    ) -> Result<Infallible, BrokerError> {
        let failed = |source| BrokerError::during("asking who taps")(source);
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let mut tick = interval(PROBE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mut listened = Vec::new();
            // One after the other: lapin may give a message that comes back to the wrong confirm.
            for kind in Kind::ALL {
                let key = format!("{PROBE}.{}", kind.word()).into();
                let properties = BasicProperties::default();
                let published =
                    channel.basic_publish(self.exchange(), key, options, b"", properties).await;
                let confirmation = published.map_err(failed)?.await.map_err(failed)?;
                if !matches!(confirmation, Confirmation::Ack(Some(_))) {
                    listened.push(kind);
                }
            }
            let kinds = listened.into_iter().collect();
            tell.send_if_modified(|known| std::mem::replace(known, kinds) != kinds);
        }
    }

    /// Publishes what is wanted.
    async fn follow(
        &self,
        channel: &Channel,
        mut wanted: watch::Receiver<Kinds>,
    ) -> Result<Infallible, BrokerError> {
        let mut reader: Option<Reader> = None;
        loop {
            let kinds = *wanted.borrow_and_update();
            if kinds.is_empty() {
                reader = None;
            } else if let Some(reader) = &reader {
                // It keeps what waits for it.
                reader.want(kinds);
            } else {
                reader = self.live.subscribe(kinds, "");
            }
            let heard = match &reader {
                Some(reader) => tokio::select! {
                    heard = reader.next() => heard,
                    _ = wanted.changed() => continue,
                },
                // Nobody listens, or as many look on as may.
                None => tokio::select! {
                    () = sleep(PROBE_EVERY) => continue,
                    _ = wanted.changed() => continue,
                },
            };
            match heard {
                Some(Heard::Event(event)) => {
                    let Event { kind, address, json } = &*event;
                    self.publish(channel, format!("{}.{address}", kind.word()), json).await?;
                }
                Some(Heard::Missed(missed)) => {
                    let (bridge, run) = (&*self.run.bridge, &*self.run.name);
                    let told = serde_json::json!({"missed": missed, "bridge": bridge, "run": run});
                    let json = told.to_string().into_bytes();
                    self.publish(channel, format!("{MISSED}.{bridge}"), &json).await?;
                    reader = None;
                }
                None => reader = None,
            }
            // lapin's futures know nothing of tokio's budget.
            tokio::task::coop::consume_budget().await;
        }
    }

    async fn publish(
        &self,
        channel: &Channel,
        key: String,
        json: &[u8],
    ) -> Result<(), BrokerError> {
        let options = BasicPublishOptions { mandatory: false, immediate: false };
        let properties = BasicProperties::default().with_content_type("application/json".into());
        let published =
            channel.basic_publish(self.exchange(), key.into(), options, json, properties).await;
        published.map(drop).map_err(BrokerError::during("publishing for a tap"))
    }
}
