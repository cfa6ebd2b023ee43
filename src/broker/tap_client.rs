//! What `rabbitline tap` needs of the broker: a queue of its own on the tap exchange, and what it missed.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Consumer};
use tokio::time::{interval, sleep};

use super::BrokerError;
use super::client::private_queue;
use super::connection::Link;
use super::nodes::Nodes;
use super::tap::{MISSED, PROBE};
use crate::settings::Settings;

/// Events that may wait for the tap at the broker; one more pushes the oldest out.
const WAITING_MAX: i32 = 10_000;
/// Of those that were pushed out, how many are kept to be counted: the count is taken once a second.
const OVERFLOW_MAX: i32 = 200_000;
/// Events on their way to the tap unacknowledged.
const PREFETCH: u16 = 500;
/// How often it is looked what was pushed out.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A tap that is open.
pub(crate) struct Tapped {
    link: Link,
    channel: Channel,
    events: Consumer,
    overflow: ShortString,
    unacknowledged: u16,
}

/// What comes out of it.
pub(crate) enum Drop {
    /// An event of this kind.
    Event(String, Vec<u8>),
    /// The bridge could not publish so many.
    Missed(u64),
}

impl Tapped {
    /// Taps events of these kinds, of devices whose address begins with the whole parts in `prefix`.
    pub(crate) async fn open(
        settings: &Settings,
        kinds: &[&str],
        prefix: Option<&str>,
    ) -> Result<Self, BrokerError> {
        let link = Nodes::new(&settings.mq).open("tap", "consumer").await?;
        let channel = link.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(OVERFLOW_MAX));
        let overflow = private_queue(&channel, arguments).await?;
        let long = |text: &str| AMQPValue::LongString(LongString::from(text));
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(WAITING_MAX));
        arguments.insert("x-dead-letter-exchange".into(), long(""));
        arguments.insert("x-dead-letter-routing-key".into(), long(overflow.as_str()));
        let queue = private_queue(&channel, arguments).await?;
        let exchange = settings.mq.tap_exchange.as_str();
        let events = kinds.iter().map(|kind| match prefix {
            Some(prefix) => format!("{kind}.{prefix}.#"),
            None => format!("{kind}.#"),
        });
        let probes = kinds.iter().map(|kind| format!("{PROBE}.{kind}"));
        for key in events.chain([format!("{MISSED}.#")]).chain(probes) {
            let options = QueueBindOptions { nowait: false };
            let bound = channel.queue_bind(
                queue.clone(),
                exchange.into(),
                key.into(),
                options,
                FieldTable::default(),
            );
            bound.await.map_err(|error| BrokerError::Topology {
                object: format!("exchange `{exchange}`"),
                said: error.to_string(),
                advice: "start the bridge once, which declares it, or check MQ_TAP_EXCHANGE",
            })?;
        }
        let qos = channel.basic_qos(PREFETCH, BasicQosOptions { global: false }).await;
        qos.map_err(BrokerError::during("consuming events"))?;
        let options =
            BasicConsumeOptions { no_local: false, no_ack: false, exclusive: true, nowait: false };
        let consuming =
            channel.basic_consume(queue, "".into(), options, FieldTable::default()).await;
        let events = consuming.map_err(BrokerError::during("consuming events"))?;
        Ok(Self { link, channel, events, overflow, unacknowledged: 0 })
    }

    /// Ends with how many events were pushed out of the queue, as soon as there is one. For beside `next`.
    pub(crate) fn until_missed(&self) -> impl Future<Output = Result<u64, BrokerError>> + use<> {
        let (channel, overflow) = (self.channel.clone(), self.overflow.clone());
        async move {
            let mut tick = interval(LOOK_EVERY);
            loop {
                tick.tick().await;
                let purged = channel
                    .queue_purge(overflow.clone(), QueuePurgeOptions { nowait: false })
                    .await;
                let purged = purged.map_err(BrokerError::during("counting what was missed"))?;
                if purged > 0 {
                    return Ok(u64::from(purged));
                }
            }
        }
    }

    /// What comes next.
    pub(crate) async fn next(&mut self) -> Result<Drop, BrokerError> {
        loop {
            let delivery = tokio::select! {
                delivery = self.events.next() => delivery,
                error = self.link.lost() => return Err(error),
            };
            let Some(delivery) = delivery else {
                // The connection is lost, which it says better.
                sleep(LOOK_EVERY).await;
                return Err(BrokerError::Cancelled { queue: "of events".to_owned() });
            };
            let delivery = delivery.map_err(BrokerError::during("consuming events"))?;
            self.unacknowledged += 1;
            if self.unacknowledged >= PREFETCH / 2 {
                self.unacknowledged = 0;
                let acked = delivery.acker.ack(BasicAckOptions { multiple: true }).await;
                acked.map_err(BrokerError::during("consuming events"))?;
            }
            let kind = delivery.routing_key.as_str().split('.').next().unwrap_or_default();
            if kind == MISSED {
                let told: serde_json::Value =
                    serde_json::from_slice(&delivery.data).unwrap_or_default();
                return Ok(Drop::Missed(told["missed"].as_u64().unwrap_or(1)));
            }
            if kind != PROBE {
                return Ok(Drop::Event(kind.to_owned(), delivery.data));
            }
        }
    }
}
