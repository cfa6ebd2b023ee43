//! What is killed, when, and for how long: drawn by lot, and done. Of the bridges one is away at a time, and of the nodes one,
//! but a bridge and a node may be away together.

use std::fmt;
use std::time::{Duration, Instant};

use super::account::{Outage, clock, now_ms};
use super::world::{NAMES, World};
use crate::harness::{Dice, within};

/// What is drawn is enough for any run.
const DRAWN_PER_SECOND: u64 = 1;
/// Lines of the log of a bridge that was cut short.
const LOG: usize = 12;

/// One after the other, each so long after the one before has been put right.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    pub(super) bridges: Vec<Planned>,
    pub(super) nodes: Vec<Planned>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    after: Duration,
    which: usize,
    how: How,
    /// How long it stays away.
    down: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Kill,
    Terminate,
}

impl Schedule {
    pub(super) fn draw(dice: &mut Dice, seconds: u64) -> Self {
        let mut ways = [How::Kill, How::Terminate];
        if dice.once_in(2) {
            ways.reverse();
        }
        let count = (seconds * DRAWN_PER_SECOND).max(4);
        let bridges = (0..count).map(|index| Planned {
            after: ms(1_000, 4_000, dice),
            which: dice.below(NAMES.len()),
            // One of each first.
            how: if index < 2 { ways[index as usize] } else { dice.one_of(&ways) },
            // Some are back before the others take over from them, some are not.
            down: ms(200, 8_000, dice),
        });
        let bridges = bridges.collect();
        let nodes = (0..count).map(|_| Planned {
            after: ms(3_000, 6_000, dice),
            which: dice.below(3),
            how: How::Kill,
            down: ms(200, 5_000, dice),
        });
        let nodes = nodes.collect();
        Self { bridges, nodes }
    }
}

fn ms(least: usize, most: usize, dice: &mut Dice) -> Duration {
    Duration::from_millis((least + dice.below(most - least)) as u64)
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, which, how, down } = self;
        write!(f, "after {after:?} {how:?} number {which}, for {down:?}")
    }
}

impl World<'_> {
    /// Lets bridges go, one after the other, as long as there is time.
    pub(super) fn take_bridges(&self, planned: &[Planned], until: Instant) {
        for outage in planned {
            if Instant::now() + outage.after >= until {
                return;
            }
            std::thread::sleep(outage.after);
            self.take_bridge(*outage);
        }
    }

    fn take_bridge(&self, planned: Planned) {
        let (slot, name) = (&self.bridges[planned.which], NAMES[planned.which]);
        let mut bridge =
            slot.lock().expect("no panic with a bridge").take().expect("it was started");
        let (at_ms, began) = (now_ms(), Instant::now());
        let mut orderly = false;
        match planned.how {
            How::Kill => bridge.program.kill(),
            How::Terminate => {
                bridge.program.signal("TERM");
                let code = bridge.program.wait().code();
                orderly = code == Some(0);
                if !orderly {
                    let log = bridge.log().all();
                    println!(
                        "{name} ended with {code:?}:\n{}",
                        log[log.len().saturating_sub(LOG)..].concat()
                    );
                }
            }
        }
        let took = began.elapsed();
        let what = format!("{:?} {name}", planned.how);
        let number = self.begin(what, Some(name), orderly, at_ms);
        self.note_log(&bridge, !orderly);
        let devices = within(self.recovery(), "its devices are connected elsewhere", || {
            self.crowd.is_there()?;
            Ok::<_, String>(began.elapsed())
        });
        let told = self.until_told_since(at_ms, began);
        std::thread::sleep(planned.down.saturating_sub(began.elapsed()));
        let again = Instant::now();
        *slot.lock().expect("no panic with a bridge") = Some(self.setup(planned.which).launch());
        self.end(number);
        self.until_ready(planned.which);
        println!(
            "{} {:?} {name}: ended in order: {orderly}, after {took:?}; its devices were connected after {devices:?}, \
             a new command had an outcome after {told:?}; back {:?} later, ready {:?} after its start",
            clock(at_ms),
            planned.how,
            again.duration_since(began),
            again.elapsed()
        );
    }

    /// Lets nodes go, one after the other, as long as there is time.
    pub(super) fn take_nodes(&self, planned: &[Planned], until: Instant) {
        for outage in planned {
            if Instant::now() + outage.after >= until {
                return;
            }
            std::thread::sleep(outage.after);
            let node = &self.cluster.nodes()[outage.which];
            let (at_ms, began) = (now_ms(), Instant::now());
            node.kill();
            let what = format!("Kill node {}", outage.which);
            let number = self.begin(what, None, false, at_ms);
            let told = self.until_told_since(at_ms, began);
            std::thread::sleep(outage.down.saturating_sub(began.elapsed()));
            let again = Instant::now();
            node.start();
            self.cluster.await_all(node);
            self.end(number);
            println!(
                "{} killed node {}: a new command had an outcome after {told:?}; back {:?} later, one of the cluster's {:?} after its start",
                clock(at_ms),
                outage.which,
                again.duration_since(began),
                again.elapsed()
            );
        }
    }

    /// Waits until a command has an outcome that was published at `at_ms` or later.
    fn until_told_since(&self, at_ms: u64, began: Instant) -> Duration {
        within(self.recovery(), "a command has an outcome", || {
            let account = self.account.lock().expect("no panic with the account");
            let since = account.commands.iter().rev().take_while(|told| told.published_ms >= at_ms);
            let told = since.filter(|told| !told.receipts.is_empty()).count();
            if told > 0 { Ok(began.elapsed()) } else { Err("none") }
        })
    }

    /// What was let go at `at_ms` has ended now.
    fn begin(&self, what: String, bridge: Option<&str>, orderly: bool, at_ms: u64) -> usize {
        let (ended_ms, until_ms) = (now_ms(), u64::MAX);
        let mut account = self.account.lock().expect("no panic with the account");
        let bridge = bridge.map(str::to_owned);
        account.outages.push(Outage { what, bridge, orderly, at_ms, ended_ms, until_ms });
        account.outages.len() - 1
    }

    fn end(&self, outage: usize) {
        let mut account = self.account.lock().expect("no panic with the account");
        account.outages[outage].until_ms = now_ms();
    }
}
