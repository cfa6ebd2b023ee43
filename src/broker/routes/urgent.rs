//! `Line`: what bridges say to each other past all that waits in their inboxes: to the queues that say that they are
//! there.
//!
//! A busy broker takes seconds for what goes through an inbox, behind commands, twice if there is an answer. A bridge
//! that ends does not have them.

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Consumer};

use super::super::connection::Link;
use super::super::{BrokerError, inbox};
use super::Routes;
use crate::cluster::{Urgent, control};

/// Where bridges speak to each other at once.
pub(super) struct Line<'a> {
    routes: &'a Routes,
    channel: Channel,
    heard: Consumer,
}

impl<'a> Line<'a> {
    /// Begins to hear, on the connection that has this bridge's queue.
    pub(super) async fn open(routes: &'a Routes, link: &Link) -> Result<Self, BrokerError> {
        let queue = routes.intake.settings.mq.alive_queue(&routes.cluster.bridge);
        let options =
            BasicConsumeOptions { no_local: false, no_ack: true, exclusive: true, nowait: false };
        let channel = link.confirming_channel().await?;
        let consuming =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let heard = consuming.await.map_err(BrokerError::during("listening to other bridges"))?;
        Ok(Self { routes, channel, heard })
    }

    /// Hears and speaks until the connection ends.
    pub(super) async fn run(self) -> BrokerError {
        let Self { routes, channel, heard } = self;
        let speaking = async {
            loop {
                if let Err(error) = say_next(routes, &channel).await {
                    break error;
                }
            }
        };
        tokio::select! {
            error = hear(routes, heard) => error,
            error = speaking => error,
        }
    }
}

async fn hear(routes: &Routes, mut heard: Consumer) -> BrokerError {
    while let Some(message) = heard.next().await {
        match message {
            Ok(message) => inbox::hear(routes.intake.devices(), &routes.cluster, &message.data),
            Err(error) => return BrokerError::during("listening to other bridges")(error),
        }
        // lapin's stream knows nothing of tokio's budget.
        tokio::task::coop::consume_budget().await;
    }
    BrokerError::Cancelled { queue: routes.intake.settings.mq.alive_queue(&routes.cluster.bridge) }
}

/// Says what is to be said next, one at a time: so lapin cannot take what came back for another. What
/// cannot be said is said again, on another connection too.
async fn say_next(routes: &Routes, channel: &Channel) -> Result<(), BrokerError> {
    let Urgent { to, control, .. } = routes.cluster.urgent.next().await;
    let queue = routes.intake.settings.mq.alive_queue(&to);
    let properties = BasicProperties::default().with_type(control::TYPE.into());
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let body = control.body();
    let saying = async {
        channel.basic_publish("".into(), queue.into(), options, &body, properties).await?.await
    };
    let said = saying.await.map_err(BrokerError::during("speaking to another bridge"))?;
    routes.cluster.urgent.done(said == Confirmation::Ack(None));
    Ok(())
}
