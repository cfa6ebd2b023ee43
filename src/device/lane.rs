//! `Lane`: the commands that wait for one device, in order, and how far the first is written.
//!
//! Pure: no socket, and the time is an argument. The lane is empty while the device keeps up; the
//! session and the router reach it through the session's lock.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// What can wait in a lane.
pub(crate) trait Waits {
    /// The bytes to write.
    fn bytes(&self) -> &[u8];
    /// After this moment it is no longer written.
    fn expires(&self) -> Instant;
    /// Whether writing it still makes sense to anyone.
    fn is_wanted(&self) -> bool;
    /// Whether the device is to answer it, so that it may have to wait for the answer to another.
    fn wants_answer(&self) -> bool;
    /// Whether it goes before those that do not and have come later.
    fn goes_first(&self) -> bool;
    /// Whether it waited for this device at another bridge, before all that came here.
    fn was_handed(&self) -> bool;
    /// Grows with each that comes.
    fn number(&self) -> u64;
}

/// The commands that wait for one device.
#[derive(Debug)]
pub(crate) struct Lane<T> {
    waiting: VecDeque<T>,
    /// Bytes of the first one that the socket has taken.
    written: usize,
    /// When the first one became the first.
    head_since: Instant,
}

/// What to do about the head of the lane.
#[derive(Debug)]
pub(crate) enum Head<T> {
    /// Nothing waits.
    Empty,
    /// The first one is to be written, but for so many bytes of it, which are on their way.
    Write(usize),
    /// This one left the lane: its time ran out before its first byte was written.
    Expired(T),
    /// This one left the lane: nobody wants it any more.
    Unwanted(T),
}

impl<T: Waits> Lane<T> {
    /// An empty lane. It holds no memory until something waits.
    pub(crate) fn new(now: Instant) -> Self {
        Self { waiting: VecDeque::new(), written: 0, head_since: now }
    }

    /// The one that is next, and whether a part of it is written already.
    pub(crate) fn first(&self) -> Option<(&T, bool)> {
        self.waiting.front().map(|first| (first, self.written > 0))
    }

    /// Counts the time of the first one from now on: until now it was not the device that held it up.
    pub(crate) fn restart_clock(&mut self, now: Instant) {
        self.head_since = now;
    }

    /// When the first of those that wait expires.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.waiting.iter().map(Waits::expires).min()
    }

    /// Takes out what has expired, but not what is partly written.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<T> {
        self.take_where(|item| item.expires() <= now)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Lets one more wait, of which `written` bytes are already on their way. Only one that is
    /// alone can have begun.
    pub(crate) fn push(&mut self, item: T, written: usize, now: Instant) {
        debug_assert!(written == 0 || self.waiting.is_empty());
        debug_assert!(written <= item.bytes().len());
        if self.waiting.is_empty() {
            self.head_since = now;
            self.written = written;
        }
        self.waiting.push_back(item);
    }

    /// Whether one waits that goes first.
    pub(crate) fn has_one_that_goes_first(&self) -> bool {
        self.waiting.iter().any(Waits::goes_first)
    }

    /// Lets one more wait: behind those that go first and those that came before it, which had no room
    /// for it; before all others.
    pub(crate) fn push_first(&mut self, item: T, now: Instant) {
        let begun = usize::from(self.written > 0);
        let goes_before = |other: &&T| other.goes_first() || other.number() < item.number();
        let before = self.waiting.iter().skip(begun).take_while(goes_before).count();
        if begun + before == 0 {
            self.head_since = now;
        }
        self.waiting.insert(begun + before, item);
    }

    /// Lets one wait that another bridge hands over: behind those of that kind, before all others that have
    /// not begun.
    pub(crate) fn push_handed(&mut self, item: T, now: Instant) {
        let begun = usize::from(self.written > 0);
        let before = self.waiting.iter().skip(begun).take_while(|other| other.was_handed()).count();
        if begun + before == 0 {
            self.head_since = now;
        }
        self.waiting.insert(begun + before, item);
    }

    /// Lets one wait as the first, of which `written` bytes are already on their way. No other has
    /// begun.
    pub(crate) fn begin(&mut self, item: T, written: usize, now: Instant) {
        debug_assert!(self.written == 0 && written <= item.bytes().len());
        self.written = written;
        self.head_since = now;
        self.waiting.push_front(item);
    }

    /// What is to be done next. One that has begun is always finished: half a line would spoil the next.
    pub(crate) fn head(&mut self, now: Instant) -> Head<T> {
        let Some(first) = self.waiting.front() else {
            return Head::Empty;
        };
        if self.written == 0 {
            let (expired, unwanted) = (first.expires() <= now, !first.is_wanted());
            if (expired || unwanted)
                && let Some(first) = self.next_head(now)
            {
                return if unwanted { Head::Unwanted(first) } else { Head::Expired(first) };
            }
        }
        Head::Write(self.written)
    }

    /// Takes the first one out, to be written now and put back by `wrote`.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.waiting.pop_front()
    }

    /// Notes that the socket has taken `written` bytes in all of the one that was taken out. Gives
    /// it back when that is all of it.
    pub(crate) fn wrote(
        &mut self,
        item: T,
        written: usize,
        is_out: bool,
        now: Instant,
    ) -> Option<T> {
        debug_assert!(written <= item.bytes().len());
        if !is_out {
            self.written = written;
            self.waiting.push_front(item);
            return None;
        }
        self.begin_next(now);
        Some(item)
    }

    /// The moment at which the device has taken too long over the head, if one waits.
    pub(crate) fn deadline(&self, limit: Duration) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.head_since + limit)
    }

    /// Empties the lane: the one that is partly written, if any, and the others in order.
    pub(crate) fn take(&mut self) -> (Option<T>, VecDeque<T>) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let begun = (self.written > 0).then(|| waiting.pop_front()).flatten();
        self.written = 0;
        (begun, waiting)
    }

    /// Takes out what nobody wants any more, but not what is partly written.
    pub(crate) fn take_unwanted(&mut self) -> Vec<T> {
        self.take_where(|item| !item.is_wanted())
    }

    fn take_where(&mut self, leaves: impl Fn(&T) -> bool) -> Vec<T> {
        let begun = usize::from(self.written > 0);
        let (mut left, mut kept) = (Vec::new(), VecDeque::new());
        for (index, item) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            if index >= begun && leaves(&item) {
                left.push(item);
            } else {
                kept.push_back(item);
            }
        }
        self.waiting = kept;
        left
    }

    fn next_head(&mut self, now: Instant) -> Option<T> {
        let first = self.waiting.pop_front();
        self.begin_next(now);
        first
    }

    fn begin_next(&mut self, now: Instant) {
        self.written = 0;
        self.head_since = now;
        if self.waiting.is_empty() {
            // An idle device owns no buffer.
            self.waiting = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Item {
        text: String,
        expires: Instant,
        wanted: bool,
    }

    impl Waits for Item {
        fn bytes(&self) -> &[u8] {
            self.text.as_bytes()
        }
        fn expires(&self) -> Instant {
            self.expires
        }
        fn is_wanted(&self) -> bool {
            self.wanted
        }
        fn wants_answer(&self) -> bool {
            false
        }
        fn goes_first(&self) -> bool {
            self.text.starts_with('!')
        }
        fn was_handed(&self) -> bool {
            self.text.starts_with('>')
        }
        fn number(&self) -> u64 {
            self.text.trim_start_matches('!').parse().unwrap_or(0)
        }
    }

    fn item(text: &str, expires: Instant) -> Item {
        Item { text: text.to_owned(), expires, wanted: true }
    }

    /// Writes at most `room` bytes of the lane, as a socket would.
    fn drain(
        lane: &mut Lane<Item>,
        mut room: usize,
        now: Instant,
        wire: &mut String,
    ) -> Vec<(Item, &'static str)> {
        let mut left = Vec::new();
        loop {
            match lane.head(now) {
                Head::Empty => return left,
                Head::Expired(item) => left.push((item, "expired")),
                Head::Unwanted(item) => left.push((item, "unwanted")),
                Head::Write(from) => {
                    let item = lane.pop().expect("it has a head");
                    let taken = (item.text.len() - from).min(room);
                    wire.push_str(&item.text[from..from + taken]);
                    room -= taken;
                    let is_out = from + taken == item.text.len();
                    let wrote = lane.wrote(item, from + taken, is_out, now);
                    left.extend(wrote.map(|item| (item, "written")));
                    if taken == 0 {
                        return left;
                    }
                }
            }
        }
    }

    fn write(lane: &mut Lane<Item>, bytes: usize, now: Instant) {
        drain(lane, bytes, now, &mut String::new());
    }

    #[test]
    fn those_that_go_first_keep_their_order_and_never_cut_a_line_in_two() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let mut lane = Lane::new(now);
        lane.push(item("abc", later), 1, now);
        lane.push(item("9", later), 0, now);
        for text in ["!1", "!2"] {
            lane.push_first(item(text, later), now);
        }
        let mut wire = String::new();
        drain(&mut lane, 100, now, &mut wire);
        assert_eq!(wire, "bc!1!29");
    }

    #[test]
    fn those_that_had_no_room_stay_behind_those_that_had() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let mut lane = Lane::new(now);
        lane.push(item("1", later), 0, now);
        lane.push(item("4", later), 0, now);
        for text in ["!2", "!3"] {
            lane.push_first(item(text, later), now);
        }
        let mut wire = String::new();
        drain(&mut lane, 100, now, &mut wire);
        assert_eq!(wire, "1!2!34");
    }

    #[test]
    fn one_that_has_begun_is_finished_even_if_its_time_runs_out() {
        let now = Instant::now();
        let later = now + Duration::from_secs(2);
        let mut lane = Lane::new(now);
        lane.push(item("abc", now + Duration::from_secs(1)), 1, now);
        lane.push(item("def", now + Duration::from_secs(1)), 0, now);
        let mut wire = String::new();
        let left = drain(&mut lane, 100, later, &mut wire);
        assert_eq!(wire, "bc");
        assert_eq!(left.iter().map(|(_, fate)| *fate).collect::<Vec<_>>(), ["written", "expired"]);
        assert_eq!(lane.waiting.capacity(), 0, "an idle lane holds no memory");
    }

    #[test]
    fn taking_all_tells_the_begun_one_apart() {
        let now = Instant::now();
        let mut lane = Lane::new(now);
        for text in ["abc", "def", "ghi"] {
            lane.push(item(text, now + Duration::from_secs(9)), 0, now);
        }
        write(&mut lane, 2, now);
        let (begun, rest) = lane.take();
        assert_eq!(begun.map(|item| item.text), Some("abc".to_owned()));
        assert_eq!(rest.len(), 2);
        assert!(lane.is_empty() && lane.deadline(Duration::ZERO).is_none());
    }

    #[test]
    fn what_nobody_wants_leaves_unless_it_has_begun() {
        let now = Instant::now();
        let mut lane = Lane::new(now);
        for (text, wanted) in [("abc", false), ("def", true), ("ghi", false)] {
            let begun = usize::from(text == "abc");
            lane.push(Item { wanted, ..item(text, now) }, begun, now);
        }
        let unwanted = lane.take_unwanted();
        assert_eq!(unwanted.iter().map(|item| &*item.text).collect::<Vec<_>>(), ["ghi"]);
        assert_eq!(lane.len(), 2);
    }

    #[test]
    fn the_deadline_counts_from_when_the_head_became_the_head() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut lane = Lane::new(now);
        lane.push(item("a", now + 60 * second), 0, now + second);
        lane.push(item("b", now + 60 * second), 0, now + 2 * second);
        assert_eq!(lane.deadline(10 * second), Some(now + 11 * second));
        write(&mut lane, 1, now + 5 * second);
        assert_eq!(lane.deadline(10 * second), Some(now + 15 * second));
    }

    #[test]
    fn what_another_bridge_hands_over_goes_before_what_came_here_and_keeps_its_order() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let mut lane = Lane::new(now);
        lane.push(item("10", later), 1, now);
        lane.push(item("11", later), 0, now);
        for text in [">1", ">2"] {
            lane.push_handed(item(text, later), now);
        }
        lane.push(item("12", later), 0, now);
        let (begun, waiting) = lane.take();
        assert_eq!(begun.map(|item| item.text).as_deref(), Some("10"), "it has begun");
        let waiting: Vec<String> = waiting.into_iter().map(|item| item.text).collect();
        assert_eq!(waiting, [">1", ">2", "11", "12"]);
    }

    proptest! {
        #[test]
        fn whole_lines_in_order_and_every_item_leaves_once(
            items in prop::collection::vec((1usize..9, 0u64..10, any::<bool>()), 1..30),
            rooms in prop::collection::vec(0usize..12, 1..60),
        ) {
            let start = Instant::now();
            let mut lane = Lane::new(start);
            for (index, (len, expires, wanted)) in items.iter().enumerate() {
                let letter = char::from(b'a' + u8::try_from(index % 26).expect("below 26"));
                let mut item = item(&letter.to_string().repeat(*len), start + Duration::from_secs(*expires));
                item.wanted = *wanted;
                lane.push(item, 0, start);
            }
            let (mut wire, mut left) = (String::new(), Vec::new());
            for (second, room) in rooms.iter().enumerate() {
                left.extend(drain(&mut lane, *room, start + Duration::from_secs(second as u64), &mut wire));
            }
            let (begun, rest) = lane.take();
            prop_assert_eq!(left.len() + usize::from(begun.is_some()) + rest.len(), items.len());
            let mut whole: String = left.iter().filter(|(_, fate)| *fate == "written").map(|(item, _)| item.text.clone()).collect();
            if let Some(begun) = begun {
                let part = wire.len() - whole.len();
                prop_assert!(part > 0 && part < begun.text.len());
                whole.push_str(&begun.text[..part]);
            }
            prop_assert_eq!(wire, whole);
        }
    }
}
