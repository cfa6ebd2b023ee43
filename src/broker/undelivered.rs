//! `Undelivered`: the queue of commands that were not delivered, looked through without taking anything
//! out of it; and one of them tried again, or removed.
//!
//! A look fetches messages without acknowledging them and gives them back by closing its channel, so that
//! they keep their places. Meanwhile nobody else sees them: so there is one look at a time, it is bounded,
//! and it has a connection of its own, whose end gives everything back, whatever happens here.

mod letter;

use std::sync::Arc;
use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub(crate) use letter::Letter;

use super::client::unpublished;
use super::connection::Link;
use super::intake::message;
use super::message::Message;
use super::requests::made_id;
use super::{BrokerError, topology};
use crate::clock::Moment;
use crate::command::Reason;
use crate::metrics;
use crate::settings::Settings;

/// Messages that one look goes through: each is a round trip to the broker, so that is about a second.
pub(crate) const LOOKED_MAX: usize = 1000;
/// Bytes of bodies that a list holds, at least one message.
const LISTED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long one look may take: what it holds nobody else sees.
const LOOK_LIMIT: Duration = Duration::from_secs(20);
/// How long the next waits for its turn.
const TURN_LIMIT: Duration = Duration::from_secs(5);
/// Quorum queues count how often a message was given back, and from RabbitMQ 4 on drop it after 20 times.
/// One that was given back so often is replaced by a copy, which counts from nothing.
const RENEW_AT: u64 = 10;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Others look for longer than one waits.
    Busy,
    /// There is no such message among those looked through, which were so many.
    NotThere(usize),
    /// It cannot be sent again.
    Unsendable(Reason),
    /// The broker is away, or does not let us.
    Broker(String),
}

impl From<BrokerError> for Trouble {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error.to_string())
    }
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Listed {
    /// How many there are in the queue.
    pub(crate) total: usize,
    /// The first of them.
    pub(crate) letters: Vec<Letter>,
}

/// Looks through the queue of commands that were not delivered.
#[derive(Debug)]
pub(crate) struct Undelivered {
    settings: Arc<Settings>,
    bridge: Arc<str>,
    turn: Semaphore,
}

impl Undelivered {
    pub(crate) fn new(settings: Arc<Settings>, bridge: Arc<str>) -> Self {
        Self { settings, bridge, turn: Semaphore::new(1) }
    }

    /// The first messages of the queue, at most `limit`.
    pub(crate) async fn list(&self, limit: usize) -> Result<Listed, Trouble> {
        self.look(async |link| self.list_on(link, limit).await).await
    }

    /// Sends a message again, as if it were new, and removes it then; its id.
    pub(crate) async fn retry(&self, key: &str) -> Result<String, Trouble> {
        self.look(async |link| {
            let (channel, tag, message) = self.find(link, key).await?;
            let id = match Letter::of(&message).id {
                Some(id) => id,
                None => made_id().ok_or_else(no_random_numbers)?,
            };
            let body = letter::body_again(&message).map_err(Trouble::Unsendable)?;
            let properties = message.properties_again(&id, Moment::now().wall_ms);
            let mq = &self.settings.mq;
            self.publish(link, &mq.exchange, mq.command_key(), &body, properties).await?;
            remove(&channel, tag).await?;
            Ok(id)
        })
        .await
    }

    /// Removes a message.
    pub(crate) async fn delete(&self, key: &str) -> Result<(), Trouble> {
        self.look(async |link| {
            let (channel, tag, _) = self.find(link, key).await?;
            Ok(remove(&channel, tag).await?)
        })
        .await
    }

    /// One look, on a connection of its own, when it is its turn.
    async fn look<T>(
        &self,
        what: impl AsyncFnOnce(&Link) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let turn = timeout(TURN_LIMIT, self.turn.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Trouble::Busy) };
        let mq = &self.settings.mq;
        let link = Link::open(mq, &self.bridge, metrics::Link::Requests).await?;
        let looked = async {
            tokio::select! {
                looked = what(&link) => looked,
                error = link.lost() => Err(error.into()),
            }
        };
        let looked = timeout(LOOK_LIMIT, looked).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(LOOK_LIMIT);
            Err(Trouble::Broker(format!(
                "the broker did not answer all that was asked within {limit}"
            )))
        });
        link.close().await;
        looked
    }

    async fn list_on(&self, link: &Link, limit: usize) -> Result<Listed, Trouble> {
        let channel = link.channel().await?;
        let (mut letters, mut total, mut bytes) = (Vec::new(), 0, 0);
        while letters.len() < limit && bytes < LISTED_BYTES_MAX {
            let Some((delivery, behind)) = self.next(&channel).await? else { break };
            total = letters.len() + 1 + behind;
            let (tag, message) = (delivery.delivery_tag, message(delivery));
            letters.push(Letter::of(&message));
            bytes += message.body.len();
            if message.returns() >= RENEW_AT {
                self.renew(link, &channel, tag, &message).await?;
            }
        }
        give_back(&channel).await?;
        Ok(Listed { total, letters })
    }

    /// The message with this key, in hand on the channel that is given, too.
    async fn find(&self, link: &Link, key: &str) -> Result<(Channel, u64, Message), Trouble> {
        let channel = link.channel().await?;
        for looked in 0..LOOKED_MAX {
            let Some((delivery, _)) = self.next(&channel).await? else {
                give_back(&channel).await?;
                return Err(Trouble::NotThere(looked));
            };
            let (tag, message) = (delivery.delivery_tag, message(delivery));
            if Letter::key_of(&message) == key {
                return Ok((channel, tag, message));
            }
            if message.returns() >= RENEW_AT {
                self.renew(link, &channel, tag, &message).await?;
            }
        }
        give_back(&channel).await?;
        Err(Trouble::NotThere(LOOKED_MAX))
    }

    /// The next message of the queue, and how many there are behind it.
    async fn next(&self, channel: &Channel) -> Result<Option<(Delivery, usize)>, BrokerError> {
        // The one the bridge declares and binds.
        let queue = self.settings.mq.undelivered_exchange.as_str();
        let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await;
        let got = got.map_err(|error| {
            let advice = "let the bridge declare it, and MQ_USERNAME read from it";
            topology::refusal(format!("queue `{queue}`"), &error, advice)
        })?;
        Ok(got.map(|got| (got.delivery, got.message_count as usize)))
    }

    /// Puts a copy behind all others, and removes the message then.
    async fn renew(
        &self,
        link: &Link,
        channel: &Channel,
        tag: u64,
        message: &Message,
    ) -> Result<(), BrokerError> {
        let queue = self.settings.mq.undelivered_exchange.as_str();
        let properties = message.renewed_properties();
        self.publish(link, "", queue, &message.body, properties).await?;
        acknowledge(channel, tag).await
    }

    /// Publishes, and waits until the broker has it.
    async fn publish(
        &self,
        link: &Link,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), BrokerError> {
        // One publication to a channel: so it is this one that a confirm, or a return, is about.
        let channel = link.channel().await?;
        let select = channel.confirm_select(ConfirmSelectOptions { nowait: false }).await;
        select.map_err(BrokerError::during("asking for publisher confirms"))?;
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let publishing =
            channel.basic_publish(exchange.into(), key.into(), options, body, properties);
        let confirm = publishing.await.map_err(BrokerError::during("publishing a command"))?;
        let confirmed = confirm.await.map_err(BrokerError::during("publishing a command"))?;
        if confirmed != Confirmation::Ack(None) {
            return Err(unpublished(&self.settings, "no queue takes the command"));
        }
        give_back(&channel).await
    }
}

fn no_random_numbers() -> Trouble {
    Trouble::Broker("the system gives no random numbers".to_owned())
}

async fn acknowledge(channel: &Channel, tag: u64) -> Result<(), BrokerError> {
    let acknowledged = channel.basic_ack(tag, BasicAckOptions { multiple: false }).await;
    acknowledged.map_err(BrokerError::during("removing a message"))
}

/// Removes a message for good: it is when the broker has answered.
async fn remove(channel: &Channel, tag: u64) -> Result<(), BrokerError> {
    acknowledge(channel, tag).await?;
    give_back(channel).await
}

/// Closes a channel, which gives back whatever is in hand on it.
async fn give_back(channel: &Channel) -> Result<(), BrokerError> {
    let closed = channel.close(200, "done".into()).await;
    closed.map_err(BrokerError::during("giving messages back"))
}
