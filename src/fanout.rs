//! `Fanout`: a command for many, on its way to each of them.
//!
//! It goes out in steps, between which the other tasks get their turn; but nothing else is taken from
//! the queue meanwhile, so that what comes later for one of them stays behind it.

use std::sync::Arc;

use tokio::time::Instant;

use crate::broker::{Recipients, Terms};
use crate::command::Address;
use crate::device::Devices;
use crate::gathering::Gathering;
use crate::order::{Facts, Order, Origin, Steps};
use crate::protocol::Wire;
use crate::router::{Routed, Router};
use crate::settlement::Settlement;
use crate::trail::Trail;

/// Devices written to in one step: some 100 µs.
const STEP: usize = 16;
/// Devices whose command is remembered for `explain`, of one command: the others of a large group
/// would push out everything else.
const REMEMBERED: usize = 100;

/// A command on its way to many.
#[derive(Debug)]
pub(crate) struct Fanout {
    terms: Terms,
    origin: Origin,
    members: std::vec::IntoIter<Address>,
    gathering: Arc<Gathering>,
    remembered: usize,
}

impl Fanout {
    /// To these devices, of which there is at least one.
    pub(crate) fn new(
        devices: &Devices,
        terms: Terms,
        origin: Origin,
        members: Vec<Address>,
        delivery: Settlement,
    ) -> Self {
        let reporter = Arc::clone(&devices.reporter);
        let gathering = Gathering::new(reporter, origin.clone(), delivery, members.len());
        Self { terms, origin, members: members.into_iter(), gathering, remembered: 0 }
    }

    /// Sends it to some more; true when all have had it.
    pub(crate) fn step(&mut self, router: &Router, trail: &Trail) -> bool {
        let metrics = &router.devices.metrics;
        let now = Instant::now();
        for address in self.members.by_ref().take(STEP) {
            let command = self.terms.clone().with(address);
            let facts = Facts { command, origin: self.origin.clone(), steps: Steps::default() };
            let facts = Arc::new(facts);
            if self.remembered < REMEMBERED {
                self.remembered += 1;
                trail.command(&facts);
            }
            router.devices.reporter.taken(&facts);
            let settlement = Settlement::share_of(&self.gathering, metrics.clone());
            let order = Order { facts, settlement, frame: None };
            match router.route(order, now) {
                Routed::Waiting | Routed::Written(None) => {}
                Routed::Written(Some(settlement)) => settlement.settle(),
                Routed::Concluded(order, fate) => router.devices.reporter.report(order, fate),
            }
        }
        self.members.as_slice().is_empty()
    }
}

impl Drop for Fanout {
    fn drop(&mut self) {
        // The connection is lost in the midst of it: the broker delivers it again.
        self.members.by_ref().for_each(|_| self.gathering.share_done(true));
    }
}

/// Who `recipients` are now. None of them may be connected, but there may be no such group.
pub(crate) fn members(devices: &Devices, recipients: Recipients) -> Vec<Address> {
    let connected = |wanted: fn(&Wire) -> bool| {
        let all = devices.registry.all();
        let wanted = all.iter().filter(|session| wanted(session.wire()));
        wanted.map(|session| session.address().clone()).collect()
    };
    match recipients {
        Recipients::One(address) => vec![address],
        Recipients::These(addresses) => addresses,
        Recipients::Group(group) => devices.groups.members(&group).into_iter().collect(),
        Recipients::All => connected(|_| true),
        Recipients::AllInChat => connected(|wire| matches!(wire, Wire::Chat { .. })),
    }
}
