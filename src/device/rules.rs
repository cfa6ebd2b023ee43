//! `Rules`: what every connection of one listener is held to.

use std::sync::Arc;
use std::time::Duration;

use super::answers;
use crate::command::{Confirm, Reason};
use crate::order::Order;
use crate::protocol::{Content, Frame, Payload, Wire};
use crate::settings::{Listener, Protocol};

/// What every connection of one listener is held to.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The listener's name.
    pub(crate) listener: String,
    pub(crate) wire: Wire,
    pub(crate) line_max: usize,
    pub(crate) answer: answers::Rule,
    pub(crate) wait_for_greeting: bool,
    pub(crate) lane_max: usize,
    pub(crate) tail_max: usize,
    pub(crate) write_timeout: Duration,
    /// How long a frame may take from its beginning to its end.
    pub(crate) line_timeout: Duration,
    pub(crate) silence_limit: Option<Duration>,
    /// What a device that is silent is sent.
    pub(crate) heartbeat: Option<Frame>,
    /// Whether what devices say goes to the broker.
    pub(crate) uplink: bool,
}

impl Rules {
    /// The rules of `listener`, on the bridge of this name.
    pub(crate) fn new(listener: &Listener, bridge: &Arc<str>) -> Self {
        let device = &listener.device;
        let wire = wire(listener, bridge);
        let heartbeat = device.heartbeat.as_deref().map(|line| Content::Text(line.into()));
        Self {
            listener: listener.name.clone(),
            answer: answers::Rule {
                pattern: device.answer_pattern.as_ref().map(|pattern| pattern.0.clone()),
                id_group: device.answer_id.clone(),
            },
            line_max: device.line_max.0,
            wait_for_greeting: device.greeting.is_on(),
            lane_max: usize::from(device.lane_max.get()),
            tail_max: device.tail_max.0,
            write_timeout: device.write_timeout,
            line_timeout: listener.access.line_timeout,
            silence_limit: device.silence_limit,
            // Settings are checked: it is a line.
            heartbeat: heartbeat.and_then(|line| wire.encode(&Payload::new(line)).ok()),
            uplink: device.uplink.is_on(),
            wire,
        }
    }
}

impl Rules {
    /// Puts `order` in the format of a device, of which it is known whether its acknowledgements can be
    /// `provable`; else gives it back with the reason why it cannot be for it.
    pub(super) fn word(&self, mut order: Order, provable: bool) -> Result<Order, (Order, Reason)> {
        let has_id = order.facts.origin.id.is_some();
        let reason = match order.command().confirm {
            Confirm::Received if !provable => Some(
                "confirm: `received` needs a system that can tell what a device's TCP stack has \
                 acknowledged, and this one cannot",
            ),
            Confirm::Answered if !self.wire.has_answers() => {
                Some("confirm: `answered` is not possible in the wire format of this device")
            }
            Confirm::Answered if self.answer.with_ids() && !has_id => {
                Some("id: missing; devices name the command they answer by its id")
            }
            Confirm::Written | Confirm::Received | Confirm::Answered => None,
        };
        if let Some(reason) = reason {
            return Err((order, reason.into()));
        }
        match order.command().spoken.in_wire(&self.wire) {
            Ok(frame) => {
                order.frame = Some(frame);
                Ok(order)
            }
            Err(reason) => Err((order, reason)),
        }
    }
}

impl Rules {
    /// The rules of those who come to `/message` of the HTTP side: they speak `topic`, and for the rest
    /// are held to what `listener` asks.
    pub(crate) fn of_topics(listener: &Listener, bridge: &Arc<str>) -> Self {
        Self {
            listener: "message".to_owned(),
            wire: Wire::Topic { max: listener.device.line_max.0 },
            answer: answers::Rule::default(),
            wait_for_greeting: false,
            silence_limit: None,
            heartbeat: None,
            uplink: false,
            ..Self::new(listener, bridge)
        }
    }
}

fn wire(listener: &Listener, bridge: &Arc<str>) -> Wire {
    let max = listener.device.line_max.0;
    match listener.device.protocol {
        Protocol::Line => Wire::Line { ending: listener.device.line_ending, max },
        Protocol::Channel => Wire::Channel { max },
        Protocol::Chat => Wire::Chat { max, from: Arc::clone(bridge) },
    }
}
