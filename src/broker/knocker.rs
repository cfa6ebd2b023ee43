//! `Knocker`: asks whether anything is parked for a device that has connected here: other bridges may have parked it.
//!
//! A look at a queue that is not there, which is the usual case, would cost a channel: RabbitMQ closes that. So
//! something is published to the queue. It comes back if there is none, and is else fetched with what is parked, and
//! dropped.
//!
//! A quorum queue that was declared while a node died may never have a leader, and RabbitMQ does nothing else on a
//! channel on which something is published to such a one, for half a minute. So this has a connection of its own, and
//! leaves it for another when the broker is late; whoever fetches finds out then.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::nodes::Nodes;
use super::publication::Publication;
use super::stream::{Courier, Said};
use super::{BrokerError, retry};
use crate::clock;
use crate::cluster::control::Control;
use crate::command::Address;
use crate::device::Devices;
use crate::settings::Settings;

/// How long the broker may take to answer. It takes some milliseconds, in a storm of connects some hundred; and a queue
/// of three members has another leader about a second after it has lost one.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// `delivery_mode` of a message that means nothing after a restart of the broker.
const TRANSIENT: u8 = 1;

/// Asks whether anything is parked.
#[derive(Debug)]
pub(crate) struct Knocker {
    settings: Arc<Settings>,
    nodes: Arc<Nodes>,
    bridge: Arc<str>,
    devices: Arc<Devices>,
}

/// What is asked on one connection.
struct Round<'a> {
    knocker: &'a Knocker,
    courier: Courier,
    /// What the broker has not answered, and since when.
    open: BTreeMap<u64, (Instant, Address)>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let parking = &self.knocker.devices.parking;
        self.open.values().for_each(|(_, address)| parking.found(address));
    }
}

impl Knocker {
    pub(crate) fn new(
        settings: &Arc<Settings>,
        nodes: &Arc<Nodes>,
        bridge: &Arc<str>,
        devices: &Arc<Devices>,
    ) -> Self {
        let (settings, nodes) = (Arc::clone(settings), Arc::clone(nodes));
        let (bridge, devices) = (Arc::clone(bridge), Arc::clone(devices));
        Self { settings, nodes, bridge, devices }
    }

    /// Asks until `finish`, from when the first device has connected.
    pub(crate) async fn run(self, finish: CancellationToken) {
        let asking = async {
            self.devices.parking.until_sought().await;
            retry::for_ever("knocker", || self.attempt()).await
        };
        finish.run_until_cancelled(asking).await;
    }

    async fn attempt(&self) -> Result<Infallible, BrokerError> {
        let (courier, host) = self.nodes.open_courier(&self.bridge, "knocker").await?;
        let mut round = Round { knocker: self, courier, open: BTreeMap::new() };
        round.ask_all().await.map_err(|error| self.nodes.blame(&host, error))
    }

    fn question(&self, address: &Address) -> Publication {
        let key = self.settings.mq.parked_queue(address).into();
        let mut question = Publication::control(ShortString::default(), key, &Control::Knock, true);
        question.properties = question.properties.with_delivery_mode(TRANSIENT);
        question
    }

    /// There is no queue for `address`.
    fn nothing_parked(&self, address: &Address) {
        let devices = &*self.devices;
        let parking = &devices.parking;
        if !parking.is_sought(address) {
            return;
        }
        let session = devices.registry.find(address).filter(|session| !session.is_claiming());
        // Something may have been parked since.
        if !session.is_some_and(|session| session.finish_parked(devices)) {
            parking.interrupted(address);
            parking.look_again(address, devices.wants_parked(address));
        }
    }
}

impl Round<'_> {
    async fn ask_all(&mut self) -> Result<Infallible, BrokerError> {
        let parking = &self.knocker.devices.parking;
        loop {
            while self.courier.has_room()
                && let Some(address) = parking.next_sought()
            {
                let asked = self.courier.publish(self.knocker.question(&address));
                let number = asked.inspect_err(|_| parking.found(&address))?;
                self.open.insert(number, (Instant::now(), address));
            }
            self.courier.flush()?;
            let late = self.open.first_key_value().map(|(_, (since, _))| *since + ANSWER_WITHIN);
            tokio::select! {
                said = self.courier.next() => self.answered(said?),
                () = parking.until_sought(), if self.courier.has_room() => {}
                () = clock::until(late) => return Err(self.is_late()),
            }
            // A storm of connects must not keep the other tasks of this thread waiting.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn answered(&mut self, said: Said) {
        let (number, may_be_there) = match said {
            Said::Returned(number) => (number, false),
            Said::Taken(number) | Said::Refused(number) => (number, true),
            // Nothing is bound here.
            Said::Bound => return,
        };
        let Some((_, address)) = self.open.remove(&number) else { return };
        if may_be_there {
            self.knocker.devices.parking.found(&address);
        } else {
            self.knocker.nothing_parked(&address);
        }
    }

    fn is_late(&self) -> BrokerError {
        let oldest = self.open.first_key_value().map(|(_, (_, address))| address);
        let queue = oldest.map(|address| self.knocker.settings.mq.parked_queue(address));
        BrokerError::Topology {
            object: format!("queue `{}`", queue.unwrap_or_default()),
            said: format!("no word within {ANSWER_WITHIN:?} on whether it is there"),
            advice: "see what the broker's log says of it",
        }
    }
}
