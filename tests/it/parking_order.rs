//! Parked commands go first, whatever their device does meanwhile: for each device the order of first writing is that of
//! the queue, and nothing is lost.

use std::collections::HashSet;

use crate::harness::{
    Bridge, Device, Dice, Inbox, STALL_LINE_MAX, Scene, Setup, command, eventually, park, reply_to,
    stalling_line, stalling_number, stalling_numbers,
};

const ADDRESS: &str = "127.0.0.9";
/// Parked commands of one device that the bridge has in hand at a time, and so the most that may come twice when a
/// connection ends.
const IN_HAND: usize = 32;

#[test]
fn new_commands_come_after_those_that_were_parked() {
    const PARKED: usize = 300;
    const NEW: usize = 400;
    let scene = Scene::new("parked-first");
    let bridge = roomy(&scene).start();
    scene.park_numbers(ADDRESS, 0..PARKED);
    scene.until_drained(&bridge);

    let mut device = bridge.device(ADDRESS);
    scene.publish_mixed(ADDRESS, PARKED..PARKED + NEW, |number| number.to_string());

    assert_eq!(take(&mut device, PARKED + NEW), (0..PARKED + NEW).collect::<Vec<_>>());
    all_written(&scene, &bridge, PARKED + NEW);
}

#[test]
fn a_device_that_leaves_in_the_midst_of_its_parked_commands_finds_the_rest_when_it_returns() {
    const COMMANDS: usize = 1_000;
    let scene = Scene::new("parked-leaves");
    let bridge = roomy(&scene).start();
    scene.park_numbers(ADDRESS, 0..COMMANDS / 2);
    scene.until_drained(&bridge);
    let mut received = Vec::new();

    for visit in 0..4 {
        let mut device = bridge.device(ADDRESS);
        if visit == 1 {
            scene.park_numbers(ADDRESS, COMMANDS / 2..COMMANDS);
        }
        received.extend(take(&mut device, 20 + visit));
        received.extend(leave(&bridge, device));
        bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
    }
    let mut device = bridge.device(ADDRESS);
    until_last(&mut device, &mut received, COMMANDS - 1);

    in_order(&received, COMMANDS, 5 * IN_HAND);
    all_settled(&scene, &bridge);
    assert_eq!(bridge.outcomes("offline"), 0.0);
}

#[test]
fn a_parked_command_that_is_not_answered_before_the_link_ends_is_asked_again() {
    const COMMANDS: usize = 12;
    let scene = Scene::new("parked-asks");
    let bridge = roomy(&scene).set("COMMAND_CONFIRM", "answered").start();
    let receipts = scene.receipts();
    for number in 0..COMMANDS {
        let properties = reply_to(&receipts).with_correlation_id(number.to_string().into());
        scene.publish_with(park(ADDRESS, &number.to_string()).to_string().as_bytes(), properties);
    }
    receipts
        .take(COMMANDS)
        .iter()
        .for_each(|receipt| assert_eq!(receipt.json()["outcome"], "parked"));

    // Every connection answers two and then breaks with a question open.
    let mut asked = Vec::new();
    while asked.last() != Some(&(COMMANDS - 1)) {
        let mut device = bridge.device(ADDRESS);
        for _ in 0..2 {
            asked.extend(take(&mut device, 1));
            device.send(format!("DID {}\n", asked[asked.len() - 1]).as_bytes());
        }
        if asked.last() != Some(&(COMMANDS - 1)) {
            asked.extend(take(&mut device, 1));
        }
        answered(&receipts, &asked, 2);
        device.reset();
        bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
    }

    let expected: Vec<usize> = (0..COMMANDS)
        .flat_map(|number| {
            // The third question of a visit is the first of the next.
            let again = number > 0 && number % 2 == 0;
            std::iter::repeat_n(number, if again { 2 } else { 1 })
        })
        .collect();
    assert_eq!(asked, expected);
    all_settled(&scene, &bridge);
    assert_eq!(bridge.outcomes("answered"), COMMANDS as f64);
}

/// Checks the next receipts: the commands that were asked last but for the one that is open.
#[track_caller]
fn answered(receipts: &Inbox, asked: &[usize], count: usize) {
    for receipt in receipts.take(count) {
        let number = receipt.correlation_id().expect("an id").to_owned();
        assert!(asked.iter().any(|asked| asked.to_string() == number));
        assert_eq!(receipt.json()["answer"], format!("DID {number}"));
    }
}

#[test]
fn a_newer_connection_gets_what_is_still_parked_and_what_came_behind_it() {
    const COMMANDS: usize = 900;
    let scene = Scene::new("parked-twin");
    let bridge = roomy(&scene).start();
    scene.park_numbers(ADDRESS, 0..COMMANDS / 3);
    scene.until_drained(&bridge);
    let mut received = Vec::new();

    let mut old = bridge.device(ADDRESS);
    for visit in 0..4 {
        received.extend(take(&mut old, 20));
        if visit == 1 {
            scene.park_numbers(ADDRESS, COMMANDS / 3..COMMANDS);
        }
        let new = Device::connect(ADDRESS, bridge.device_port);
        received.extend(old.until_closed().into_iter().map(|line| number(&line)));
        old = new;
    }
    until_last(&mut old, &mut received, COMMANDS - 1);

    in_order(&received, COMMANDS, 4 * IN_HAND);
    all_settled(&scene, &bridge);
}

#[test]
fn a_device_that_reads_slowly_gets_its_parked_commands_and_then_the_new_ones() {
    const PARKED: usize = 100;
    const NEW: usize = 50;
    let scene = Scene::new("parked-slow");
    let bridge = slow(&scene).set("MQ_PREFETCH", "16").start();
    for number in 0..PARKED {
        scene.publish(&park(ADDRESS, &stalling_line(number)));
    }
    scene.until_drained(&bridge);

    let mut device = bridge.narrow_device(ADDRESS);
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting >= 2.0);
    scene.publish_mixed(ADDRESS, PARKED..PARKED + NEW, stalling_line);

    let received = stalling_numbers(&mut device, PARKED + NEW);
    assert_eq!(received, (0..PARKED + NEW).collect::<Vec<_>>());
    all_written(&scene, &bridge, PARKED + NEW);
}

#[test]
fn a_command_that_finds_the_lane_full_is_not_parked_and_overtakes_none() {
    const COMMANDS: usize = 120;
    let scene = Scene::new("parked-overflow");
    let bridge = slow(&scene).set("DEVICE_LANE_MAX", "4").set("MQ_PREFETCH", "16").start();
    let mut device = bridge.narrow_device(ADDRESS);
    for number in 0..COMMANDS {
        scene.publish(&park(ADDRESS, &stalling_line(number)));
    }
    scene.publish(&command("127.0.0.8", LAST));
    let refused = overloaded(&scene);
    assert!(!refused.is_empty());

    let expected: Vec<usize> = (0..COMMANDS).filter(|number| !refused.contains(number)).collect();
    assert_eq!(stalling_numbers(&mut device, expected.len()), expected, "in order");
    all_settled(&scene, &bridge);
    assert_eq!(bridge.outcomes("parked"), 0.0);
}

#[test]
fn a_lane_that_is_full_behind_parked_commands_lets_none_overtake() {
    const PARKED: usize = 60;
    const NEW: usize = 40;
    let scene = Scene::new("parked-full-lane");
    let bridge = slow(&scene).set("DEVICE_LANE_MAX", "40").set("MQ_PREFETCH", "64").start();
    for number in 0..PARKED {
        scene.publish(&park(ADDRESS, &stalling_line(number)));
    }
    scene.until_drained(&bridge);
    let mut device = bridge.narrow_device(ADDRESS);
    bridge.until_metric("rabbitline_lane_commands", |waiting| waiting >= 2.0);
    scene.publish_mixed(ADDRESS, PARKED..PARKED + NEW, stalling_line);
    scene.publish(&command("127.0.0.8", LAST));
    let refused = overloaded(&scene);

    let expected: Vec<usize> =
        (0..PARKED + NEW).filter(|number| !refused.contains(number)).collect();
    assert_eq!(stalling_numbers(&mut device, expected.len()), expected, "in order");
    all_settled(&scene, &bridge);
}

#[test]
fn a_device_that_connects_while_its_command_is_on_its_way_to_be_parked_gets_it_at_once() {
    const ROUNDS: usize = 60;
    let scene = Scene::new("parked-race");
    let bridge = scene.setup().set("MQ_PREFETCH", "8").start();
    // Something was parked here before, so that every device is asked about.
    scene.publish(&park("127.0.0.8", "ANYTHING"));
    scene.until_drained(&bridge);
    let mut dice = Dice::new();
    let (mut received, mut published) = (Vec::new(), 0);

    for _ in 0..ROUNDS {
        let before = dice.below(3);
        let during = 1 + dice.below(6);
        scene.park_numbers(ADDRESS, published..published + before);
        let mut device = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| Device::connect(ADDRESS, bridge.device_port));
            scene.park_numbers(ADDRESS, published + before..published + before + during);
            connecting.join().expect("it connects")
        });
        published += before + during;
        until_last(&mut device, &mut received, published - 1);
        device.reset();
        // Sometimes the next round begins before the bridge has noticed.
        if dice.below(2) == 0 {
            bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
        }
    }

    in_order(&received, published, ROUNDS * IN_HAND);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 0.0);
    scene.until_drained(&bridge);
    let log = bridge.log().text();
    assert!(!log.contains("retry_in_ms"), "no connection to the broker was given up: {log}");
}

#[test]
fn many_devices_that_come_and_go_while_commands_are_parked_for_them_get_each_in_order() {
    const DEVICES: usize = 8;
    const ROUNDS: usize = 40;
    let scene = Scene::new("parked-many-races");
    let bridge = scene.setup().set("MQ_PREFETCH", "64").set("RUNTIME_THREADS", "4").start();
    let mut dice = Dice::new();
    let mut devices: Vec<Option<Device>> = (0..DEVICES).map(|_| None).collect();
    let mut received = vec![Vec::new(); DEVICES];
    let mut published = [0; DEVICES];
    let address = |index: usize| format!("127.0.2.{}", index + 1);

    for _ in 0..ROUNDS {
        for index in 0..DEVICES {
            let more = dice.below(8);
            scene.park_numbers(&address(index), published[index]..published[index] + more);
            published[index] += more;
            if dice.below(3) == 0 {
                let new = Device::connect(&address(index), bridge.device_port);
                if let Some(mut old) = devices[index].replace(new) {
                    received[index]
                        .extend(old.until_closed().into_iter().map(|line| number(&line)));
                }
            }
        }
    }
    for index in 0..DEVICES {
        let mut last = Device::connect(&address(index), bridge.device_port);
        if let Some(mut old) = devices[index].take() {
            received[index].extend(old.until_closed().into_iter().map(|line| number(&line)));
        }
        let missing =
            |received: &[usize]| received.iter().collect::<HashSet<_>>().len() < published[index];
        while missing(&received[index]) {
            received[index].extend(take(&mut last, 1));
        }
        in_order(&received[index], published[index], ROUNDS * IN_HAND);
    }
    all_settled(&scene, &bridge);
}

/// For a device that is not connected: when it is undelivered, all before it were taken up.
const LAST: &str = "ALL ARE TAKEN UP";

/// The large commands that were overloaded before `LAST`.
#[track_caller]
fn overloaded(scene: &Scene) -> HashSet<usize> {
    let undelivered = scene.undelivered_inbox();
    let mut refused = HashSet::new();
    loop {
        let letter = undelivered.next();
        let cmd = letter.json()["cmd"].as_str().expect("a string").to_owned();
        if cmd == LAST {
            return refused;
        }
        assert_eq!(letter.header("x-outcome"), "overloaded");
        refused.insert(stalling_number((cmd + "\r\n").as_bytes()));
    }
}

/// A bridge in which many new commands may wait behind parked ones.
fn roomy(scene: &Scene) -> Setup {
    scene
        .setup()
        .set("MQ_PREFETCH", "16")
        .set("MQ_STALLED_MAX", "2000")
        .set("DEVICE_LANE_MAX", "2000")
}

/// The same for large commands, and for a device that takes none for as long as the test needs.
fn slow(scene: &Scene) -> Setup {
    roomy(scene)
        .set("DEVICE_LINE_MAX", STALL_LINE_MAX)
        .set("DEVICE_WRITE_TIMEOUT", "10m")
        .set("DEVICE_USER_TIMEOUT", "10m")
}

/// Breaks the connection, and gives the lines that came before. The bridge stands still meanwhile: what comes between
/// the last look and the end would be acknowledged by the device's kernel and be read by nobody.
#[track_caller]
fn leave(bridge: &Bridge, mut device: Device) -> Vec<usize> {
    bridge.program.signal("STOP");
    let lines = device.so_far().iter().map(|line| number(line.as_bytes())).collect();
    device.reset();
    bridge.program.signal("CONT");
    lines
}

#[track_caller]
fn take(device: &mut Device, count: usize) -> Vec<usize> {
    (0..count).map(|_| number(device.line().as_bytes())).collect()
}

#[track_caller]
fn until_last(device: &mut Device, received: &mut Vec<usize>, last: usize) {
    while received.last() != Some(&last) {
        received.extend(take(device, 1));
    }
}

#[track_caller]
fn number(line: &[u8]) -> usize {
    let text = std::str::from_utf8(line).expect("UTF-8").trim_end();
    text.parse().unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

/// Checks that numbers from 0 on have come, `count` of them, first in order, and few of them again.
#[track_caller]
fn in_order(received: &[usize], count: usize, again: usize) {
    let mut seen = HashSet::new();
    let firsts: Vec<usize> =
        received.iter().copied().filter(|number| seen.insert(*number)).collect();
    assert_eq!(firsts, (0..count).collect::<Vec<_>>(), "the order of first receipt");
    let twice = received.len() - count;
    assert!(twice <= again, "{twice} came again");
}

/// Waits until all commands have their fate, and checks that each was written once.
#[track_caller]
fn all_written(scene: &Scene, bridge: &Bridge, count: usize) {
    all_settled(scene, bridge);
    assert_eq!(bridge.outcomes("written"), count as f64);
}

#[track_caller]
fn all_settled(scene: &Scene, bridge: &Bridge) {
    scene.until_drained(bridge);
    bridge.until_metric("rabbitline_parked_commands", |parked| parked == 0.0);
    eventually("nothing waits in a lane", || match bridge.metric("rabbitline_lane_commands") {
        0.0 => Ok(()),
        waiting => Err(waiting),
    });
    assert_eq!(bridge.metric("rabbitline_settlements_forgotten_total"), 0.0);
}
