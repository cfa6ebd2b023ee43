//! `Fanout`: a command for many, on its way to each of them.
//!
//! It goes out in steps, between which the other tasks get their turn; but nothing else is taken from
//! the queue meanwhile, so that what comes later for one of them stays behind it.

use std::sync::Arc;

use tokio::time::Instant;

use crate::broker::Terms;
use crate::cluster::{Called, RollCall};
use crate::command::{Address, Whom};
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
    stage: Stage,
    remembered: usize,
}

#[derive(Debug)]
enum Stage {
    /// The other bridges are asked whom it is for.
    Asking {
        call: Arc<RollCall>,
        delivery: Settlement,
    },
    Sending {
        members: std::vec::IntoIter<Address>,
        gathering: Arc<Gathering>,
    },
    Over,
}

impl Fanout {
    /// To these devices.
    pub(crate) fn to(
        devices: &Devices,
        terms: Terms,
        origin: Origin,
        members: Vec<Address>,
        delivery: Settlement,
    ) -> Self {
        let mut fanout = Self { terms, origin, stage: Stage::Over, remembered: 0 };
        fanout.begin(devices, members, Vec::new(), delivery);
        fanout
    }

    /// To those devices for which it is, of all bridges.
    pub(crate) fn to_members(
        devices: &Devices,
        terms: Terms,
        origin: Origin,
        whom: Whom,
        delivery: Settlement,
    ) -> Self {
        let here = members(devices, &whom);
        let Some(cluster) = &devices.cluster else {
            return Self::to(devices, terms, origin, here, delivery);
        };
        let stage = Stage::Asking { call: cluster.call(whom, here), delivery };
        Self { terms, origin, stage, remembered: 0 }
    }

    /// Waits until there may be something to do for the next step.
    pub(crate) async fn until_ready(&self, devices: &Devices) {
        match (&devices.cluster, &self.stage) {
            (Some(cluster), Stage::Asking { call, .. }) => cluster.until_answered(call).await,
            (Some(cluster), Stage::Sending { .. }) => {
                cluster.until_room().await;
                tokio::task::yield_now().await;
            }
            _ => tokio::task::yield_now().await,
        }
    }

    /// Sends it to some more; true when all have had it.
    pub(crate) fn step(&mut self, router: &Router, trail: &Trail) -> bool {
        let devices = &router.devices;
        if let Some(cluster) = &devices.cluster
            && let Stage::Asking { call, .. } = &self.stage
        {
            let Some(Called { members, missing_bridges }) = cluster.take_call(call) else {
                return false;
            };
            if let Stage::Asking { delivery, .. } = std::mem::replace(&mut self.stage, Stage::Over)
            {
                let members = members.into_iter().collect();
                self.begin(devices, members, missing_bridges, delivery);
            }
        }
        let Stage::Sending { members, gathering } = &mut self.stage else { return true };
        let now = Instant::now();
        for address in members.by_ref().take(STEP) {
            let command = self.terms.clone().with(address);
            let facts = Facts { command, origin: self.origin.clone(), steps: Steps::default() };
            let facts = Arc::new(facts);
            if self.remembered < REMEMBERED {
                self.remembered += 1;
                trail.command(&facts);
            }
            devices.reporter.taken(&facts);
            let settlement = Settlement::share_of(gathering, devices.metrics.clone());
            let order = Order { facts, settlement, frame: None };
            match router.route(order, now) {
                Routed::Waiting | Routed::Written(None) => {}
                Routed::Written(Some(settlement)) => settlement.settle(),
                Routed::Concluded(order, fate) => devices.reporter.report(order, fate),
            }
        }
        members.as_slice().is_empty()
    }

    /// It is known whom it is for. That may be nobody.
    fn begin(
        &mut self,
        devices: &Devices,
        members: Vec<Address>,
        missing_bridges: Vec<Arc<str>>,
        delivery: Settlement,
    ) {
        let reporter = &devices.reporter;
        if members.is_empty() {
            let if_offline = self.terms.if_offline;
            let settled = reporter.conclude_nobody(&self.origin, if_offline, delivery);
            settled.into_iter().for_each(Settlement::settle);
            return;
        }
        let (reporter, count) = (Arc::clone(reporter), members.len());
        let gathering =
            Gathering::new(reporter, self.origin.clone(), delivery, count, missing_bridges);
        self.stage = Stage::Sending { members: members.into_iter(), gathering };
    }
}

impl Drop for Fanout {
    fn drop(&mut self) {
        // The connection is lost in the midst of it: the broker delivers it again.
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Asking { delivery, .. } => delivery.hand_back(),
            Stage::Sending { members, gathering } => {
                members.for_each(|_| gathering.share_done(true));
            }
            Stage::Over => {}
        }
    }
}

/// The devices here that a command is for.
pub(crate) fn members(devices: &Devices, whom: &Whom) -> Vec<Address> {
    let connected = |wanted: fn(&Wire) -> bool| {
        let all = devices.registry.all();
        let wanted = all.iter().filter(|session| wanted(session.wire()));
        wanted.map(|session| session.address().clone()).collect()
    };
    match whom {
        Whom::Group(group) => devices.groups.members(group).into_iter().collect(),
        Whom::All => connected(|_| true),
        Whom::AllInChat => connected(|wire| matches!(wire, Wire::Chat { .. })),
    }
}
