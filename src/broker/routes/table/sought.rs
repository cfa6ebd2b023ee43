//! Whether anything is parked for a device that has connected here: other bridges may have parked it.
//!
//! A look at a queue that is not there, which is the usual case, would cost a channel: RabbitMQ closes that. So
//! something is published to the queue. It comes back if there is none, and is else fetched with what is parked, and
//! dropped.

use lapin::types::ShortString;

use super::super::super::BrokerError;
use super::{Sent, Table, control_message};
use crate::cluster::control::Control;
use crate::command::Address;

/// `delivery_mode` of a message that means nothing after a restart of the broker.
const TRANSIENT: u8 = 1;

impl Table<'_> {
    /// Asks whether there is a queue of commands parked for a device, which is bound: what is parked from now on
    /// is told.
    pub(super) fn knock(&mut self, address: Address) -> Result<(), BrokerError> {
        if !self.devices().parking.is_sought(&address) {
            return Ok(());
        }
        let key = self.intake.settings.mq.parked_queue(&address).into();
        let mut message = control_message(ShortString::default(), key, &Control::Knock, true);
        message.properties = message.properties.with_delivery_mode(TRANSIENT);
        self.publish(message, Sent::Knock(address))
    }

    /// There is no such queue.
    pub(super) fn nothing_parked(&self, address: &Address) {
        let devices = self.devices();
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
