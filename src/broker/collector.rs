//! `Collector`: takes events off the recorder's queue in batches, and acknowledges each when it is kept.

use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::connection::Link;
use super::nodes::Nodes;
use super::retry::Retry;
use super::{BrokerError, topology};
use crate::clock;
use crate::metrics;
use crate::settings::Settings;

/// What the connection is called in RabbitMQ's own lists, where a bridge has its name.
const NAME: &str = "record";

/// An event as it came.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) key: String,
    pub(crate) body: Vec<u8>,
}

/// Where events are kept.
pub(crate) trait Keeper: Send + Sync + 'static {
    /// Keeps a batch, however long that takes. False if it was told to give up.
    fn keep(&self, letters: &[Letter]) -> impl Future<Output = bool> + Send;
}

/// Takes events off the queue.
#[derive(Debug)]
pub(crate) struct Collector<K> {
    pub(crate) settings: Arc<Settings>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) keeper: Arc<K>,
}

/// How an attempt ended that was not cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    GaveUp,
}

impl<K: Keeper> Collector<K> {
    /// Collects until `drain`, and keeps what is in hand then. True if it was kept.
    pub(crate) async fn run(self, drain: CancellationToken) -> bool {
        let mut retry = Retry::new(metrics::Link::Consumer);
        loop {
            match self.attempt(&drain).await {
                Ok(end) => return end == End::Done,
                Err(error) => {
                    if !retry.wait(&error, &drain).await {
                        return true;
                    }
                }
            }
        }
    }

    /// Collects on one connection. Ends well only when told to.
    async fn attempt(&self, drain: &CancellationToken) -> Result<End, BrokerError> {
        let opening = self.nodes.open(NAME, "consumer");
        let link = tokio::select! {
            () = drain.cancelled() => return Ok(End::Done),
            link = opening => link?,
        };
        let result = self.collect(&link, drain).await;
        link.end(result).await
    }

    /// A batch that is being kept is not disturbed when the connection is lost: it comes again, and
    /// makes no difference then.
    async fn collect(&self, link: &Link, drain: &CancellationToken) -> Result<End, BrokerError> {
        let mut lost = pin!(link.lost());
        let mut hand = tokio::select! {
            hand = Hand::start(link, &self.settings) => hand?,
            error = &mut lost => return Err(error),
        };
        while !drain.is_cancelled() {
            let batch = tokio::select! {
                batch = hand.gather(drain) => batch?,
                error = &mut lost => return Err(error),
            };
            let Some(last) = batch.last else { break };
            if !self.keeper.keep(&batch.letters).await {
                return Ok(End::GaveUp);
            }
            tokio::select! {
                acked = hand.acknowledge(last) => acked?,
                error = &mut lost => return Err(error),
            }
        }
        tokio::select! {
            closed = hand.close() => closed?,
            error = &mut lost => return Err(error),
        }
        Ok(End::Done)
    }
}

/// Events that are kept together.
#[derive(Debug, Default)]
struct Batch {
    letters: Vec<Letter>,
    /// The delivery tag of the last of them.
    last: Option<u64>,
}

/// The deliveries of one channel.
struct Hand<'a> {
    settings: &'a Settings,
    channel: Channel,
    deliveries: lapin::Consumer,
}

impl<'a> Hand<'a> {
    async fn start(link: &Link, settings: &'a Settings) -> Result<Self, BrokerError> {
        topology::prepare_collector(link, settings).await?;
        let record = &settings.record;
        let channel = link.channel().await?;
        let options = BasicQosOptions { global: false };
        let qos = channel.basic_qos(record.batch.get(), options).await;
        qos.map_err(BrokerError::during("setting the prefetch"))?;
        let options =
            BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };
        let queue = record.queue.as_str();
        let consuming =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await;
        let deliveries = consuming.map_err(BrokerError::during("consuming events"))?;
        info!(host = %link.host(), queue, batch = record.batch, "recording events");
        Ok(Self { settings, channel, deliveries })
    }

    /// Waits for events: until there are enough, or the first has waited long enough, or `drain`.
    async fn gather(&mut self, drain: &CancellationToken) -> Result<Batch, BrokerError> {
        let record = &self.settings.record;
        let mut batch = Batch::default();
        let mut end = None;
        while batch.letters.len() < usize::from(record.batch.get()) {
            let delivered = tokio::select! {
                biased;
                () = drain.cancelled() => break,
                delivered = self.deliveries.next() => delivered,
                () = clock::until(end) => break,
            };
            let Some(delivered) = delivered else {
                return Err(BrokerError::Cancelled { queue: record.queue.clone() });
            };
            let delivered = delivered.map_err(BrokerError::during("consuming events"))?;
            batch.last = Some(delivered.delivery_tag);
            batch
                .letters
                .push(Letter { key: delivered.routing_key.to_string(), body: delivered.data });
            end.get_or_insert_with(|| Instant::now() + record.flush);
            // lapin's stream knows nothing of tokio's budget.
            tokio::task::coop::consume_budget().await;
        }
        Ok(batch)
    }

    /// All up to `last`.
    async fn acknowledge(&self, last: u64) -> Result<(), BrokerError> {
        let acked = self.channel.basic_ack(last, BasicAckOptions { multiple: true }).await;
        acked.map_err(BrokerError::during("acknowledging"))
    }

    /// The broker answers when it has taken the last acknowledgement. What came and was not gathered
    /// goes back to the queue with the channel.
    async fn close(self) -> Result<(), BrokerError> {
        let closed = self.channel.close(200, "done".into()).await;
        closed.map_err(BrokerError::during("closing the channel"))
    }
}
