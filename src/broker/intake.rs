//! `Intake`: a message from the broker becomes an order, or is reported as invalid. For commands
//! from the queue and for parked ones alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::decode::{self, Decoded, Defaults, Invalid, Recipients};
use super::inbox;
use super::message::{Delivered, Message, RouteMarks};
use super::topology::INBOX_TTL;
use crate::clock::Moment;
use crate::command::{Address, Command};
use crate::device::Devices;
use crate::fanout::Fanout;
use crate::order::{Facts, Order, Origin, Route, Steps};
use crate::router::Router;
use crate::settings::Settings;
use crate::settlement::Settlement;
use crate::trail::Trail;

/// What it takes to make orders of messages.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) settings: Arc<Settings>,
    pub(crate) router: Router,
    trail: Arc<Trail>,
    defaults: Defaults,
    /// Counts what was taken up.
    numbers: AtomicU64,
}

impl Intake {
    pub(crate) fn new(settings: Arc<Settings>, router: Router, trail: Arc<Trail>) -> Self {
        let defaults = Defaults::of(&settings, router.devices.wires.clone());
        Self { settings, router, trail, defaults, numbers: AtomicU64::new(1) }
    }

    pub(super) fn devices(&self) -> &Devices {
        &self.router.devices
    }

    /// Makes of a message what it is. If it is no command, that is dealt with, and its settlement is given back if it may be
    /// settled at once.
    pub(super) fn take(&self, delivered: Delivered, from: Queue, settlement: Settlement) -> Taken {
        let Delivered { mut redelivered, mut message, .. } = delivered;
        let mut marks = RouteMarks::default();
        let mut died = None;
        if let Some(cluster) = &self.devices().cluster {
            if let Some(queue) = message.died_in()
                && let Some(bridge) = self.settings.mq.bridge_of(&queue)
            {
                // Nobody reads it there; whether somebody has read it, and died with it in hand, the broker does not say.
                cluster.heard_of(bridge);
                died = message.expiration_at_death();
                redelivered = true;
            }
            if message.is_control() {
                // One that died in another bridge's inbox was not meant for this one, and is said again.
                if from.is_inbox() {
                    inbox::hear(self.devices(), cluster, message.body());
                }
                return Taken::Settled(Some(settlement));
            }
            marks = message.unroute();
            if let Some(expiration) = died {
                // That of its time which it has spent there is over.
                let spent = u64::try_from(INBOX_TTL.as_millis()).unwrap_or(u64::MAX);
                let left_ms = expiration.saturating_sub(spent);
                let until_ms = Moment::now().wall_ms.saturating_add(left_ms);
                marks.until_ms = marks.until_ms.or(Some(until_ms));
            }
        }
        if from.is_inbox() {
            // It came by the address of its device or by the name of this queue.
            message.routing_key = self.settings.mq.command_key().into();
        }
        let arrived = Moment::now();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let redelivered = redelivered || marks.redelivered;
        let by_binding = from == Queue::Inbox && !marks.route.handed;
        let route = Route { by_binding, ..marks.route };
        let origin = Origin { redelivered, route, ..origin(message, arrived, number) };
        let decoded = self.decode(&origin);
        let decoded = decoded.and_then(|decoded| self.routable(decoded, &marks, from));
        let Decoded { recipients, terms, id } = match decoded {
            Ok(decoded) => decoded,
            Err(invalid) => return Taken::Settled(self.refuse(origin, invalid, settlement)),
        };
        let origin = Origin { id: id.or(origin.id), ..origin };
        let (recipients, origin) = match marks.address.as_deref().map(Address::parse) {
            Some(Ok(address)) => {
                let shared = !matches!(recipients, Recipients::One(_));
                (Recipients::One(address), Origin { shared, ..origin })
            }
            Some(Err(_)) | None => (recipients, origin),
        };
        match recipients {
            Recipients::One(address) => {
                let mut command = terms.with(address);
                // Its time began at the bridge that took it off the queue.
                if let Some(until_ms) = marks.until_ms {
                    let left = Duration::from_millis(until_ms.saturating_sub(arrived.wall_ms));
                    command.expires = command.expires.min(arrived.mono + left);
                }
                Taken::One(self.order(command, origin, settlement))
            }
            Recipients::These(addresses) => {
                let origin = Origin { shared: true, ..origin };
                Taken::Many(Fanout::to(self.devices(), terms, origin, addresses, settlement))
            }
            Recipients::Members(whom) => {
                let origin = Origin { shared: true, ..origin };
                Taken::Many(Fanout::to_members(self.devices(), terms, origin, whom, settlement))
            }
        }
    }

    /// Refuses a command for several that did not come by the command queue.
    fn routable(
        &self,
        decoded: Decoded,
        marks: &RouteMarks,
        from: Queue,
    ) -> Result<Decoded, Invalid> {
        let is_for_one = matches!(decoded.recipients, Recipients::One(_));
        if is_for_one || marks.address.is_some() || from == Queue::Commands {
            return Ok(decoded);
        }
        let reason = "address: a command that is published to MQ_ROUTE_EXCHANGE is for one device";
        Err(Invalid { reason: reason.into(), id: decoded.id, address: None })
    }

    /// Sends a command for many to some more of them; true when all have had it.
    pub(super) fn step(&self, fanout: &mut Fanout) -> bool {
        fanout.step(&self.router, &self.trail)
    }

    /// Makes an order of a message that was parked for `address`; gives also the number that it had
    /// when this process parked it.
    pub(super) fn parked_order(
        &self,
        delivered: Delivered,
        address: &Address,
        settlement: Settlement,
    ) -> (Result<Order, Option<Settlement>>, Option<u64>) {
        let Delivered { redelivered, mut message, .. } = delivered;
        // It came under the name of its device's queue. Its own is the one the broker, too, gives it
        // when it passes it on.
        message.routing_key = self.settings.mq.command_key().into();
        let marks = message.unpark();
        let number =
            marks.by.as_deref().and_then(|by| self.devices().reporter.number_parked_by(by));
        let arrived = Moment::now();
        // It keeps its number, which is its place among those that wait; before all that came since if
        // another process parked it.
        let origin = origin(message, arrived, number.unwrap_or(0));
        let told_as = number.unwrap_or_else(|| self.numbers.fetch_add(1, Ordering::Relaxed));
        let origin = Origin { redelivered, told_as, parked: true, ..origin };
        let Decoded { recipients, terms, id } = match self.decode(&origin) {
            Ok(decoded) => decoded,
            Err(invalid) => return (Err(self.refuse(origin, invalid, settlement)), number),
        };
        let shared = !matches!(recipients, Recipients::One(_));
        let origin = Origin { id: id.or(origin.id), shared, ..origin };
        let mut command = terms.with(address.clone());
        // Its time began before it was parked, and not all messages say when.
        if let Some(until_ms) = marks.until_ms {
            let left = Duration::from_millis(until_ms.saturating_sub(arrived.wall_ms));
            command.expires = command.expires.min(arrived.mono + left);
        }
        (Ok(self.order(command, origin, settlement)), number)
    }

    fn decode(&self, origin: &Origin) -> Result<Decoded, Invalid> {
        let message = &origin.message;
        decode::decode(message.body(), &message.stamps(), &self.defaults, origin.arrived)
    }

    fn order(&self, command: Command, origin: Origin, settlement: Settlement) -> Order {
        let facts = Arc::new(Facts { command, origin, steps: Steps::default() });
        self.trail.command(&facts);
        self.devices().reporter.taken(&facts);
        Order { facts, settlement, frame: None }
    }

    fn refuse(
        &self,
        origin: Origin,
        invalid: Invalid,
        settlement: Settlement,
    ) -> Option<Settlement> {
        let origin = Origin { id: invalid.id.or(origin.id), ..origin };
        let address = invalid.address.as_ref();
        self.devices().reporter.conclude_invalid(&origin, address, invalid.reason, settlement)
    }
}

/// The queue a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// The command queue.
    Commands,
    /// This bridge's inbox, which other bridges fill, and senders who publish to the route exchange.
    Inbox,
    /// That of a bridge that is gone.
    InboxOfAnother,
}

impl Queue {
    pub(super) fn is_inbox(self) -> bool {
        self != Self::Commands
    }
}

/// What a message is.
pub(super) enum Taken {
    One(Order),
    Many(Fanout),
    /// Reported already; it may be settled if its settlement is here.
    Settled(Option<Settlement>),
}

fn origin(message: Message, arrived: Moment, number: u64) -> Origin {
    Origin {
        id: message.message_id().map(Into::into),
        size: message.size(),
        published_ms: decode::published_ms(&message.stamps(), arrived),
        message: Arc::new(message),
        arrived,
        number,
        told_as: number,
        redelivered: false,
        parked: false,
        shared: false,
        route: Route::default(),
    }
}
