//! `Hand`: the deliveries of one channel, from the moment they come until they are acknowledged.
//!
//! It decodes, routes and acknowledges in one place, so that a command for a device that reads costs
//! no hop between tasks. It never waits for a device: what has to wait is settled later, through a
//! verdict. When every delivery in hand waits, the consumer is renewed: another is started, with all
//! its credit, while the broker keeps what it delivered before. So one device that does not
//! read stops nobody else, with a prefetch of 1 too.

mod renewed;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::renewed::Renewed;
use super::BrokerError;
use super::acks::Acks;
use super::intake::{Intake, Queue, Taken};
use super::message::Delivered;
use super::stream::Stream;
use super::topology::Kind;
use crate::clock;
use crate::fanout::Fanout;
use crate::router::Routed;
use crate::settlement::{Settlement, Verdict, Verdicts};

/// How long all deliveries in hand may wait for the publisher before the consumer is renewed. A
/// confirm takes milliseconds, or some hundred under load; renewing is two round trips.
const PUBLISHER_GRACE: Duration = Duration::from_secs(1);

/// How long all deliveries in hand may wait for their proof before the consumer is renewed. A
/// device on the same network acknowledges in less; renewing is two round trips to the broker.
const PROOF_GRACE: Duration = Duration::from_millis(5);

/// Acknowledgements of one channel that a quorum queue takes at a time: RabbitMQ's `quorum_commands_soft_limit`.
const ACKS_TAKEN: usize = 32;

/// The deliveries of one channel.
pub(super) struct Hand<'a> {
    intake: &'a Intake,
    from: Queue,
    stream: Stream,
    acks: Acks,
    kind: Kind,
    renewed: Renewed,
    /// Consumers there have been.
    consumers: usize,
    verdicts: Arc<Verdicts>,
    settled: mpsc::Receiver<Verdict>,
    prefetch: usize,
    stalled_max: usize,
    /// Since when every delivery in hand has waited.
    waiting_since: Option<Instant>,
    /// A command for many, on its way to each.
    fanout: Option<Fanout>,
    /// How many were given back.
    returned: usize,
    /// Whether nothing is acknowledged, so that the consumer is given nothing beyond its credit.
    withholds: bool,
    /// How many unsettled deliveries the metrics know of.
    counted: i64,
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        self.intake.devices().metrics.unsettled_changed(-self.counted);
    }
}

impl<'a> Hand<'a> {
    pub(super) fn new(intake: &'a Intake, stream: Stream, from: Queue, kind: Kind) -> Self {
        let mq = &intake.settings.mq;
        let (prefetch, stalled_max) =
            (usize::from(mq.prefetch.get()), usize::from(mq.stalled_max.get()));
        // Every delivery that can be unsettled fits, so that a verdict never waits.
        let (verdicts, settled) = mpsc::channel(prefetch + stalled_max);
        let verdicts = Verdicts::new(verdicts, intake.devices().metrics.clone());
        let (acks, waiting_since, fanout) = (Acks::default(), None, None);
        Self {
            intake,
            from,
            stream,
            acks,
            kind,
            renewed: Renewed::default(),
            consumers: 1,
            verdicts,
            settled,
            prefetch,
            stalled_max,
            waiting_since,
            fanout,
            returned: 0,
            withholds: false,
            counted: 0,
        }
    }

    /// Takes up what comes until `drain`.
    pub(super) async fn consume(mut self, drain: &CancellationToken) -> Result<Self, BrokerError> {
        let mut drained = std::pin::pin!(drain.cancelled());
        while self.step(drained.as_mut()).await?.is_continue() {}
        Ok(self)
    }

    /// Takes up what comes next, unless it is `done`.
    async fn step(
        &mut self,
        done: impl Future<Output = ()>,
    ) -> Result<ControlFlow<()>, BrokerError> {
        if self.fanout.is_some() {
            // What comes next may be for one of those that have not had this yet.
            if self.fan_out_until(done).await?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        } else {
            let renew_at = self.renew_at();
            tokio::select! {
                biased;
                () = done => return Ok(ControlFlow::Break(())),
                Some(verdict) = self.settled.recv() => self.judge(verdict),
                delivered = self.stream.next() => self.take_up(delivered?)?,
                () = clock::until(renew_at) => self.renew().await?,
                () = clock::until(self.renewed.next_due()) => {}
            }
        }
        self.take_what_is_ready()?;
        self.release()?;
        self.acknowledge()?;
        // A full queue must not keep the other tasks of this thread waiting.
        tokio::task::coop::consume_budget().await;
        Ok(ControlFlow::Continue(()))
    }

    /// Sends the command for many that is on its way to some more of them, unless it is `done`; what is settled meanwhile
    /// comes first.
    async fn fan_out_until(
        &mut self,
        done: impl Future<Output = ()>,
    ) -> Result<ControlFlow<()>, BrokerError> {
        let Some(fanout) = &self.fanout else { return Ok(ControlFlow::Continue(())) };
        tokio::select! {
            biased;
            () = done => return Ok(ControlFlow::Break(())),
            Some(verdict) = self.settled.recv() => self.judge(verdict),
            () = fanout.until_ready(self.intake.devices()) => self.fan_out(),
            error = self.stream.read_ahead() => return Err(error),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Takes up a delivery.
    fn take_up(&mut self, delivered: Delivered) -> Result<(), BrokerError> {
        let tag = delivered.tag;
        if !self.acks.open(tag) {
            let error = std::io::Error::other(format!("delivery tag {tag} is out of order"));
            return Err(BrokerError::during("consuming")(error.into()));
        }
        let intake = self.intake;
        let devices = intake.devices();
        let settlement = Settlement::new(tag, &self.verdicts);
        let settlement = match intake.take(delivered, self.from, settlement) {
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
        if self.fanout.as_mut().is_some_and(|fanout| self.intake.step(fanout)) {
            self.fanout = None;
        }
    }

    /// Takes up a verdict. What was given back stays open until the channel closes.
    fn judge(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Ack(tag) if self.renewed.settle(tag, Instant::now()) => {}
            Verdict::Ack(tag) => self.settle(tag),
            Verdict::Return(_) => self.returned += 1,
        }
    }

    fn settle(&mut self, tag: u64) {
        let was_open = self.acks.settle(tag);
        debug_assert!(was_open, "delivery {tag} settled twice");
    }

    /// Takes up whatever is there without waiting, until so much is settled that it is time to say so.
    fn take_what_is_ready(&mut self) -> Result<(), BrokerError> {
        while let Ok(verdict) = self.settled.try_recv() {
            self.judge(verdict);
        }
        let enough = (self.prefetch / 2).max(1);
        while self.acks.due() < enough && self.fanout.is_none() {
            let Some(delivered) = self.stream.ready()? else { break };
            self.take_up(delivered)?;
        }
        Ok(())
    }

    /// Sends the acknowledgements that are due, as far as the connection takes them now.
    fn acknowledge(&mut self) -> Result<(), BrokerError> {
        let open = i64::try_from(self.acks.open_count()).unwrap_or(i64::MAX);
        if open != self.counted {
            self.intake.devices().metrics.unsettled_changed(open - self.counted);
            self.counted = open;
        }
        if self.acks.due() == 0 || self.withholds {
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
        let has_credit = self.acks.open_of_consumer() < self.prefetch;
        if has_credit || self.withholds || self.acks.open_count() > self.stalled_max {
            self.waiting_since = None;
            return None;
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let router = &self.intake.router;
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
        if self.may_keep() {
            self.keep();
        } else {
            self.stream.cancel().await?;
            self.take_up_early().await?;
            self.acknowledge()?;
            self.acks.start_consumer();
        }
        self.stream.consume().await?;
        self.consumers += 1;
        self.waiting_since = None;
        Ok(())
    }

    /// Whether a consumer without credit may stay beside the one that takes its place.
    fn may_keep(&self) -> bool {
        self.kind == Kind::PlainQuorum
    }

    /// The consumer has no credit: nothing comes through it any more, though it is not cancelled.
    fn keep(&mut self) {
        let open = self.acks.open_of_consumer();
        let given = self.acks.start_consumer();
        self.renewed.add(self.stream.consumer(), given, open);
    }

    /// Ends those consumers whose time has come.
    fn release(&mut self) -> Result<(), BrokerError> {
        while let Some((consumer, settled)) = self.renewed.take_due(Instant::now()) {
            self.drop_consumer(consumer, settled)?;
        }
        Ok(())
    }

    /// Ends all consumers that were renewed.
    fn release_all(&mut self) -> Result<(), BrokerError> {
        while let Some((consumer, settled)) = self.renewed.take() {
            self.drop_consumer(consumer, settled)?;
        }
        Ok(())
    }

    fn drop_consumer(&mut self, name: ShortString, settled: Vec<u64>) -> Result<(), BrokerError> {
        self.stream.drop_consumer(name)?;
        settled.into_iter().for_each(|tag| self.settle(tag));
        Ok(())
    }

    /// Takes up what the broker sent before it heard of the cancellation.
    async fn take_up_early(&mut self) -> Result<(), BrokerError> {
        self.finish_fanout().await?;
        while let Some(delivered) = self.stream.ready()? {
            self.take_up(delivered)?;
            self.finish_fanout().await?;
        }
        Ok(())
    }

    /// Sends what is on its way to many to the rest of them.
    async fn finish_fanout(&mut self) -> Result<(), BrokerError> {
        while self.fanout.is_some()
            && self.fan_out_until(std::future::pending()).await?.is_continue()
        {}
        Ok(())
    }

    /// Whether the fate of something in hand is still to come. What was given back goes with the channel, and whoever
    /// empties an inbox takes it from there once more; that of the command queue is waited for until this bridge is told
    /// to give up.
    fn awaits_some(&self) -> bool {
        let returned = if self.from.is_inbox() { self.returned } else { 0 };
        self.acks.open_count() > returned + self.renewed.settled_count()
    }

    /// Waits for the fate of what is in hand, or until `give_up`, and takes no more than the consumer has credit for.
    pub(super) async fn finish(mut self, give_up: &CancellationToken) -> Result<(), BrokerError> {
        tokio::select! {
            () = give_up.cancelled() => {}
            settled = self.use_up_credit() => settled?,
        }
        self.close().await.map(|_| ())
    }

    /// Waits for the fate of what is in hand from an inbox to which nobody routes any more, and takes up meanwhile what
    /// comes all the same: nothing is cancelled while something is in hand (`renewed`). Once the rest is for `others` to
    /// read, it takes no more than the consumer has credit for. True if nothing was given back.
    pub(super) async fn finish_inbox(
        mut self,
        others: impl Future<Output = ()>,
    ) -> Result<bool, BrokerError> {
        let mut others = std::pin::pin!(others);
        while self.awaits_some() {
            if self.step(others.as_mut()).await?.is_break() {
                self.use_up_credit().await?;
                break;
            }
        }
        self.close().await
    }

    /// Takes up what the consumer is given still, and waits for the fate of what is in hand: of a quorum queue no consumer is
    /// cancelled while something is. Should its node die then, RabbitMQ would keep that, and give it to nobody.
    async fn use_up_credit(&mut self) -> Result<(), BrokerError> {
        if !self.may_keep() {
            // What came and was not taken up goes back to the queue with the channel.
            self.stream.stop().await?;
            return self.until_settled().await;
        }
        self.withholds = true;
        while self.awaits_some() && self.step(std::future::pending()).await?.is_continue() {}
        self.stream.stop().await
    }

    /// What is not settled goes back to the queue. True if nothing was given back.
    async fn close(mut self) -> Result<bool, BrokerError> {
        while let Ok(verdict) = self.settled.try_recv() {
            self.judge(verdict);
        }
        self.release_all()?;
        self.withholds = false;
        self.acknowledge()?;
        // As many acknowledgements may be on their way as there were deliveries at a time.
        let at_a_time = self.consumers.saturating_mul(self.prefetch);
        if self.kind != Kind::Classic && at_a_time >= ACKS_TAKEN {
            self.stream.until_acknowledged().await?;
        }
        self.stream.close().await?;
        Ok(self.returned == 0)
    }

    async fn until_settled(&mut self) -> Result<(), BrokerError> {
        self.finish_fanout().await?;
        while self.awaits_some() {
            tokio::select! {
                Some(verdict) = self.settled.recv() => self.judge(verdict),
                // Nothing is delivered any more; this keeps the connection alive.
                delivered = self.stream.next() => drop(delivered?),
            }
            self.acknowledge()?;
        }
        Ok(())
    }
}
