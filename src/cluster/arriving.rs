//! `Arriving`: commands whose device no binding leads to, while other bridges have devices that are not bound yet. Pure:
//! the time is an argument.
//!
//! After the end of a bridge thousands of devices connect to the others at once, and a busy broker binds some hundred a
//! second. Such a bridge says so, now and then; as long as it does, whoever finds nobody for a command asks it before it
//! takes the device for offline. One question is open at a time, with all that came since the one before.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::command::Address;
use crate::order::Order;

/// How long it is believed that a bridge has devices that are not bound. It says so again after a sixth of that, which on a
/// busy machine comes late.
pub(super) const BELIEVED_FOR: Duration = Duration::from_secs(3);
/// How long an answer is waited for at least. It takes milliseconds, on a busy broker some hundred.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// And at most, as long as the bridge is believed: it has been heard lately, so it is busy and not dead.
pub(super) const ANSWERED_MAX: Duration = Duration::from_secs(5);
/// Devices in one question: some 10 KB.
const ASKED_MAX: usize = 512;

/// What waits for the answers of other bridges.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    /// Bridges with devices that are not bound, and until when that is believed.
    believed: HashMap<Arc<str>, Instant>,
    /// Commands that are not asked for yet.
    waiting: HashMap<Address, VecDeque<Order>>,
    open: Option<Open>,
    last: u32,
}

/// A question that is not answered by all.
#[derive(Debug)]
struct Open {
    number: u32,
    asked: Instant,
    silent: HashSet<Arc<str>>,
    found: HashMap<Address, Arc<str>>,
    commands: HashMap<Address, VecDeque<Order>>,
}

/// What is to be asked, and whom.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) number: u32,
    pub(super) bridges: Vec<Arc<str>>,
    pub(super) addresses: Vec<String>,
}

/// A command, and the bridge that has its device, if one has.
pub(super) type Answered = (Order, Option<Arc<str>>);

impl Arriving {
    /// A bridge has devices that are not bound. True if that is new.
    pub(super) fn is_busy(&mut self, bridge: &str, now: Instant) -> bool {
        self.believed.insert(bridge.into(), now + BELIEVED_FOR).is_none_or(|until| until < now)
    }

    pub(super) fn some_are_busy(&self, now: Instant) -> bool {
        self.believed.values().any(|until| *until > now)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.open.is_none()
    }

    /// Lets a command wait for the answer to a question; gives it back if there is nobody to ask.
    pub(super) fn wait(&mut self, order: Order, now: Instant) -> Result<(), Order> {
        self.believed.retain(|_, until| *until > now);
        if self.believed.is_empty() {
            return Err(order);
        }
        let address = order.command().address.clone();
        self.waiting.entry(address).or_default().push_back(order);
        Ok(())
    }

    /// The same if one for the same device waits already.
    pub(super) fn wait_behind(&mut self, order: Order) -> Result<(), Order> {
        let address = &order.command().address;
        let is_open = self.open.as_ref().is_some_and(|open| open.commands.contains_key(address));
        if !is_open && !self.waiting.contains_key(address) {
            return Err(order);
        }
        let address = address.clone();
        self.waiting.entry(address).or_default().push_back(order);
        Ok(())
    }

    /// What is to be asked next.
    pub(super) fn ask(&mut self, now: Instant) -> Option<Question> {
        if self.open.is_some() || self.waiting.is_empty() {
            return None;
        }
        self.believed.retain(|_, until| *until > now);
        let asked: Vec<Address> = self.waiting.keys().take(ASKED_MAX).cloned().collect();
        let commands = asked.iter().filter_map(|address| self.waiting.remove_entry(address));
        let commands = commands.collect();
        let addresses = asked.iter().map(ToString::to_string).collect();
        let bridges: Vec<Arc<str>> = self.believed.keys().cloned().collect();
        self.last = self.last.wrapping_add(1);
        let (number, silent) = (self.last, bridges.iter().cloned().collect());
        let found = HashMap::new();
        self.open = Some(Open { number, asked: now, silent, found, commands });
        Some(Question { number, bridges, addresses })
    }

    /// A bridge has these of the devices of a question.
    pub(super) fn has(&mut self, bridge: &str, number: u32, addresses: &[String]) {
        let Some(open) = self.open.as_mut().filter(|open| open.number == number) else { return };
        let Some(bridge) = open.silent.take(bridge) else { return };
        let devices = addresses.iter().filter_map(|address| Address::parse(address).ok());
        open.found.extend(devices.map(|address| (address, Arc::clone(&bridge))));
    }

    /// The commands of the question that is open, once it is answered by all, or late.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Answered> {
        let believed = &self.believed;
        let is_late = |open: &Open, bridge: &Arc<str>| {
            let is_believed = believed.get(bridge).is_some_and(|until| *until > now);
            open.asked + if is_believed { ANSWERED_MAX } else { ANSWERED_WITHIN } <= now
        };
        let is_done = |open: &mut Open| open.silent.iter().all(|bridge| is_late(open, bridge));
        let Some(Open { mut found, commands, .. }) = self.open.take_if(is_done) else {
            return Vec::new();
        };
        let mut answered = Vec::new();
        for (address, orders) in commands {
            let bridge = found.remove(&address);
            answered.extend(orders.into_iter().map(|order| (order, bridge.clone())));
        }
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::order;

    fn command(address: &str, id: &str) -> Order {
        let mut order = order(id);
        let facts = Arc::get_mut(&mut order.facts).expect("the only one");
        facts.command.address = Address::parse(address).expect("an address");
        order
    }

    fn wait(arriving: &mut Arriving, address: &str, id: &str, now: Instant) {
        arriving.wait(command(address, id), now).expect("somebody is asked");
    }

    fn question(arriving: &mut Arriving, now: Instant) -> (u32, Vec<String>, Vec<String>) {
        let Question { number, bridges, mut addresses } = arriving.ask(now).expect("a question");
        let mut bridges: Vec<String> = bridges.iter().map(ToString::to_string).collect();
        bridges.sort();
        addresses.sort();
        (number, bridges, addresses)
    }

    /// Each command, and who has its device.
    fn taken(arriving: &mut Arriving, now: Instant) -> Vec<(String, String)> {
        let mut taken: Vec<_> = arriving
            .take(now)
            .into_iter()
            .map(|(order, bridge)| {
                let id = order.facts.origin.id.as_deref().expect("an id").to_owned();
                order.settlement.hand_back();
                (id, bridge.as_deref().unwrap_or("nobody").to_owned())
            })
            .collect();
        taken.sort();
        taken
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(id, bridge)| ((*id).to_owned(), (*bridge).to_owned())).collect()
    }

    #[test]
    fn nobody_is_asked_who_has_not_said_that_devices_arrive_or_not_lately() {
        let (now, mut arriving) = (Instant::now(), Arriving::default());
        let order = arriving.wait(command("10.0.0.7", "ON"), now).expect_err("nobody to ask");
        assert!(arriving.is_busy("b", now));
        assert!(!arriving.is_busy("b", now + BELIEVED_FOR / 3));
        let later = now + BELIEVED_FOR / 3 + BELIEVED_FOR;
        let order = arriving.wait(order, later).expect_err("it is not believed any more");
        order.settlement.hand_back();
        assert!(arriving.is_busy("b", later));
    }

    #[test]
    fn a_command_goes_to_who_has_its_device_once_all_have_answered() {
        let (now, mut arriving) = (Instant::now(), Arriving::default());
        arriving.is_busy("b", now);
        arriving.is_busy("c", now);
        for (address, id) in [("10.0.0.7", "ONE"), ("10.0.0.8", "TWO"), ("10.0.0.7", "THREE")] {
            wait(&mut arriving, address, id, now);
        }
        let (number, bridges, addresses) = question(&mut arriving, now);
        assert_eq!(
            (bridges, addresses),
            (vec!["b".into(), "c".into()], vec!["10.0.0.7".into(), "10.0.0.8".into()])
        );
        assert_eq!(arriving.ask(now), None);
        wait(&mut arriving, "10.0.0.9", "LATER", now);
        let behind = arriving.wait_behind(command("10.0.0.8", "BEHIND"));
        assert!(behind.is_ok() && arriving.ask(now).is_none(), "one question is open at a time");
        let other = arriving.wait_behind(command("10.0.0.1", "OTHER")).expect_err("none waits");
        other.settlement.hand_back();

        arriving.has("b", number, &["10.0.0.7".to_owned()]);
        // Twice, of another question, and of who was not asked.
        arriving.has("b", number, &["10.0.0.8".to_owned()]);
        arriving.has("c", number + 1, &["10.0.0.8".to_owned()]);
        arriving.has("d", number, &["10.0.0.8".to_owned()]);
        assert_eq!(taken(&mut arriving, now), []);
        arriving.has("c", number, &[]);
        let expected = pairs(&[("ONE", "b"), ("THREE", "b"), ("TWO", "nobody")]);
        assert_eq!(taken(&mut arriving, now), expected);

        let (number, _, addresses) = question(&mut arriving, now);
        assert_eq!(addresses, ["10.0.0.8", "10.0.0.9"]);
        assert!(!arriving.is_empty());
        arriving.has("c", number, &["10.0.0.9".to_owned()]);
        arriving.has("b", number, &[]);
        let expected = pairs(&[("BEHIND", "nobody"), ("LATER", "c")]);
        assert_eq!(taken(&mut arriving, now), expected);
        assert!(arriving.is_empty());
    }

    #[test]
    fn who_does_not_answer_is_waited_for_as_long_as_it_is_heard_up_to_a_limit() {
        let (now, mut arriving) = (Instant::now(), Arriving::default());
        let until_not_believed = BELIEVED_FOR + ANSWERED_WITHIN;
        arriving.is_busy("b", now);
        wait(&mut arriving, "10.0.0.7", "ONE", now);
        question(&mut arriving, now);
        assert_eq!(taken(&mut arriving, now + ANSWERED_WITHIN), []);
        assert_eq!(taken(&mut arriving, now + until_not_believed), pairs(&[("ONE", "nobody")]));

        let later = now + until_not_believed;
        arriving.is_busy("b", later);
        wait(&mut arriving, "10.0.0.7", "TWO", later);
        question(&mut arriving, later);
        arriving.is_busy("b", later + BELIEVED_FOR);
        assert_eq!(taken(&mut arriving, later + BELIEVED_FOR), []);
        arriving.is_busy("b", later + ANSWERED_MAX);
        assert_eq!(taken(&mut arriving, later + ANSWERED_MAX), pairs(&[("TWO", "nobody")]));
    }

    #[test]
    fn a_question_has_its_limit_and_the_rest_is_asked_next() {
        let (now, mut arriving) = (Instant::now(), Arriving::default());
        arriving.is_busy("b", now);
        for index in 0..ASKED_MAX + 1 {
            let address = format!("10.0.{}.{}", index / 256, index % 256);
            wait(&mut arriving, &address, "ON", now);
        }
        let (number, _, addresses) = question(&mut arriving, now);
        assert_eq!(addresses.len(), ASKED_MAX);
        arriving.has("b", number, &[]);
        assert_eq!(taken(&mut arriving, now).len(), ASKED_MAX);
        let (number, _, addresses) = question(&mut arriving, now);
        assert_eq!(addresses.len(), 1);
        arriving.has("b", number, &addresses);
        assert_eq!(taken(&mut arriving, now), pairs(&[("ON", "b")]));
    }
}
