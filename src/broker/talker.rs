//! `Talker`: what devices say to each other, from bridge to bridge: through an exchange that gives each message to all.
//!
//! It is for those who listen now, so nothing of it is kept, said twice or waited for. All of it is on a connection of its
//! own, so that what devices have to say to each other is before no command.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Consumer};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::connection::Link;
use super::nodes::Nodes;
use super::{BrokerError, client, retry, topology};
use crate::cluster::{Cluster, talk};
use crate::device::Devices;
use crate::settings::Settings;

/// Messages that wait at the broker for a bridge: of more, the oldest are dropped. Some seconds of a busy cluster.
const UNHEARD_MAX: i32 = 10_000;
/// Messages that are on their way to the broker at a time: enough for it to have always one more at hand.
const UNCONFIRMED_MAX: usize = 64;

/// Says at other bridges what devices say here, and the other way round.
#[derive(Debug)]
pub(crate) struct Talker {
    settings: Arc<Settings>,
    nodes: Arc<Nodes>,
    devices: Arc<Devices>,
    cluster: Arc<Cluster>,
}

impl Talker {
    pub(crate) fn new(
        settings: &Arc<Settings>,
        nodes: &Arc<Nodes>,
        devices: &Arc<Devices>,
        cluster: &Arc<Cluster>,
    ) -> Self {
        let (settings, nodes) = (Arc::clone(settings), Arc::clone(nodes));
        let (devices, cluster) = (Arc::clone(devices), Arc::clone(cluster));
        Self { settings, nodes, devices, cluster }
    }

    /// Speaks and hears until `finish`, from when the first device has connected that can.
    pub(crate) async fn run(self, finish: CancellationToken) {
        let talking = async {
            self.cluster.talk.until_wanted().await;
            retry::for_ever("talk", || self.attempt()).await
        };
        finish.run_until_cancelled(talking).await;
    }

    async fn attempt(&self) -> Result<Infallible, BrokerError> {
        let link = self.nodes.open(&self.cluster.bridge, "talk").await?;
        let result = tokio::select! {
            result = self.talk(&link) => result,
            error = link.lost() => Err(error),
        };
        self.cluster.talk.set_open(false);
        link.end(result).await
    }

    async fn talk(&self, link: &Link) -> Result<Infallible, BrokerError> {
        topology::prepare_talk(link, &self.settings).await?;
        let heard = self.listen(&link.channel().await?).await?;
        let channel = link.confirming_channel().await?;
        self.cluster.talk.set_open(true);
        info!("devices of this bridge and of the others hear each other");
        tokio::select! {
            ended = self.hear(heard) => ended,
            ended = self.speak(&channel) => ended,
        }
    }

    async fn listen(&self, channel: &Channel) -> Result<Consumer, BrokerError> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(UNHEARD_MAX));
        let queue = client::private_queue(channel, arguments).await?;
        let exchange = self.settings.mq.talk_exchange();
        let (options, none) = (QueueBindOptions { nowait: false }, FieldTable::default());
        let bound =
            channel.queue_bind(queue.clone(), exchange.into(), "".into(), options, none).await;
        bound.map_err(BrokerError::during("listening to the devices of other bridges"))?;
        let options =
            BasicConsumeOptions { no_local: false, no_ack: true, exclusive: true, nowait: false };
        let consuming =
            channel.basic_consume(queue, "".into(), options, FieldTable::default()).await;
        consuming.map_err(BrokerError::during("listening to the devices of other bridges"))
    }

    async fn hear(&self, mut heard: Consumer) -> Result<Infallible, BrokerError> {
        while let Some(message) = heard.next().await {
            let message = message
                .map_err(BrokerError::during("listening to the devices of other bridges"))?;
            match talk::read(&message.data, &self.cluster.bridge) {
                Ok(Some((audience, payload))) => self.devices.hear(audience, payload),
                Ok(None) => {}
                Err(reason) => warn!(
                    %reason,
                    "what a device is to have said at another bridge cannot be read; it is dropped."
                ),
            }
            // lapin's stream knows nothing of tokio's budget.
            tokio::task::coop::consume_budget().await;
        }
        Err(BrokerError::Cancelled { queue: "of what devices say".to_owned() })
    }

    async fn speak(&self, channel: &Channel) -> Result<Infallible, BrokerError> {
        let failed =
            |source| BrokerError::during("speaking to the devices of other bridges")(source);
        let options = BasicPublishOptions { mandatory: false, immediate: false };
        let exchange = self.settings.mq.talk_exchange();
        loop {
            let mut confirmations = Vec::new();
            for body in self.cluster.talk.next(UNCONFIRMED_MAX).await {
                let (to, properties) = (exchange.as_str().into(), BasicProperties::default());
                let said = channel.basic_publish(to, "".into(), options, &body, properties).await;
                confirmations.push(said.map_err(failed)?);
            }
            // Only so that lapin does not keep more than the broker takes.
            try_join_all(confirmations).await.map_err(failed)?;
        }
    }
}
