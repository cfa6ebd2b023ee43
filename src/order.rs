//! `Delivery` and `Order`: a message in hand, and a command on its way to a device.
//!
//! The consumer makes a `Delivery` of what the broker sends; decoding makes an `Order` of it; the
//! router and the lanes pass orders on; the reporter takes them apart when their fate is known.

use tokio::time::Instant;

use crate::broker::Message;
use crate::clock::Moment;
use crate::command::Command;
use crate::device::Waits;
use crate::settlement::Settlement;

/// A message in hand, with the duty to settle it.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) message: Message,
    pub(crate) settlement: Settlement,
    /// When it arrived here.
    pub(crate) arrived: Moment,
    /// When it was published, milliseconds since 1970, if it says so.
    pub(crate) published_ms: Option<u64>,
    /// The id its body gave it.
    pub(crate) id: Option<Box<str>>,
}

/// A command on its way to its device.
#[derive(Debug)]
pub struct Order {
    pub(crate) command: Command,
    pub(crate) delivery: Delivery,
}

impl Waits for Order {
    fn bytes(&self) -> &[u8] {
        self.command.line.bytes()
    }

    fn expires(&self) -> Instant {
        self.command.expires
    }

    fn is_wanted(&self) -> bool {
        self.delivery.settlement.is_live()
    }
}
