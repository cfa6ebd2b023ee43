//! `Routes`: how this bridge and the others find each other's devices.
//!
//! Each bridge has an exchange and a queue of its own, the inbox. A device that is connected to it is bound:
//! the exchange that all share routes what is published with its address to that bridge. Everything that
//! binds, claims and passes on goes through one channel, because the broker takes a channel's operations
//! in their order. After any trouble all of it is made anew, beginning with the exchange.

mod followed;
mod table;
mod takeover;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::table::Table;
use super::connection::{self as link, Link};
use super::hand::Hand;
use super::intake::Intake;
use super::nodes::Nodes;
use super::retry::Retry;
use super::stream::{Courier, Source, Stream};
use super::{BrokerError, client, topology};
use crate::cluster::Cluster;

/// How often what nothing tells of is looked at: whether an answer is overdue, and at the end whether the
/// inbox is empty.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Binds this bridge's devices, and passes on what is for those of others.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) intake: Arc<Intake>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) cluster: Arc<Cluster>,
}

impl Routes {
    /// Routes until `stop`, when no device is connected any more; then hands on what is in the inbox, and leaves
    /// nothing of this bridge at the broker. True if that was done.
    pub(crate) async fn run(self, stop: CancellationToken) -> bool {
        let mut retry = Retry::of("routes");
        while let Err(error) = self.attempt(&stop).await {
            if !retry.wait(&error, &stop).await {
                return false;
            }
        }
        true
    }

    async fn attempt(&self, stop: &CancellationToken) -> Result<(), BrokerError> {
        let opening = self.nodes.open(&self.cluster.bridge, "routes");
        let link = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            link = opening => link?,
        };
        let result = tokio::select! {
            result = self.route(&link, stop) => result,
            error = link.lost() => Err(error),
        };
        self.cluster.set_routing(false);
        self.intake.devices().parking.found_out_by_fetching();
        self.intake.router.drop_unwanted();
        link.end(result).await
    }

    async fn route(&self, link: &Link, stop: &CancellationToken) -> Result<(), BrokerError> {
        let (settings, bridge) = (&self.intake.settings, &*self.cluster.bridge);
        topology::prepare_routes(link, settings, bridge).await?;
        let inbox = settings.mq.inbox(bridge);
        let courier =
            Courier::open(&settings.mq, link.host(), &link::name(bridge, "routes publisher"))
                .await?;
        let source = Source { queue: inbox.clone(), exclusive: true };
        let stream =
            Stream::open(&settings.mq, link.host(), &link::name(bridge, "inbox"), source).await?;
        let events = client::follow(link, settings, &followed::KEYS).await?;
        self.intake.devices().parking.all_left_to_others();
        topology::open_inbox(link, settings, bridge).await?;
        let mut table = Table::new(&self.intake, &self.cluster, courier);
        self.cluster.was_away();
        self.cluster.set_routing(true);
        for session in self.intake.devices().registry.all() {
            self.cluster.touch(session.address());
        }
        info!(inbox, "taking commands from other bridges");
        let empty = CancellationToken::new();
        let consuming = async {
            let hand = Hand::new(&self.intake, stream, true).consume(&empty).await?;
            hand.finish().await
        };
        let work = async {
            tokio::pin!(consuming);
            let mut takeovers = FuturesUnordered::new();
            let mut look = interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                table.work()?;
                tokio::select! {
                    biased;
                    consumed = &mut consuming => break consumed,
                    said = table.courier.next() => table.said(said?)?,
                    Some(()) = takeovers.next(), if !takeovers.is_empty() => {}
                    () = self.cluster.until_work(), if table.courier.has_room() => {}
                    _ = look.tick() => {
                        table.look()?;
                        if let Some(gone) = self.cluster.take_gone(settings.process.cluster_gone_after) {
                            takeovers.push(takeover::take_over(self, gone));
                        }
                        if stop.is_cancelled() && table.is_done() && !empty.is_cancelled() {
                            let depth = topology::inbox_depth(link, settings, bridge).await?;
                            if depth.is_none_or(|depth| depth == 0) {
                                empty.cancel();
                            }
                        }
                    }
                }
                // A storm of connects must not keep the other tasks of this thread waiting.
                tokio::task::coop::consume_budget().await;
            }
        };
        tokio::select! {
            worked = work => worked?,
            error = followed::hear(events, &settings.mq.route_exchange, self.intake.devices(), &self.cluster) => return Err(error),
        }
        self.cluster.set_routing(false);
        topology::close_inbox(link, settings, bridge).await?;
        topology::delete_inbox(link, settings, bridge).await?;
        table.close().await
    }
}
