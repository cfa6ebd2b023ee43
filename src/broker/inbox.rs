//! What other bridges say to this one, most of it in the order in which it comes to the inbox.
//!
//! A claim is behind all commands that came by the binding it is to end: these have been offered to the
//! device before its connection here is closed.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::cluster::control::Control;
use crate::cluster::{Cluster, Work};
use crate::command::Address;
use crate::device::{Devices, Yielded};

/// Takes up what a bridge has said.
pub(super) fn hear(devices: &Devices, cluster: &Cluster, body: &[u8]) {
    let control = match Control::read(body) {
        Ok(control) => control,
        Err(error) => {
            warn!(%error, "a message that says it is from another bridge cannot be read; it is dropped.");
            return;
        }
    };
    if let Control::Here { bridge, epoch } = &control {
        devices.registry.heard(*epoch);
        cluster.heard_of(bridge);
        return;
    }
    if let Control::Left { bridge } = &control {
        info!(bridge, "another bridge takes over from one that is gone");
        cluster.none_moved_to(bridge);
        cluster.is_no_heir(bridge);
        cluster.forget_bridge(bridge);
        cluster.push(Work::ClaimAgain);
        return;
    }
    if let Control::Begun { bridge } = &control {
        // Whoever takes over reads what others say to themselves, too.
        if **bridge == *cluster.bridge {
            cluster.push(Work::Begun);
        }
        return;
    }
    if let Control::Leaving { bridge } = &control {
        // Nothing goes to it directly from now on: it leaves its inbox, and nobody reads that any more.
        cluster.none_moved_to(bridge);
        cluster.is_no_heir(bridge);
        return;
    }
    if let Control::Moving { bridge, part, devices: ended, within_ms, turn } = control {
        // Those that come here are later.
        let latest = ended.iter().map(|ended| ended.epoch).max();
        devices.registry.heard(latest.unwrap_or_default());
        let count = cluster.hold(&ended, Duration::from_millis(within_ms), turn);
        cluster.tell_held(&bridge, part, count);
        return;
    }
    if let Control::Held { bridge, part, count } = &control {
        cluster.held_by(bridge, *part, *count);
        return;
    }
    let (Control::Claim { address: named, .. }
    | Control::Yielded { address: named, .. }
    | Control::Later { address: named, .. }
    | Control::Gone { address: named }
    | Control::Emptied { address: named, .. }
    | Control::Parked { address: named }) = &control
    else {
        return;
    };
    let Ok(address) = Address::parse(named) else {
        warn!(address = %named, "another bridge speaks of what is no device; it is not heard.");
        return;
    };
    if let Control::Claim { bridge, epoch, .. } = &control
        && **bridge != *cluster.bridge
    {
        claimed(devices, cluster, address, bridge, *epoch);
    } else {
        cluster.push(Work::Heard(address, control));
    }
}

/// Lets a device go that has connected to `bridge`, with what waited for it.
fn claimed(devices: &Devices, cluster: &Cluster, address: Address, bridge: &str, epoch: u64) {
    let to: Arc<str> = bridge.into();
    match devices.registry.yield_to(devices, &address, epoch) {
        Yielded::Closed(epoch, unwritten) => {
            info!(%address, bridge = %to, handed_over = unwritten.len(), "the device has connected to another bridge");
            devices.metrics.handed_over();
            cluster.moved(&address, &to);
            for order in unwritten {
                cluster.push(Work::Command(order, Some(Arc::clone(&to))));
            }
            cluster.push(Work::Yield { address, to, epoch: Some(epoch) });
        }
        Yielded::Later(epoch) => {
            let address = address.to_string();
            cluster.push(Work::Say(to, Control::Later { address, epoch }));
        }
        Yielded::Nothing => cluster.push(Work::Yield { address, to, epoch: None }),
    }
}
