//! `Presence`: which devices came and went, kept until the broker has been told.
//!
//! The registry reports every connection and its end, in order, inside its own critical section; the
//! publisher takes the events out one by one. Per address they alternate between online and offline
//! and end in the truth. While the broker is away, memory stays bounded: an address keeps at most
//! `PENDING_MAX` events, and what goes first is a connection that came and went unseen.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;

use crate::clock;
use crate::command::Address;
use crate::live::{Kind, Live};
use crate::run::Run;

/// Events kept for one address: the end of the connection readers know of, one more connection, and
/// the present one, with one to spare.
const PENDING_MAX: usize = 4;

/// Addresses with events kept for the broker. Beyond it, connections that came and went while the
/// broker was away are forgotten at once. At about 300 bytes each this bounds memory to 30 MB.
const ADDRESSES_MAX: usize = 100_000;

/// What changes about a device that stays connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Update {
    /// It has sent nothing for longer than `DEVICE_SILENCE_LIMIT`.
    Silent,
    /// It was silent and has sent something.
    Heard,
}

/// One change of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) address: Address,
    pub(crate) epoch: u64,
    pub(crate) online: bool,
    /// What changed if it is neither that it came nor that it went.
    pub(crate) update: Option<Update>,
    pub(crate) at_ms: u64,
    pub(crate) reason: &'static str,
    pub(crate) peer: SocketAddr,
}

#[derive(Serialize)]
struct Event<'a> {
    address: String,
    online: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    silent: bool,
    epoch: u64,
    bridge: &'a str,
    run: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    at: String,
    reason: &'static str,
    peer: String,
}

/// The changes the broker has not been told of.
#[derive(Debug)]
pub struct Presence {
    run: Run,
    work: Arc<Notify>,
    live: Arc<Live>,
    /// Held for a few map operations at a time, never across an await.
    board: Mutex<Board>,
}

impl Presence {
    /// An empty board; `work` is told when there is something to publish.
    pub(crate) fn new(run: Run, work: Arc<Notify>, live: Arc<Live>) -> Self {
        Self { run, work, live, board: Mutex::new(Board::new(ADDRESSES_MAX)) }
    }

    /// Takes up a change. Those who look on learn of it at once, also while the broker is away, and so without
    /// the `seq` that its event gets at last.
    pub(crate) fn changed(&self, change: Change) {
        self.live.tell(Kind::Presence, &change.address, || self.json(&change, None));
        self.lock().push(change);
        self.work.notify_one();
    }

    /// The next event to publish: the address it is about and its JSON.
    pub(crate) fn next(&self) -> Option<(Address, Vec<u8>)> {
        let (change, seq) = self.lock().pop()?;
        let json = self.json(&change, Some(seq));
        Some((change.address, json))
    }

    fn json(&self, change: &Change, seq: Option<u64>) -> Vec<u8> {
        let event = Event {
            address: change.address.to_string(),
            online: change.online,
            silent: change.update == Some(Update::Silent),
            epoch: change.epoch,
            bridge: &self.run.bridge,
            run: &self.run.name,
            seq,
            at: clock::rfc3339(change.at_ms),
            reason: change.reason,
            peer: change.peer.to_string(),
        };
        // Strings, numbers and a bool: this cannot fail.
        serde_json::to_vec(&event).unwrap_or_default()
    }

    /// The `seq` of the last event that was taken out.
    pub(crate) fn seq(&self) -> u64 {
        self.lock().seq
    }

    /// Somebody is about to learn from the registry who is connected: gives the `seq` of the last event whose change
    /// is there already. To be asked while the registry is locked. None if too much waits for the broker: what
    /// readers of a snapshot know must not be forgotten, and there is no room for more of it.
    pub(crate) fn snapshot(&self) -> Option<u64> {
        let mut board = self.lock();
        if board.is_crowded() {
            return None;
        }
        board.seen = board.pushed;
        Some(board.seq)
    }

    /// Whether everything has been taken out.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().order.is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Board {
    /// What is pending of each address, with the number of each change.
    pending: HashMap<Address, VecDeque<(u64, Change)>>,
    /// Addresses with something pending, each once.
    order: VecDeque<Address>,
    addresses_max: usize,
    /// Grows by one with each event that is published, so it is given out at the last moment.
    seq: u64,
    /// How many changes there were: the number of the last.
    pushed: u64,
    /// The number of the last change before a snapshot. A connection that it may show has not come and gone unseen.
    seen: u64,
}

impl Board {
    fn new(addresses_max: usize) -> Self {
        Self {
            pending: HashMap::new(),
            order: VecDeque::new(),
            addresses_max,
            seq: 0,
            pushed: 0,
            seen: 0,
        }
    }

    fn push(&mut self, change: Change) {
        let crowded = self.is_crowded();
        self.pushed += 1;
        let address = change.address.clone();
        let pending = self.pending.entry(address.clone()).or_default();
        if pending.is_empty() {
            self.order.push_back(address.clone());
        }
        // Only the last update counts, and none once the connection has ended.
        if pending
            .back()
            .is_some_and(|(_, last)| last.update.is_some() && last.epoch == change.epoch)
        {
            pending.pop_back();
        }
        let ends_unseen = !change.online
            && pending.back().is_some_and(|(number, last)| {
                last.online && last.epoch == change.epoch && *number > self.seen
            });
        if crowded && ends_unseen {
            pending.pop_back();
            if pending.is_empty() {
                self.pending.remove(&address);
                self.order.retain(|other| *other != address);
            }
            return;
        }
        pending.push_back((self.pushed, change));
        if pending.len() > PENDING_MAX {
            forget_one_connection(pending);
        }
    }

    fn is_crowded(&self) -> bool {
        self.pending.len() > self.addresses_max
    }

    fn pop(&mut self) -> Option<(Change, u64)> {
        let address = self.order.pop_front()?;
        let pending = self.pending.get_mut(&address)?;
        let (_, change) = pending.pop_front()?;
        if pending.is_empty() {
            self.pending.remove(&address);
        } else {
            self.order.push_back(address);
        }
        self.seq += 1;
        Some((change, self.seq))
    }
}

/// Drops the oldest connection that both began and ended while the broker was away. Another has come since, so
/// whoever has seen this one in a snapshot learns from that one's epoch that it is over.
fn forget_one_connection(pending: &mut VecDeque<(u64, Change)>) {
    let whole = |first: &Change, second: &Change| {
        first.online && !second.online && first.epoch == second.epoch
    };
    let found = pending.iter().zip(pending.iter().skip(1)).position(|((_, a), (_, b))| whole(a, b));
    if let Some(at) = found {
        pending.drain(at..at + 2);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(device: u8, epoch: u64, online: bool) -> Change {
        Change {
            address: Address::from(std::net::IpAddr::from([127, 0, 0, device])),
            epoch,
            online,
            update: None,
            at_ms: 0,
            reason: "closed",
            peer: SocketAddr::from(([127, 0, 0, device], 1)),
        }
    }

    fn drain(board: &mut Board) -> Vec<(u64, bool)> {
        std::iter::from_fn(|| board.pop())
            .map(|(change, _)| (change.epoch, change.online))
            .collect()
    }

    #[test]
    fn nothing_is_left_out_while_the_publisher_keeps_up() {
        let mut board = Board::new(10);
        board.push(change(1, 1, true));
        board.push(change(1, 1, false));
        board.push(change(1, 2, true));
        assert_eq!(drain(&mut board), [(1, true), (1, false), (2, true)]);
    }

    #[test]
    fn a_long_outage_keeps_the_end_that_readers_wait_for_and_the_truth() {
        let mut board = Board::new(10);
        board.push(change(1, 1, false));
        for epoch in 2..50 {
            board.push(change(1, epoch, true));
            board.push(change(1, epoch, false));
        }
        board.push(change(1, 50, true));
        let events = drain(&mut board);
        assert_eq!(events.first(), Some(&(1, false)));
        assert_eq!(events.last(), Some(&(50, true)));
        assert!(events.len() <= PENDING_MAX);
    }

    #[test]
    fn only_the_last_update_counts_and_none_behind_the_end() {
        let mut board = Board::new(10);
        let update = |update| Change { update: Some(update), ..change(1, 1, true) };
        board.push(change(1, 1, true));
        board.push(update(Update::Silent));
        board.push(update(Update::Heard));
        board.push(update(Update::Silent));
        let updates: Vec<_> =
            std::iter::from_fn(|| board.pop()).map(|(change, _)| change.update).collect();
        assert_eq!(updates, [None, Some(Update::Silent)]);
        board.push(update(Update::Heard));
        board.push(change(1, 1, false));
        assert_eq!(drain(&mut board), [(1, false)]);
    }

    #[test]
    fn a_crowd_that_came_and_went_unseen_costs_nothing() {
        let mut board = Board::new(10);
        for device in 0..200 {
            board.push(change(device, 1, true));
            board.push(change(device, 1, false));
        }
        assert!(board.pending.len() <= 12, "{}", board.pending.len());
        assert_eq!(board.pending.len(), board.order.len());
    }

    #[test]
    fn an_event_says_all_the_contract_names() {
        let presence = Presence::new(Run::of_a_test(), Arc::new(Notify::new()), Live::of_a_test());
        presence.changed(change(7, 42, true));
        let (address, json) = presence.next().expect("one event");
        assert_eq!(address.to_string(), "127.0.0.7");
        let event: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        let expected = serde_json::json!({
            "address": "127.0.0.7", "online": true, "epoch": 42, "bridge": "b1", "run": "r1", "seq": 1,
            "at": "1970-01-01T00:00:00.000Z", "reason": "closed", "peer": "127.0.0.7:1",
        });
        assert_eq!(event, expected);
        assert!(presence.is_empty());
    }

    #[test]
    fn what_a_snapshot_has_shown_is_not_forgotten() {
        let mut board = Board::new(0);
        board.push(change(1, 1, true));
        board.seen = board.pushed;
        board.push(change(2, 1, true));
        board.push(change(2, 1, false));
        board.push(change(1, 1, false));
        assert_eq!(drain(&mut board), [(1, true), (1, false)], "the second was not seen");
    }

    #[test]
    fn there_is_no_snapshot_while_too_much_waits_for_the_broker() {
        let presence = Presence::new(Run::of_a_test(), Arc::new(Notify::new()), Live::of_a_test());
        presence.lock().addresses_max = 1;
        presence.changed(change(1, 1, true));
        assert_eq!(presence.snapshot(), Some(0));
        presence.changed(change(2, 1, true));
        assert_eq!(presence.snapshot(), None);
        assert!(presence.next().is_some());
        assert_eq!(presence.snapshot(), Some(1));
    }

    /// What a reader knows: it took a snapshot with this `seq`, and follows events.
    #[derive(Debug)]
    struct Copy {
        seq: u64,
        devices: [(u64, bool); 4],
    }

    impl Copy {
        fn hear(&mut self, index: usize, epoch: u64, online: bool, seq: u64) {
            if seq > self.seq && epoch >= self.devices[index].0 {
                self.devices[index] = (epoch, online);
            }
        }
    }

    fn index_of(address: &Address) -> usize {
        let Address::Ip(std::net::IpAddr::V4(ip)) = address else { panic!("an IPv4 device") };
        usize::from(ip.octets()[3])
    }

    proptest! {
        /// Devices come and go, readers take snapshots, and events are taken out now and then: whatever is forgotten,
        /// each reader that drops what its snapshot knows ends in the truth.
        #[test]
        fn whoever_begins_with_a_snapshot_ends_in_the_truth(steps in prop::collection::vec((0u8..4, 0u8..8), 1..300), max in 1usize..4) {
            let mut board = Board::new(max);
            let mut truth = [(0u64, false); 4];
            let mut copies: Vec<Copy> = Vec::new();
            let take_one = |board: &mut Board, copies: &mut Vec<Copy>| {
                let Some((change, seq)) = board.pop() else { return false };
                let index = index_of(&change.address);
                copies.iter_mut().for_each(|copy| copy.hear(index, change.epoch, change.online, seq));
                true
            };
            for (device, what) in steps {
                match what {
                    0 if !board.is_crowded() => {
                        board.seen = board.pushed;
                        // One that is not there is not in it.
                        let shown = truth.map(|(epoch, online)| if online { (epoch, true) } else { (0, false) });
                        copies.push(Copy { seq: board.seq, devices: shown });
                    }
                    1 => {
                        take_one(&mut board, &mut copies);
                    }
                    _ => {
                        let (epoch, online) = &mut truth[usize::from(device)];
                        *online = !*online;
                        *epoch += u64::from(*online);
                        board.push(change(device, *epoch, *online));
                    }
                }
            }
            while take_one(&mut board, &mut copies) {}
            for copy in copies {
                // One that was never there and one that is gone are the same to a reader.
                let online = copy.devices.map(|(_, online)| online);
                prop_assert_eq!(online, truth.map(|(_, online)| online));
                for (known, now) in copy.devices.iter().zip(truth) {
                    prop_assert!(!known.1 || known.0 == now.0, "{:?} {:?}", copy, truth);
                }
            }
        }

        /// Devices come and go while events are taken out now and then: whatever is forgotten, each
        /// device's events alternate, their epochs never fall, and the last one is the truth.
        #[test]
        fn events_alternate_and_end_in_the_truth(steps in prop::collection::vec((0u8..4, any::<bool>()), 1..300), max in 1usize..4) {
            let mut board = Board::new(max);
            let mut online = [false; 4];
            let mut epochs = [0u64; 4];
            let mut seen: [Vec<(u64, bool)>; 4] = Default::default();
            let take = |board: &mut Board, seen: &mut [Vec<(u64, bool)>; 4]| {
                while let Some((change, _)) = board.pop() {
                    seen[index_of(&change.address)].push((change.epoch, change.online));
                }
            };
            for (device, is_take) in steps {
                if is_take && device == 0 {
                    take(&mut board, &mut seen);
                    continue;
                }
                let index = usize::from(device);
                online[index] = !online[index];
                epochs[index] += u64::from(online[index]);
                board.push(change(device, epochs[index], online[index]));
            }
            take(&mut board, &mut seen);
            for index in 0..4 {
                let mut last = (0, false);
                for event in &seen[index] {
                    prop_assert!(event.1 != last.1 && event.0 >= last.0, "{:?}", seen[index]);
                    last = *event;
                }
                prop_assert_eq!(last.1, online[index]);
            }
        }
    }
}
