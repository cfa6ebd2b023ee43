//! Presence as a reader sees it that goes by the epoch: of two events of a device the one with the higher epoch counts, and
//! of two with the same the one that says that it is gone.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde_json::Value;

use super::account::time_ms;
use super::crowd::Here;
use super::world::NAMES;
use crate::harness::address;

#[derive(Default)]
pub(super) struct Presence {
    known: HashMap<String, Value>,
    /// When each connection was told as online, by its peer.
    told_ms: HashMap<String, u64>,
    pub(super) events: usize,
}

impl Presence {
    pub(super) fn hear(&mut self, event: Value) {
        self.events += 1;
        let address = event["address"].as_str().expect("an address").to_owned();
        if event["online"] == true {
            let text = |field: &str| event[field].as_str().unwrap_or_default();
            self.told_ms.insert(text("peer").to_owned(), time_ms(text("at")));
        }
        let rank = |event: &Value| (event["epoch"].as_u64(), event["online"] == false);
        let known = self.known.entry(address).or_default();
        if rank(&event) > rank(known) {
            *known = event;
        }
    }

    /// When the connection of a device from `peer` was told as online.
    pub(super) fn told_ms(&self, peer: SocketAddr) -> Option<u64> {
        self.told_ms.get(&peer.to_string()).copied()
    }

    /// What is said of devices that is not so.
    pub(super) fn untrue(&self, here: &[Option<Here>]) -> Vec<String> {
        let said = here.iter().enumerate().filter_map(|(index, here)| {
            let said = self.known.get(&address(index)).unwrap_or(&Value::Null);
            let is_so = match here {
                Some(here) => {
                    said["online"] == true
                        && said["bridge"] == NAMES[here.bridge]
                        && said["peer"] == *here.peer.to_string()
                }
                None => said["online"] != true,
            };
            (!is_so).then(|| format!("{} is {here:?}, and said is {said}", address(index)))
        });
        said.collect()
    }
}
