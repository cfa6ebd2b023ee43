//! What other bridges are asked about devices that no binding leads to, and what they ask.

use std::sync::{MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::debug;

use super::arriving::{ANSWERED_MAX, Arriving, BELIEVED_FOR};
use super::control::Control;
use super::{Cluster, Work};
use crate::order::Order;

impl Cluster {
    /// Says to all other bridges that devices of this one are not bound yet.
    pub(crate) fn say_arriving(&self) {
        for to in self.others() {
            let control = Control::Arriving { bridge: self.bridge.to_string() };
            self.urgent.say(to, control, BELIEVED_FOR);
        }
    }

    /// Another bridge has said so.
    pub(crate) fn is_arriving(&self, bridge: &str) {
        if self.arriving().is_busy(bridge, Instant::now()) {
            debug!(
                bridge,
                "another bridge has devices that are not bound yet; it is asked about those that are not found."
            );
        }
    }

    /// Whether one has said so just now.
    pub(crate) fn some_are_arriving(&self, now: Instant) -> bool {
        self.arriving().some_are_busy(now)
    }

    /// Asks the other bridges about the device of a command that no binding leads to. Gives it back if none of them
    /// has devices that are not bound.
    pub(crate) fn ask_for(&self, order: Order) -> Result<(), Order> {
        self.arriving().wait(order, Instant::now())?;
        self.look_at_answers();
        Ok(())
    }

    /// Lets a command wait behind one for the same device of which that is asked.
    pub(crate) fn wait_for_answer(&self, order: Order) -> Result<(), Order> {
        self.arriving().wait_behind(order)
    }

    /// Which of these devices are connected here, for a bridge that asks.
    pub(crate) fn answer(&self, bridge: &str, number: u32, addresses: Vec<String>) {
        let control = Control::Has { bridge: self.bridge.to_string(), number, addresses };
        self.urgent.say(bridge, control, ANSWERED_MAX);
    }

    /// A bridge has said which of them are.
    pub(crate) fn answered(&self, bridge: &str, number: u32, addresses: &[String]) {
        self.arriving().has(bridge, number, addresses);
        self.look_at_answers();
    }

    /// Sends commands on whose answer is there, or late, and asks about the next.
    pub(crate) fn look_at_answers(&self) {
        let now = Instant::now();
        let (answered, question) = {
            let mut arriving = self.arriving();
            (arriving.take(now), arriving.ask(now))
        };
        for (order, bridge) in answered {
            self.push(match bridge {
                Some(bridge) => Work::Command(order, Some(bridge)),
                None => Work::Nobody(order),
            });
        }
        let Some(question) = question else { return };
        for to in question.bridges {
            let (bridge, addresses) = (self.bridge.to_string(), question.addresses.clone());
            let control = Control::Wanted { bridge, number: question.number, addresses };
            self.urgent.say(to, control, ANSWERED_MAX);
        }
    }

    /// Whether no command waits for an answer.
    pub(super) fn is_answered(&self) -> bool {
        self.arriving().is_empty()
    }

    fn arriving(&self) -> MutexGuard<'_, Arriving> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
