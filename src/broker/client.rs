//! What the command line needs of the broker: send one command and wait for its receipt, and watch
//! events. These are clients of the bridge, not parts of it.

use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use tokio::time::{Instant, timeout_at};

use super::BrokerError;
use super::connection::Link;
use super::message::PERSISTENT;
use super::nodes::Nodes;
use crate::clock::Moment;
use crate::settings::Settings;

/// RabbitMQ's pseudo-queue for replies that need no queue of their own.
pub(super) const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// A channel that confirms, and the receipts of what is published on it.
pub(super) async fn with_receipts(link: &Link) -> Result<(Channel, Consumer), BrokerError> {
    let channel = link.confirming_channel().await?;
    // Replies come to the channel that published, without acknowledgement.
    let options =
        BasicConsumeOptions { no_local: false, no_ack: true, exclusive: false, nowait: false };
    let consuming = channel
        .basic_consume(DIRECT_REPLY_TO.into(), "".into(), options, FieldTable::default())
        .await;
    let receipts = consuming.map_err(BrokerError::during("waiting for receipts"))?;
    Ok((channel, receipts))
}

/// A queue for events, which ends with its connection, or sooner with its consumer.
pub(super) async fn private_queue(
    channel: &Channel,
    arguments: FieldTable,
) -> Result<ShortString, BrokerError> {
    let options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::exclusive() };
    let declared = channel.queue_declare(ShortString::default(), options, arguments).await;
    Ok(declared.map_err(BrokerError::during("declaring a queue for events"))?.name().clone())
}

/// Events whose routing key matches one of `keys`, from now on.
pub(super) async fn follow(
    link: &Link,
    settings: &Settings,
    keys: &[&str],
) -> Result<Consumer, BrokerError> {
    let channel = link.channel().await?;
    let queue = private_queue(&channel, FieldTable::default()).await?;
    let exchange = settings.mq.events_exchange.as_str();
    for key in keys {
        let (options, arguments) = (QueueBindOptions { nowait: false }, FieldTable::default());
        let bound =
            channel.queue_bind(queue.clone(), exchange.into(), (*key).into(), options, arguments);
        bound.await.map_err(|error| BrokerError::Topology {
            object: format!("exchange `{exchange}`"),
            said: error.to_string(),
            advice: "start the bridge once, which declares it, or check MQ_EVENTS_EXCHANGE",
        })?;
    }
    let options =
        BasicConsumeOptions { no_local: false, no_ack: true, exclusive: true, nowait: false };
    let consuming = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await;
    consuming.map_err(BrokerError::during("consuming events"))
}

/// Publishes `body` as a backend would and gives each of its receipts to `receipt`, until that says
/// that it waits for no more. False if that was not so within `limit`.
pub async fn send(
    settings: &Settings,
    body: Vec<u8>,
    limit: Duration,
    mut receipt: impl FnMut(&[u8]) -> bool,
) -> Result<bool, BrokerError> {
    let mq = &settings.mq;
    let link = Nodes::new(mq).open("send", "publisher").await?;
    let (channel, mut replies) = with_receipts(&link).await?;
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_timestamp(Moment::now().wall_ms / 1000)
        .with_reply_to(DIRECT_REPLY_TO.into());
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let publishing = channel.basic_publish(
        mq.exchange.as_str().into(),
        mq.command_key().into(),
        options,
        &body,
        properties,
    );
    let confirm = publishing.await.map_err(BrokerError::during("publishing the command"))?;
    let confirmed = confirm.await.map_err(|error| unpublished(settings, &error.to_string()))?;
    if confirmed != Confirmation::Ack(None) {
        return Err(unpublished(settings, "no queue takes the command"));
    }
    let end = Instant::now() + limit;
    let mut waits = true;
    while waits && let Ok(Some(reply)) = timeout_at(end, replies.next()).await {
        let reply = reply.map_err(BrokerError::during("waiting for a receipt"))?;
        waits = receipt(&reply.data);
    }
    link.close().await;
    Ok(!waits)
}

pub(super) fn unpublished(settings: &Settings, said: &str) -> BrokerError {
    BrokerError::Topology {
        object: format!(
            "exchange `{}` with routing key `{}`",
            settings.mq.exchange,
            settings.mq.command_key()
        ),
        said: said.to_owned(),
        advice: "start the bridge once, which declares what is missing, or check MQ_EXCHANGE and MQ_ROUTING_KEY",
    }
}

/// Follows the events whose routing key matches `key`: the bodies of the events as they come. Ends
/// with an error when the connection does.
pub async fn watch(
    settings: &Settings,
    key: &str,
) -> Result<impl Stream<Item = Result<Vec<u8>, BrokerError>> + use<>, BrokerError> {
    let link = Nodes::new(&settings.mq).open("watch", "consumer").await?;
    let events = follow(&link, settings, &[key]).await?;
    let lost =
        async { Err(BrokerError::Cancelled { queue: "of events".to_owned() }) }.into_stream();
    let bodies = events.map(|event| {
        event.map(|delivery| delivery.data).map_err(BrokerError::during("consuming events"))
    });
    Ok(bodies.chain(lost).map(move |event| {
        // The link lives as long as the stream.
        let _ = &link;
        event
    }))
}
