//! `Consumer`: the one task that takes commands off the queue and acknowledges them.
//!
//! It decodes, routes and acknowledges in one place, so that a command for a device that reads costs
//! no hop between tasks. It never waits for a device: what has to wait is settled later, through a
//! verdict. When every delivery in hand waits, the consumer is renewed: cancelled and started again
//! with all its credit, while the broker keeps what it delivered before. So one device that does not
//! read stops nobody else, with a prefetch of 1 too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::acks::Acks;
use super::connection::{self as link, Link};
use super::intake::{Intake, Taken};
use super::message::Delivered;
use super::nodes::Nodes;
use super::retry::Retry;
use super::stream::Stream;
use super::{BrokerError, drain, topology};
use crate::clock;
use crate::fanout::Fanout;
use crate::metrics;
use crate::router::Routed;
use crate::settlement::{Settlement, Verdict, Verdicts};

/// How long all deliveries in hand may wait for the publisher before the consumer is renewed. A
/// confirm takes milliseconds, or some hundred under load; renewing is two round trips.
const PUBLISHER_GRACE: Duration = Duration::from_secs(1);

/// How long all deliveries in hand may wait for their proof before the consumer is renewed. A
/// device on the same network acknowledges in less; renewing is two round trips to the broker.
const PROOF_GRACE: Duration = Duration::from_millis(5);

/// Takes commands off the queue.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) intake: Intake,
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
        // To the same host: the two live and end together, so they need one node, not two.
        let stream = Stream::open(&settings.mq, link.host(), &name).await?;
        let mut hand = Hand::new(self, stream);
        self.up(true);
        let (queue, prefetch) = (&settings.mq.queue, hand.prefetch);
        info!(host = %link.host(), queue, prefetch, "consuming commands");
        let mut drained = std::pin::pin!(drain.cancelled());
        loop {
            let renew_at = hand.renew_at();
            tokio::select! {
                biased;
                () = &mut drained => break,
                Some(verdict) = hand.settled.recv() => hand.judge(verdict),
                // What comes next may be for one of those that have not had this yet.
                () = tokio::task::yield_now(), if hand.fanout.is_some() => hand.fan_out(),
                delivered = hand.stream.next(), if hand.fanout.is_none() => hand.take_up(delivered?)?,
                () = clock::until(renew_at) => hand.renew().await?,
            }
            hand.take_what_is_ready()?;
            hand.acknowledge()?;
            // A full queue must not keep the other tasks of this thread waiting.
            tokio::task::coop::consume_budget().await;
        }
        self.up(false);
        hand.finish().await
    }

    fn up(&self, up: bool) {
        self.consuming.store(up, Ordering::Relaxed);
        self.intake.devices().metrics.broker_up(metrics::Link::Consumer, up);
    }
}

/// The deliveries of one channel.
struct Hand<'a> {
    consumer: &'a Consumer,
    stream: Stream,
    acks: Acks,
    verdicts: Arc<Verdicts>,
    settled: mpsc::Receiver<Verdict>,
    prefetch: usize,
    stalled_max: usize,
    /// Since when every delivery in hand has waited.
    waiting_since: Option<Instant>,
    /// A command for many, on its way to each.
    fanout: Option<Fanout>,
}

impl<'a> Hand<'a> {
    fn new(consumer: &'a Consumer, stream: Stream) -> Self {
        let mq = &consumer.intake.settings.mq;
        let (prefetch, stalled_max) =
            (usize::from(mq.prefetch.get()), usize::from(mq.stalled_max.get()));
        // Every delivery that can be unsettled fits, so that a verdict never waits.
        let (verdicts, settled) = mpsc::channel(prefetch + stalled_max);
        let verdicts = Verdicts::new(verdicts, consumer.intake.devices().metrics.clone());
        let (acks, waiting_since, fanout) = (Acks::default(), None, None);
        Self {
            consumer,
            stream,
            acks,
            verdicts,
            settled,
            prefetch,
            stalled_max,
            waiting_since,
            fanout,
        }
    }

    /// Takes up a delivery.
    fn take_up(&mut self, delivered: Delivered) -> Result<(), BrokerError> {
        let tag = delivered.tag;
        if !self.acks.open(tag) {
            let error = std::io::Error::other(format!("delivery tag {tag} is out of order"));
            return Err(BrokerError::during("consuming")(error.into()));
        }
        let intake = &self.consumer.intake;
        let devices = intake.devices();
        let settlement = Settlement::new(tag, &self.verdicts);
        let settlement = match intake.take(delivered, settlement) {
            Taken::One(order) => {
                let now = order.facts.origin.arrived.mono;
                match intake.router.route(order, now) {
                    Routed::Waiting => None,
                    Routed::Written(settlement) => settlement,
                    Routed::Concluded(order, fate) => devices.reporter.conclude(order, fate),
                }
            }
            Taken::Many(fanout) => {
                self.fanout = Some(fanout);
                None
            }
            Taken::Settled(settlement) => settlement,
        };
        if let Some(tag) = settlement.and_then(Settlement::settle_here) {
            self.settle(tag);
        }
        Ok(())
    }

    /// Sends the command for many that is on its way to some more of them.
    fn fan_out(&mut self) {
        if self.fanout.as_mut().is_some_and(|fanout| self.consumer.intake.step(fanout)) {
            self.fanout = None;
        }
    }

    /// Takes up a verdict. What was given back stays open until the channel closes.
    fn judge(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Ack(tag) => self.settle(tag),
            Verdict::Return(_) => {}
        }
    }

    fn settle(&mut self, tag: u64) {
        let was_open = self.acks.settle(tag);
        debug_assert!(was_open, "delivery {tag} settled twice");
    }

    /// Takes up whatever is there without waiting, until so much is settled that it is time to say so.
    fn take_what_is_ready(&mut self) -> Result<(), BrokerError> {
        let enough = (self.prefetch / 2).max(1);
        while self.acks.due() < enough {
            if let Ok(verdict) = self.settled.try_recv() {
                self.judge(verdict);
            } else if self.fanout.is_some() {
                break;
            } else if let Some(delivered) = self.stream.ready()? {
                self.take_up(delivered)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Sends the acknowledgements that are due, as far as the connection takes them now.
    fn acknowledge(&mut self) -> Result<(), BrokerError> {
        self.consumer.intake.devices().metrics.unsettled(self.acks.open_count());
        if self.acks.due() == 0 {
            return Ok(());
        }
        let (stream, mut result) = (&mut self.stream, Ok(()));
        self.acks.take(|ack| {
            if let Err(error) = stream.acknowledge(ack) {
                result = Err(error);
            }
        });
        result?;
        self.stream.flush()
    }

    /// When to renew the consumer: at once if it has no credit left and devices that do not read
    /// hold it, after a grace if it is proofs or the publisher that all wait for, never if too much
    /// waits.
    fn renew_at(&mut self) -> Option<Instant> {
        if self.acks.open_of_consumer() < self.prefetch || self.acks.open_count() > self.stalled_max
        {
            self.waiting_since = None;
            return None;
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let router = &self.consumer.intake.router;
        let grace = if router.waiting() > 0 {
            Duration::ZERO
        } else if router.proving() > 0 {
            PROOF_GRACE
        } else {
            PUBLISHER_GRACE
        };
        Some(since + grace)
    }

    async fn renew(&mut self) -> Result<(), BrokerError> {
        self.stream.cancel().await?;
        // What the broker sent before it heard of the cancellation.
        while let Some(delivered) = self.stream.ready()? {
            self.take_up(delivered)?;
            while self.fanout.is_some() {
                self.fan_out();
                tokio::task::yield_now().await;
            }
        }
        self.acknowledge()?;
        self.acks.start_consumer();
        self.stream.consume().await?;
        self.waiting_since = None;
        Ok(())
    }

    /// Takes no more, and waits for the fate of what is in hand. What came and was not taken up
    /// goes back to the queue with the channel.
    async fn finish(mut self) -> Result<(), BrokerError> {
        self.stream.cancel().await?;
        self.stream.forget_early();
        while self.fanout.is_some() {
            self.fan_out();
            tokio::task::yield_now().await;
        }
        while self.acks.open_count() > 0 {
            tokio::select! {
                Some(verdict) = self.settled.recv() => self.judge(verdict),
                // Nothing is delivered any more; this keeps the connection alive.
                delivered = self.stream.next() => drop(delivered?),
            }
            self.acknowledge()?;
        }
        self.stream.close().await
    }
}
