//! `Elsewhere`: the devices of the other bridges, as far as these have told. Pure.
//!
//! A bridge that dies tells nobody that its devices are gone: who has heard that they came does so in its place. Of more
//! than there is room for each bridge remembers a part by a lot of its own, so that of many bridges one or the other
//! knows of nearly every device.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::sync::Arc;

use super::moving::Connection;
use crate::command::Address;

/// Devices that are remembered, at some 120 bytes each: 24 MB.
const DEVICES_MAX: usize = 200_000;
/// The part of all devices that is remembered is made smaller by one in so many when there is no room for more.
const THINNED_BY: u64 = 8;

/// Bridges whose runs are remembered, beside those that have devices: where each new one has a name of its own they add up.
const RUNS_MAX: usize = 1000;

/// The devices of the other bridges.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// The bridge that remembers them.
    own: Arc<str>,
    room: usize,
    devices: HashMap<Address, Known>,
    /// Of all devices those are remembered whose lot is at most this.
    drawn_up_to: u64,
    /// The last run of each bridge that was heard of.
    runs: HashMap<Arc<str>, Last>,
}

#[derive(Debug)]
struct Last {
    run: Arc<Run>,
    /// Whether it was taken for dead.
    is_lost: bool,
}

/// What it means that a bridge is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    /// It was started again: these devices were connected to it before.
    Restarted(Vec<Connection>),
    /// It was taken for dead, and is not.
    Back,
}

/// A device, as much of it as is told when it is gone.
#[derive(Debug)]
struct Known {
    epoch: u64,
    peer: SocketAddr,
    at: Arc<Run>,
}

/// One run of a bridge.
#[derive(Debug)]
struct Run {
    bridge: Arc<str>,
    /// Grows from run to run.
    began_ms: u64,
}

impl Elsewhere {
    pub(super) fn new(own: Arc<str>) -> Self {
        let (devices, runs) = (HashMap::new(), HashMap::new());
        Self { own, room: DEVICES_MAX, devices, drawn_up_to: u64::MAX, runs }
    }

    /// A bridge is there, in this run of its own.
    pub(super) fn runs(&mut self, bridge: &str, run: &str) -> Heard {
        let Some(began_ms) = began(run) else { return Heard::Nothing };
        if let Some(last) = self.runs.get_mut(bridge) {
            if last.run.began_ms > began_ms {
                return Heard::Nothing;
            }
            if last.run.began_ms == began_ms {
                let was_lost = std::mem::take(&mut last.is_lost);
                return if was_lost { Heard::Back } else { Heard::Nothing };
            }
        } else if self.runs.len() >= RUNS_MAX {
            self.runs.retain(|_, last| Arc::strong_count(&last.run) > 1);
        }
        let bridge: Arc<str> = bridge.into();
        let ended = self.take_all(&bridge);
        let run = Arc::new(Run { bridge: Arc::clone(&bridge), began_ms });
        let last = self.runs.insert(bridge, Last { run, is_lost: false });
        if last.is_some() { Heard::Restarted(ended) } else { Heard::Nothing }
    }

    /// A device has come to a bridge, in this run of it.
    pub(super) fn came(
        &mut self,
        address: Address,
        epoch: u64,
        peer: SocketAddr,
        at: (&str, &str),
    ) -> Heard {
        let (bridge, run) = at;
        let last = self.runs.get(bridge);
        let is_new = last.is_none_or(|last| began(run) > Some(last.run.began_ms));
        let heard = if is_new { self.runs(bridge, run) } else { Heard::Nothing };
        let last = self.runs.get(bridge).map(|last| &last.run);
        let Some(at) = last.filter(|at| began(run) == Some(at.began_ms)) else { return heard };
        let new = Known { epoch, peer, at: Arc::clone(at) };
        match self.devices.get_mut(&address) {
            Some(known) if known.epoch <= epoch => *known = new,
            Some(_) => {}
            None => self.remember(address, new),
        }
        heard
    }

    /// A device is gone, or here, with this epoch.
    pub(super) fn left(&mut self, address: &Address, epoch: u64) {
        if self.devices.get(address).is_some_and(|known| known.epoch <= epoch) {
            self.devices.remove(address);
            self.look_at_room();
        }
    }

    /// A bridge is taken for dead: gives the devices it had.
    pub(super) fn lost(&mut self, bridge: &str) -> Vec<Connection> {
        if let Some(last) = self.runs.get_mut(bridge) {
            last.is_lost = true;
        }
        self.take_all(bridge)
    }

    /// The devices of a bridge.
    pub(super) fn at(&self, bridge: &str) -> impl Iterator<Item = &Address> {
        let here = self.devices.iter().filter(move |(_, known)| *known.at.bridge == *bridge);
        here.map(|(address, _)| address)
    }

    /// How many devices are remembered.
    pub(super) fn count(&self) -> usize {
        self.devices.len()
    }

    fn take_all(&mut self, bridge: &str) -> Vec<Connection> {
        let of_bridge = self.devices.extract_if(|_, known| *known.at.bridge == *bridge);
        let all = of_bridge
            .map(|(address, Known { epoch, peer, .. })| {
                let address = address.to_string();
                Connection { address, epoch, peer, lost: true }
            })
            .collect();
        self.devices.shrink_to(self.devices.len() * 2);
        self.look_at_room();
        all
    }

    fn remember(&mut self, address: Address, known: Known) {
        if lot(&self.own, &address) > self.drawn_up_to {
            return;
        }
        self.devices.insert(address, known);
        if self.devices.len() > self.room {
            self.drawn_up_to -= self.drawn_up_to / THINNED_BY;
            let Self { own, drawn_up_to, .. } = self;
            self.devices.retain(|address, _| lot(own, address) <= *drawn_up_to);
        }
    }

    /// With much room again, whatever comes from now on is remembered.
    fn look_at_room(&mut self) {
        if self.devices.len() < self.room / 2 {
            self.drawn_up_to = u64::MAX;
        }
    }
}

/// What a bridge draws for a device: always the same, and another than other bridges do.
fn lot(bridge: &str, address: &Address) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((bridge, address))
}

/// When a run began, which is its name.
fn began(run: &str) -> Option<u64> {
    u64::from_str_radix(run, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], 5000))
    }

    fn device(name: &str) -> Address {
        Address::parse(name).expect("an address")
    }

    fn connection(name: &str, epoch: u64) -> Connection {
        Connection { address: name.to_owned(), epoch, peer: peer(), lost: true }
    }

    fn came(elsewhere: &mut Elsewhere, name: &str, epoch: u64, at: (&str, &str)) -> Heard {
        elsewhere.came(device(name), epoch, peer(), at)
    }

    #[test]
    fn a_bridge_that_is_lost_has_the_devices_that_came_to_it_last() {
        let mut elsewhere = Elsewhere::new("own".into());
        for bridge in ["a", "b"] {
            assert_eq!(elsewhere.runs(bridge, "10"), Heard::Nothing);
        }
        for (name, epoch, bridge) in
            [("d1", 1, "a"), ("d2", 2, "a"), ("d3", 3, "a"), ("d4", 4, "b"), ("d2", 5, "b")]
        {
            assert_eq!(came(&mut elsewhere, name, epoch, (bridge, "10")), Heard::Nothing);
        }
        // The end of a connection before does not count, nor does one of which it was heard late.
        elsewhere.left(&device("d1"), 0);
        came(&mut elsewhere, "d2", 2, ("a", "10"));
        elsewhere.left(&device("d3"), 3);
        elsewhere.left(&device("d4"), 4);
        assert_eq!(elsewhere.lost("a"), [connection("d1", 1)]);
        assert_eq!(elsewhere.lost("a"), []);
        assert_eq!(elsewhere.lost("b"), [connection("d2", 5)]);
    }

    #[test]
    fn what_a_run_had_is_gone_with_it() {
        let mut elsewhere = Elsewhere::new("own".into());
        came(&mut elsewhere, "d1", 1, ("a", "9"));
        assert_eq!(elsewhere.runs("a", "9"), Heard::Nothing, "it runs on");
        assert_eq!(elsewhere.runs("a", "10"), Heard::Restarted(vec![connection("d1", 1)]));
        assert_eq!(came(&mut elsewhere, "d2", 2, ("a", "10")), Heard::Nothing);
        let again = came(&mut elsewhere, "d3", 3, ("a", "11"));
        assert_eq!(again, Heard::Restarted(vec![connection("d2", 2)]));
        assert_eq!(came(&mut elsewhere, "d4", 4, ("a", "10")), Heard::Nothing, "late news");
        for run in ["10", "no number"] {
            assert_eq!(elsewhere.runs("a", run), Heard::Nothing);
        }
        assert_eq!(elsewhere.lost("a"), [connection("d3", 3)]);
    }

    #[test]
    fn one_that_was_only_away_is_told_so() {
        let mut elsewhere = Elsewhere::new("own".into());
        elsewhere.runs("a", "1");
        came(&mut elsewhere, "d1", 1, ("a", "1"));
        assert_eq!(elsewhere.lost("a"), [connection("d1", 1)]);
        assert_eq!(came(&mut elsewhere, "d1", 1, ("a", "1")), Heard::Nothing, "late news");
        elsewhere.left(&device("d1"), 1);
        assert_eq!(elsewhere.runs("a", "1"), Heard::Back);
        assert_eq!(elsewhere.runs("a", "1"), Heard::Nothing, "once");
        came(&mut elsewhere, "d1", 2, ("a", "1"));
        assert_eq!(elsewhere.lost("a"), [connection("d1", 2)]);
        assert_eq!(elsewhere.runs("a", "2"), Heard::Restarted(vec![]));
    }

    #[test]
    fn bridges_without_devices_are_forgotten() {
        let mut elsewhere = Elsewhere::new("own".into());
        elsewhere.runs("a", "1");
        came(&mut elsewhere, "d1", 1, ("a", "1"));
        for number in 0..RUNS_MAX + 5 {
            assert_eq!(elsewhere.runs(&number.to_string(), "1"), Heard::Nothing);
        }
        assert!(elsewhere.runs.len() <= RUNS_MAX);
        assert_eq!(elsewhere.lost("a"), [connection("d1", 1)]);
    }

    /// Less than in truth, to be done sooner.
    const ROOM: usize = 20_000;

    /// As one of three bridges that all hear of the same, half as many again as there is room for.
    fn full(own: &str) -> Elsewhere {
        let mut elsewhere = Elsewhere { room: ROOM, ..Elsewhere::new(own.into()) };
        for number in 0..ROOM * 3 / 2 {
            came(&mut elsewhere, &format!("d{number}"), 1, ("d", "1"));
        }
        elsewhere
    }

    #[test]
    fn of_too_many_each_bridge_remembers_another_part() {
        let all = ["a", "b", "c"].map(full);
        for elsewhere in &all {
            let least = ROOM - ROOM / 7;
            assert!((least..=ROOM).contains(&elsewhere.count()), "{}", elsewhere.count());
        }
        let by_none = (0..ROOM * 3 / 2)
            .map(|number| device(&format!("d{number}")))
            .filter(|address| all.iter().all(|each| !each.devices.contains_key(address)))
            .count() as f64;
        let by_one = |each: &Elsewhere| 1.0 - each.count() as f64 / (ROOM as f64 * 1.5);
        let expected = all.iter().map(by_one).product::<f64>() * ROOM as f64 * 1.5;
        assert!((by_none / expected - 1.0).abs() < 0.1, "{by_none} of {expected}");
    }

    #[test]
    fn with_room_again_all_that_come_are_remembered() {
        let mut elsewhere = full("a");
        assert!(elsewhere.drawn_up_to < u64::MAX);
        let (known, _) = elsewhere.devices.iter().next().expect("some are known");
        let known = known.to_string();
        came(&mut elsewhere, &known, 2, ("d", "1"));
        assert_eq!(elsewhere.devices[&device(&known)].epoch, 2);

        assert!(elsewhere.lost("d").len() > ROOM / 2);
        for number in 0..1000 {
            came(&mut elsewhere, &format!("e{number}"), 1, ("d", "1"));
        }
        assert_eq!(elsewhere.count(), 1000);
    }
}
