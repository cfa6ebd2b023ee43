//! `Publisher`: the one task that publishes: owed jobs, presence, uplink, and that the bridge is there.
//!
//! Every publication is confirmed by the broker, up to `CONFIRM_WINDOW` of them at a time. What is
//! not confirmed when the connection is lost is published again on the next, in the same order.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Event};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::connection::Link;
use super::message::PERSISTENT;
use super::nodes::Nodes;
use super::parked_queues::ParkedQueues;
use super::publication::{Publication, Refusal, begin};
use super::retry::Retry;
use super::{BrokerError, Jobs, heartbeat, topology};
use crate::clock::Moment;
use crate::command::Address;
use crate::device::Devices;
use crate::feed::Outlet;
use crate::metrics;
use crate::order::Facts;
use crate::parking::Place;
use crate::presence::Presence;
use crate::report::{Copy, Job};
use crate::run::Run;
use crate::settings::Settings;
use crate::settlement::Settlement;

/// Publications that may be on their way unconfirmed. A window of 200 reached twice the rate of a
/// smaller one on a local broker; more only makes the repetition after a lost connection longer.
const CONFIRM_WINDOW: usize = 256;

/// Publishes what the bridge has to say.
#[derive(Debug)]
pub(crate) struct Publisher {
    settings: Arc<Settings>,
    nodes: Arc<Nodes>,
    run: Run,
    jobs: Arc<Jobs>,
    presence: Arc<Presence>,
    devices: Arc<Devices>,
    outlet: Arc<Outlet>,
    work: Arc<Notify>,
    /// Published on a connection that was lost before the broker confirmed it.
    again: VecDeque<Item>,
    /// Which of jobs, presence, commands, outcomes and uplink had its turn last.
    turn: usize,
    /// Whether it was said, or is about to be, that the bridge ends.
    farewell: bool,
}

/// One thing to say: what is published together, and what may be settled then.
#[derive(Debug, Default)]
struct Item {
    publications: Vec<Publication>,
    /// What may be settled then.
    settlement: Option<Settlement>,
    /// Whether the message itself is among them, on its way to the undelivered exchange.
    undelivered: bool,
    /// The command, if its message is among them on its way to its device's own queue.
    parked: Option<Place>,
    /// Whose presence it tells.
    presence: Option<Address>,
    /// Who waits for it.
    told: Option<oneshot::Sender<()>>,
    /// Whether it means nothing later, and is not said again.
    fleeting: bool,
}

impl Item {
    /// Whether it is owed still: the broker delivers again what a dead channel held.
    fn is_owed(&self) -> bool {
        self.settlement.as_ref().is_none_or(Settlement::is_live)
    }
}

impl Publisher {
    /// A publisher of jobs, of presence and of what `devices` send; what tells of jobs tells it of them.
    pub(crate) fn new(
        settings: Arc<Settings>,
        nodes: Arc<Nodes>,
        run: Run,
        jobs: Arc<Jobs>,
        presence: Arc<Presence>,
        devices: Arc<Devices>,
        outlet: Arc<Outlet>,
    ) -> Self {
        Self {
            settings,
            nodes,
            run,
            work: jobs.work(),
            jobs,
            presence,
            devices,
            outlet,
            again: VecDeque::new(),
            turn: 0,
            farewell: false,
        }
    }

    /// Publishes until `finish`, and then until all is confirmed. True if it was.
    pub(crate) async fn run(mut self, finish: CancellationToken) -> bool {
        // Not stopped between attempts: what is owed at the end is worth trying for as long as the
        // caller waits.
        let never = CancellationToken::new();
        let mut retry = Retry::new(metrics::Link::Publisher);
        while let Err(error) = self.attempt(&finish).await {
            retry.wait(&error, &never).await;
        }
        self.is_idle()
    }

    async fn attempt(&mut self, finish: &CancellationToken) -> Result<(), BrokerError> {
        let link = self.nodes.open(&self.run.bridge, "publisher").await?;
        let prepared = tokio::select! {
            prepared = self.prepare(&link) => prepared,
            error = link.lost() => Err(error),
        };
        let result = match prepared {
            Ok(channel) => {
                let parking = Arc::clone(&self.devices.parking);
                let mut queues = ParkedQueues::new(&link, Arc::clone(&self.settings), parking);
                self.devices.metrics.broker_up(metrics::Link::Publisher, true);
                info!(host = %link.host(), "publishing");
                self.publish(&link, &channel, &mut queues, finish).await
            }
            Err(error) => Err(error),
        };
        self.devices.metrics.broker_up(metrics::Link::Publisher, false);
        self.devices.metrics.broker_blocked(false);
        link.end(result).await
    }

    /// A channel that confirms, once what is published to is there.
    async fn prepare(&self, link: &Link) -> Result<Channel, BrokerError> {
        topology::prepare_publisher(link, &self.settings).await?;
        link.confirming_channel().await
    }

    /// Publishes on one channel until `finish` and all is confirmed, or the channel is lost.
    async fn publish(
        &mut self,
        link: &Link,
        channel: &Channel,
        queues: &mut ParkedQueues<'_>,
        finish: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let mut events = link.events();
        let mut waiting = VecDeque::new();
        let mut confirms = FuturesOrdered::new();
        let work = Arc::clone(&self.work);
        let mut beat = heartbeat::every(self.settings.process.bridge_heartbeat);
        let result = loop {
            let mut begun = Ok(());
            while confirms.len() < CONFIRM_WINDOW
                && begun.is_ok()
                && let Some(item) = self.next()
            {
                if let Some(place) = &item.parked {
                    begun = tokio::select! {
                        begun = queues.ensure(&place.facts().command.address) => begun,
                        error = link.lost() => Err(error),
                    };
                }
                confirms.push_back(begin(channel, &item.publications).await);
                waiting.push_back(item);
            }
            if let Err(error) = begun {
                break Err(error);
            }
            if finish.is_cancelled() && confirms.is_empty() && self.is_idle() {
                if self.farewell {
                    break Ok(());
                }
                // Behind the last presence event.
                self.farewell = true;
                self.again.push_back(self.heartbeat(false));
                continue;
            }
            tokio::select! {
                biased;
                Some(confirmed) = confirms.next(), if !confirms.is_empty() => match confirmed {
                    Ok(()) => self.confirmed(waiting.pop_front()),
                    Err(Refusal { error, returned }) => {
                        let lost = |lost: &Publication| !waiting.iter().any(|item: &Item| item.publications.contains(lost));
                        let lost = returned.filter(lost);
                        waiting.extend(lost.map(|publication| Item { publications: vec![publication], ..Item::default() }));
                        break Err(error);
                    }
                },
                Some(event) = events.next() => {
                    if let Err(error) = self.event(event) {
                        break Err(error);
                    }
                }
                _ = beat.tick(), if self.may_beat(confirms.len()) => {
                    let item = self.heartbeat(true);
                    confirms.push_back(begin(channel, &item.publications).await);
                    waiting.push_back(item);
                }
                () = work.notified(), if confirms.len() < CONFIRM_WINDOW => {}
                () = finish.cancelled(), if !finish.is_cancelled() => {}
            }
            // lapin's futures know nothing of tokio's budget.
            tokio::task::coop::consume_budget().await;
        };
        // Oldest first, before what was to be said again already.
        for item in waiting.into_iter().filter(|item| !item.fleeting).rev() {
            self.again.push_front(item);
        }
        result
    }

    fn confirmed(&self, item: Option<Item>) {
        let Some(item) = item else { return };
        let Item { settlement, undelivered, parked, presence, told, .. } = item;
        if let Some(address) = presence {
            self.presence.confirmed(&address);
        }
        if undelivered {
            self.devices.metrics.undelivered();
        }
        if let Some(place) = parked {
            let address = place.facts().command.address.clone();
            let wanted = self.devices.wants_parked(&address);
            place.land(wanted);
            if let Some(cluster) = self.devices.cluster.as_ref().filter(|_| !wanted) {
                // It may have connected to another bridge since it was not connected to any.
                cluster.parked(address);
            }
        }
        if let Some(settlement) = settlement {
            settlement.settle();
        }
        if let Some(told) = told {
            // Nobody waits any more if the bridge is shutting down.
            told.send(()).ok();
        }
    }

    fn event(&self, event: Event) -> Result<(), BrokerError> {
        if let Event::ConnectionBlocked(reason) = event {
            self.devices.metrics.broker_blocked(true);
            warn!(
                reason,
                "the broker takes no publications: events, receipts and undelivered commands wait until its alarm is over."
            );
        } else if matches!(event, Event::ConnectionUnblocked) {
            self.devices.metrics.broker_blocked(false);
            info!("the broker takes publications again");
        } else if let Event::Error(error) = event {
            return Err(BrokerError::during("publishing")(error));
        }
        Ok(())
    }

    /// The next thing to say: first what was said in vain, then jobs, presence, commands, outcomes and uplink in
    /// turn,
    /// so that none of them waits for ever behind another.
    fn next(&mut self) -> Option<Item> {
        while let Some(item) = self.again.pop_front() {
            if item.is_owed() {
                return Some(item);
            }
            if let Some(settlement) = item.settlement {
                settlement.hand_back();
            }
        }
        (0..5).find_map(|_| {
            self.turn = (self.turn + 1) % 5;
            match self.turn {
                0 => self.jobs.next().map(|job| self.job(job)),
                1 => self.presence.next().map(|(address, json)| {
                    let item = self.event_item("presence", &address, json);
                    Item { presence: Some(address), ..item }
                }),
                2 => self.outlet.next().map(|(body, told)| self.command_item(body, told)),
                3 => self
                    .devices
                    .reporter
                    .outcomes
                    .as_ref()?
                    .next()
                    .map(|(kind, address, json)| self.event_item(kind, address, json)),
                _ => self
                    .devices
                    .uplink
                    .as_ref()?
                    .next()
                    .map(|(kind, address, json)| self.event_item(kind, address, json)),
            }
        })
    }

    fn is_idle(&self) -> bool {
        self.again.is_empty()
            && self.jobs.is_empty()
            && self.presence.is_empty()
            && self.devices.reporter.outcomes.as_ref().is_none_or(|outcomes| outcomes.is_empty())
            && self.devices.uplink.as_ref().is_none_or(|uplink| uplink.is_empty())
    }

    /// Whether it may be said now, with so much unconfirmed: not before what was said in vain, of which it would
    /// say that it was said.
    fn may_beat(&self, unconfirmed: usize) -> bool {
        unconfirmed < CONFIRM_WINDOW && self.again.is_empty() && !self.farewell
    }

    /// That the bridge is there, or will be no more.
    fn heartbeat(&self, online: bool) -> Item {
        let process = &self.settings.process;
        let (seq, devices) = (self.presence.seq(), &self.devices.registry);
        let json = heartbeat::json(&self.run, &self.settings, seq, devices, online);
        let mut item = self.event_item("bridge", &self.run.bridge, json);
        if online {
            item.fleeting = true;
            for publication in &mut item.publications {
                publication.properties = heartbeat::properties(process);
            }
        }
        item
    }

    /// A command on its way into the queue from which this bridge consumes.
    fn command_item(&self, body: Vec<u8>, told: oneshot::Sender<()>) -> Item {
        let publication = Publication {
            exchange: ShortString::default(),
            key: self.settings.mq.queue.as_str().into(),
            properties: BasicProperties::default()
                .with_content_type("application/json".into())
                .with_delivery_mode(PERSISTENT),
            body: body.into(),
            mandatory: true,
        };
        Item { publications: vec![publication], told: Some(told), ..Item::default() }
    }

    fn event_item(&self, kind: &str, address: impl Display, json: Vec<u8>) -> Item {
        let publication = Publication {
            exchange: self.settings.mq.events_exchange.as_str().into(),
            key: format!("{kind}.{address}").into(),
            properties: BasicProperties::default()
                .with_content_type("application/json".into())
                .with_delivery_mode(PERSISTENT),
            body: json.into(),
            mandatory: false,
        };
        Item { publications: vec![publication], ..Item::default() }
    }

    fn job(&self, job: Job) -> Item {
        let Job { message, settlement, copy, receipt } = job;
        let mut item = Item { settlement, ..Item::default() };
        // The message is safe before its sender hears of it.
        match copy {
            Some(Copy::Undelivered(outcome, reason, member)) => {
                item.undelivered = true;
                item.publications.push(Publication {
                    exchange: self.settings.mq.undelivered_exchange.as_str().into(),
                    key: (&*message.routing_key).into(),
                    properties: message.undelivered_properties(outcome, &reason, member.as_ref()),
                    body: message.body.as_slice().into(),
                    mandatory: true,
                });
            }
            Some(Copy::Parked(place)) => {
                item.publications.push(self.parked(place.facts()));
                item.parked = Some(place);
            }
            None => {}
        }
        if let (Some(receipt), Some(reply_to)) = (receipt, message.reply_to()) {
            item.publications.push(Publication {
                exchange: ShortString::default(),
                key: reply_to.into(),
                properties: message.receipt_properties(),
                body: receipt.into(),
                // Who asked for it may be gone.
                mandatory: false,
            });
        }
        item
    }

    /// The copy of a message that waits in its device's own queue.
    fn parked(&self, facts: &Facts) -> Publication {
        let now = Moment::now();
        let left = facts.command.expires.saturating_duration_since(now.mono);
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let (reporter, origin) = (&self.devices.reporter, &facts.origin);
        let properties = origin.message.parked_properties(
            now.wall_ms.saturating_add(left_ms),
            left_ms,
            &reporter.parked_by(origin),
            &reporter.id(origin),
            origin.shared.then_some(&facts.command.address),
        );
        Publication {
            exchange: ShortString::default(),
            key: self.settings.mq.parked_queue(&facts.command.address).into(),
            properties,
            body: origin.message.body.as_slice().into(),
            mandatory: true,
        }
    }
}
