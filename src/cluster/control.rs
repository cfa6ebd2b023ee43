//! What bridges say to each other, as messages that are no commands. Pure.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::moving::Connection;
use crate::command::Whom;

/// The AMQP property `type` of such a message.
pub(crate) const TYPE: &str = "rabbitline.cluster";

/// What one bridge says to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "snake_case")]
pub(crate) enum Control {
    /// A device has connected to `bridge`: whoever has an earlier connection of it is to let it go.
    /// It does so on a connection to the broker opened at `opened_ms`, which only it has to understand. If it has bound the
    /// device already, both have had what came since.
    Claim {
        address: String,
        bridge: String,
        epoch: u64,
        #[serde(default)]
        opened_ms: u64,
        #[serde(default)]
        is_bound: bool,
    },
    /// The connection that had this epoch is closed and reported, what waited for it is handed over, and
    /// nothing more comes here for the device.
    Yielded { address: String, epoch: u64 },
    /// The connection here is the later one, of this epoch.
    Later { address: String, epoch: u64 },
    /// The device was here and is not: claim it again.
    Gone { address: String },
    /// To itself, behind all that came for an earlier process.
    Begun { bridge: String },
    /// To itself, behind all that came for the device before its binding ended; the bridge `to` may have it now.
    Emptied { address: String, to: Option<String>, epoch: u64 },
    /// What came for this bridge is taken on by another, and its bindings lead nowhere: what was claimed from
    /// it is to be claimed again.
    Left { bridge: String },
    /// To one that was not known: this one is there, too, and has given out epochs up to this. Said at once.
    Here { bridge: String, epoch: u64 },
    /// To such a one, in parts: these devices are connected to the bridge, in this run of it. Said at once.
    Devices { bridge: String, run: String, devices: Vec<Connection> },
    /// To one that was taken for dead, in this run of it: that its devices are gone may have been told. Said at once.
    WasLost { run: String },
    /// The bridge ends, and reads its inbox no longer when it has read this far.
    Leaving { bridge: String },
    /// The bridge ends: whoever hears this holds its devices, and tells that those are offline of which nothing
    /// else is told for so long, after so many other bridges have had their turn. Said at once, past the inbox, in parts.
    Moving { bridge: String, part: u32, devices: Vec<Connection>, within_ms: u64, turn: u32 },
    /// To one that ends: the bridge holds so many of the devices of this part. Said at once.
    Held { bridge: String, part: u32, count: usize },
    /// The bridge has devices that are not bound yet. Said at once.
    Arriving { bridge: String },
    /// Which of these devices are connected to whoever hears this, of whom the bridge may not have heard. Said at once.
    Wanted { bridge: String, number: u32, addresses: Vec<String> },
    /// To who has asked with this number: these are connected to the bridge. Said at once.
    Has { bridge: String, number: u32, addresses: Vec<String> },
    /// A bridge has a command for these devices: which of those that are connected to whoever hears this are among them.
    /// Said at once.
    Call { bridge: String, number: u32, whom: Whom },
    /// To who has asked with this number, one part of so many: it is for these. Said at once.
    Called { bridge: String, number: u32, part: u32, parts: u32, addresses: Vec<String> },
    /// Whether the bridge is there: if it is not, this comes back.
    Alive,
    /// To the queue of what is parked for a device: if there is none, this comes back.
    Knock,
    /// Commands were parked for the device because no bridge had it.
    Parked { address: String },
}

impl Control {
    /// Reads what another bridge has said.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Cow<'static, str>> {
        serde_json::from_slice(body).map_err(|error| error.to_string().into())
    }

    /// Whether it goes behind what bridges wait for, if it is said at once: on a busy broker each message takes its time.
    pub(crate) fn can_wait(&self) -> bool {
        matches!(self, Self::Devices { .. } | Self::Called { .. })
    }

    /// As the body of a message.
    pub(crate) fn body(&self) -> Vec<u8> {
        // Strings and numbers: this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let address = "10.2.0.7".to_owned();
        let bridge = "b1".to_owned();
        let peer = std::net::SocketAddr::from(([10, 2, 0, 7], 5000));
        let ended = Connection { address: address.clone(), epoch: 7, peer, lost: true };
        let all = [
            Control::Claim {
                address: address.clone(),
                bridge: bridge.clone(),
                epoch: 7,
                opened_ms: 1,
                is_bound: true,
            },
            Control::Yielded { address: address.clone(), epoch: 7 },
            Control::Later { address: address.clone(), epoch: u64::MAX },
            Control::Gone { address: address.clone() },
            Control::Emptied { address: address.clone(), to: Some(bridge), epoch: 7 },
            Control::Emptied { address: address.clone(), to: None, epoch: 7 },
            Control::Begun { bridge: "b2".to_owned() },
            Control::Left { bridge: "b2".to_owned() },
            Control::Here { bridge: "b2".to_owned(), epoch: 9 },
            Control::Devices {
                bridge: "b2".to_owned(),
                run: "1f".to_owned(),
                devices: vec![ended.clone()],
            },
            Control::WasLost { run: "1f".to_owned() },
            Control::Leaving { bridge: "b2".to_owned() },
            Control::Moving {
                bridge: "b2".to_owned(),
                part: 3,
                devices: vec![ended],
                within_ms: 30_000,
                turn: 1,
            },
            Control::Held { bridge: "b2".to_owned(), part: 3, count: 1 },
            Control::Arriving { bridge: "b2".to_owned() },
            Control::Wanted {
                bridge: "b2".to_owned(),
                number: 3,
                addresses: vec![address.clone()],
            },
            Control::Has { bridge: "b2".to_owned(), number: 3, addresses: Vec::new() },
            Control::Call { bridge: "b2".to_owned(), number: 4, whom: Whom::Group("pumps".into()) },
            Control::Call { bridge: "b2".to_owned(), number: 5, whom: Whom::All },
            Control::Called {
                bridge: "b2".to_owned(),
                number: 5,
                part: 1,
                parts: 2,
                addresses: vec![address.clone()],
            },
            Control::Alive,
            Control::Knock,
            Control::Parked { address },
        ];
        for said in all {
            assert_eq!(Control::read(&said.body()), Ok(said));
        }
        for wrong in ["", "{}", r#"{"says":"nothing"}"#, r#"{"says":"claim"}"#] {
            assert!(Control::read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
