//! `Publication`: one message on its way to the broker, until that has confirmed it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::try_join_all;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};

use super::message::PERSISTENT;
use super::{BrokerError, Message};
use crate::cluster::control::{self, Control};

/// One message on its way to the broker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Publication {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Arc<[u8]>,
    /// Whether it is an error that no queue takes it.
    pub(super) mandatory: bool,
}

impl Publication {
    /// What one bridge says to another.
    pub(super) fn control(
        exchange: ShortString,
        key: ShortString,
        control: &Control,
        mandatory: bool,
    ) -> Self {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_type(control::TYPE.into())
            .with_delivery_mode(PERSISTENT);
        Self { exchange, key, properties, body: control.body().into(), mandatory }
    }

    /// A receipt for the sender of `message`, if it wants one.
    pub(super) fn receipt(message: &Message, receipt: Option<Vec<u8>>) -> Option<Self> {
        let (receipt, reply_to) = (receipt?, message.reply_to()?);
        Some(Self {
            exchange: ShortString::default(),
            key: reply_to.into(),
            properties: message.receipt_properties(),
            body: receipt.into(),
            // Who asked for it may be gone.
            mandatory: false,
        })
    }
}

/// Why a publication has to be repeated.
pub(super) enum Refusal {
    /// The broker cannot take it now: a queue behind the exchange has just lost its leader, for instance.
    Now(BrokerError),
    /// The connection is of no use any more.
    Lost(BrokerError),
    /// No queue takes this message. lapin may hand it out with the confirm of another publication, so it is
    /// published again by itself.
    Returned(BrokerError, Box<Publication>),
}

impl Refusal {
    /// What went wrong, for whoever gives the connection up.
    pub(super) fn error(self) -> BrokerError {
        match self {
            Self::Now(error) | Self::Lost(error) | Self::Returned(error, _) => error,
        }
    }
}

/// The number that was given to publications, and what became of them.
pub(super) type Answered = (u64, Result<(), Refusal>);

pub(super) type Answering = Pin<Box<dyn Future<Output = Answered> + Send>>;

/// Hands publications to the connection, in order, before it returns; the future it gives ends when the
/// broker has confirmed them all, or one is refused.
pub(super) async fn begin(
    channel: &Channel,
    number: u64,
    publications: Vec<Publication>,
) -> Answering {
    let publications = publications.into_iter();
    let all = try_join_all(publications.map(|publication| publish(channel.clone(), publication)));
    let mut answering: Answering = Box::pin(async move { (number, all.await.map(|_| ())) });
    match futures_util::poll!(&mut answering) {
        Poll::Ready(answered) => Box::pin(std::future::ready(answered)),
        Poll::Pending => answering,
    }
}

async fn publish(channel: Channel, publication: Publication) -> Result<(), Refusal> {
    let lost = |source| Refusal::Lost(BrokerError::during("publishing")(source));
    let Publication { exchange, key, properties, body, mandatory } = publication;
    let options = BasicPublishOptions { mandatory, immediate: false };
    let refused = |said: &str| BrokerError::Topology {
        object: format!("exchange `{exchange}`"),
        said: said.to_owned(),
        advice: "bind a queue to it that takes every routing key and has room",
    };
    let confirm = channel
        .basic_publish(exchange.clone(), key, options, &body, properties)
        .await
        .map_err(lost)?;
    match confirm.await.map_err(lost)? {
        Confirmation::Ack(None) | Confirmation::NotRequested => Ok(()),
        Confirmation::Nack(_) => Err(Refusal::Now(refused("the broker could not take a message"))),
        Confirmation::Ack(Some(returned)) => {
            let said = returned.reply_text.to_string();
            let delivery = returned.delivery;
            let returned = Publication {
                exchange: delivery.exchange,
                key: delivery.routing_key,
                properties: delivery.properties,
                body: delivery.data.into(),
                mandatory: true,
            };
            Err(Refusal::Returned(refused(&said), Box::new(returned)))
        }
    }
}
