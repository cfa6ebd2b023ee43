//! `Publication`: one message on its way to the broker, until that has confirmed it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::try_join_all;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};

use super::BrokerError;

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

/// Why a publication has to be repeated.
pub(super) struct Refusal {
    pub(super) error: BrokerError,
    /// A message the broker gave back because no queue takes it. lapin may hand it out with the
    /// confirm of another publication, so it is published again by itself.
    pub(super) returned: Option<Publication>,
}

pub(super) type Confirming = Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>;

/// Hands publications to the connection, in order, before it returns; the future it gives ends when the
/// broker has confirmed them all.
pub(super) async fn begin(channel: &Channel, publications: &[Publication]) -> Confirming {
    let publications = publications.iter().cloned();
    let all = try_join_all(publications.map(|publication| publish(channel.clone(), publication)));
    let mut confirming: Confirming = Box::pin(async { all.await.map(|_| ()) });
    match futures_util::poll!(&mut confirming) {
        Poll::Ready(result) => Box::pin(std::future::ready(result)),
        Poll::Pending => confirming,
    }
}

async fn publish(channel: Channel, publication: Publication) -> Result<(), Refusal> {
    let lost =
        |source| Refusal { error: BrokerError::during("publishing")(source), returned: None };
    let Publication { exchange, key, properties, body, mandatory } = publication;
    let options = BasicPublishOptions { mandatory, immediate: false };
    let refused = |said: &str, returned| Refusal {
        error: BrokerError::Topology {
            object: format!("exchange `{exchange}`"),
            said: said.to_owned(),
            advice: "bind a queue to it that takes every routing key and has room",
        },
        returned,
    };
    let confirm = channel
        .basic_publish(exchange.clone(), key, options, &body, properties)
        .await
        .map_err(lost)?;
    match confirm.await.map_err(lost)? {
        Confirmation::Ack(None) | Confirmation::NotRequested => Ok(()),
        Confirmation::Nack(_) => Err(refused("the broker could not take a message", None)),
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
            Err(refused(&said, Some(returned)))
        }
    }
}
