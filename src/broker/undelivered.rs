//! `Undelivered`: the queue of commands that were not delivered, looked through without taking anything
//! out of it; and one of them tried again, or removed.
//!
//! A look fetches messages without acknowledging them and gives them back by closing its channel, so that
//! they keep their places. Meanwhile nobody else sees them: so there is one look at a time, it is bounded,
//! and it has a connection of its own, whose end gives everything back, whatever happens here.

mod letter;

use std::sync::Arc;
use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub(crate) use letter::Letter;

use super::client::unpublished;
use super::connection::Link;
use super::message::{Delivered, Message};
use super::nodes::Nodes;
use super::requests::made_id;
use super::{BrokerError, topology};
use crate::clock::Moment;
use crate::command::Reason;
use crate::settings::Settings;

/// Messages that one look goes through: each is a round trip to the broker, so that is about a second.
pub(crate) const LOOKED_MAX: usize = 1000;
/// Bytes of bodies that one look keeps, and one message more.
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
    nodes: Arc<Nodes>,
    bridge: Arc<str>,
    turn: Semaphore,
}

impl Undelivered {
    pub(crate) fn new(settings: Arc<Settings>, nodes: Arc<Nodes>, bridge: Arc<str>) -> Self {
        Self { settings, nodes, bridge, turn: Semaphore::new(1) }
    }

    /// The first messages of the queue, at most `limit`.
    pub(crate) async fn list(&self, limit: usize) -> Result<Listed, Trouble> {
        self.look(async |link| self.list_on(link, limit).await).await
    }

    /// Sends a message again, as if it were new, and removes it then; its id.
    pub(crate) async fn retry(&self, key: &str) -> Result<String, Trouble> {
        self.look(async |link| {
            let mut hand = self.hand(link).await?;
            let (tag, message) = hand.find(key).await?;
            let id = match Letter::of(&message).id {
                Some(id) => id,
                None => made_id().ok_or_else(no_random_numbers)?,
            };
            let body = letter::body_again(&message).map_err(Trouble::Unsendable)?;
            let properties = message.properties_again(&id, Moment::now().wall_ms);
            let mq = &self.settings.mq;
            self.publish(link, &mq.exchange, mq.command_key(), &body, properties).await?;
            hand.remove(tag).await?;
            hand.give_back().await?;
            Ok(id)
        })
        .await
    }

    /// Removes a message.
    pub(crate) async fn delete(&self, key: &str) -> Result<(), Trouble> {
        self.look(async |link| {
            let mut hand = self.hand(link).await?;
            let (tag, _) = hand.find(key).await?;
            hand.remove(tag).await?;
            Ok(hand.give_back().await?)
        })
        .await
    }

    /// The queue that the bridge declares and binds.
    fn letterbox(&self) -> &str {
        &self.settings.mq.undelivered_exchange
    }

    /// One look, on a connection of its own, when it is its turn.
    async fn look<T>(
        &self,
        what: impl AsyncFnOnce(&Link) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let turn = timeout(TURN_LIMIT, self.turn.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Trouble::Busy) };
        let link = self.nodes.open(&self.bridge, "requests").await?;
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
        if matches!(looked, Err(Trouble::Broker(_))) {
            link.failed();
        }
        link.close().await;
        looked
    }

    async fn list_on(&self, link: &Link, limit: usize) -> Result<Listed, Trouble> {
        let mut hand = self.hand(link).await?;
        let (mut letters, mut total, mut bytes) = (Vec::new(), 0, 0);
        while letters.len() < limit && bytes < LISTED_BYTES_MAX {
            let Some((tag, message, behind)) = hand.next().await? else { break };
            total = letters.len() + 1 + behind;
            letters.push(Letter::of(&message));
            bytes += message.body.len();
            hand.pass(tag, message);
        }
        hand.give_back().await?;
        Ok(Listed { total, letters })
    }

    async fn hand<'a>(&'a self, link: &'a Link) -> Result<Hand<'a>, BrokerError> {
        let channel = link.channel().await?;
        Ok(Hand { of: self, link, channel, worn: Vec::new(), worn_bytes: 0 })
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
        let channel = link.confirming_channel().await?;
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let publishing =
            channel.basic_publish(exchange.into(), key.into(), options, body, properties);
        let confirm = publishing.await.map_err(BrokerError::during("publishing a command"))?;
        let confirmed = confirm.await.map_err(BrokerError::during("publishing a command"))?;
        if confirmed != Confirmation::Ack(None) {
            return Err(unpublished(&self.settings, "no queue takes the command"));
        }
        closed(&channel).await
    }
}

/// The messages that one look has fetched, all of which are given back at its end but those removed.
struct Hand<'a> {
    of: &'a Undelivered,
    link: &'a Link,
    channel: Channel,
    /// Those that were given back so often that copies have to take their places.
    worn: Vec<(u64, Message)>,
    worn_bytes: usize,
}

impl Hand<'_> {
    /// The next message of the queue with its tag, and how many there are behind it.
    async fn next(&self) -> Result<Option<(u64, Message, usize)>, BrokerError> {
        let queue = self.of.letterbox();
        let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await;
        let got = got.map_err(|error| {
            let advice = "let the bridge declare it, and MQ_USERNAME read from it";
            topology::refusal(format!("queue `{queue}`"), &error, advice)
        })?;
        let taken = |got: BasicGetMessage| {
            let (tag, behind) = (got.delivery.delivery_tag, got.message_count as usize);
            (tag, Delivered::from(got.delivery).message, behind)
        };
        Ok(got.map(taken))
    }

    /// A message that is neither sent nor removed.
    fn pass(&mut self, tag: u64, message: Message) {
        // Those that find no room have their turn in one of the next looks.
        if message.returns() >= RENEW_AT && self.worn_bytes < LISTED_BYTES_MAX {
            self.worn_bytes += message.body.len();
            self.worn.push((tag, message));
        }
    }

    /// The message with this key.
    async fn find(&mut self, key: &str) -> Result<(u64, Message), Trouble> {
        let mut looked = 0;
        while looked < LOOKED_MAX
            && let Some((tag, message, _)) = self.next().await?
        {
            if Letter::key_of(&message) == key {
                return Ok((tag, message));
            }
            looked += 1;
            self.pass(tag, message);
        }
        self.give_back().await?;
        Err(Trouble::NotThere(looked))
    }

    /// Removes a message.
    async fn remove(&self, tag: u64) -> Result<(), BrokerError> {
        let acknowledged = self.channel.basic_ack(tag, BasicAckOptions { multiple: false }).await;
        acknowledged.map_err(BrokerError::during("removing a message"))
    }

    /// Gives back all that is in hand; what was to be removed is when the broker has answered that.
    async fn give_back(&mut self) -> Result<(), BrokerError> {
        for (tag, message) in std::mem::take(&mut self.worn) {
            let properties = message.renewed_properties();
            self.of.publish(self.link, "", self.of.letterbox(), &message.body, properties).await?;
            self.remove(tag).await?;
        }
        closed(&self.channel).await
    }
}

fn no_random_numbers() -> Trouble {
    Trouble::Broker("the system gives no random numbers".to_owned())
}

/// Closes a channel, which gives back whatever is in hand on it.
async fn closed(channel: &Channel) -> Result<(), BrokerError> {
    let closed = channel.close(200, "done".into()).await;
    closed.map_err(BrokerError::during("giving messages back"))
}
