//! Devices that behave badly while commands are sent to them and to one beside them. Whatever they do, no command is
//! lost without a word: each that was published with `reply_to` gets a receipt, which is the last word unless it says
//! `written` and less became of it. What a device reads it reads in the order of the queue, none twice.

use std::collections::BTreeMap;

use serde_json::json;

use crate::harness::{
    BadPeer, Bridge, Device, Inbox, STALL_LINE_MAX, Scene, Setup, eventually, reply_to,
    stalling_line,
};

const BAD: &str = "127.0.0.2";
const FAST: &str = "127.0.0.3";

/// A bridge that waits for a proof for as long as the connection lasts.
fn patient(scene: &Scene) -> Setup {
    scene.setup().set("COMMAND_TIMEOUT", "10m")
}

/// How many commands for the bad device come before each for the fast one.
const BURST: usize = 8;

/// A bad device and a fast one beside it, and the receipts for all that was published.
struct Pair<'a> {
    scene: &'a Scene,
    bridge: &'a Bridge,
    fast: Device,
    receipts: Inbox,
    for_bad: usize,
    for_fast: usize,
}

impl<'a> Pair<'a> {
    #[track_caller]
    fn new(scene: &'a Scene, bridge: &'a Bridge) -> Self {
        let (fast, receipts) = (bridge.device(FAST), scene.receipts());
        Self { scene, bridge, fast, receipts, for_bad: 0, for_fast: 0 }
    }

    /// Bursts for the bad device until it has done enough, behind each a command for the fast one, which must come
    /// through whatever the bad one does.
    #[track_caller]
    fn bursts_until(&mut self, line: impl Fn(usize) -> String, mut enough: impl FnMut() -> bool) {
        eventually("the bad device has done it often enough", || {
            self.burst(&line);
            if enough() { Ok(()) } else { Err(format!("{} commands for it", self.for_bad)) }
        });
    }

    #[track_caller]
    fn burst(&mut self, line: impl Fn(usize) -> String) {
        let of_burst = (self.for_bad..self.for_bad + BURST).map(|number| (BAD, number));
        let messages = of_burst.chain([(FAST, self.for_fast)]).map(|(address, number)| {
            let cmd = if address == BAD { line(number) } else { short(number) };
            let id = id(address, number);
            let command =
                json!({"address": address, "cmd": cmd, "id": id, "confirm": confirm(number)});
            (command.to_string().into_bytes(), reply_to(&self.receipts))
        });
        self.scene.amqp.publish_all(&self.scene.exchange(), &self.scene.queue(), messages);
        assert_eq!(self.fast.line(), short(self.for_fast) + "\r\n");
        self.for_bad += BURST;
        self.for_fast += 1;
    }

    /// Has the bad device end. What it read, and what became of each of its commands in the end; those for the fast one
    /// must have been delivered.
    #[track_caller]
    fn end(self, bad: BadPeer) -> (Vec<Vec<u8>>, Vec<String>) {
        let read = bad.stop();
        self.bridge.until_metric("rabbitline_devices_connected", |count| count == 1.0);
        self.scene.until_drained(self.bridge);
        // Whatever is told of those before is told before this.
        let last = json!({"address": FAST, "cmd": "LAST", "id": "last"}).to_string();
        self.scene.publish_with(last.as_bytes(), reply_to(&self.receipts));
        let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
        while !told.contains_key("last") {
            let receipt = self.receipts.next().json();
            let [id, outcome] =
                ["id", "outcome"].map(|field| receipt[field].as_str().expect(field).to_owned());
            told.entry(id).or_default().push(outcome);
        }
        let mut fates = |address, count| -> Vec<String> {
            let ids = (0..count).map(|number| (number, id(address, number)));
            ids.map(|(number, id)| fate(number, told.remove(&id).expect("a receipt"))).collect()
        };
        let of_fast = fates(FAST, self.for_fast);
        assert!(of_fast.iter().all(|fate| is_delivered(fate)), "{of_fast:?}");
        let of_bad = fates(BAD, self.for_bad);
        let undelivered = of_bad.iter().filter(|fate| !is_delivered(fate)).count();
        eventually("what was not delivered is in the undelivered queue", || {
            let depth = self.scene.amqp.depth(&self.scene.undelivered()) as usize;
            if depth == undelivered { Ok(()) } else { Err(format!("{depth} of {undelivered}")) }
        });
        (read, of_bad)
    }
}

fn id(address: &str, number: usize) -> String {
    format!("{address} {number}")
}

/// Every other command is to be acknowledged by its device before it counts as delivered.
fn confirm(number: usize) -> &'static str {
    if number.is_multiple_of(2) { "written" } else { "received" }
}

/// The last word on a command.
#[track_caller]
fn fate(number: usize, mut told: Vec<String>) -> String {
    let fate = told.pop().expect("a receipt");
    let revised = told == ["written"] && fate == "uncertain" && confirm(number) == "written";
    assert!(told.is_empty() || revised, "{number}: first {told:?}, then {fate}");
    fate
}

fn is_delivered(fate: &str) -> bool {
    fate == "written" || fate == "received"
}

/// The numbers of the whole lines that were read, which must be lines of the stream, in order, none twice. What a
/// connection ended with may be the beginning of a later one.
#[track_caller]
fn numbers(read: &[Vec<u8>], line: impl Fn(usize) -> String) -> Vec<usize> {
    let mut numbers = Vec::new();
    let mut least = 0;
    for connection in read {
        for text in connection.split_inclusive(|byte| *byte == b'\n') {
            let text = std::str::from_utf8(text).expect("UTF-8");
            // Less than a number cannot be checked, more must be the line with that number.
            let Some(number) = text.get(..6) else { continue };
            let number: usize = number.parse().expect("a number");
            let whole = line(number) + "\r\n";
            assert!(whole.starts_with(text), "of {number}: {text}");
            assert!(number >= least, "{number} came after {least} was due");
            if text == whole {
                numbers.push(number);
            }
            least = number + 1;
        }
    }
    numbers
}

/// Short, but for every fifth, which is large.
fn mixed(number: usize) -> String {
    if number.is_multiple_of(5) { stalling_line(number) } else { short(number) }
}

fn short(number: usize) -> String {
    format!("{number:06} SET OUT1 ON")
}

/// Of a length of which a few fit into the smallest receive buffer, and not many more into the socket.
fn long(number: usize) -> String {
    format!("{number:06} {}", "x".repeat(200))
}

/// How many of the commands have each outcome; there must be no others than the known ones.
#[track_caller]
fn tally<'a>(fates: &'a [String], known: &[&str]) -> BTreeMap<&'a str, usize> {
    let mut tally = BTreeMap::new();
    for fate in fates {
        *tally.entry(&**fate).or_default() += 1;
    }
    println!("{tally:?}");
    assert!(tally.keys().all(|fate| known.contains(fate)), "{tally:?}");
    tally
}

/// What was read must not have been reported as never written; more may have been written than was read.
#[track_caller]
fn read_only_what_was_written(numbers: &[usize], fates: &[String]) {
    for number in numbers {
        let fate = &fates[*number];
        assert!(is_delivered(fate) || fate == "uncertain", "{number} was read and is {fate}");
    }
}

#[test]
fn a_device_that_reads_a_byte_a_second_is_disconnected_and_no_command_is_lost() {
    let scene = Scene::new("byte-a-second");
    let bridge = patient(&scene).set("DEVICE_WRITE_TIMEOUT", "2s").start();
    let presence = scene.presence();
    let mut pair = Pair::new(&scene, &bridge);
    let slow = BadPeer::reads_a_byte_a_second(BAD, bridge.device_port);
    assert_eq!(presence.take(2)[1].json()["address"], BAD);

    let mut events = Vec::new();
    pair.bursts_until(long, || {
        events.extend(presence.so_far());
        !events.is_empty()
    });

    let event = events[0].json();
    assert_eq!((&event["address"], &event["reason"]), (&json!(BAD), &json!("write_timeout")));
    let (read, fates) = pair.end(slow);
    let numbers = numbers(&read, long);
    read_only_what_was_written(&numbers, &fates);
    tally(&fates, &["written", "received", "uncertain", "offline", "overloaded"]);
    // What its kernel has acknowledged it can read, however late.
    let delivered: Vec<usize> =
        (0..fates.len()).filter(|number| is_delivered(&fates[*number])).collect();
    assert!(!delivered.is_empty());
    assert_eq!(numbers[..delivered.len()], delivered);
    serves_again(&scene, &bridge);
}

#[test]
fn a_device_that_resets_in_the_middle_of_lines_loses_no_command_without_a_word() {
    const RESETS: usize = 50;
    let scene = Scene::new("resets-mid-line");
    let setup = patient(&scene).set("DEVICE_LINE_MAX", STALL_LINE_MAX);
    let bridge = setup.set("MQ_PREFETCH", "64").start();
    let mut pair = Pair::new(&scene, &bridge);
    let resetting = BadPeer::resets_mid_line(BAD, bridge.device_port);

    pair.bursts_until(mixed, || resetting.connections() > RESETS);

    let (read, fates) = pair.end(resetting);
    read_only_what_was_written(&numbers(&read, mixed), &fates);
    tally(&fates, &["written", "received", "uncertain", "offline", "overloaded"]);
    serves_again(&scene, &bridge);
}

#[test]
fn a_device_that_leaves_and_returns_without_end_loses_no_command_without_a_word() {
    const CONNECTIONS: usize = 100;
    let scene = Scene::new("leaves-and-returns");
    let bridge = patient(&scene).set("MQ_PREFETCH", "64").start();
    let mut pair = Pair::new(&scene, &bridge);
    let restless = BadPeer::leaves_and_returns(BAD, bridge.device_port);

    pair.bursts_until(short, || restless.connections() > CONNECTIONS);

    let (read, fates) = pair.end(restless);
    read_only_what_was_written(&numbers(&read, short), &fates);
    tally(&fates, &["written", "received", "uncertain", "offline"]);
    serves_again(&scene, &bridge);
}

#[test]
fn a_device_that_replaces_its_connection_without_end_gets_every_command_once_and_in_order() {
    const CONNECTIONS: usize = 100;
    let scene = Scene::new("replaces-itself");
    let bridge = patient(&scene).set("MQ_PREFETCH", "64").start();
    let mut pair = Pair::new(&scene, &bridge);
    let restless = BadPeer::replaces_itself(BAD, bridge.device_port);
    bridge.until_metric("rabbitline_devices_connected", |count| count == 2.0);

    pair.bursts_until(short, || restless.connections() > CONNECTIONS);

    let published = pair.for_bad;
    eventually("the device has read all that was published", || {
        let lines = restless.lines();
        if lines == published { Ok(()) } else { Err(format!("{lines} of {published}")) }
    });
    let (read, fates) = pair.end(restless);
    assert_eq!(numbers(&read, short), (0..published).collect::<Vec<_>>());
    // What was on its way when a newer connection came arrived, but the bridge could not know that.
    tally(&fates, &["written", "received", "uncertain"]);
    serves_again(&scene, &bridge);
}

/// The bad device has come to its senses.
#[track_caller]
fn serves_again(scene: &Scene, bridge: &Bridge) {
    let mut device = bridge.device(BAD);
    scene.publish(&json!({"address": BAD, "cmd": "WELCOME BACK"}));
    assert_eq!(device.line(), "WELCOME BACK\r\n");
}
