//! What must be true of every schedule, said of what was seen from the outside.

use std::collections::BTreeMap;

use super::account::{Account, Sight, Told};
use super::schedule::DEVICES;

/// How late a command may be read that was written in time, on a loaded machine.
const TTL_MARGIN_MS: u64 = 2_000;

/// What is wrong; each begins with the number of the promise that was broken.
pub(super) fn check(account: &Account) -> Vec<String> {
    let mut wrong = account.wrong.clone();
    for number in 0..account.now() {
        let told = &account.commands[number];
        let mut say = |what: &str| wrong.push(format!("{what}: {}", account.describe(number)));
        ends(account, number, told, &mut say);
        is_kept(told, &mut say);
        is_not_repeated(told, &mut say);
        is_told_once(account, number, told, &mut say);
        is_not_late(told, &mut say);
    }
    for device in 0..DEVICES {
        in_order(account, device, &mut wrong);
    }
    presence(account, &mut wrong);
    for line in &account.logs {
        if line.contains("panicked")
            || line.contains("must not happen")
            || line.contains("dropped unsettled")
        {
            wrong.push(format!("8: the bridge wrote {line}"));
        }
    }
    wrong
}

/// 1: Every command comes to an end, and what is said of it is so. One that counts as delivered was
/// read by its device, unless the device lost it unread; a bridge that is killed takes with it what it
/// knew of lines that were written and not acknowledged.
fn ends(account: &Account, number: usize, told: &Told, say: &mut impl FnMut(&str)) {
    if account.pending(number).is_some() {
        say("1: it has no end");
    }
    let unread = told.seen.is_empty() && !account.lost_unread_after(number);
    match told.words.last().map(String::as_str) {
        Some("written") if unread && !account.killed_after(number) => {
            say("1: it counts as written, and its device has not got it");
        }
        Some("received" | "answered") if unread => {
            say("1: it counts as received, and its device has not got it");
        }
        _ => {}
    }
}

/// 1: What was not delivered is kept, with the reason that its sender was told. (`park` that found no
/// place and `drop` included: the former is undelivered, the latter is gone.)
fn is_kept(told: &Told, say: &mut impl FnMut(&str)) {
    for word in &told.words {
        let is_dropped = told.spec.if_offline == "drop"
            && matches!(word.as_str(), "offline" | "overloaded" | "uncertain");
        let is_owed = !matches!(word.as_str(), "written" | "received" | "answered" | "parked")
            && (!is_dropped || told.spec.once && word == "uncertain");
        if is_owed && !told.undelivered.contains(word) {
            say("1: it is not among the undelivered");
        }
    }
}

/// 4: `once` is never written twice.
fn is_not_repeated(told: &Told, say: &mut impl FnMut(&str)) {
    if told.spec.once && told.seen.len() > 1 {
        say("4: it was to be written once");
    }
}

/// 5: While the bridge and its connections to the broker live, a command has one outcome, but for
/// `written` that is taken back and `parked` that comes to an end; and what was not written is not read.
fn is_told_once(account: &Account, number: usize, told: &Told, say: &mut impl FnMut(&str)) {
    if account.links_broke.is_some() || !account.killed.is_empty() {
        return;
    }
    let words: Vec<&str> = told.words.iter().map(String::as_str).collect();
    let end = match words.as_slice() {
        ["written", rest @ ..] if !rest.is_empty() => match rest {
            ["uncertain"] => &[],
            ["parked", rest @ ..] => rest,
            _ => return say("5: the receipts contradict each other"),
        },
        ["parked", rest @ ..] => rest,
        all => all,
    };
    // A parked one that was written may be taken back as well, when it had been handed over before.
    let is_well = match end {
        [] => true,
        [one] => *one != "parked",
        ["written", "uncertain"] => told.spec.receipt,
        _ => false,
    };
    if !is_well {
        say("5: the receipts contradict each other");
    }
    let copies = told.undelivered.len();
    if copies > 1 || copies == 1 && told.words.last().is_some_and(|word| is_delivered(word)) {
        say("5: it has a copy too many among the undelivered");
    }
    let untouched = matches!(words.as_slice(), ["offline" | "overloaded" | "expired"])
        || matches!(words.as_slice(), ["parked", "expired"]) && !account.device_lost_after(number);
    if untouched && !told.seen.is_empty() && !account.ended_after(number) {
        say("5: it was read and counts as not written");
    }
}

fn is_delivered(word: &str) -> bool {
    matches!(word, "written" | "received" | "answered")
}

/// 6: It is not written after its time. Read promptly it was if its device read all the time.
fn is_not_late(told: &Told, say: &mut impl FnMut(&str)) {
    let Some(ttl_ms) = told.spec.ttl_ms else { return };
    let end_ms = told.published_ms + ttl_ms + TTL_MARGIN_MS;
    if told.seen.iter().any(|sight| sight.promptly && sight.at_ms > end_ms) {
        say("6: it was written after its time");
    }
}

/// 3: Per device, first writes are in the order of publication. Where the bridge or its connections
/// ended, this is said of what was published after the last time. What was written in vain and parked
/// then goes behind what was parked already, and its first write was not seen. What was parked for want
/// of room goes before what had room, if the device's connection ends and that is parked, too.
fn in_order(account: &Account, device: usize, wrong: &mut Vec<String>) {
    let since = account.links_broke.into_iter().chain(account.killed.iter().copied()).max();
    let mut first: Vec<(&Sight, usize)> = account
        .commands
        .iter()
        .enumerate()
        .skip(since.unwrap_or(0))
        .filter(|(_, told)| told.spec.device == device)
        .filter(|(number, told)| !may_lose_its_place(account, *number, told))
        .filter_map(|(number, told)| Some((told.seen.iter().min()?, number)))
        .collect();
    first.sort();
    for pair in first.windows(2) {
        if let [(_, earlier), (_, later)] = pair
            && earlier > later
        {
            let (earlier, later) = (account.describe(*earlier), account.describe(*later));
            wrong.push(format!("3: written too early: {earlier}\n   before {later}"));
        }
    }
}

fn may_lose_its_place(account: &Account, number: usize, told: &Told) -> bool {
    let unknown = !told.spec.receipt && told.spec.if_offline == "park";
    told.taken_back || (told.had_no_room || unknown) && account.device_lost_after(number)
}

/// 7: What each bridge tells of a device alternates, by epoch, and ends in the truth, which is that
/// the last bridge has ended in good order. A reader drops what comes twice, by `seq`.
fn presence(account: &Account, wrong: &mut Vec<String>) {
    let mut epochs: BTreeMap<String, u64> = BTreeMap::new();
    let by_bridge = account.presence_by_bridge();
    let last_bridge = by_bridge.keys().max_by_key(|name| (name.len(), name.as_str()));
    let mut names: Vec<_> = by_bridge.keys().collect();
    names.sort_by_key(|name| (name.len(), name.as_str()));
    for name in names {
        let mut online: BTreeMap<String, u64> = BTreeMap::new();
        for (index, (seq, event)) in by_bridge[name].iter().enumerate() {
            if *seq != index as u64 + 1 {
                wrong.push(format!("7: {name} left out seq {}", index + 1));
                break;
            }
            let address = event["address"].as_str().unwrap_or_default().to_owned();
            let epoch = event["epoch"].as_u64().unwrap_or_default();
            let before = epochs.get(&address).copied().unwrap_or_default();
            let fits = if event["online"] == true {
                online.insert(address.clone(), epoch).is_none() && epoch > before
            } else {
                online.remove(&address) == Some(epoch)
            };
            epochs.insert(address, epoch);
            if !fits {
                wrong.push(format!("7: presence does not alternate at {event}"));
            }
        }
        let is_last = Some(name) == last_bridge;
        let ended_well = is_last && account.killed.last().is_none_or(|at| *at < account.now());
        if ended_well && !online.is_empty() {
            wrong.push(format!("7: {name} has ended and {online:?} are told to be online"));
        }
    }
}
