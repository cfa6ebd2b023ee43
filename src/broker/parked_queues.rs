//! `ParkedQueues`: the queues in which commands wait for devices that are not connected, one each.
//!
//! They are durable, and of the type of the command queue: what waits there must not be lost sooner than what
//! waits here. A queue that is not used vanishes, later than anything parked in it can live. A marker
//! queue tells a bridge that starts whether anything was ever parked here; if not, no device that
//! connects has to be asked about.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tracing::warn;

use super::BrokerError;
use super::connection::Link;
use super::decode::PARK_TTL_MAX;
use super::topology::{self, Arguments, PRECONDITION_FAILED};
use crate::command::Address;
use crate::parking::Parking;
use crate::settings::Settings;

/// A queue in which nothing was parked and from which nothing was fetched for this long vanishes,
/// and what is in it would vanish untold: so it is longer than anything may be parked.
const EXPIRES: Duration = PARK_TTL_MAX.saturating_add(Duration::from_secs(24 * 3600));
/// How often a quorum queue takes a command back, each time that a link breaks before it is acknowledged. Without
/// a limit RabbitMQ 3 puts what comes back behind everything else, and RabbitMQ 4 has one of 20 and takes the
/// command for expired then; so there is one that is never reached.
const RETURNS_MAX: i32 = 1_000_000;

/// The queues, by way of one connection.
pub(super) struct ParkedQueues<'a> {
    link: &'a Link,
    settings: &'a Settings,
    parking: &'a Parking,
}

impl<'a> ParkedQueues<'a> {
    pub(super) fn new(link: &'a Link, settings: &'a Settings, parking: &'a Parking) -> Self {
        Self { link, settings, parking }
    }

    /// Sees to it that the marker queue exists.
    pub(super) async fn mark(&self) -> Result<(), BrokerError> {
        let arguments = Arguments::of(self.settings.mq.queue_type).table();
        self.declare(&self.settings.mq.parked_prefix, arguments).await?;
        self.parking.set_in_use();
        Ok(())
    }

    /// Sees to it that the queue of `address` exists.
    pub(super) async fn ensure(&self, address: &Address) -> Result<(), BrokerError> {
        let queue = self.settings.mq.parked_queue(address);
        let held = self.declare(&queue, self.arguments()).await?;
        self.parking.counted_at_broker(address, held);
        Ok(())
    }

    /// What the broker does with a command that is parked for too long: it passes it on to the
    /// undelivered exchange under the key that commands have.
    fn arguments(&self) -> FieldTable {
        let mq = &self.settings.mq;
        Arguments::of(mq.queue_type)
            .expires(EXPIRES)
            .dead_letters(&mq.undelivered_exchange, mq.command_key())
            .returns_max(RETURNS_MAX)
            .table()
    }

    /// Declares a queue, or takes it as it is; how many messages it holds.
    async fn declare(&self, queue: &str, arguments: FieldTable) -> Result<usize, BrokerError> {
        let durable = QueueDeclareOptions::durable();
        let declared =
            self.link.channel().await?.queue_declare(queue.into(), durable, arguments).await;
        let declared = match declared {
            Err(error) if topology::code(&error) == Some(PRECONDITION_FAILED) => {
                warn!(queue, %error, "a queue for parked commands exists and is not as the bridge declares it; it is used as it is.");
                topology::depth(self.link.channel().await?, queue).await
            }
            declared => declared.map(|queue| queue.message_count()),
        };
        let held = declared.map_err(|error| {
            let advice = "let MQ_USERNAME configure, write and read queues whose names begin with MQ_PARKED_PREFIX";
            topology::refusal(format!("queue `{queue}`"), &error, advice)
        })?;
        Ok(usize::try_from(held).unwrap_or(usize::MAX))
    }
}
