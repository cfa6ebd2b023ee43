//! What the other bridges tell everybody: which devices they have, and how high their epochs are.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use serde::Deserialize;

use super::super::BrokerError;
use crate::cluster::control::Control;
use crate::cluster::{Cluster, Work};
use crate::command::Address;
use crate::device::Devices;

/// An event of presence, as much of it as matters to other bridges.
#[derive(Deserialize)]
struct Event<'a> {
    address: &'a str,
    online: bool,
    epoch: u64,
    bridge: &'a str,
    run: Option<&'a str>,
    peer: Option<SocketAddr>,
}

/// That a bridge is there, as much of it as matters.
#[derive(Deserialize)]
struct Beat<'a> {
    bridge: &'a str,
    run: Option<&'a str>,
    routes: Option<&'a str>,
    epoch: Option<u64>,
}

/// What of the events is followed: presence and heartbeats.
pub(super) const KEYS: [&str; 2] = ["presence.#", "bridge.#"];

/// Takes up what the others tell, until the connection ends.
pub(super) async fn hear(
    mut events: lapin::Consumer,
    routes: &str,
    devices: &Devices,
    cluster: &Cluster,
) -> BrokerError {
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if event.routing_key.as_str().starts_with("bridge.") => {
                let beat = serde_json::from_slice::<Beat<'_>>(&event.data).ok();
                // There may be others that share nothing but the events.
                if let Some(beat) = beat.filter(|beat| beat.routes == Some(routes)) {
                    devices.registry.heard(beat.epoch.unwrap_or_default());
                    cluster.heard_of(beat.bridge);
                    if let Some(run) = beat.run {
                        cluster.runs(beat.bridge, run);
                    }
                }
            }
            Ok(event) => take_up(&event.data, devices, cluster),
            Err(error) => return BrokerError::during("following presence")(error),
        }
        // lapin's stream knows nothing of tokio's budget.
        tokio::task::coop::consume_budget().await;
    }
    BrokerError::Cancelled { queue: "of presence".to_owned() }
}

fn take_up(body: &[u8], devices: &Devices, cluster: &Cluster) {
    let Ok(event) = serde_json::from_slice::<Event<'_>>(body) else { return };
    let Ok(address) = Address::parse(event.address) else { return };
    if *event.bridge == *cluster.bridge {
        cluster.is_not_elsewhere(&address, event.epoch);
        return;
    }
    devices.registry.heard(event.epoch);
    cluster.told(&address, event.epoch, event.online);
    if !event.online {
        cluster.is_not_elsewhere(&address, event.epoch);
        return;
    }
    if let (Some(run), Some(peer)) = (event.run, event.peer) {
        cluster.is_at(event.bridge, run, &address, event.epoch, peer);
    }
    devices.parking.left_to_others(&address);
    if let Some(epoch) = devices.registry.later_than(&address, event.epoch) {
        // It was not told here yet when that bridge heard of it, if it did: then nobody else lets go of either.
        let to = Arc::from(event.bridge);
        let address = address.to_string();
        cluster.push(Work::Say(to, Control::Later { address, epoch }));
        return;
    }
    // Two connections of a device that came to two bridges at once: both found it at none.
    if let Some(left) = devices.registry.evict(devices, &address, event.epoch, false) {
        cluster.was_shared(&address);
        cluster.go_on(left);
    }
}
