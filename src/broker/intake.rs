//! `Intake`: a message from the broker becomes an order, or is reported as invalid. For commands
//! from the queue and for parked ones alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::message::Delivery as Delivered;

use super::decode::{self, Decoded, Defaults};
use super::message::{Message, ParkedMarks};
use crate::clock::Moment;
use crate::device::Devices;
use crate::order::{Facts, Order, Origin, Steps};
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
        let listeners = &settings.listeners;
        let defaults = Defaults {
            ttl: settings.command.ttl,
            if_offline: settings.command.if_offline,
            confirm: settings.command.confirm,
            timeout: settings.command.timeout,
            answers_have_ids: listeners.iter().all(|it| it.device.answer_id.is_some()),
            wires: router.devices.wires.clone(),
        };
        Self { settings, router, trail, defaults, numbers: AtomicU64::new(1) }
    }

    pub(super) fn devices(&self) -> &Devices {
        &self.router.devices
    }

    /// Makes an order of a message from the command queue. If it is no command, that is reported,
    /// and its settlement is given back if it may be settled at once.
    pub(super) fn order(
        &self,
        delivered: Delivered,
        settlement: Settlement,
    ) -> Result<Order, Option<Settlement>> {
        let redelivered = delivered.redelivered;
        let message = message(delivered);
        self.decode(message, redelivered, None, settlement)
    }

    /// Makes an order of a message that was parked; gives also the number
    /// that it had when this process parked it.
    pub(super) fn parked_order(
        &self,
        delivered: Delivered,
        settlement: Settlement,
    ) -> (Result<Order, Option<Settlement>>, Option<u64>) {
        let redelivered = delivered.redelivered;
        let mut message = message(delivered);
        // It came under the name of its device's queue. Its own is the one the broker, too, gives it
        // when it passes it on.
        message.routing_key = self.settings.mq.command_key().into();
        let marks = message.unpark();
        let number =
            marks.by.as_deref().and_then(|by| self.devices().reporter.number_parked_by(by));
        (self.decode(message, redelivered, Some((marks, number)), settlement), number)
    }

    fn decode(
        &self,
        message: Message,
        redelivered: bool,
        parked: Option<(ParkedMarks, Option<u64>)>,
        settlement: Settlement,
    ) -> Result<Order, Option<Settlement>> {
        let arrived = Moment::now();
        let stamps = message.stamps();
        let published_ms = decode::published_ms(&stamps, arrived);
        let decoded = decode::decode(message.body(), &stamps, &self.defaults, arrived);
        let is_parked = parked.is_some();
        // It keeps its number, which is its place among those that wait; before all that came since if
        // another process parked it.
        let number = match &parked {
            Some((_, number)) => number.unwrap_or(0),
            None => self.numbers.fetch_add(1, Ordering::Relaxed),
        };
        let origin = |id: Option<Box<str>>| Origin {
            id: id.or_else(|| message.message_id().map(Into::into)),
            size: message.size(),
            message: Arc::new(message),
            arrived,
            published_ms,
            number,
            redelivered,
            parked: is_parked,
        };
        match decoded {
            Ok(Decoded { mut command, id }) => {
                // Its time began before it was parked, and not all messages say when.
                if let Some(until_ms) = parked.and_then(|(marks, _)| marks.until_ms) {
                    let left = Duration::from_millis(until_ms.saturating_sub(arrived.wall_ms));
                    command.expires = command.expires.min(arrived.mono + left);
                }
                let facts = Facts { command, origin: origin(id), steps: Steps::default() };
                let facts = Arc::new(facts);
                self.trail.command(&facts);
                Ok(Order { facts, settlement, frame: None })
            }
            Err(invalid) => {
                let origin = origin(invalid.id);
                let address = invalid.address.as_ref();
                let reporter = &self.devices().reporter;
                Err(reporter.conclude_invalid(&origin, address, invalid.reason, settlement))
            }
        }
    }
}

fn message(delivered: Delivered) -> Message {
    let Delivered { routing_key, properties, data, .. } = delivered;
    Message { body: data, properties, routing_key }
}
