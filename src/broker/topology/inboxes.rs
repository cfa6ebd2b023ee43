//! What each bridge of a cluster has at the broker: its exchange, its inbox, and a queue that says that it is there.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};

use super::super::BrokerError;
use super::super::connection::Link;
use super::{
    EVENTS_ADVICE, Missing, NOT_FOUND, PRECONDITION_FAILED, TOPIC, bind, code, exchange_of,
    for_routes, refusal,
};
use crate::settings::{QueueType, Settings};

const RESOURCE_LOCKED: u16 = 405;

/// Sees to what a bridge of a cluster needs, but for its own exchange: that which routes to all bridges, its
/// inbox, and a queue that is there as long as `link`. That one comes first: whoever has it acts for the
/// bridge of this name.
pub(in super::super) async fn prepare_routes(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<(), BrokerError> {
    let mq = &settings.mq;
    be_alive(link, &mq.alive_queue(bridge)).await?;
    for_routes(link, settings, Missing::Declare).await?;
    exchange_of(TOPIC, link, &mq.events_exchange, Missing::Declare, EVENTS_ADVICE).await?;
    let name = mq.inbox(bridge);
    let ttl_ms = i64::try_from(INBOX_TTL.as_millis()).unwrap_or(i64::MAX);
    let arguments = [
        ("x-queue-type", AMQPValue::LongString(mq.queue_type.word().into())),
        ("x-message-ttl", AMQPValue::LongLongInt(ttl_ms)),
        ("x-dead-letter-exchange", AMQPValue::LongString(mq.exchange.as_str().into())),
        ("x-dead-letter-routing-key", AMQPValue::LongString(mq.command_key().into())),
    ];
    let (channel, durable) = (link.channel().await?, QueueDeclareOptions::durable());
    let declared = channel.queue_declare(name.as_str().into(), durable, table(arguments)).await;
    let advice = "delete it, and let the bridge declare it again";
    declared.map_err(|error| refusal(format!("queue `{name}`"), &error, advice))?;
    Ok(())
}

/// What waits this long in an inbox, which nobody reads then, goes back to the command queue: another bridge
/// takes it there. Far longer than a bridge takes to connect again.
pub(in super::super) const INBOX_TTL: Duration = Duration::from_secs(60);

async fn be_alive(link: &Link, name: &str) -> Result<(), BrokerError> {
    declare_alive(link, name).await.map_err(|error| {
        if code(&error).is_none() {
            return BrokerError::during("declaring a queue")(error);
        }
        let advice = "another bridge has the same name (give each a BRIDGE_NAME of its own), or is taking over from this one";
        refusal(format!("queue `{name}`"), &error, advice)
    })
}

async fn declare_alive(link: &Link, name: &str) -> lapin::Result<()> {
    let Ok(channel) = link.channel().await else {
        return Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into());
    };
    // Whoever asks whether the bridge is there publishes to it; nothing is kept.
    let arguments = table([("x-message-ttl", AMQPValue::LongInt(0))]);
    let options = QueueDeclareOptions::exclusive();
    channel.queue_declare(name.into(), options, arguments).await.map(|_| ())
}

/// Begins to act for a bridge that is gone, as long as `link` lasts. False if somebody does already: it
/// itself, or another that takes over.
pub(in super::super) async fn act_for(
    link: &Link,
    settings: &Settings,
    gone: &str,
) -> Result<bool, BrokerError> {
    match declare_alive(link, &settings.mq.alive_queue(gone)).await {
        Ok(()) => Ok(true),
        Err(error) if code(&error) == Some(RESOURCE_LOCKED) => Ok(false),
        Err(error) => Err(BrokerError::during("taking over")(error)),
    }
}

/// Makes a bridge's own exchange anew, to which devices are bound, with its inbox behind it. All bindings that
/// an earlier one had are gone then.
pub(in super::super) async fn open_inbox(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<(), BrokerError> {
    let name = settings.mq.inbox(bridge);
    close_inbox(link, settings, bridge).await?;
    // Not durable, and so are the bindings to it, which makes them three times as fast: after a restart of
    // the broker each bridge binds its devices anew anyway.
    let options = ExchangeDeclareOptions {
        passive: false,
        durable: false,
        auto_delete: false,
        internal: false,
        nowait: false,
    };
    let channel = link.channel().await?;
    let kind = ExchangeKind::Fanout;
    let declared =
        channel.exchange_declare(name.as_str().into(), kind, options, FieldTable::default()).await;
    declared.map_err(|error| {
        refusal(format!("exchange `{name}`"), &error, "let MQ_USERNAME configure it")
    })?;
    bind(link, &name, &name, "", false).await
}

/// Deletes a bridge's own exchange, and with it the bindings of all its devices.
pub(in super::super) async fn close_inbox(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<(), BrokerError> {
    let name = settings.mq.inbox(bridge);
    let options = ExchangeDeleteOptions { if_unused: false, nowait: false };
    let deleted = link.channel().await?.exchange_delete(name.as_str().into(), options).await;
    deleted.map_err(|error| {
        refusal(format!("exchange `{name}`"), &error, "let MQ_USERNAME configure it")
    })
}

/// How many messages wait in a bridge's inbox; None if there is no such queue.
pub(in super::super) async fn inbox_depth(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<Option<u32>, BrokerError> {
    let name = settings.mq.inbox(bridge);
    let options = QueueDeclareOptions::default().passive();
    let channel = link.channel().await?;
    match channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await {
        Ok(queue) => {
            let closed = channel.close(200, "done".into()).await;
            closed.map_err(BrokerError::during("looking at the inbox"))?;
            Ok(Some(queue.message_count()))
        }
        Err(error) if code(&error) == Some(NOT_FOUND) => Ok(None),
        Err(error) => Err(BrokerError::during("looking at the inbox")(error)),
    }
}

/// Deletes a bridge's inbox if it is empty. What has come there since that was seen stays, and goes back to the command queue
/// after `INBOX_TTL`.
pub(in super::super) async fn delete_inbox(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<(), BrokerError> {
    let mq = &settings.mq;
    // A quorum queue cannot be asked to look for itself.
    let if_empty = mq.queue_type == QueueType::Classic;
    if !if_empty && inbox_depth(link, settings, bridge).await?.is_some_and(|depth| depth > 0) {
        return Ok(());
    }
    let options = QueueDeleteOptions { if_unused: false, if_empty, nowait: false };
    let deleted =
        link.channel().await?.queue_delete(mq.inbox(bridge).as_str().into(), options).await;
    match deleted {
        Ok(_) => Ok(()),
        Err(error) if code(&error) == Some(PRECONDITION_FAILED) => Ok(()),
        Err(error) => Err(BrokerError::during("deleting the inbox")(error)),
    }
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}
