//! `Inbox`: what comes for a bridge is taken up, and in the end its inbox is left, with nothing in it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::connection::Link;
use super::super::hand::Hand;
use super::super::intake::{Intake, Queue};
use super::super::stream::{Rank, Stream};
use super::super::topology::{Gate, Kind};
use super::super::{BrokerError, topology};

/// How long the rest is read at least, each time that an inbox turns out not to be empty: a quorum queue on a busy node
/// takes longer than this to deliver the first, and then it is read once more.
const REST_WITHIN: Duration = Duration::from_millis(300);
/// How often it is looked whether an inbox is empty.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The inbox of a bridge: of this one, or of one that is gone.
pub(super) struct Inbox<'a> {
    pub(super) link: &'a Link,
    pub(super) intake: &'a Intake,
    /// The bridge.
    pub(super) of: &'a str,
    /// Whether it is this one's or that of another.
    pub(super) queue: Queue,
    /// What the connection is called on which it is read.
    pub(super) reader: &'a str,
}

impl Inbox<'_> {
    /// Begins to read.
    pub(super) async fn open(&self) -> Result<Stream, BrokerError> {
        let (mq, host) = (&self.intake.settings.mq, self.link.host());
        // A bridge that is back reads for itself: what another one would still take it would pass on to the same inbox.
        let is_own = self.queue == Queue::Inbox;
        let rank = if is_own { Rank::Equal } else { Rank::Last };
        Stream::open(mq, host, self.reader, mq.inbox(self.of), rank).await
    }

    fn hand(&self, stream: Stream) -> Hand<'_> {
        let kind = Kind::declared(self.intake.settings.mq.queue_type);
        Hand::new(self.intake, stream, self.queue, kind)
    }

    /// Takes up what comes until there seems to be `enough`, when nobody may route anything there any more; then the
    /// rest, and leaves the inbox. Others have to do what is taken up meanwhile. In a `hurry` the rest stays: whoever
    /// finds that this bridge is gone takes it. True if nothing was given back: what was is taken up again, and may be
    /// written twice.
    pub(super) async fn take_all(
        &self,
        stream: Stream,
        gate: &Gate,
        enough: &CancellationToken,
        hurry: &CancellationToken,
    ) -> Result<bool, BrokerError> {
        let hand = self.hand(stream).consume(enough).await?;
        let took_all = hand.finish_inbox(hurry.cancelled()).await?;
        gate.shut(self.link).await?;
        if hurry.is_cancelled() {
            return Ok(took_all);
        }
        Ok(self.take_rest().await? && took_all)
    }

    /// Takes up what is there of a bridge to which nobody may route any more, while that is `gone`.
    pub(super) async fn take_while(&self, is_gone: impl Fn() -> bool) -> Result<(), BrokerError> {
        self.take_some(Duration::ZERO, is_gone).await.map(|_| ())
    }

    /// Takes up what there may be still, and leaves the inbox. True if nothing was given back.
    pub(super) async fn take_rest(&self) -> Result<bool, BrokerError> {
        let mut took_all = true;
        while !topology::leave_inbox(self.link, &self.intake.settings, self.of).await? {
            took_all &= self.take_some(REST_WITHIN, || true).await?;
        }
        Ok(took_all)
    }

    /// Takes up what comes until the inbox seems to be empty, for so long at least, or this is not to `go_on`.
    async fn take_some(
        &self,
        at_least: Duration,
        go_on: impl Fn() -> bool,
    ) -> Result<bool, BrokerError> {
        let (stream, enough) = (self.open().await?, CancellationToken::new());
        let look = || topology::inbox_depth(self.link, &self.intake.settings, self.of);
        let looking = async {
            tokio::time::sleep(at_least).await;
            while go_on() && look().await?.is_some_and(|depth| depth > 0) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            enough.cancel();
            Ok(())
        };
        let consuming = self.hand(stream).consume(&enough);
        let (hand, ()) = tokio::try_join!(consuming, looking)?;
        let others = async {
            while go_on() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        hand.finish_inbox(others).await
    }
}
