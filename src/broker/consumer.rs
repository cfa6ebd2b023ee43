//! `Consumer`: the task that takes commands off the command queue, on one connection after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::connection as link;
use super::hand::Hand;
use super::intake::{Intake, Queue};
use super::nodes::Nodes;
use super::retry::Retry;
use super::stream::{Rank, Stream};
use super::topology::Kind;
use super::{BrokerError, drain, topology};
use crate::metrics;
use crate::settings::Endpoint;

/// Takes commands off the queue.
#[derive(Debug)]
pub(crate) struct Consumer {
    intake: Arc<Intake>,
    nodes: Arc<Nodes>,
    bridge: Arc<str>,
    /// True while commands are being taken off the queue.
    pub(crate) consuming: Arc<AtomicBool>,
}

impl Consumer {
    pub(crate) fn new(intake: Arc<Intake>, nodes: &Arc<Nodes>, bridge: &Arc<str>) -> Self {
        let (nodes, bridge) = (Arc::clone(nodes), Arc::clone(bridge));
        Self { intake, nodes, bridge, consuming: Arc::default() }
    }

    /// Consumes until `drain`; then takes no more, and waits for what is in hand until it is settled
    /// or `give_up`. What is not settled then is handed back to the queue.
    pub(crate) async fn run(self, drain: CancellationToken, give_up: CancellationToken) {
        let mut retry = Retry::new(metrics::Link::Consumer);
        while let Err(error) = self.attempt(&drain, &give_up).await {
            if !retry.wait(&error, &drain).await {
                return;
            }
        }
    }

    /// Consumes on one connection. Ends well only when told to.
    async fn attempt(
        &self,
        drain: &CancellationToken,
        give_up: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let (host, kind) = tokio::select! {
            () = drain.cancelled() => return Ok(()),
            prepared = self.prepare() => prepared?,
        };
        let result = self.consume(&host, kind, drain, give_up).await;
        self.up(false);
        self.intake.router.drop_unwanted();
        result.map_err(|error| self.nodes.blame(&host, error))
    }

    /// Declares what is missing, on a connection that is closed after that. Gives a host that works, and of what kind the
    /// command queue is.
    async fn prepare(&self) -> Result<(Endpoint, Kind), BrokerError> {
        let link = self.nodes.open(&self.bridge, "setup").await?;
        let preparing = async {
            topology::prepare_consumer(&link, &self.intake.settings).await?;
            let mq = &self.intake.settings.mq;
            let kind = topology::kind_of(&link, &mq.queue, mq.queue_type).await?;
            drain::look(&link, &self.intake).await?;
            Ok(kind)
        };
        let result = tokio::select! {
            result = preparing => result,
            error = link.lost() => Err(error),
        };
        let host = link.host().clone();
        link.end(result).await.map(|kind| (host, kind))
    }

    async fn consume(
        &self,
        host: &Endpoint,
        kind: Kind,
        drain: &CancellationToken,
        give_up: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let settings = &self.intake.settings;
        let name = link::name(&self.bridge, "consumer");
        let queue = settings.mq.queue.clone();
        let stream = Stream::open(&settings.mq, host, &name, queue, Rank::Equal).await?;
        let hand = Hand::new(&self.intake, stream, Queue::Commands, kind);
        self.up(true);
        let (queue, prefetch) = (&settings.mq.queue, settings.mq.prefetch);
        info!(%host, queue, prefetch, "consuming commands");
        let hand = tokio::select! {
            () = give_up.cancelled() => return Ok(()),
            hand = hand.consume(drain) => hand?,
        };
        self.up(false);
        hand.finish(give_up).await
    }

    fn up(&self, up: bool) {
        self.consuming.store(up, Ordering::Relaxed);
        self.intake.devices().metrics.broker_up(metrics::Link::Consumer, up);
    }
}
