//! What must be true in the end, said of what was seen from the outside.

use super::account::{Account, Double, Receipt, Sent, Spec, Told};
use super::presence::Presence;

/// How late a command may be read that was written in time, on a loaded machine.
const TTL_MARGIN_MS: u64 = 3_000;
/// How long what was in hand when a node was killed may take to be told for the first time: it waits while the leader of its
/// queue is elected.
const ELECTION_MS: u64 = 5_000;
/// How long it may take until of two bridges that have both told of a device the earlier one lets it go.
const LETTING_GO_MS: u64 = 2_000;

/// How long after that its binding to that one may last, on a loaded cluster to which a node has come back.
const UNBINDING_MS: u64 = 5_000;

/// How long before it is told that a bridge was killed its connections may end.
const DYING_MS: u64 = 500;
/// How long it may take until another takes over.
const TAKEOVER_MS: u64 = 15_000;

/// What came of it, in numbers.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) confirmed: usize,
    pub(super) unsure: usize,
    pub(super) returned: usize,
    /// Lines that came again.
    pub(super) lines_again: usize,
    /// Commands with more receipts than one and what may follow on it: told again behind an outage, with the same outcome or
    /// another one.
    pub(super) told_again: usize,
    pub(super) told_otherwise: usize,
    /// Commands that came to both of two bridges that their device had connected to at once.
    pub(super) at_two: usize,
    /// Expired while they were parked by a bridge that has ended since.
    pub(super) untold: usize,
}

/// What is wrong, and with which commands; and what there is to count.
pub(super) fn check(
    account: &Account,
    presence: &Presence,
    devices: usize,
) -> (Vec<String>, Count) {
    let (mut wrong, mut count) = (account.wrong.clone(), Count::default());
    for (number, told) in account.commands.iter().enumerate() {
        let mut say = |what: &str| wrong.push(format!("{what}: c{number} {told}"));
        match told.sent {
            Sent::Confirmed => count.confirmed += 1,
            Sent::Unsure => count.unsure += 1,
            Sent::Returned => count.returned += 1,
        }
        if told.sent == Sent::Returned && !(told.seen.is_empty() && told.receipts.is_empty()) {
            say("it came back, and something became of it");
        }
        if let Some(why) = account.pending(told, devices) {
            say(why);
        }
        if told.receipts.last().is_some_and(|receipt| receipt.outcome == "parked") {
            count.untold += 1;
        }
        is_true(told, &mut say);
        is_kept(told, &mut say);
        is_in_time(told, &mut say);
        let is_again = told.seen.len() > 1 || told.receipts.len() > 1;
        if is_again && (is_at_two(presence, told) || was_at_one_that_died(account, told)) {
            count.at_two += 1;
            continue;
        }
        is_told_once(account, told, &mut count, &mut say);
        is_read_once(account, told, &mut count, &mut say);
    }
    (wrong, count)
}

/// What counts as delivered was read by its device.
fn is_true(told: &Told, say: &mut impl FnMut(&str)) {
    let delivered = |word: &str| matches!(word, "written" | "received" | "answered");
    let mut counts = told.receipts.iter().enumerate().filter(|(index, receipt)| {
        delivered(&receipt.outcome) && !is_taken_back(receipt, told.receipts.get(index + 1))
    });
    if told.seen.is_empty() && counts.next().is_some() {
        say("it counts as delivered, and its device has not read it");
    }
}

/// Whether the bridge that has told that a line was written says next that it may not have arrived: the connection ended
/// before its device had acknowledged it.
fn is_taken_back(receipt: &Receipt, next: Option<&Receipt>) -> bool {
    receipt.outcome == "written"
        && next.is_some_and(|next| {
            next.outcome == "uncertain"
                && next.bridge == receipt.bridge
                && next.reason.starts_with("the line was written")
        })
}

/// Whether its device had connected to a second bridge before the first had told that it is there, and the first has not let
/// it go yet: then what comes may come to both.
fn is_at_two(presence: &Presence, told: &Told) -> bool {
    let [.., first, last] = told.seen.as_slice() else { return false };
    let (old, new) = if first.connection < last.connection { (first, last) } else { (last, first) };
    let told_ms = |peer| presence.told_ms(peer);
    let Some((old_told, new_told)) = told_ms(old.peer).zip(told_ms(new.peer)) else {
        return false;
    };
    old.connection != new.connection
        && new.since_ms <= old_told
        && first.at_ms.max(last.at_ms) <= old_told.max(new_told) + LETTING_GO_MS
}

/// When its device was connected to two bridges.
fn doubles_of<'a>(account: &'a Account, told: &'a Told) -> impl Iterator<Item = &'a Double> {
    account.doubles.iter().filter(|double| double.device == told.spec.device)
}

/// Whether its device was connected to two bridges when one of them was killed: the broker gives to both what comes until
/// another has taken over from that one.
fn was_at_one_that_died(account: &Account, told: &Told) -> bool {
    doubles_of(account, told).any(|double| {
        account.outages.iter().any(|outage| {
            outage.bridge.is_some()
                && !outage.orderly
                && (double.from_ms..=double.to_ms + DYING_MS).contains(&outage.at_ms)
                && outage.at_ms <= told.published_ms
                && told.published_ms <= outage.until_ms.saturating_add(TAKEOVER_MS)
        })
    })
}

/// Whether its device was connected to two bridges shortly before: until the binding to the earlier one has ended at all
/// nodes, the broker gives to both what comes, and that one passes its copy on to the other.
fn was_bound_twice(account: &Account, told: &Told) -> bool {
    doubles_of(account, told)
        .any(|double| (double.from_ms..=double.to_ms + UNBINDING_MS).contains(&told.published_ms))
}

/// What was not is undelivered, with the outcome that its sender was told.
fn is_kept(told: &Told, say: &mut impl FnMut(&str)) {
    if told.is_to_come() {
        say("it is not among the undelivered");
    }
}

fn is_in_time(told: &Told, say: &mut impl FnMut(&str)) {
    let Spec { ttl_ms: Some(ttl_ms), .. } = told.spec else { return };
    let late = told.published_ms + ttl_ms + TTL_MARGIN_MS;
    if told.seen.iter().any(|sight| sight.at_ms > late) {
        say("it was read after its time");
    }
}

/// One outcome, but for `written` that is taken back and `parked` that ends; more only of what was in hand when a bridge
/// died or a node did, or of what came to two bridges.
fn is_told_once(account: &Account, told: &Told, count: &mut Count, say: &mut impl FnMut(&str)) {
    let words: Vec<&str> = told.receipts.iter().map(|receipt| receipt.outcome.as_str()).collect();
    if follow_from_each_other(&words) {
        return;
    }
    let last = told.receipts.last().map(|last| last.at_ms);
    let had_outage = last.is_some_and(|last| has_outage(account, told.published_ms, last));
    if !had_outage && !was_bound_twice(account, told) {
        return say("its receipts contradict each other");
    }
    if words.windows(2).all(|pair| pair[0] == pair[1]) {
        count.told_again += 1;
    } else {
        count.told_otherwise += 1;
    }
}

fn follow_from_each_other(words: &[&str]) -> bool {
    match words {
        [] | [_] | ["written", "uncertain"] => true,
        // Parked, or written and then parked, as often as connections end.
        ["parked", rest @ ..] | ["written", "parked", rest @ ..] => follow_from_each_other(rest),
        _ => false,
    }
}

fn is_read_once(account: &Account, told: &Told, count: &mut Count, say: &mut impl FnMut(&str)) {
    let [first, .., last] = told.seen.as_slice() else { return };
    count.lines_again += told.seen.len() - 1;
    if told.spec.once {
        say("it was to be written once");
    }
    // What was not acknowledged when a connection ended is parked, and written again.
    let is_taken_back = told.receipts.iter().any(|receipt| receipt.outcome == "parked");
    let last = first.at_ms.max(last.at_ms);
    if !is_taken_back && !has_outage(account, told.published_ms, last) {
        say("it came twice, and nothing had happened");
    }
}

/// Whether something died between these, or shortly before the first, or a connection to the broker broke.
fn has_outage(account: &Account, from_ms: u64, to_ms: u64) -> bool {
    account.outages.iter().any(|outage| {
        !outage.orderly
            && outage.at_ms <= to_ms
            && outage.cut_ms().saturating_add(ELECTION_MS) >= from_ms
    }) || account.breaks_ms.iter().any(|at_ms| *at_ms <= to_ms && at_ms + ELECTION_MS >= from_ms)
}
