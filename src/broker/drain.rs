//! `Drainer`: fetches what was parked for devices that are connected now.
//!
//! It has a connection of its own. What goes wrong with a queue of parked commands may cost it that one, and
//! then no other command waits; and an alarm of the broker, which stops publishers, does not stop it. For
//! each device it takes one message after the other, in order, and acknowledges
//! each once its fate is known; so if the device's connection ends in the midst of it, what is not
//! settled goes back to where it was when the channel closes, and nothing changes its place.

mod first_answers;
mod hand;
mod suspects;

use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::first_answers::FirstAnswers;
use self::hand::Hand;
use self::suspects::Suspects;
use super::connection::Link;
use super::intake::Intake;
use super::nodes::Nodes;
use super::retry::Retry;
use super::{BrokerError, topology};
use crate::command::Address;
use crate::device::Session;
use crate::parking::Work;

/// Devices that are fetched for at a time, on a channel each. The time goes by in round trips, so
/// more would only make more channels.
const DEVICES_AT_A_TIME: usize = 64;

/// Fetches parked commands.
#[derive(Debug)]
pub(crate) struct Drainer {
    intake: Arc<Intake>,
    nodes: Arc<Nodes>,
    bridge: Arc<str>,
    suspects: Suspects,
}

impl Drainer {
    pub(crate) fn new(intake: &Arc<Intake>, nodes: &Arc<Nodes>, bridge: &Arc<str>) -> Self {
        let (intake, nodes, bridge) = (Arc::clone(intake), Arc::clone(nodes), Arc::clone(bridge));
        Self { intake, nodes, bridge, suspects: Suspects::default() }
    }

    /// Fetches until `stop`, and then until what is in hand is settled, or `give_up`. What is not settled then
    /// is in its queue as before.
    pub(crate) async fn run(self, stop: CancellationToken, give_up: CancellationToken) {
        let mut retry = Retry::of("parked");
        while let Err(error) = self.attempt(&stop, &give_up).await {
            if !retry.wait(&error, &stop).await {
                return;
            }
        }
    }

    async fn attempt(
        &self,
        stop: &CancellationToken,
        give_up: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let opening = self.nodes.open(&self.bridge, "parked");
        let link = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            link = opening => link?,
        };
        let result = tokio::select! {
            () = give_up.cancelled() => Ok(()),
            result = self.fetch_for_all(&link, stop) => result,
            error = link.lost() => Err(error),
        };
        self.intake.router.drop_unwanted();
        link.end(result).await
    }

    /// Fetches for as long as the connection lasts, or until `stop`; then ends when what is in hand is
    /// settled and the broker has been told.
    async fn fetch_for_all(
        &self,
        link: &Link,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let intake = &*self.intake;
        look(link, intake).await?;
        let devices = intake.devices();
        let parking = &devices.parking;
        for address in parking.restart() {
            parking.look_again(&address, devices.wants_parked(&address));
        }
        let first = FirstAnswers::new(&self.suspects);
        let fetching = Fetching { link, intake, stop, first };
        let (mut running, mut suspects) = (FuturesUnordered::new(), FuturesUnordered::new());
        loop {
            let has_room = running.len() < DEVICES_AT_A_TIME && !stop.is_cancelled();
            tokio::select! {
                biased;
                Some(done) = running.next(), if !running.is_empty() => done?,
                () = stop.cancelled(), if running.is_empty() => return Ok(()),
                Some(work) = suspects.next(), if has_room && !suspects.is_empty() => {
                    running.push(fetching.work_on(work));
                }
                work = parking.next_work(), if has_room => match self.alone_until(&work) {
                    Some(until) => suspects.push(sleep_until(until).map(|()| work)),
                    None => running.push(fetching.work_on(work)),
                }
            }
        }
    }

    /// When this may be worked on, if that is not at once.
    fn alone_until(&self, work: &Work) -> Option<Instant> {
        match work {
            Work::Fetch(address) => {
                let now = Instant::now();
                if self.suspects.is_silent(address, now) {
                    self.let_others_pass(address);
                }
                self.suspects.alone_until(address, now)
            }
            Work::Count(_) => None,
        }
    }

    /// The broker does not say what is parked for a device: nothing waits for that any more, until it does.
    fn let_others_pass(&self, address: &Address) {
        let devices = self.intake.devices();
        if devices.parking.set_silent(address, true) {
            let queue = self.intake.settings.mq.parked_queue(address);
            warn!(%address, queue, "the broker does not say what is parked for a device; other commands for it go before that.");
        }
        if let Some(session) = devices.registry.find(address) {
            session.pass_parked();
        }
    }
}

/// Looks whether anything was ever parked at this broker, if that is not known. Until then every
/// device that connects may have something parked; so this comes before the first command.
pub(super) async fn look(link: &Link, intake: &Intake) -> Result<(), BrokerError> {
    let parking = &intake.devices().parking;
    if !parking.is_unknown() {
        return Ok(());
    }
    let marker = intake.settings.mq.parked_prefix.as_str();
    match topology::depth(link.channel().await?, marker).await {
        Ok(_) => parking.set_in_use(),
        Err(error) if topology::is_missing(&error) => parking.set_never_used(),
        Err(error) if topology::code(&error).is_some() => {
            warn!(queue = marker, %error, "cannot look whether anything was parked; taking it that something was.");
            parking.set_in_use();
        }
        Err(error) => return Err(BrokerError::during("looking for parked commands")(error)),
    }
    Ok(())
}

/// What all work on one connection shares.
struct Fetching<'a> {
    link: &'a Link,
    intake: &'a Intake,
    stop: &'a CancellationToken,
    first: FirstAnswers<'a>,
}

impl Fetching<'_> {
    async fn work_on(&self, work: Work) -> Result<(), BrokerError> {
        match work {
            Work::Fetch(address) => self.fetch(address).await,
            Work::Count(address) => self.count(address).await,
        }
    }

    /// Counts what is parked for a device: nothing if it has no queue. If the broker does not say, it stays unknown.
    async fn count(&self, address: Address) -> Result<(), BrokerError> {
        let queue = self.intake.settings.mq.parked_queue(&address);
        let count = match topology::depth(self.link.channel().await?, &queue).await {
            Ok(count) => usize::try_from(count).ok(),
            Err(error) if topology::is_missing(&error) => Some(0),
            Err(error) if topology::code(&error).is_some() => None,
            Err(error) => return Err(BrokerError::during("counting parked commands")(error)),
        };
        if let Some(count) = count {
            self.intake.devices().parking.counted_at_broker(&address, count);
        }
        Ok(())
    }

    /// Fetches for one device until the broker has nothing more, the device is gone, or `stop`.
    async fn fetch(&self, address: Address) -> Result<(), BrokerError> {
        let devices = self.intake.devices();
        let finished = match devices.registry.find(&address) {
            Some(session) if session.is_claiming() => false,
            Some(session) => self.fetch_for(&address, &session).await?,
            None => false,
        };
        if !finished {
            self.stop.run_until_cancelled(devices.parking.until_landed(&address)).await;
            devices.parking.interrupted(&address);
            devices.parking.look_again(&address, devices.wants_parked(&address));
        }
        Ok(())
    }

    /// Fetches for one connection; true if the broker has nothing more.
    async fn fetch_for(
        &self,
        address: &Address,
        session: &Arc<Session>,
    ) -> Result<bool, BrokerError> {
        let devices = self.intake.devices();
        if !devices.parking.may_be_in_use() {
            return Ok(session.finish_parked(devices));
        }
        let queue = self.intake.settings.mq.parked_queue(address);
        let turn = self.first.turn(address).await;
        let channel = self.link.channel().await?;
        let hand = Hand::new(self.intake, &channel, address);
        let fetched = hand.fetch_all(&queue, session, self.stop, turn).await?;
        // What was not settled goes back to its place, before anyone fetches again. A channel that the
        // broker has closed, because the queue is gone, holds nothing.
        if channel.status().connected() {
            let closed = channel.close(200, "done".into()).await;
            closed.map_err(BrokerError::during("giving parked commands back"))?;
        }
        devices.parking.returned(address);
        Ok(fetched)
    }
}
