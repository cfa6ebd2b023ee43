//! `Place`: room for one more parked command; `Full`: why there is none.

use std::fmt;
use std::sync::Arc;

use super::Parking;
use crate::order::Facts;

/// Room for a command that is on its way to the broker. Dropped before it has landed there, it
/// gives the room back.
#[derive(Debug)]
pub(crate) struct Place {
    parking: Arc<Parking>,
    facts: Arc<Facts>,
    landed: bool,
}

impl Place {
    pub(super) fn new(parking: &Arc<Parking>, facts: &Arc<Facts>) -> Self {
        Self { parking: Arc::clone(parking), facts: Arc::clone(facts), landed: false }
    }

    /// The command.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The broker has confirmed it. `connected` says whether it is wanted at once.
    pub(crate) fn land(mut self, connected: bool) {
        self.landed = true;
        self.parking.landed(&self.facts, connected);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.landed {
            self.parking.given_up(&self.facts.command.address);
        }
    }
}

/// Why one more command cannot be parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// So many wait for this device.
    Device(usize),
    /// So many wait in all.
    Total(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(max) => write!(f, "{max} commands are parked for the device already"),
            Self::Total(max) => {
                write!(f, "{max} commands are parked already, all devices together")
            }
        }
    }
}
