//! The promises of a cluster, at size: three bridges and three nodes are killed and come back as a schedule drawn by lot says,
//! while commands of all kinds go to devices that come, go and move. docs/testing.md says more.
//!
//! `RABBITLINE_SEED` sets the seed, `RABBITLINE_SURVIVAL` how much of everything (`DEVICES RATE SECONDS`), and
//! `RABBITLINE_SURVIVAL_LOGS` a directory for the logs of all bridges.

mod account;
mod check;
mod crowd;
mod descriptors;
mod outages;
mod presence;
mod reader;
mod sender;
mod size;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use account::{Account, clock};
use outages::Schedule;
use sender::Sender;
use size::Size;
use world::{NAMES, PREFETCH, World};

use crate::harness::{Cluster, Dice, within};

/// Bad commands that are shown: more tell little more.
const SHOWN: usize = 20;

/// How long after the load, and how often, the queues of what has expired while it was parked and is not among the
/// undelivered get other leaders.
const ELECTED_AGAIN: Duration = Duration::from_secs(60);

#[test]
fn whatever_is_killed_each_command_ends_once_and_presence_ends_in_the_truth() {
    let seed = Dice::given_seed().unwrap_or_else(Dice::fresh_seed);
    let mut dice = Dice::of(seed);
    let size = Size::wanted();
    println!("to repeat this: RABBITLINE_SEED={seed}\n{size:?}");
    let schedule = Schedule::draw(&mut dice, size.seconds);
    let cluster = Cluster::turn();
    let began = Instant::now();
    let world = World::start(&cluster, size, seed);
    println!("all devices were connected and told after {:?}", began.elapsed());

    let began = Instant::now();
    let until = began + Duration::from_secs(size.seconds);
    world.crowd.enliven();
    let sender = Sender::start(&world.account, world.ways(), size, dice);
    std::thread::scope(|scope| {
        scope.spawn(|| world.take_bridges(&schedule.bridges, until));
        if size.nodes {
            scope.spawn(|| world.take_nodes(&schedule.nodes, until));
        }
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
    });
    let (lasted, confirmed) = (began.elapsed(), sender.confirmed());
    sender.stop();
    world.crowd.calm();

    let ended = Instant::now();
    let mut elected = Instant::now();
    let settling = || {
        world.crowd.is_complete()?;
        if elected.elapsed() >= ELECTED_AGAIN {
            elected = Instant::now();
            world.elect_again();
        }
        world.is_settled(size.devices)?;
        world.presence_is_true()?;
        match world.crowd.lingering() {
            0 => Ok(()),
            left => Err(format!("{left} connections that were left behind are open")),
        }
    };
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        within(size.settle(), "everything comes to its end", settling);
        world.until_read(size);
        // Nothing that was said last changes it.
        world.presence_is_true().expect("presence is true still");
    }));
    println!("everything was at its end {:?} after the last command", ended.elapsed());
    let rate = confirmed as f64 / lasted.as_secs_f64();
    println!("{confirmed} commands in {lasted:?}, {rate:.0} a second");
    for slot in &world.bridges {
        let bridge = slot.lock().expect("no panic with a bridge");
        bridge.iter().for_each(|bridge| world.note_log(bridge, false));
    }
    report(&world, size, settled.is_err());
}

/// Says what was seen, and fails if something of it is wrong.
fn report(world: &World<'_>, size: Size, unsettled: bool) {
    let account = world.account.lock().expect("the account");
    let presence = world.presence.lock().expect("presence");
    let (wrong, count) = check::check(&account, &presence, size.devices);
    println!("{count:?}\nlast outcomes: {:?}", last_outcomes(&account));
    let connected = world.metrics("rabbitline_devices_connected");
    let events = presence.events;
    println!(
        "{} connections, failed attempts {}, {} lingering, {events} presence events; bridges have {connected:?}",
        world.crowd.connections(),
        world.crowd.failures(),
        world.crowd.lingering(),
    );
    let killed = account.outages.iter().filter(|outage| !outage.orderly).count();
    let broken = killed + account.breaks_ms.len();
    // What was in hand of each bridge, off the command queue and off its inbox.
    let again_max = broken * 2 * NAMES.len() * PREFETCH;
    let again = count.told_again + count.told_otherwise;
    if wrong.is_empty() && !unsettled && again <= again_max {
        assert_eq!(connected.iter().sum::<f64>(), size.devices as f64, "each is at one bridge");
        return;
    }
    for outage in &account.outages {
        println!(
            "{} at {}, in order: {}, until {}",
            outage.what,
            clock(outage.at_ms),
            outage.orderly,
            clock(outage.until_ms)
        );
    }
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for one in &wrong {
        *kinds.entry(one.split(':').next().unwrap_or_default()).or_default() += 1;
    }
    let shown: Vec<&str> = wrong.iter().take(SHOWN).map(String::as_str).collect();
    panic!(
        "{} are wrong, {again} of at most {again_max} were told again\n{kinds:#?}\n{}",
        wrong.len(),
        shown.join("\n")
    );
}

fn last_outcomes(account: &Account) -> BTreeMap<&str, usize> {
    let mut outcomes = BTreeMap::new();
    for receipt in account.commands.iter().filter_map(|told| told.receipts.last()) {
        *outcomes.entry(receipt.outcome.as_str()).or_default() += 1;
    }
    outcomes
}
