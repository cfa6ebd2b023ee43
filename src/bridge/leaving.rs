//! How a bridge of a cluster lets its devices go: others hold them, and their connections end one after the other.
//!
//! Whoever comes back within `CLUSTER_MOVING` was never offline. All connections closed at once would be as many
//! connects at once for the others; so their ends are spread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::chance;
use crate::cluster::Connection;
use crate::cluster::shards::shard_of;
use crate::device::{Devices, Session};

/// How long another bridge may take to say that it holds the devices of this one. It takes milliseconds, or some
/// hundred under load.
const HELD_WITHIN: Duration = Duration::from_secs(2);
/// How long a connection whose time has come is kept for what is written and not acknowledged. A device that reads
/// acknowledges within milliseconds.
const CLEAN_WITHIN: Duration = Duration::from_secs(1);
/// How many shards are cut off before their time: when the first of its connections ends, a shard is. There are 16.
const AHEAD: u32 = 1;
/// How often such a connection is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Has the other bridges hold the devices of this one, for `moving`; true if one does. Nobody is told then that they
/// are offline, unless they do not come back.
pub(super) async fn hand_over(devices: &Devices, moving: Duration, spread: Duration) -> bool {
    let Some(cluster) = &devices.cluster else { return false };
    let own = devices.registry.announced();
    let (held, left) = cluster.give_up_moving();
    let of_others = held.iter().map(|it| Connection {
        address: it.address.to_string(),
        epoch: it.epoch,
        peer: it.peer,
        lost: it.lost,
    });
    let own: Vec<Connection> = if moving.is_zero() { Vec::new() } else { own };
    let lists = [(own, moving + spread), (of_others.collect(), left)];
    let count: usize = lists.iter().map(|(list, _)| list.len()).sum();
    let is_held = cluster.hand_over(lists, HELD_WITHIN).await;
    if is_held {
        info!(devices = count, "other bridges hold the devices of this one until they come back");
    } else if count > 0 {
        warn!(
            devices = count,
            "no other bridge holds the devices of this one: they are told as offline."
        );
    }
    for gone in held {
        if !is_held {
            devices.registry.tell_gone(&gone);
        }
        cluster.go_on(gone.waiting);
    }
    is_held && !moving.is_zero()
}

/// Ends the connections of all devices, spread over `spread`, shard by shard; what is written to one may be acknowledged
/// first. Nothing is told of their ends if they are `held`; then `shards` says how many of the shards are to be cut off.
/// What comes for their devices waits where these are held.
pub(super) async fn close(
    devices: &Arc<Devices>,
    spread: Duration,
    held: bool,
    shards: &AtomicU32,
) {
    let mut sessions = devices.registry.all();
    sessions.sort_by_cached_key(|session| shard_of(session.address()));
    let begin = Instant::now();
    let times = schedule(sessions.len(), spread, chance::draw());
    let mut late = Vec::new();
    for (after, session) in times.into_iter().zip(sessions) {
        let at = begin + after;
        while let Some(retry) = next_look(&late).filter(|retry| *retry < at) {
            sleep_until(retry).await;
            look(devices, &mut late, held);
        }
        sleep_until(at).await;
        if held {
            shards.store(shard_of(session.address()) + 1 + AHEAD, Ordering::Relaxed);
        }
        late.push((at + CLEAN_WITHIN, session));
        look(devices, &mut late, held);
    }
    while let Some(retry) = next_look(&late) {
        sleep_until(retry).await;
        look(devices, &mut late, held);
    }
}

fn next_look(late: &[(Instant, Arc<Session>)]) -> Option<Instant> {
    (!late.is_empty()).then(|| Instant::now() + LOOK_EVERY)
}

/// Ends those of which everything is acknowledged, or which have had their time for it.
fn look(devices: &Devices, late: &mut Vec<(Instant, Arc<Session>)>, held: bool) {
    let now = Instant::now();
    late.retain(|(until, session)| !session.let_go(devices, held, *until <= now));
}

/// When each of so many connections ends: one in each equal part of `spread`, somewhere in it, as `lot` has it.
fn schedule(count: usize, spread: Duration, lot: u64) -> Vec<Duration> {
    let part = spread.checked_div(u32::try_from(count).unwrap_or(u32::MAX)).unwrap_or_default();
    let mut state = lot | 1;
    let mut draw = || {
        // xorshift64: good enough to keep connections apart, and the same for the same lot.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from(state >> 44).unwrap_or_default()
    };
    const DRAWS: u32 = 1 << 20;
    (0u32..).take(count).map(|index| part * index + part * draw() / DRAWS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Duration = Duration::from_secs(5);

    #[test]
    fn each_part_of_the_time_has_as_many_ends_whatever_the_lot() {
        for lot in [0, 1, 7, u64::MAX, 0x0123_4567_89ab_cdef] {
            let times = schedule(1000, SPREAD, lot);
            assert_eq!(times.len(), 1000);
            assert!(times.is_sorted() && times.iter().all(|time| *time < SPREAD), "{lot}");
            for part in 0..10 {
                let (from, to) = (SPREAD / 10 * part, SPREAD / 10 * (part + 1));
                let ends = times.iter().filter(|time| (from..to).contains(*time)).count();
                assert_eq!(ends, 100, "{lot}: part {part}");
            }
        }
    }

    #[test]
    fn two_bridges_do_not_keep_the_same_time() {
        let one = schedule(100, SPREAD, 0x5eed_5eed_5eed_5eed);
        let other = schedule(100, SPREAD, 0xfeed_feed_feed_feed);
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < 10, "{same} of 100 ends are at the same time");
        let offsets: Vec<Duration> =
            (0u32..).zip(&one).map(|(n, at)| *at - SPREAD / 100 * n).collect();
        let distinct: std::collections::HashSet<_> = offsets.iter().collect();
        assert!(distinct.len() > 90, "within their parts, too: {} places", distinct.len());
    }

    #[test]
    fn no_time_and_no_connections_are_no_trouble() {
        assert_eq!(schedule(3, Duration::ZERO, 9), [Duration::ZERO; 3]);
        assert!(schedule(0, SPREAD, 9).is_empty());
        assert!(schedule(1, SPREAD, 9)[0] < SPREAD);
    }
}
