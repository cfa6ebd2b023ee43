//! `Routes`: how this bridge and the others find each other's devices.
//!
//! Each bridge has a queue of its own, the inbox, and exchanges that lead there. A device that is connected to it is
//! bound: the exchange that all share routes what is published with its address to that bridge. Everything that
//! binds, claims and passes on goes through one channel, because the broker takes a channel's operations
//! in their order. After any trouble each device is claimed anew; what is bound already stays so.

mod followed;
mod inbox;
mod leaving;
mod table;
mod takeover;
mod urgent;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::inbox::Inbox;
pub(crate) use self::leaving::Leaving;
use self::table::Table;
use self::urgent::Line;
use super::connection::{self as link, Link};
use super::intake::{Intake, Queue};
use super::nodes::Nodes;
use super::retry::Retry;
use super::stream::Courier;
use super::topology::Gate;
use super::{BrokerError, client, topology};
use crate::cluster::Cluster;

/// How often what nothing tells of is looked at: whether an answer is overdue, and at the end whether the
/// inbox is empty.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Binds this bridge's devices, and passes on what is for those of others.
#[derive(Debug)]
pub(crate) struct Routes {
    intake: Arc<Intake>,
    nodes: Arc<Nodes>,
    cluster: Arc<Cluster>,
    /// Whether the inbox was missing, and its declaration has not been answered yet.
    inbox_is_unborn: AtomicBool,
    /// The gate of this process.
    gate: Mutex<Option<Gate>>,
    /// Whether something may be in the inbox that came by the bindings of an earlier process, which lead nowhere now.
    hears_old: AtomicBool,
}

impl Routes {
    pub(crate) fn new(intake: &Arc<Intake>, nodes: &Arc<Nodes>, cluster: Arc<Cluster>) -> Self {
        let (intake, nodes) = (Arc::clone(intake), Arc::clone(nodes));
        let (inbox_is_unborn, hears_old) = (AtomicBool::new(false), AtomicBool::new(true));
        Self { intake, nodes, cluster, inbox_is_unborn, gate: Mutex::default(), hears_old }
    }

    /// Routes until it is time for `leaving`; then hands on what is in the inbox, and leaves
    /// it: a classic queue is deleted, a quorum queue stays, empty, and vanishes when nobody has used it for long.
    /// Nothing else of this bridge stays at the broker. In a hurry what is left in the inbox is left to whoever takes
    /// over from this bridge. True if that was done, and nothing had to be handed on that may have been written here.
    pub(crate) async fn run(self, leaving: Leaving) -> bool {
        let mut retry = Retry::of("routes");
        loop {
            match self.attempt(&leaving).await {
                Ok(took_all) => return took_all,
                Err(error) if retry.wait(&error, &leaving.begin).await => {}
                Err(_) => return false,
            }
        }
    }

    async fn attempt(&self, leaving: &Leaving) -> Result<bool, BrokerError> {
        let opening = self.nodes.open(&self.cluster.bridge, "routes");
        let link = tokio::select! {
            () = leaving.begin.cancelled() => return Ok(true),
            link = opening => link?,
        };
        let result = tokio::select! {
            result = self.route(&link, leaving) => result,
            error = link.lost() => Err(error),
        };
        self.cluster.set_routing(false);
        self.intake.router.drop_unwanted();
        link.end(result).await
    }

    async fn open_gate(&self, link: &Link) -> Result<Gate, BrokerError> {
        let of_process = || self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let last = of_process().clone();
        let (settings, bridge) = (&self.intake.settings, &*self.cluster.bridge);
        let (gate, goes_on) = topology::open_gate(link, settings, bridge, last.as_ref()).await?;
        if goes_on {
            self.hears_old.store(false, Ordering::Relaxed);
        }
        *of_process() = Some(gate.clone());
        Ok(gate)
    }

    async fn route(&self, link: &Link, leaving: &Leaving) -> Result<bool, BrokerError> {
        let (settings, bridge) = (&self.intake.settings, &*self.cluster.bridge);
        topology::prepare_routes(link, settings, bridge).await?;
        let line = Line::open(self, link).await?;
        topology::prepare_inbox(link, settings, bridge, &self.inbox_is_unborn).await?;
        let courier =
            Courier::open(&settings.mq, link.host(), &link::name(bridge, "routes publisher"))
                .await?;
        let name = link::name(bridge, "inbox");
        let (intake, queue) = (&self.intake, Queue::Inbox);
        let inbox = Inbox { link, intake, of: bridge, queue, reader: &name };
        let stream = inbox.open().await?;
        let events = client::follow(link, settings, &followed::KEYS).await?;
        self.intake.devices().parking.all_left_to_others();
        let gate = self.open_gate(link).await?;
        let mut table = Table::new(&self.intake, &self.cluster, &gate, courier, &self.hears_old);
        table.begin()?;
        self.cluster.was_away();
        self.cluster.set_routing(true);
        for session in self.intake.devices().registry.all() {
            self.cluster.touch(session.address());
        }
        info!(inbox = settings.mq.inbox(bridge), "taking commands from other bridges");
        let enough = CancellationToken::new();
        let consuming = inbox.take_all(stream, &gate, &enough, &leaving.hurry);
        let work = async {
            tokio::pin!(consuming);
            let mut took_all = None;
            let mut chores =
                FuturesUnordered::from_iter([takeover::clear_up(link, settings, bridge).boxed()]);
            let mut look = interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                table.work()?;
                if let Some(took_all) = took_all
                    && (!leaving.hurry.is_cancelled() || table.is_done())
                {
                    break Ok(took_all);
                }
                tokio::select! {
                    biased;
                    consumed = &mut consuming, if took_all.is_none() => took_all = Some(consumed?),
                    said = table.courier.next() => table.said(said?)?,
                    Some(()) = chores.next(), if !chores.is_empty() => {}
                    () = self.cluster.until_work(), if table.courier.has_room() => {}
                    _ = look.tick() => {
                        table.look()?;
                        if let Some(gone) = self.cluster.take_gone(settings.process.cluster_gone_after) {
                            chores.push(takeover::take_over(self, link, gone).boxed());
                        }
                        leaving.look(self, link, &gate, &mut table, &enough).await?;
                    }
                }
                // A storm of connects must not keep the other tasks of this thread waiting.
                tokio::task::coop::consume_budget().await;
            }
        };
        let took_all = tokio::select! {
            worked = work => worked?,
            error = followed::hear(events, &settings.mq.route_exchange, self.intake.devices(), &self.cluster) => return Err(error),
            error = line.run() => return Err(error),
        };
        self.cluster.set_routing(false);
        // Shards with bindings are deleted by whoever finds that this bridge is gone: that takes long.
        if table.unbinds_each() {
            gate.delete_shards(link).await?;
        }
        table.close().await?;
        Ok(took_all)
    }
}
