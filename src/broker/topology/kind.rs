//! Of what kind a queue is that exists. The broker tells only by refusing to declare it as another one, and names an
//! argument that does not fit; which one, if several do not, is up to it.

use super::super::BrokerError;
use super::super::connection::Link;
use super::{PRECONDITION_FAILED, code, declare_queue, refusal, says};
use crate::settings::QueueType;

/// How a queue keeps what it has delivered and is not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::broker) enum Kind {
    Classic,
    /// A quorum queue and nothing more: not one with a single active consumer.
    PlainQuorum,
    /// A quorum queue that is more than that, or one of which the broker does not say what it is.
    PerhapsQuorum,
}

impl Kind {
    /// That of a queue which this bridge declares with nothing but its type.
    pub(in crate::broker) fn declared(as_type: QueueType) -> Self {
        match as_type {
            QueueType::Classic => Self::Classic,
            QueueType::Quorum => Self::PlainQuorum,
        }
    }
}

/// Of what kind a queue is that probably has this type.
pub(in crate::broker) async fn kind_of(
    link: &Link,
    name: &str,
    probably: QueueType,
) -> Result<Kind, BrokerError> {
    let other = match probably {
        QueueType::Classic => QueueType::Quorum,
        QueueType::Quorum => QueueType::Classic,
    };
    for as_type in [probably, other] {
        match declare_queue(&link.channel().await?, name, as_type).await {
            Ok(()) => return Ok(Kind::declared(as_type)),
            Err(error) if is_of_another_type(&error) => {}
            Err(error) if code(&error).is_some() => break,
            Err(error) => return Err(BrokerError::during("looking at the command queue")(error)),
        }
    }
    Ok(Kind::PerhapsQuorum)
}

/// An operator who names the queue type means it: an existing queue of another one is an error. A refusal for other
/// arguments is no matter.
pub(super) async fn hold_to_type(
    link: &Link,
    name: &str,
    kind: QueueType,
) -> Result<(), BrokerError> {
    match declare_queue(&link.channel().await?, name, kind).await {
        Err(error) if is_of_another_type(&error) => {
            let advice = "set MQ_QUEUE_TYPE to the type the queue has, or delete the queue and let the bridge declare it again";
            Err(refusal(format!("queue `{name}`"), &error, advice))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_of_another_type(error: &lapin::Error) -> bool {
    says(error, PRECONDITION_FAILED, "x-queue-type")
}
