//! The exchanges, queues and bindings the bridge needs.
//!
//! What exists is used as it is; what is missing is declared. Each look is a passive declare on a
//! channel of its own, because the broker closes the channel that asks for what is not there. A type
//! the bridge cannot work with is an error that names the object and the setting.

mod arguments;
mod gate;
mod inboxes;
mod kind;

use std::sync::Arc;

use lapin::options::{
    BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ErrorKind, ExchangeKind};
use tracing::{info, warn};

pub(super) use self::arguments::Arguments;
pub(super) use self::gate::{Gate, clear_gates, open_gate, shut_gate};
pub(super) use self::inboxes::{
    INBOX_TTL, act_for, inbox_depth, leave_inbox, prepare_inbox, prepare_routes,
};
use self::kind::hold_to_type;
pub(super) use self::kind::{Kind, kind_of};
use super::BrokerError;
use super::connection::Link;
use super::nodes::Nodes;
use crate::settings::{Endpoint, QueueType, Settings};

const NOT_FOUND: u16 = 404;
const ACCESS_REFUSED: u16 = 403;
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// Matches every key on a topic exchange and stands for none elsewhere.
const ANY_KEY: &str = "#";

/// An exchange that is still there when the broker was away.
const DURABLE: ExchangeDeclareOptions = ExchangeDeclareOptions {
    passive: false,
    durable: true,
    auto_delete: false,
    internal: false,
    nowait: false,
};

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
        if settings.process.cluster.is_on() {
            found.extend(for_routes(&link, settings, Missing::Tell).await?);
        }
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
    let events =
        exchange_of(TOPIC, link, &mq.events_exchange, Missing::Declare, EVENTS_ADVICE).await?;
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

/// Sees to the exchange that is tapped.
pub(super) async fn prepare_tap(link: &Link, settings: &Settings) -> Result<(), BrokerError> {
    let advice = "set MQ_TAP_EXCHANGE to a topic exchange, or delete this one and let the bridge declare it again";
    let name = &settings.mq.tap_exchange;
    exchange_of(TOPIC, link, name, Missing::Declare, advice).await.map(|_| ())
}

/// Sees to the exchange through which devices of different bridges speak to each other.
pub(super) async fn prepare_talk(link: &Link, settings: &Settings) -> Result<(), BrokerError> {
    let name = settings.mq.talk_exchange();
    let advice = "delete it, and let the bridge declare it again";
    exchange_of(ExchangeKind::Fanout, link, &name, Missing::Declare, advice).await.map(|_| ())
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

const TOPIC: ExchangeKind = ExchangeKind::Topic;
/// What to do about an events exchange of another type.
const EVENTS_ADVICE: &str = "set MQ_EVENTS_EXCHANGE to a topic exchange, or delete this one and let the bridge declare it again";

async fn for_publisher(
    link: &Link,
    settings: &Settings,
    missing: Missing,
) -> Result<Vec<String>, BrokerError> {
    let mq = &settings.mq;
    let mut told = Vec::new();
    let events = exchange_of(TOPIC, link, &mq.events_exchange, missing, EVENTS_ADVICE).await?;
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

/// Sees to what routes commands to all bridges of a cluster.
async fn for_routes(
    link: &Link,
    settings: &Settings,
    missing: Missing,
) -> Result<Option<String>, BrokerError> {
    let name = &settings.mq.route_exchange;
    let advice = "set MQ_ROUTE_EXCHANGE to a direct exchange, or delete this one and let the bridge declare it again";
    Ok(exchange_of(ExchangeKind::Direct, link, name, missing, advice).await?.told())
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

/// An exchange that has to be of this type. One that exists is held to that; `advice` is what to do if it is of
/// another.
async fn exchange_of(
    kind: ExchangeKind,
    link: &Link,
    name: &str,
    missing: Missing,
    advice: &'static str,
) -> Result<Found, BrokerError> {
    let found = exchange(link, name, kind.clone(), missing).await?;
    if found == Found::Existing {
        hold_to_kind(link, name, kind, advice).await?;
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
    let declare = async |channel: Channel, passive| {
        let options = ExchangeDeclareOptions { passive, ..DURABLE };
        channel.exchange_declare(name.into(), kind.clone(), options, FieldTable::default()).await
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
    match depth(link.channel().await?, name).await {
        Ok(_) => return Ok(Found::Existing),
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
    let declared = declare_queue(&link.channel().await?, name, kind).await;
    declared.map_err(|error| {
        refusal(object.clone(), &error, "declare it, or let MQ_USERNAME configure it")
    })?;
    info!(queue = name, kind = kind.word(), "declared a queue that was missing");
    Ok(Found::Declared)
}

/// How many messages wait in a queue, asked on `channel`, which is closed then. Whoever asks has opened it: what goes
/// wrong with that says nothing of the queue.
pub(super) async fn depth(channel: Channel, name: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions::default().passive();
    let queue = channel.queue_declare(name.into(), options, FieldTable::default()).await?;
    channel.close(200, "done".into()).await?;
    Ok(queue.message_count())
}

/// Declares a durable queue of `kind`.
async fn declare_queue(channel: &Channel, name: &str, kind: QueueType) -> lapin::Result<()> {
    let (options, arguments) = (QueueDeclareOptions::durable(), Arguments::of(kind).table());
    channel.queue_declare(name.into(), options, arguments).await.map(|_| ())
}

/// Whether the user may consume, found out without taking a message: the broker looks at the user's
/// rights first, and then refuses an argument that cannot be.
async fn may_consume(link: &Link, name: &str) -> Result<(), BrokerError> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongString("none".into()));
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

/// Events are routed by topic: on any other exchange nobody could follow a subnet or a device. Commands between
/// bridges are routed by address alone: on any other exchange a bridge would get those for others' devices.
async fn hold_to_kind(
    link: &Link,
    name: &str,
    kind: ExchangeKind,
    advice: &'static str,
) -> Result<(), BrokerError> {
    let channel = link.channel().await?;
    match channel.exchange_declare(name.into(), kind, DURABLE, FieldTable::default()).await {
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
    let Some(amqp) = amqp(error) else {
        return BrokerError::during("declaring what is needed")(error.clone());
    };
    BrokerError::Topology { object, said: amqp.get_message().to_string(), advice }
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
