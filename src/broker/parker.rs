//! `Parker`: the task that puts commands into the queues of devices that are not connected.
//!
//! Each device has a queue of its own for them, which is declared before it is used; that, or a queue without a leader,
//! may take the broker long. So this has a connection of its own, which is there once something was to be parked, and
//! only what is for the same device waits for it. What is not confirmed when the connection is lost is parked
//! again on the next, with what waited behind it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::Channel;
use lapin::types::ShortString;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::connection::Link;
use super::nodes::Nodes;
use super::parked_queues::ParkedQueues;
use super::publication::{Publication, Refusal};
use super::retry::Retry;
use super::window::{TRIES_MAX, Window};
use super::{BrokerError, Jobs};
use crate::clock::{self, Moment};
use crate::command::Address;
use crate::device::Devices;
use crate::job::{Deposit, Owed};
use crate::settings::Settings;

/// Commands that may be on their way unconfirmed, as many as the publisher may have.
const CONFIRM_WINDOW: usize = 256;
/// Queues that may be declared at once. A quorum queue takes a broker some milliseconds, and 16 keep it busy.
const DECLARING_MAX: usize = 16;
/// After this a declaration is made once more, and counts as refused. It takes milliseconds, on a busy cluster a second.
const DECLARE_LIMIT: Duration = Duration::from_secs(10);
/// How long a queue is trusted to exist after it was declared, which is also when its time starts
/// anew; far less than the day by which it outlives its commands.
const DECLARED_FOR: Duration = Duration::from_secs(3600);
/// Queues remembered as declared; beyond it all are forgotten and declared again.
const DECLARED_MAX: usize = 100_000;
/// The wait before the broker is asked once more to take what it has refused. A queue of three members has
/// another leader after about a second.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Parks commands.
#[derive(Debug)]
pub(crate) struct Parker {
    settings: Arc<Settings>,
    nodes: Arc<Nodes>,
    bridge: Arc<str>,
    deposits: Arc<Jobs<Deposit>>,
    devices: Arc<Devices>,
    /// What a lost connection has left behind, oldest first.
    again: VecDeque<Deposit>,
}

impl Parker {
    pub(crate) fn new(
        settings: Arc<Settings>,
        nodes: Arc<Nodes>,
        bridge: Arc<str>,
        deposits: Arc<Jobs<Deposit>>,
        devices: Arc<Devices>,
    ) -> Self {
        Self { settings, nodes, bridge, deposits, devices, again: VecDeque::new() }
    }

    /// Parks until `finish`, and then until all is confirmed. True if it was.
    pub(crate) async fn run(mut self, finish: CancellationToken) -> bool {
        let work = self.deposits.work();
        while self.deposits.is_empty() {
            tokio::select! {
                () = work.notified() => {}
                () = finish.cancelled() => return self.deposits.is_empty(),
            }
        }
        // Not stopped between attempts, as with the publisher.
        let never = CancellationToken::new();
        let mut retry = Retry::of("parker");
        while let Err(error) = self.attempt(&finish).await {
            retry.wait(&error, &never).await;
        }
        self.is_idle()
    }

    async fn attempt(&mut self, finish: &CancellationToken) -> Result<(), BrokerError> {
        let link = self.nodes.open(&self.bridge, "parker").await?;
        let (settings, devices) = (Arc::clone(&self.settings), Arc::clone(&self.devices));
        let queues = ParkedQueues::new(&link, &settings, &devices.parking);
        let prepared = tokio::select! {
            prepared = async { queues.mark().await?; link.confirming_channel().await } => prepared,
            error = link.lost() => Err(error),
        };
        let result = match prepared {
            Ok(channel) => {
                info!(host = %link.host(), "parking");
                let mut shift = Shift::new(self, &queues, &channel);
                let result = shift.work(&link, finish).await;
                shift.end();
                result
            }
            Err(error) => Err(error),
        };
        link.end(result).await
    }

    fn is_idle(&self) -> bool {
        self.again.is_empty() && self.deposits.is_empty()
    }

    fn next(&mut self) -> Option<Deposit> {
        let again = std::iter::from_fn(|| self.again.pop_front()).find_map(Owed::if_owed);
        again.or_else(|| self.deposits.next())
    }
}

/// One command on its way.
struct Parking {
    deposit: Deposit,
    /// Its place among all that were taken up.
    number: u64,
    tries: u32,
}

/// What waits until the queue of one device can be used.
#[derive(Default)]
struct Held {
    waiting: BTreeMap<u64, Parking>,
    /// How often its declaration was in vain.
    tries: u32,
}

/// What is going on on one connection.
struct Shift<'a> {
    parker: &'a mut Parker,
    queues: &'a ParkedQueues<'a>,
    channel: &'a Channel,
    window: Window<Parking>,
    declaring: FuturesUnordered<BoxFuture<'a, (Address, Result<(), BrokerError>)>>,
    /// Queues that were declared, and when.
    declared: HashMap<Address, Instant>,
    held: HashMap<Address, Held>,
    /// Devices whose turn comes again then, the soonest first.
    later: VecDeque<(Instant, Address)>,
    /// Whose queue has cost the connection.
    culprit: Option<Address>,
    taken: u64,
}

impl<'a> Shift<'a> {
    fn new(parker: &'a mut Parker, queues: &'a ParkedQueues<'a>, channel: &'a Channel) -> Self {
        Self {
            parker,
            queues,
            channel,
            window: Window::new(),
            declaring: FuturesUnordered::new(),
            declared: HashMap::new(),
            held: HashMap::new(),
            later: VecDeque::new(),
            culprit: None,
            taken: 0,
        }
    }

    async fn work(&mut self, link: &Link, finish: &CancellationToken) -> Result<(), BrokerError> {
        let mut lost = std::pin::pin!(link.lost());
        let work = self.parker.deposits.work();
        loop {
            while self.has_room()
                && let Some(deposit) = self.parker.next()
            {
                self.taken += 1;
                self.take_up(Parking { deposit, number: self.taken, tries: 0 }).await;
            }
            if finish.is_cancelled() && self.is_idle() {
                return Ok(());
            }
            let next = self.later.front().map(|(at, _)| *at);
            tokio::select! {
                biased;
                (number, result) = self.window.answered() => match result {
                    Ok(()) => self.confirmed(number),
                    Err(Refusal::Now(error)) => self.refused(number, error)?,
                    // The queue has vanished: then each is declared again on the next connection.
                    Err(refusal) => return Err(refusal.error()),
                },
                Some((address, result)) = self.declaring.next(), if !self.declaring.is_empty() => {
                    self.is_declared(address, result).await?;
                }
                // Not by what else is told: that is also said of a channel on which a declaration has failed.
                error = &mut lost => return Err(error),
                () = clock::until(next) => self.try_again().await,
                () = work.notified(), if self.has_room() => {}
                () = finish.cancelled(), if !finish.is_cancelled() => {}
            }
            // lapin's futures know nothing of tokio's budget.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn has_room(&self) -> bool {
        self.window.len() < CONFIRM_WINDOW && self.declaring.len() < DECLARING_MAX
    }

    fn is_idle(&self) -> bool {
        self.window.len() == 0 && self.held.is_empty() && self.parker.is_idle()
    }

    /// Parks a command, behind those for its device that wait.
    async fn take_up(&mut self, parking: Parking) {
        let address = parking.deposit.address();
        if let Some(held) = self.held.get_mut(address) {
            held.waiting.insert(parking.number, parking);
            return;
        }
        let known = self.declared.get(address);
        if known.is_some_and(|at| Instant::now() < *at + DECLARED_FOR) {
            self.publish(parking).await;
            return;
        }
        let address = address.clone();
        let mut held = Held::default();
        held.waiting.insert(parking.number, parking);
        self.held.insert(address.clone(), held);
        self.declare(address);
    }

    fn declare(&self, address: Address) {
        let queues = self.queues;
        self.declaring.push(Box::pin(async move {
            let declaring = timeout(DECLARE_LIMIT, queues.ensure(&address));
            let late = || BrokerError::Topology {
                object: format!("the queue for parked commands of {address}"),
                said: "the broker has not answered its declaration".to_owned(),
                advice: "see what its log says of that queue",
            };
            let declared = declaring.await.unwrap_or_else(|_| Err(late()));
            (address, declared)
        }));
    }

    /// A queue can be used: what waited for that goes there. Or it cannot.
    async fn is_declared(
        &mut self,
        address: Address,
        result: Result<(), BrokerError>,
    ) -> Result<(), BrokerError> {
        if let Err(error) = result {
            let Some(held) = self.held.get_mut(&address) else { return Ok(()) };
            held.tries += 1;
            let is_slow = matches!(error, BrokerError::Topology { .. }) && held.tries < TRIES_MAX;
            if !is_slow {
                self.culprit = Some(address);
                return Err(error);
            }
            warn!(%address, "{error}");
            self.later.push_back((Instant::now() + AGAIN_AFTER, address));
            return Ok(());
        }
        if self.declared.len() >= DECLARED_MAX {
            self.declared = HashMap::new();
        }
        self.declared.insert(address.clone(), Instant::now());
        self.publish_held(&address).await;
        Ok(())
    }

    async fn publish_held(&mut self, address: &Address) {
        let Some(held) = self.held.remove(address) else { return };
        for parking in held.waiting.into_values() {
            self.publish(parking).await;
        }
    }

    async fn publish(&mut self, parking: Parking) {
        let publications = self.parker.publications(&parking.deposit);
        self.window.begin(self.channel, publications, parking).await;
    }

    /// Those whose time has come are tried once more.
    async fn try_again(&mut self) {
        while let Some((_, address)) = self.later.pop_front_if(|(at, _)| *at <= Instant::now()) {
            if self.declared.contains_key(&address) {
                self.publish_held(&address).await;
            } else {
                self.declare(address);
            }
        }
    }

    fn confirmed(&mut self, number: u64) {
        let Some(parking) = self.window.remove(number) else { return };
        let Deposit { settlement, place, .. } = parking.deposit;
        let devices = &self.parker.devices;
        let address = place.facts().command.address.clone();
        let wanted = devices.wants_parked(&address);
        place.land(wanted);
        if let Some(cluster) = devices.cluster.as_ref().filter(|_| !wanted) {
            // It may have connected to another bridge since it was not connected to any.
            cluster.parked(address);
        }
        if let Some(settlement) = settlement {
            settlement.settle();
        }
    }

    /// The broker cannot take a command now: what comes for the same device waits behind it.
    fn refused(&mut self, number: u64, error: BrokerError) -> Result<(), BrokerError> {
        let Some(mut parking) = self.window.remove(number) else { return Ok(()) };
        let address = parking.deposit.address().clone();
        parking.tries += 1;
        let is_hopeless = parking.tries == TRIES_MAX;
        if !self.held.contains_key(&address) {
            if parking.tries == 1 {
                warn!(%address, again_in_ms = AGAIN_AFTER.as_millis(), "{error}");
            }
            self.later.push_back((Instant::now() + AGAIN_AFTER, address.clone()));
        }
        let held = self.held.entry(address.clone()).or_default();
        held.waiting.insert(parking.number, parking);
        if is_hopeless {
            self.culprit = Some(address);
            return Err(error);
        }
        Ok(())
    }

    /// Leaves what is not parked to the next connection, oldest first; but what is for the device whose queue has cost
    /// this one last, so that the others are parked before that happens again.
    fn end(mut self) {
        let held = self.held.into_values().flat_map(|held| held.waiting.into_values());
        let mut left: Vec<Parking> = self.window.take().chain(held).collect();
        left.sort_by_key(|parking| parking.number);
        let left = left.into_iter().map(|parking| parking.deposit);
        let all = left.chain(std::mem::take(&mut self.parker.again));
        let is_culprit = |deposit: &Deposit| self.culprit.as_ref() == Some(deposit.address());
        let (last, mut first): (VecDeque<_>, VecDeque<_>) = all.partition(is_culprit);
        first.extend(last);
        self.parker.again = first;
    }
}

impl Parker {
    /// The copy of a message that waits in its device's own queue, and the receipt that says so.
    fn publications(&self, deposit: &Deposit) -> Vec<Publication> {
        let facts = deposit.place.facts();
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
        let parked = Publication {
            exchange: ShortString::default(),
            key: self.settings.mq.parked_queue(&facts.command.address).into(),
            properties,
            body: origin.message.body.as_slice().into(),
            mandatory: true,
        };
        // The message is safe before its sender hears of it.
        let receipt = Publication::receipt(&origin.message, deposit.receipt.clone());
        std::iter::once(parked).chain(receipt).collect()
    }
}
