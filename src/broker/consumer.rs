//! `Consumer`: the task that takes commands off the command queue, on one connection after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::connection::{self as link, Link};
use super::hand::Hand;
use super::intake::Intake;
use super::nodes::Nodes;
use super::retry::Retry;
use super::stream::{Source, Stream};
use super::{BrokerError, drain, topology};
use crate::metrics;

/// Takes commands off the queue.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) intake: Arc<Intake>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) bridge: Arc<str>,
    /// True while commands are being taken off the queue.
    pub(crate) consuming: Arc<AtomicBool>,
}

impl Consumer {
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
        // For what is looked at and declared, and for what is parked.
        let opening = self.nodes.open(&self.bridge, "parked");
        let link = tokio::select! {
            () = drain.cancelled() => return Ok(()),
            link = opening => link?,
        };
        let both = async {
            tokio::try_join!(self.consume(&link, drain), drain::run(&link, &self.intake, drain))
        };
        let result = tokio::select! {
            () = give_up.cancelled() => Ok(()),
            result = both => result.map(|_| ()),
            error = link.lost() => Err(error),
        };
        self.up(false);
        self.intake.router.drop_unwanted();
        link.end(result).await
    }

    async fn consume(&self, link: &Link, drain: &CancellationToken) -> Result<(), BrokerError> {
        let settings = &self.intake.settings;
        topology::prepare_consumer(link, settings).await?;
        drain::look(link, &self.intake).await?;
        let name = link::name(&self.bridge, "consumer");
        let source = Source { queue: settings.mq.queue.clone(), exclusive: false };
        // To the same host: the two live and end together, so they need one node, not two.
        let stream = Stream::open(&settings.mq, link.host(), &name, source).await?;
        let hand = Hand::new(&self.intake, stream, false);
        self.up(true);
        let (queue, prefetch) = (&settings.mq.queue, settings.mq.prefetch);
        info!(host = %link.host(), queue, prefetch, "consuming commands");
        let hand = hand.consume(drain).await?;
        self.up(false);
        hand.finish().await
    }

    fn up(&self, up: bool) {
        self.consuming.store(up, Ordering::Relaxed);
        self.intake.devices().metrics.broker_up(metrics::Link::Consumer, up);
    }
}
