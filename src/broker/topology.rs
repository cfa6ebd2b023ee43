//! The exchanges, queues and bindings the bridge needs.
//!
//! What exists is used as it is; what is missing is declared. Each look is a passive declare on a
//! channel of its own, because the broker closes the channel that asks for what is not there. A type
//! the bridge cannot work with is an error that names the object and the setting.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::AMQPError;
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, ErrorKind, ExchangeKind};
use tracing::{info, warn};

use super::BrokerError;
use super::connection::Link;
use super::nodes::Nodes;
use crate::settings::{Endpoint, QueueType, Settings};

const NOT_FOUND: u16 = 404;
const ACCESS_REFUSED: u16 = 403;
const RESOURCE_LOCKED: u16 = 405;
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// Matches every key on a topic exchange and stands for none elsewhere.
const ANY_KEY: &str = "#";

/// Whether missing things are declared or only told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Declare,
    Tell,
}

/// Connects to each host as the bridge would and looks at what it needs, without changing anything. Gives one
/// sentence for each thing that is missing and would be declared.
pub async fn check(settings: &Settings) -> Vec<(Endpoint, Result<Vec<String>, BrokerError>)> {
    let (nodes, mut checked) = (Nodes::new(&settings.mq), Vec::new());
    for host in settings.mq.endpoints() {
        let looked = check_host(&nodes, &host, settings).await;
        checked.push((host, looked));
    }
    checked
}

async fn check_host(
    nodes: &Arc<Nodes>,
    host: &Endpoint,
    settings: &Settings,
) -> Result<Vec<String>, BrokerError> {
    let link = Link::open(nodes, host, &settings.bridge_name(), "consumer").await?;
    let looked = async {
        let mut found = for_consumer(&link, settings, Missing::Tell).await?;
        found.extend(for_publisher(&link, settings, Missing::Tell).await?);
        Ok(found)
    };
    let looked = looked.await;
    link.close().await;
    looked
}

/// Sees to what the consumer needs: the command exchange, the command queue and their binding.
pub(super) async fn prepare_consumer(link: &Link, settings: &Settings) -> Result<(), BrokerError> {
    for_consumer(link, settings, Missing::Declare).await.map(|_| ())
}

/// Sees to what the publisher needs: the events exchange, the undelivered exchange and its queue.
pub(super) async fn prepare_publisher(link: &Link, settings: &Settings) -> Result<(), BrokerError> {
    for_publisher(link, settings, Missing::Declare).await.map(|_| ())
}

/// Sees to what the recorder needs: the events exchange, its own queue, and a binding for each kind of
/// event it is to have.
pub(super) async fn prepare_collector(link: &Link, settings: &Settings) -> Result<(), BrokerError> {
    let (mq, record) = (&settings.mq, &settings.record);
    let events = topic_exchange(link, &mq.events_exchange, Missing::Declare, EVENTS_ADVICE).await?;
    let queue = queue(link, &record.queue, mq.queue_type, Missing::Declare).await?;
    let both_existed = events == Found::Existing && queue == Found::Existing;
    let kinds = [
        ("presence.#", true),
        ("bridge.#", true),
        ("outcome.#", record.kinds.outcome),
        ("uplink.#", record.kinds.uplink),
    ];
    for (key, _) in kinds.into_iter().filter(|(_, wanted)| *wanted) {
        bind(link, &record.queue, &mq.events_exchange, key, both_existed).await?;
    }
    Ok(())
}

/// Sees to what a bridge of a cluster needs, but for its own exchange: that which routes to all bridges, its
/// inbox, and a queue that is there as long as `link`. That one comes first: whoever has it acts for the
/// bridge of this name.
pub(super) async fn prepare_routes(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<(), BrokerError> {
    let mq = &settings.mq;
    be_alive(link, &mq.alive_queue(bridge)).await?;
    exchange(link, &mq.route_exchange, ExchangeKind::Direct, Missing::Declare).await?;
    topic_exchange(link, &mq.events_exchange, Missing::Declare, EVENTS_ADVICE).await?;
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
pub(super) const INBOX_TTL: Duration = Duration::from_secs(60);

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
pub(super) async fn act_for(
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
pub(super) async fn open_inbox(
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
pub(super) async fn close_inbox(
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
pub(super) async fn inbox_depth(
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

/// Deletes a bridge's inbox, which is empty.
pub(super) async fn delete_inbox(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<(), BrokerError> {
    let mq = &settings.mq;
    // A quorum queue cannot be asked to look for itself.
    let if_empty = mq.queue_type == QueueType::Classic;
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

/// Sees to the exchange that is tapped.
pub(super) async fn prepare_tap(link: &Link, settings: &Settings) -> Result<(), BrokerError> {
    let advice = "set MQ_TAP_EXCHANGE to a topic exchange, or delete this one and let the bridge declare it again";
    let name = &settings.mq.tap_exchange;
    topic_exchange(link, name, Missing::Declare, advice).await.map(|_| ())
}

async fn for_consumer(
    link: &Link,
    settings: &Settings,
    missing: Missing,
) -> Result<Vec<String>, BrokerError> {
    let mq = &settings.mq;
    let mut told = Vec::new();
    let exchange = exchange(link, &mq.exchange, ExchangeKind::Direct, missing).await?;
    let queue = queue(link, &mq.queue, mq.queue_type, missing).await?;
    told.extend(exchange.told());
    told.extend(queue.told());
    if queue == Found::Existing && settings.queue_type_is_set {
        hold_to_type(link, &mq.queue, mq.queue_type).await?;
    }
    if missing == Missing::Tell && queue == Found::Existing {
        may_consume(link, &mq.queue).await?;
    }
    if missing == Missing::Declare {
        let both_existed = exchange == Found::Existing && queue == Found::Existing;
        bind(link, &mq.queue, &mq.exchange, mq.command_key(), both_existed).await?;
    }
    Ok(told)
}

/// What to do about an events exchange of another type.
const EVENTS_ADVICE: &str = "set MQ_EVENTS_EXCHANGE to a topic exchange, or delete this one and let the bridge declare it again";

async fn for_publisher(
    link: &Link,
    settings: &Settings,
    missing: Missing,
) -> Result<Vec<String>, BrokerError> {
    let mq = &settings.mq;
    let mut told = Vec::new();
    let events = topic_exchange(link, &mq.events_exchange, missing, EVENTS_ADVICE).await?;
    let undelivered =
        exchange(link, &mq.undelivered_exchange, ExchangeKind::Fanout, missing).await?;
    let queue = queue(link, &mq.undelivered_exchange, mq.queue_type, missing).await?;
    told.extend([events.told(), undelivered.told(), queue.told()].into_iter().flatten());
    if missing == Missing::Declare {
        let both_existed = undelivered == Found::Existing && queue == Found::Existing;
        bind(link, &mq.undelivered_exchange, &mq.undelivered_exchange, ANY_KEY, both_existed)
            .await?;
    }
    Ok(told)
}

/// What a look for something found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Existing,
    Declared,
    Missing(String),
}

impl Found {
    fn told(&self) -> Option<String> {
        match self {
            Self::Missing(object) => {
                Some(format!("{object} does not exist; the bridge declares it when it starts"))
            }
            Self::Existing | Self::Declared => None,
        }
    }
}

/// A topic exchange. One that exists is held to that; `advice` is what to do if it is of another type.
async fn topic_exchange(
    link: &Link,
    name: &str,
    missing: Missing,
    advice: &'static str,
) -> Result<Found, BrokerError> {
    let found = exchange(link, name, ExchangeKind::Topic, missing).await?;
    if found == Found::Existing {
        hold_to_topic(link, name, advice).await?;
    }
    Ok(found)
}

async fn exchange(
    link: &Link,
    name: &str,
    kind: ExchangeKind,
    missing: Missing,
) -> Result<Found, BrokerError> {
    let object = format!("exchange `{name}`");
    let options = |passive| ExchangeDeclareOptions {
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        nowait: false,
    };
    let declare = async |channel: Channel, passive| {
        channel
            .exchange_declare(name.into(), kind.clone(), options(passive), FieldTable::default())
            .await
    };
    match declare(link.channel().await?, true).await {
        Ok(()) => return Ok(Found::Existing),
        Err(error) if is_missing(&error) => {}
        Err(error) => {
            return Err(refusal(object, &error, "check the permissions of MQ_USERNAME"));
        }
    }
    if missing == Missing::Tell {
        return Ok(Found::Missing(object));
    }
    let declared = declare(link.channel().await?, false).await;
    declared.map_err(|error| {
        refusal(object.clone(), &error, "declare it, or let MQ_USERNAME configure it")
    })?;
    info!(exchange = name, kind = ?kind, "declared an exchange that was missing");
    Ok(Found::Declared)
}

async fn queue(
    link: &Link,
    name: &str,
    kind: QueueType,
    missing: Missing,
) -> Result<Found, BrokerError> {
    let object = format!("queue `{name}`");
    match declare_queue(&link.channel().await?, name, None).await {
        Ok(()) => return Ok(Found::Existing),
        Err(error) if is_missing(&error) => {}
        Err(error) => {
            let advice =
                "the bridge needs a queue that other connections may use, and permission for it";
            return Err(refusal(object, &error, advice));
        }
    }
    if missing == Missing::Tell {
        return Ok(Found::Missing(object));
    }
    let declared = declare_queue(&link.channel().await?, name, Some(kind)).await;
    declared.map_err(|error| {
        refusal(object.clone(), &error, "declare it, or let MQ_USERNAME configure it")
    })?;
    info!(queue = name, kind = kind.word(), "declared a queue that was missing");
    Ok(Found::Declared)
}

/// Declares a durable queue of `kind`, or only looks for it.
async fn declare_queue(
    channel: &Channel,
    name: &str,
    kind: Option<QueueType>,
) -> lapin::Result<()> {
    let options = QueueDeclareOptions { passive: kind.is_none(), ..QueueDeclareOptions::durable() };
    let mut arguments = FieldTable::default();
    if let Some(kind) = kind {
        arguments
            .insert("x-queue-type".into(), AMQPValue::LongString(LongString::from(kind.word())));
    }
    channel.queue_declare(name.into(), options, arguments).await.map(|_| ())
}

/// An operator who names the queue type means it: an existing queue of another one is an error. The
/// broker only tells by refusing to declare it again; a refusal for other arguments is no matter.
async fn hold_to_type(link: &Link, name: &str, kind: QueueType) -> Result<(), BrokerError> {
    match declare_queue(&link.channel().await?, name, Some(kind)).await {
        Err(error) if says(&error, PRECONDITION_FAILED, "x-queue-type") => {
            let advice = "set MQ_QUEUE_TYPE to the type the queue has, or delete the queue and let the bridge declare it again";
            Err(refusal(format!("queue `{name}`"), &error, advice))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether the user may consume, found out without taking a message: the broker looks at the user's
/// rights first, and then refuses an argument that cannot be.
async fn may_consume(link: &Link, name: &str) -> Result<(), BrokerError> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongString(LongString::from("none")));
    let options =
        BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };
    let channel = link.channel().await?;
    match channel.basic_consume(name.into(), "".into(), options, arguments).await {
        Err(error) if code(&error) == Some(ACCESS_REFUSED) => {
            let advice = "let MQ_USERNAME read from it";
            Err(refusal(format!("queue `{name}`"), &error, advice))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Events are routed by topic; on any other exchange nobody could follow a subnet or a device.
async fn hold_to_topic(link: &Link, name: &str, advice: &'static str) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions {
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        nowait: false,
    };
    let channel = link.channel().await?;
    match channel
        .exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default())
        .await
    {
        Err(error) if says(&error, PRECONDITION_FAILED, "'type'") => {
            Err(refusal(format!("exchange `{name}`"), &error, advice))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Binds, which changes nothing where the binding exists. A user who may not bind what others have
/// set up is believed to have it bound.
async fn bind(
    link: &Link,
    queue: &str,
    exchange: &str,
    key: &str,
    both_existed: bool,
) -> Result<(), BrokerError> {
    let channel = link.channel().await?;
    let bound = channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            QueueBindOptions { nowait: false },
            FieldTable::default(),
        )
        .await;
    match bound {
        Ok(()) => Ok(()),
        Err(error) if both_existed && code(&error) == Some(ACCESS_REFUSED) => {
            warn!(queue, exchange, key, %error, "not allowed to bind the queue to the exchange; taking it that somebody else has.");
            Ok(())
        }
        Err(error) => {
            let object = format!("binding of queue `{queue}` to exchange `{exchange}`");
            Err(refusal(
                object,
                &error,
                "let MQ_USERNAME write to the queue and read from the exchange",
            ))
        }
    }
}

pub(super) fn refusal(object: String, error: &lapin::Error, advice: &'static str) -> BrokerError {
    let said = amqp(error).map_or_else(|| error.to_string(), |amqp| amqp.get_message().to_string());
    BrokerError::Topology { object, said, advice }
}

/// What the broker itself said, if it was the broker.
fn amqp(error: &lapin::Error) -> Option<&AMQPError> {
    if let ErrorKind::ProtocolError(amqp) = error.kind() { Some(amqp) } else { None }
}

pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    amqp(error).map(AMQPError::get_id)
}

/// Whether the broker says that there is no such thing. Of a classic queue whose node is away it says almost the
/// same, and that queue comes again with all that is in it.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    code(error) == Some(NOT_FOUND) && !is_away(error)
}

/// Whether it is there, on a node of the cluster that is not.
pub(super) fn is_away(error: &lapin::Error) -> bool {
    says(error, NOT_FOUND, "is down or inaccessible")
}

fn says(error: &lapin::Error, with_code: u16, what: &str) -> bool {
    amqp(error).is_some_and(|amqp| {
        amqp.get_id() == with_code && amqp.get_message().as_str().contains(what)
    })
}
