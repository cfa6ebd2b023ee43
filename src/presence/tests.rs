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
    std::iter::from_fn(|| board.pop()).map(|(change, _)| (change.epoch, change.online)).collect()
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
    let presence =
        Presence::new(Run::of_a_test(), Arc::new(Notify::new()), Live::of_a_test(), None);
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
    let presence =
        Presence::new(Run::of_a_test(), Arc::new(Notify::new()), Live::of_a_test(), None);
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
