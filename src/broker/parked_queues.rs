//! `ParkedQueues`: the queues in which commands wait for devices that are not connected, one each.
//!
//! They are durable and classic: one device's commands are few, and there may be very many such
//! queues. A queue that is not used vanishes, later than anything parked in it can live. A marker
//! queue tells a bridge that starts whether anything was ever parked here; if not, no device that
//! connects has to be asked about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, LongString};
use tokio::time::Instant;
use tracing::warn;

use super::BrokerError;
use super::connection::Link;
use super::decode::PARK_TTL_MAX;
use super::topology::{self, PRECONDITION_FAILED};
use crate::command::Address;
use crate::parking::Parking;
use crate::settings::Settings;

/// A queue in which nothing was parked and from which nothing was fetched for this long vanishes,
/// and what is in it would vanish untold: so it is longer than anything may be parked.
const EXPIRES: Duration = PARK_TTL_MAX.saturating_add(Duration::from_secs(24 * 3600));
/// How long a queue is trusted to exist after it was declared, which is also when its time starts
/// anew; far less than the day by which it outlives its commands.
const DECLARED_FOR: Duration = Duration::from_secs(3600);
/// Queues remembered as declared; beyond it all are forgotten and declared again.
const DECLARED_MAX: usize = 100_000;

/// What is known of the queues on one connection.
pub(super) struct ParkedQueues<'a> {
    link: &'a Link,
    settings: Arc<Settings>,
    parking: Arc<Parking>,
    declared: HashMap<Address, Instant>,
    marker_is_declared: bool,
}

impl<'a> ParkedQueues<'a> {
    /// Nothing known.
    pub(super) fn new(link: &'a Link, settings: Arc<Settings>, parking: Arc<Parking>) -> Self {
        let (declared, marker_is_declared) = (HashMap::new(), false);
        Self { link, settings, parking, declared, marker_is_declared }
    }

    /// Sees to it that the queue of `address` exists.
    pub(super) async fn ensure(&mut self, address: &Address) -> Result<(), BrokerError> {
        let now = Instant::now();
        if self.declared.get(address).is_some_and(|at| now < *at + DECLARED_FOR) {
            return Ok(());
        }
        if !self.marker_is_declared {
            let marker = self.settings.mq.parked_prefix.clone();
            self.declare(&marker, FieldTable::default()).await?;
            self.parking.set_in_use();
            self.marker_is_declared = true;
        }
        let queue = self.settings.mq.parked_queue(address);
        let held = self.declare(&queue, self.arguments()).await?;
        self.parking.counted_at_broker(address, held);
        if self.declared.len() >= DECLARED_MAX {
            self.declared = HashMap::new();
        }
        self.declared.insert(address.clone(), now);
        Ok(())
    }

    /// What the broker does with a command that is parked for too long: it passes it on to the
    /// undelivered exchange under the key that commands have.
    fn arguments(&self) -> FieldTable {
        let mq = &self.settings.mq;
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let mut arguments = FieldTable::default();
        let expires = i64::try_from(EXPIRES.as_millis()).unwrap_or(i64::MAX);
        arguments.insert("x-queue-type".into(), text("classic"));
        arguments.insert("x-expires".into(), AMQPValue::LongLongInt(expires));
        arguments.insert("x-dead-letter-exchange".into(), text(&mq.undelivered_exchange));
        arguments.insert("x-dead-letter-routing-key".into(), text(mq.command_key()));
        arguments
    }

    /// Declares a queue, or takes it as it is; how many messages it holds.
    async fn declare(&self, queue: &str, arguments: FieldTable) -> Result<usize, BrokerError> {
        let durable = QueueDeclareOptions::durable();
        let declared =
            self.link.channel().await?.queue_declare(queue.into(), durable, arguments).await;
        let declared = match declared {
            Err(error) if topology::code(&error) == Some(PRECONDITION_FAILED) => {
                warn!(queue, %error, "a queue for parked commands exists and is not as the bridge declares it; it is used as it is.");
                let channel = self.link.channel().await?;
                channel.queue_declare(queue.into(), durable.passive(), FieldTable::default()).await
            }
            other => other,
        };
        let declared = declared.map_err(|error| {
            let advice = "let MQ_USERNAME configure, write and read queues whose names begin with MQ_PARKED_PREFIX";
            topology::refusal(format!("queue `{queue}`"), &error, advice)
        })?;
        Ok(usize::try_from(declared.message_count()).unwrap_or(usize::MAX))
    }
}
