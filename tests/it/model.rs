//! The promises under whatever may happen: schedules drawn by lot, run against the real bridge and a real broker, and
//! checked from the outside. docs/testing.md says more.
//!
//! `RABBITLINE_SEED` runs one schedule, `RABBITLINE_SCHEDULES` so many. A schedule that fails is printed, made as short
//! as it can be in a minute.

mod account;
mod check;
mod device;
mod schedule;
mod shrink;
mod world;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use schedule::{Faults, Schedule};
use world::World;

use crate::harness::{Broker, Dice};

const SCHEDULES: usize = 200;
/// Schedules that run at a time: they wait more than they compute.
const AT_A_TIME: usize = 6;
/// More that fail tell little more.
const FAILURES_MAX: usize = 5;

#[test]
fn whatever_happens_no_command_vanishes_or_strays() {
    let count = std::env::var_os("RABBITLINE_SCHEDULES");
    let count = count.and_then(|count| count.to_str()?.parse().ok()).unwrap_or(SCHEDULES);
    let (first, count) = match Dice::given_seed() {
        Some(seed) => (seed, 1),
        None => (Dice::fresh_seed(), count),
    };
    let broker = Broker::shared();
    let (next, failed) = (AtomicUsize::new(0), std::sync::Mutex::new(Vec::new()));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || failed.lock().expect("no panic here").len() >= FAILURES_MAX
                    {
                        return;
                    }
                    let seed = first + index as u64;
                    let schedule = Schedule::draw(seed, None);
                    if let Err(wrong) = run(&schedule, &broker) {
                        failed.lock().expect("no panic here").push((seed, schedule, wrong));
                    }
                }
            });
        }
    });
    let ran = next.into_inner().min(count);
    println!("{ran} schedules in {:?}, seeds from {first}", begun.elapsed());
    let failed = failed.into_inner().expect("no panic here");
    for (seed, _, wrong) in &failed {
        println!("to repeat this: RABBITLINE_SEED={seed}\n{}\n", wrong.join("\n"));
    }
    if let Some((seed, schedule, wrong)) = failed.first() {
        report(*seed, schedule, wrong, &broker);
    }
}

#[test]
fn a_broker_that_is_killed_whenever_costs_no_command() {
    const KILLS: u64 = 3;
    let first = Dice::given_seed().unwrap_or_else(Dice::fresh_seed);
    let broker = Arc::new(Broker::alone());
    for seed in first..first + KILLS {
        let schedule = Schedule::draw(seed, Some(Faults::Broker));
        if let Err(wrong) = run(&schedule, &broker) {
            report(seed, &schedule, &wrong, &broker);
        }
    }
}

/// Runs a schedule; what is wrong with what came of it.
fn run(schedule: &Schedule, broker: &Arc<Broker>) -> Result<(), Vec<String>> {
    let world = || World::run(schedule, Arc::clone(broker));
    let account = std::panic::catch_unwind(AssertUnwindSafe(world)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        vec![text.unwrap_or_else(|| "the test itself panicked".to_owned())]
    })?;
    let wrong = check::check(&account);
    if wrong.is_empty() {
        return Ok(());
    }
    Err(wrong)
}

/// Fails, with the shortest schedule that is wrong in the same way.
fn report(seed: u64, schedule: &Schedule, wrong: &[String], broker: &Arc<Broker>) {
    println!("seed {seed} fails; making it shorter\n{schedule}");
    let (shorter, its_wrong) = shrink::shrink(schedule, wrong, |schedule| run(schedule, broker));
    panic!(
        "seed {seed}:\n{}\n\nand the shortest schedule found that is wrong:\n{shorter}\n{}",
        wrong.join("\n"),
        its_wrong.join("\n")
    );
}
