//! What each bridge of a cluster has at the broker: its inbox, and a queue that says that it is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::super::BrokerError;
use super::super::connection::Link;
use super::{
    Arguments, EVENTS_ADVICE, Missing, NOT_FOUND, PRECONDITION_FAILED, TOPIC, code, depth,
    exchange_of, for_routes, is_missing, refusal,
};
use crate::settings::{QueueType, Settings};

const RESOURCE_LOCKED: u16 = 405;

/// Sees to what a bridge of a cluster needs, but for its inbox and its own exchange: a queue that is there as long
/// as `link`, and the exchange that routes to all bridges. The former comes first: whoever has it acts for the bridge
/// of this name.
pub(in super::super) async fn prepare_routes(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<(), BrokerError> {
    let mq = &settings.mq;
    be_alive(link, &mq.alive_queue(bridge)).await?;
    for_routes(link, settings, Missing::Declare).await?;
    exchange_of(TOPIC, link, &mq.events_exchange, Missing::Declare, EVENTS_ADVICE).await.map(|_| ())
}

/// Sees to it that there is an inbox; `unborn` is of this bridge's process, false at first.
///
/// A node that dies while it declares a quorum queue leaves one behind that everybody sees and that never works.
/// Until the declaration of one that was missing is answered, nobody can have put anything into it: then it is
/// deleted first.
pub(in super::super) async fn prepare_inbox(
    link: &Link,
    settings: &Settings,
    bridge: &str,
    unborn: &AtomicBool,
) -> Result<(), BrokerError> {
    let mq = &settings.mq;
    let name = mq.inbox(bridge);
    if unborn.load(Ordering::Relaxed) {
        let channel = link.channel().await?;
        let deleted =
            channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await;
        deleted.map_err(BrokerError::during("deleting what is left of an inbox"))?;
    } else {
        let looked = depth(link.channel().await?, &name).await;
        let is_missing = looked.is_err_and(|error| is_missing(&error));
        unborn.store(is_missing, Ordering::Relaxed);
    }
    let arguments = Arguments::of(mq.queue_type)
        .message_ttl(INBOX_TTL)
        .expires(INBOX_EXPIRES)
        .dead_letters(&mq.exchange, mq.command_key())
        .table();
    let (channel, durable) = (link.channel().await?, QueueDeclareOptions::durable());
    let declared = channel.queue_declare(name.as_str().into(), durable, arguments).await;
    let advice = "delete it, and let the bridge declare it again";
    declared.map_err(|error| refusal(format!("queue `{name}`"), &error, advice))?;
    unborn.store(false, Ordering::Relaxed);
    Ok(())
}

/// What waits this long in an inbox, which nobody reads then, goes back to the command queue: another bridge
/// takes it there. Far longer than a bridge takes to connect again, or than a busy one is behind: what it has not come to read
/// would be passed on to it once more. That nobody reads an inbox is known sooner, by claims, which expire within seconds.
pub(in super::super) const INBOX_TTL: Duration = Duration::from_secs(600);

/// An inbox that nobody has used for this long vanishes. Nothing is in it then, and a bridge that comes later makes
/// another; far longer than any bridge takes to come back that will.
const INBOX_EXPIRES: Duration = Duration::from_secs(3600);

/// What is said to a bridge at once, and whether it is there, is kept this long: it begins to read as soon as it has the
/// queue, and whoever acts for one that is gone does not.
const ALIVE_TTL_MS: i32 = 2_000;

async fn be_alive(link: &Link, name: &str) -> Result<(), BrokerError> {
    declare_alive(link, name).await.map_err(|error| {
        let advice = "another bridge has the same name (give each a BRIDGE_NAME of its own), or is taking over from this one";
        refusal(format!("queue `{name}`"), &error, advice)
    })
}

async fn declare_alive(link: &Link, name: &str) -> lapin::Result<()> {
    let channel = link.open_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(ALIVE_TTL_MS));
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

/// How many messages wait in a bridge's inbox; None if there is no such queue. Of a quorum queue in trouble it may be
/// zero though some do.
pub(in super::super) async fn inbox_depth(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<Option<u32>, BrokerError> {
    match depth(link.channel().await?, &settings.mq.inbox(bridge)).await {
        Ok(depth) => Ok(Some(depth)),
        Err(error) if code(&error) == Some(NOT_FOUND) => Ok(None),
        Err(error) => Err(BrokerError::during("looking at the inbox")(error)),
    }
}

/// Leaves a bridge's inbox, which is done with if it is empty; false if it is not. Nobody may publish to it any more.
///
/// A classic one is deleted. A quorum queue stays, until it has not been used for `INBOX_EXPIRES`: if it were deleted
/// while one of its nodes is away, and declared again before that one is back, RabbitMQ would bring back what was in
/// the first with that node. Nor is its depth an answer: it is 0 if the leader does not say it at once.
pub(in super::super) async fn leave_inbox(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<bool, BrokerError> {
    let name = settings.mq.inbox(bridge);
    let channel = link.channel().await?;
    let left = match settings.mq.queue_type {
        QueueType::Classic => {
            let options = QueueDeleteOptions { if_unused: false, if_empty: true, nowait: false };
            channel.queue_delete(name.as_str().into(), options).await.map(|_| true)
        }
        QueueType::Quorum => {
            let get = BasicGetOptions { no_ack: false };
            let got = channel.basic_get(name.as_str().into(), get).await;
            let is_empty = got.map(|got| got.is_none());
            // What was got goes back with the channel.
            if is_empty.is_ok() {
                let closed = channel.close(200, "done".into()).await;
                closed.map_err(BrokerError::during("looking into an inbox"))?;
            }
            is_empty
        }
    };
    match left {
        Err(error) if is_missing(&error) => Ok(true),
        Err(error) if code(&error) == Some(PRECONDITION_FAILED) => Ok(false),
        left => left.map_err(BrokerError::during("leaving an inbox")),
    }
}
