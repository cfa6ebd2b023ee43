//! The other side of the broker: what an HTTP backend or an operator's tool does, through an AMQP client.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    ExchangeKind, PublisherConfirm,
};

use super::wait::{DEADLINE, block_on, eventually, runtime};

const CONNECT: Duration = Duration::from_secs(20);
/// Messages published and not yet confirmed when many are published.
const WINDOW: usize = 512;

/// A connection with a channel in confirm mode.
pub(crate) struct Amqp {
    connection: Connection,
    channel: Channel,
}

impl Amqp {
    /// Connects as guest to a node of ours; tries until the node lets it.
    #[track_caller]
    pub(crate) fn connect(port: u16) -> Self {
        eventually("the test's own AMQP connection", || {
            block_on(async { tokio::time::timeout(CONNECT, Self::open(port)).await })
                .map_err(|late| late.to_string())?
                .map_err(|error| error.to_string())
        })
    }

    pub(crate) async fn open(port: u16) -> lapin::Result<Self> {
        let uri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f").parse().expect("an AMQP URI");
        let connection = Connection::connect_uri(uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions { nowait: false }).await?;
        Ok(Self { connection, channel })
    }

    /// A channel of one's own.
    pub(crate) async fn channel(&self) -> lapin::Result<Channel> {
        self.connection.create_channel().await
    }

    /// Publishes and waits until the broker has taken the message over.
    #[track_caller]
    pub(crate) fn publish(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) {
        self.publish_all(exchange, key, [(body.to_vec(), properties)]);
    }

    /// Publishes many, in order, with a bounded number unconfirmed.
    #[track_caller]
    pub(crate) fn publish_all(
        &self,
        exchange: &str,
        key: &str,
        messages: impl IntoIterator<Item = (Vec<u8>, BasicProperties)>,
    ) {
        block_on(async {
            let mut unconfirmed = VecDeque::new();
            for (body, properties) in messages {
                let options = BasicPublishOptions { mandatory: false, immediate: false };
                let publish = self.channel.basic_publish(
                    exchange.into(),
                    key.into(),
                    options,
                    &body,
                    properties,
                );
                unconfirmed.push_back(publish.await.expect("publish"));
                if unconfirmed.len() >= WINDOW {
                    confirmed(unconfirmed.pop_front().expect("not empty").await);
                }
            }
            for confirm in unconfirmed {
                confirmed(confirm.await);
            }
        });
    }

    /// Begins to publish: mandatory, and the confirm is still to come.
    pub(crate) async fn begin(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> lapin::Result<PublisherConfirm> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await
    }

    /// Publishes as a careful sender does: one that no queue takes comes back, and is published again.
    #[track_caller]
    pub(crate) fn publish_until_taken(&self, exchange: &str, key: &str, body: &[u8]) {
        eventually("a queue takes the message", || {
            block_on(async {
                let options = BasicPublishOptions { mandatory: true, immediate: false };
                let properties = persistent();
                let (exchange, key) = (exchange.into(), key.into());
                let published =
                    self.channel.basic_publish(exchange, key, options, body, properties).await;
                // One at a time, so that what comes back with it is this one.
                let confirmed = published.expect("publish").await.expect("the broker confirms");
                if confirmed == Confirmation::Ack(None) {
                    Ok(())
                } else {
                    Err(format!("{confirmed:?}"))
                }
            })
        });
    }

    #[track_caller]
    pub(crate) fn declare_queue(&self, name: &str, arguments: &[(&str, AMQPValue)]) {
        let options = QueueDeclareOptions::durable();
        block_on(self.channel.queue_declare(name.into(), options, table(arguments)))
            .expect("queue.declare");
    }

    #[track_caller]
    pub(crate) fn declare_exchange(&self, name: &str, kind: ExchangeKind) {
        let options = ExchangeDeclareOptions {
            durable: true,
            passive: false,
            auto_delete: false,
            internal: false,
            nowait: false,
        };
        let declare =
            self.channel.exchange_declare(name.into(), kind, options, FieldTable::default());
        block_on(declare).expect("exchange.declare");
    }

    #[track_caller]
    pub(crate) fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let options = QueueBindOptions { nowait: false };
        let bind = self.channel.queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            options,
            FieldTable::default(),
        );
        block_on(bind).expect("queue.bind");
    }

    /// Binds an exchange to another.
    #[track_caller]
    pub(crate) fn bind_exchange(&self, from: &str, to: &str, key: &str) {
        let options = ExchangeBindOptions { nowait: false };
        let (to, from, arguments) = (to.into(), from.into(), FieldTable::default());
        let bind = self.channel.exchange_bind(to, from, key.into(), options, arguments);
        block_on(bind).expect("exchange.bind");
    }

    #[track_caller]
    pub(crate) fn delete_queue(&self, name: &str) {
        let options = QueueDeleteOptions { if_unused: false, if_empty: false, nowait: false };
        block_on(self.channel.queue_delete(name.into(), options)).expect("queue.delete");
    }

    #[track_caller]
    pub(crate) fn delete_exchange(&self, name: &str) {
        let options = ExchangeDeleteOptions { if_unused: false, nowait: false };
        block_on(self.channel.exchange_delete(name.into(), options)).expect("exchange.delete");
    }

    /// Whether there is such an exchange.
    pub(crate) fn exchange(&self, name: &str) -> Result<(), String> {
        block_on(async {
            let channel =
                self.connection.create_channel().await.map_err(|error| error.to_string())?;
            let options = ExchangeDeclareOptions {
                durable: true,
                passive: true,
                auto_delete: false,
                internal: false,
                nowait: false,
            };
            let declare = channel.exchange_declare(
                name.into(),
                ExchangeKind::Direct,
                options,
                FieldTable::default(),
            );
            declare.await.map_err(|error| error.to_string())?;
            channel.close(200, "done".into()).await.map_err(|error| error.to_string())
        })
    }

    /// Messages ready in a queue and consumers on it, or why there is no such queue.
    pub(crate) fn queue(&self, name: &str) -> Result<(u32, u32), String> {
        block_on(async {
            // A passive declare of a missing queue closes its channel, so it gets one of its own.
            let channel =
                self.connection.create_channel().await.map_err(|error| error.to_string())?;
            let options = QueueDeclareOptions::durable().passive();
            let queue = channel
                .queue_declare(name.into(), options, FieldTable::default())
                .await
                .map_err(|error| error.to_string())?;
            let counts = (queue.message_count(), queue.consumer_count());
            channel.close(200, "done".into()).await.map_err(|error| error.to_string())?;
            Ok(counts)
        })
    }

    /// Messages ready in a queue.
    #[track_caller]
    pub(crate) fn depth(&self, name: &str) -> u32 {
        self.queue(name).unwrap_or_else(|error| panic!("queue {name}: {error}")).0
    }

    /// Everything that comes to an existing queue from now on.
    #[track_caller]
    pub(crate) fn consume(&self, queue: &str) -> Inbox {
        block_on(async {
            let channel = self.connection.create_channel().await.expect("a channel");
            Inbox::open(channel, queue.into()).await
        })
    }

    /// Stands in the way of everybody else who consumes from a queue, for the next `count` messages.
    #[track_caller]
    pub(crate) fn intercept(&self, queue: &str, count: u16) -> Interception {
        block_on(async {
            let channel = self.connection.create_channel().await.expect("a channel");
            channel.basic_qos(count, BasicQosOptions { global: false }).await.expect("basic.qos");
            let first = table(&[("x-priority", AMQPValue::LongInt(1))]);
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(queue.into(), "".into(), options, first).await;
            Interception { channel, consumer: consumer.expect("basic.consume"), count }
        })
    }

    /// Everything that an exchange routes under `key` from now on.
    #[track_caller]
    pub(crate) fn subscribe(&self, exchange: &str, key: &str) -> Inbox {
        let queue = self.private_queue();
        self.bind(&queue, exchange, key);
        self.consume(&queue)
    }

    /// A queue that lives as long as this connection.
    #[track_caller]
    pub(crate) fn private_queue(&self) -> String {
        let options = QueueDeclareOptions::exclusive();
        let queue = block_on(self.channel.queue_declare("".into(), options, FieldTable::default()));
        queue.expect("queue.declare").name().to_string()
    }
}

/// A consumer that is served before all others and acknowledges nothing.
pub(crate) struct Interception {
    channel: Channel,
    consumer: Consumer,
    count: u16,
}

impl Interception {
    /// Waits for all its messages, then gives them back: the broker delivers them again, to others, and says so.
    #[track_caller]
    pub(crate) fn give_back(mut self) {
        block_on(async {
            for _ in 0..self.count {
                let next = tokio::time::timeout(DEADLINE, self.consumer.next()).await;
                next.expect("a message in time").expect("a consumer").expect("a message");
            }
            self.channel.close(200, "done".into()).await.expect("channel.close");
        });
    }
}

/// The messages that came to one queue, each acknowledged as it came.
pub(crate) struct Inbox {
    pub(crate) queue: String,
    letters: Receiver<Letter>,
}

impl Inbox {
    async fn open(channel: Channel, queue: ShortString) -> Self {
        let options =
            BasicConsumeOptions { no_local: false, no_ack: true, exclusive: false, nowait: false };
        let consume =
            channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default());
        let mut consumer: Consumer = consume.await.expect("basic.consume");
        let (sender, letters) = std::sync::mpsc::channel();
        runtime().spawn(async move {
            let _open_while_consuming = channel;
            while let Some(Ok(delivery)) = consumer.next().await {
                let letter = Letter {
                    key: delivery.routing_key.to_string(),
                    properties: delivery.properties,
                    body: delivery.data,
                };
                if sender.send(letter).is_err() {
                    return;
                }
            }
        });
        Self { queue: queue.to_string(), letters }
    }

    /// The next message.
    #[track_caller]
    pub(crate) fn next(&self) -> Letter {
        match self.letters.recv_timeout(DEADLINE) {
            Ok(letter) => letter,
            Err(RecvTimeoutError::Timeout) => {
                panic!("no message came to {} within {DEADLINE:?}", self.queue)
            }
            Err(RecvTimeoutError::Disconnected) => {
                panic!("the consumer of {} has ended", self.queue)
            }
        }
    }

    /// The next messages.
    #[track_caller]
    pub(crate) fn take(&self, count: usize) -> Vec<Letter> {
        (0..count).map(|_| self.next()).collect()
    }

    /// What has come and was not taken yet; waits for nothing.
    pub(crate) fn so_far(&self) -> Vec<Letter> {
        self.letters.try_iter().collect()
    }
}

/// One message as it came.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

impl Letter {
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// A header that is a string.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> String {
        let headers = self
            .properties
            .headers()
            .as_ref()
            .unwrap_or_else(|| panic!("no headers at all: {self:?}"));
        match headers.inner().get(name) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            Some(AMQPValue::ShortString(text)) => text.to_string(),
            other => panic!("header {name} is {other:?} in {self:?}"),
        }
    }

    pub(crate) fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id().as_ref().map(ShortString::as_str)
    }
}

/// Properties of a message that survives a restart of the broker.
pub(crate) fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

pub(crate) fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

#[track_caller]
fn confirmed(confirmation: lapin::Result<Confirmation>) {
    let confirmation = confirmation.expect("the broker confirms");
    assert!(
        matches!(confirmation, Confirmation::Ack(_)),
        "the broker refused a message: {confirmation:?}"
    );
}
