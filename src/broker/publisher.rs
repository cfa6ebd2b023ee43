//! `Publisher`: the one task that publishes: owed jobs, presence, uplink, and that the bridge is there.
//!
//! Every publication is confirmed by the broker. Events keep their order, receipts and undelivered commands
//! need none: so there are two lanes, and neither waits for the other. What is not confirmed when the connection
//! is lost is published again on the next, in the same order. What is to be parked has a task and a
//! connection of its own, the parker: there are many queues for it, and one that is in trouble concerns only them.

mod item;
mod lane;

use std::fmt::Display;
use std::sync::Arc;

use futures_util::StreamExt;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Event};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::item::Item;
use self::lane::Lane;
use super::connection::Link;
use super::message::PERSISTENT;
use super::nodes::Nodes;
use super::publication::{Publication, Refusal};
use super::retry::Retry;
use super::{BrokerError, Jobs, heartbeat, topology};
use crate::device::Devices;
use crate::feed::Outlet;
use crate::job::{Job, Undelivered};
use crate::metrics;
use crate::presence::Presence;
use crate::run::Run;
use crate::settings::Settings;

/// Publishes what the bridge has to say.
pub(crate) struct Publisher {
    settings: Arc<Settings>,
    nodes: Arc<Nodes>,
    run: Run,
    jobs: Arc<Jobs<Job>>,
    presence: Arc<Presence>,
    devices: Arc<Devices>,
    outlet: Arc<Outlet>,
    work: Arc<Notify>,
    /// Receipts, undelivered commands, and commands from elsewhere.
    letters: Lane,
    /// What is told of devices and of the bridge.
    events: Lane,
    /// Which of those that have letters, and which of those that have events, had its turn last.
    letters_turn: usize,
    events_turn: usize,
    /// Whether it was said, or is about to be, that the bridge ends.
    farewell: bool,
}

impl Publisher {
    /// A publisher of jobs, of presence and of what `devices` send; what tells of jobs tells it of them.
    pub(crate) fn new(
        settings: Arc<Settings>,
        nodes: Arc<Nodes>,
        run: Run,
        jobs: Arc<Jobs<Job>>,
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
            letters: Lane::without_order(),
            events: Lane::in_order(),
            letters_turn: 0,
            events_turn: 0,
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
            prepared = prepare(&link, &self.settings) => prepared,
            error = link.lost() => Err(error),
        };
        let result = match prepared {
            Ok(channel) => {
                self.devices.metrics.broker_up(metrics::Link::Publisher, true);
                info!(host = %link.host(), "publishing");
                self.publish(&link, &channel, finish).await
            }
            Err(error) => Err(error),
        };
        self.devices.metrics.broker_up(metrics::Link::Publisher, false);
        self.devices.metrics.broker_blocked(false);
        link.end(result).await
    }

    /// Publishes on one channel until `finish` and all is confirmed, or the channel is lost.
    async fn publish(
        &mut self,
        link: &Link,
        channel: &Channel,
        finish: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let mut events = link.events();
        let work = Arc::clone(&self.work);
        let mut beat = heartbeat::every(self.settings.process.bridge_heartbeat);
        let refusal = loop {
            self.say_all(channel).await;
            if finish.is_cancelled() && self.is_idle() {
                if self.farewell {
                    return Ok(());
                }
                // Behind the last presence event.
                self.farewell = true;
                let farewell = self.heartbeat(false);
                self.events.say_last(farewell);
                continue;
            }
            let answered = tokio::select! {
                biased;
                answered = self.letters.answered() => answered,
                answered = self.events.answered() => answered,
                Some(event) = events.next() => self.event(event).map_err(Refusal::Lost),
                _ = beat.tick(), if self.events.is_clear() && !self.farewell => {
                    let item = self.heartbeat(true);
                    self.events.say(channel, item).await;
                    Ok(())
                }
                () = work.notified(), if self.letters.has_room() || self.events.has_room() => Ok(()),
                () = finish.cancelled(), if !finish.is_cancelled() => Ok(()),
            };
            if let Err(refusal) = answered {
                break refusal;
            }
            self.take_confirmed();
            // lapin's futures know nothing of tokio's budget.
            tokio::task::coop::consume_budget().await;
        };
        let (error, returned) = match refusal {
            Refusal::Returned(error, publication) => (error, Some(*publication)),
            Refusal::Now(error) | Refusal::Lost(error) => (error, None),
        };
        self.letters.lost(returned);
        self.events.lost(None);
        Err(error)
    }

    /// Says what there is to say, as far as there is room.
    async fn say_all(&mut self, channel: &Channel) {
        loop {
            let letter = self.letters.has_room().then(|| self.next_letter()).flatten();
            let event = self.events.has_room().then(|| self.next_event()).flatten();
            if letter.is_none() && event.is_none() {
                return;
            }
            if let Some(letter) = letter {
                self.letters.say(channel, letter).await;
            }
            if let Some(event) = event {
                self.events.say(channel, event).await;
            }
        }
    }

    /// Draws what follows from what the broker has by now.
    fn take_confirmed(&mut self) {
        for item in self.letters.confirmed.drain(..).chain(self.events.confirmed.drain(..)) {
            if let Some(address) = item.presence {
                self.presence.confirmed(&address);
            }
            if item.undelivered {
                self.devices.metrics.undelivered();
            }
            if let Some(settlement) = item.settlement {
                settlement.settle();
            }
            if let Some(told) = item.told {
                // Nobody waits any more if the bridge is shutting down.
                told.send(()).ok();
            }
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

    /// The next letter: first one that was sent in vain, then jobs and commands in turn, so that neither waits for
    /// ever behind the other.
    fn next_letter(&mut self) -> Option<Item> {
        let again = self.letters.next_again();
        again.or_else(|| {
            (0..2).find_map(|_| {
                self.letters_turn = (self.letters_turn + 1) % 2;
                match self.letters_turn {
                    0 => self.jobs.next().map(|job| self.job(job)),
                    _ => self.outlet.next().map(|(body, told)| self.command_item(body, told)),
                }
            })
        })
    }

    /// The same of events: presence, outcomes and uplink in turn.
    fn next_event(&mut self) -> Option<Item> {
        let again = self.events.next_again();
        again.or_else(|| {
            (0..3).find_map(|_| {
                self.events_turn = (self.events_turn + 1) % 3;
                if self.events_turn == 0 {
                    let (address, json) = self.presence.next()?;
                    let item = self.event_item("presence", &address, json);
                    return Some(Item { presence: Some(address), ..item });
                }
                let backlog = match self.events_turn {
                    1 => self.devices.reporter.outcomes.as_ref()?.next(),
                    _ => self.devices.uplink.as_ref()?.next(),
                };
                backlog.map(|(kind, address, json)| self.event_item(kind, address, json))
            })
        })
    }

    fn is_idle(&self) -> bool {
        self.letters.is_idle()
            && self.events.is_idle()
            && self.jobs.is_empty()
            && self.presence.is_empty()
            && self.devices.reporter.outcomes.as_ref().is_none_or(|outcomes| outcomes.is_empty())
            && self.devices.uplink.as_ref().is_none_or(|uplink| uplink.is_empty())
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
        Item { told: Some(told), ..Item::of(publication) }
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
        Item::of(publication)
    }

    fn job(&self, job: Job) -> Item {
        let Job { message, settlement, undelivered, receipt } = job;
        let mut item = Item { settlement, ..Item::default() };
        // The message is safe before its sender hears of it.
        if let Some(Undelivered { outcome, reason, member }) = undelivered {
            item.undelivered = true;
            item.publications.push(Publication {
                exchange: self.settings.mq.undelivered_exchange.as_str().into(),
                key: (&*message.routing_key).into(),
                properties: message.undelivered_properties(outcome, &reason, member.as_ref()),
                body: message.body.as_slice().into(),
                mandatory: true,
            });
        }
        item.publications.extend(Publication::receipt(&message, receipt));
        item
    }
}

/// A channel that confirms, once what is published to is there.
async fn prepare(link: &Link, settings: &Settings) -> Result<Channel, BrokerError> {
    topology::prepare_publisher(link, settings).await?;
    link.confirming_channel().await
}
