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
use crate::fanout;

/// Takes up what a bridge has said.
pub(super) fn hear(devices: &Devices, cluster: &Cluster, body: &[u8]) {
    let control = match Control::read(body) {
        Ok(control) => control,
        Err(error) => {
            warn!(%error, "a message that says it is from another bridge cannot be read; it is dropped.");
            return;
        }
    };
    match control {
        Control::Here { bridge, epoch } => {
            devices.registry.heard(epoch);
            cluster.heard_of(&bridge);
        }
        Control::Left { bridge } => {
            info!(bridge, "another bridge takes over from one that is gone");
            cluster.is_no_heir(&bridge);
            cluster.is_lost(&bridge);
            cluster.forget_bridge(&bridge);
            cluster.push(Work::ClaimAgain);
        }
        Control::WasLost { run } => {
            if cluster.was_lost(&run) {
                warn!("other bridges have taken this one for dead; its devices are told anew.");
                devices.registry.tell_anew();
            }
        }
        Control::Devices { bridge, run, devices } => cluster.has_these(&bridge, &run, devices),
        // Whoever takes over reads what others say to themselves, too.
        Control::Begun { bridge } if *bridge == *cluster.bridge => cluster.push(Work::Begun),
        Control::Leaving { bridge } => {
            // Nothing goes to it directly from now on: it leaves its inbox, and nobody reads that any more.
            cluster.none_moved_to(&bridge);
            cluster.is_no_heir(&bridge);
        }
        Control::Moving { bridge, part, devices: ended, within_ms, turn } => {
            // Those that come here are later.
            let latest = ended.iter().map(|ended| ended.epoch).max();
            devices.registry.heard(latest.unwrap_or_default());
            let count = cluster.hold(&ended, Duration::from_millis(within_ms), turn);
            cluster.tell_held(&bridge, part, count);
        }
        Control::Held { bridge, part, count } => cluster.held_by(&bridge, part, count),
        Control::Arriving { bridge } => cluster.is_arriving(&bridge),
        Control::Wanted { bridge, number, addresses } => {
            let here = addresses.into_iter().filter(|named| is_here(devices, cluster, named));
            cluster.answer(&bridge, number, here.collect());
        }
        Control::Has { bridge, number, addresses } => {
            cluster.answered(&bridge, number, &addresses);
        }
        Control::Call { bridge, number, whom } => {
            cluster.answer_call(&bridge, number, &fanout::members(devices, &whom));
        }
        Control::Called { bridge, number, part, parts, addresses } => {
            cluster.called(&bridge, number, (part, parts), addresses);
        }
        Control::Begun { .. } | Control::Alive | Control::Knock => {}
        Control::Claim { .. }
        | Control::Yielded { .. }
        | Control::Later { .. }
        | Control::Gone { .. }
        | Control::Emptied { .. }
        | Control::Parked { .. } => hear_of_device(devices, cluster, control),
    }
}

/// Takes up what it has said of one device.
fn hear_of_device(devices: &Devices, cluster: &Cluster, control: Control) {
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
    if let Control::Claim { bridge, epoch, is_bound, .. } = &control
        && **bridge != *cluster.bridge
    {
        if *is_bound {
            cluster.was_shared(&address);
        }
        claimed(devices, cluster, address, bridge, *epoch);
    } else {
        cluster.push(Work::Heard(address, control));
    }
}

/// Whether a device is connected here, and stays.
fn is_here(devices: &Devices, cluster: &Cluster, named: &str) -> bool {
    let session = Address::parse(named).ok().and_then(|address| devices.registry.find(&address));
    !cluster.is_leaving() && session.is_some_and(|session| !session.is_closed())
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
