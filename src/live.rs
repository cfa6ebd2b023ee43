//! `Live`: what happens, for those who look on: readers of `/events`, and the tap.
//!
//! Nobody who looks on may slow the bridge down. While there is no reader, what happens costs one load; what no
//! reader wants is not even put into words. Each reader has a bounded box of its own: one that is too slow is told how
//! much it missed and hears no more, and the others do not notice. Secrets are masked before anything gets here.

mod mask;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use mask::Mask;
use tokio::sync::Notify;

/// Readers at a time. What is wanted by many is put into words once, but handed to each.
const READERS_MAX: usize = 64;
/// Events that may wait for one reader: what two hundred milliseconds bring of a bridge under full load.
const WAITING_MAX: usize = 8192;
/// Bytes of events that may wait for one reader; readers share what several of them wait for.
const WAITING_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What kind of thing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A device came, went, fell silent or was heard.
    Presence,
    /// It is known what became of a command.
    Outcome,
    /// A device sent a line.
    Line,
    /// A command was taken up.
    Command,
}

impl Kind {
    /// Every kind there is.
    pub(crate) const ALL: [Self; 4] = [Self::Presence, Self::Outcome, Self::Line, Self::Command];

    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Presence => "presence",
            Self::Outcome => "outcome",
            Self::Line => "line",
            Self::Command => "command",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Presence => 1,
            Self::Outcome => 2,
            Self::Line => 4,
            Self::Command => 8,
        }
    }
}

/// Some kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds(u8);

impl Kinds {
    /// All there are.
    pub(crate) fn all() -> Self {
        Kind::ALL.into_iter().collect()
    }

    /// The kinds whose words these are, with commas between; else the word that is none.
    pub(crate) fn parse(words: &str) -> Result<Self, String> {
        let kind = |word: &str| {
            let found = Kind::ALL.into_iter().find(|kind| kind.word() == word);
            found.ok_or_else(|| {
                format!("kind: expected presence, outcome, line or command, got {word}")
            })
        };
        words.split(',').map(|word| kind(word.trim())).collect()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this is one of them.
    pub(crate) fn has(self, kind: Kind) -> bool {
        self.0 & kind.bit() != 0
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<T: IntoIterator<Item = Kind>>(kinds: T) -> Self {
        Self(kinds.into_iter().fold(0, |all, kind| all | kind.bit()))
    }
}

/// Something that happened.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    pub(crate) address: String,
    pub(crate) json: Vec<u8>,
}

/// What a reader hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Something happened.
    Event(Arc<Event>),
    /// It was too slow: so much was not kept for it. It hears nothing more.
    Missed(u64),
}

/// What happens, and who wants to know.
pub(crate) struct Live {
    mask: Mask,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The bits of the kinds that some reader wants.
    wanted: AtomicU8,
    /// Held while an event is put into their boxes, never across an await. No other lock is taken meanwhile but a
    /// box's own.
    readers: Mutex<Vec<Arc<Mailbox>>>,
}

#[derive(Debug)]
struct Mailbox {
    /// The bits of what it wants, changed with the list of readers locked.
    kinds: AtomicU8,
    prefix: Box<str>,
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// What came when the box was full. From then on nothing is kept.
    missed: u64,
    /// Whether the reader knows that.
    told: bool,
}

impl Live {
    /// Nobody looks on yet.
    pub(crate) fn new(mask: Mask) -> Self {
        Self { mask, shared: Arc::default() }
    }

    /// What masks secrets in whatever is told.
    pub(crate) fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Whether anybody wants to know of this kind: one relaxed load, for a command to pay.
    #[inline]
    pub(crate) fn wants(&self, kind: Kind) -> bool {
        self.shared.wanted.load(Ordering::Relaxed) & kind.bit() != 0
    }

    /// Tells those who want to know what happened to a device; `json` puts it into words, if there is one. It must
    /// take no lock that anybody holds who tells something. The address is empty if it is not known.
    pub(crate) fn tell(
        &self,
        kind: Kind,
        address: impl fmt::Display,
        json: impl FnOnce() -> Vec<u8>,
    ) {
        if !self.wants(kind) {
            return;
        }
        let address = address.to_string();
        let readers = self.shared.lock();
        let mut wanting = readers.iter().filter(|reader| reader.wants(kind, &address)).peekable();
        if wanting.peek().is_none() {
            return;
        }
        let event = Arc::new(Event { kind, json: json(), address: address.clone() });
        wanting.for_each(|reader| reader.put(&event));
    }

    /// A reader of what happens from now on, of these kinds, to devices whose address begins with `prefix`. None if
    /// there are too many.
    pub(crate) fn subscribe(&self, kinds: Kinds, prefix: &str) -> Option<Reader> {
        let mut readers = self.shared.lock();
        if readers.len() >= READERS_MAX {
            return None;
        }
        let mailbox = Arc::new(Mailbox {
            kinds: AtomicU8::new(kinds.0),
            prefix: prefix.into(),
            waiting: Mutex::default(),
            more: Notify::new(),
        });
        readers.push(Arc::clone(&mailbox));
        self.shared.want(&readers);
        Some(Reader { mailbox, shared: Arc::clone(&self.shared) })
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("readers", &self.shared.lock().len()).finish_non_exhaustive()
    }
}

impl Shared {
    fn want(&self, readers: &[Arc<Mailbox>]) {
        let wanted = readers.iter().fold(0, |all, reader| all | reader.kinds().0);
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Mailbox>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailbox {
    fn kinds(&self) -> Kinds {
        Kinds(self.kinds.load(Ordering::Relaxed))
    }

    fn wants(&self, kind: Kind, address: &str) -> bool {
        self.kinds().has(kind) && address.starts_with(&*self.prefix)
    }

    fn put(&self, event: &Arc<Event>) {
        let mut waiting = self.lock();
        let bytes = waiting.bytes + event.json.len();
        let is_full = waiting.events.len() >= WAITING_MAX || bytes > WAITING_BYTES_MAX;
        if waiting.missed > 0 || is_full {
            waiting.missed += 1;
        } else {
            waiting.bytes = bytes;
            waiting.events.push_back(Arc::clone(event));
        }
        drop(waiting);
        self.more.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who looks on.
#[derive(Debug)]
pub(crate) struct Reader {
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
}

impl Reader {
    /// What it hears next, once there is something. None once it has missed something and knows it.
    pub(crate) async fn next(&self) -> Option<Heard> {
        loop {
            match self.try_next() {
                Some(heard) => return Some(heard),
                None if self.mailbox.lock().told => return None,
                None => self.mailbox.more.notified().await,
            }
        }
    }

    /// From now on it hears of these kinds; what has come already stays.
    pub(crate) fn want(&self, kinds: Kinds) {
        let readers = self.shared.lock();
        self.mailbox.kinds.store(kinds.0, Ordering::Relaxed);
        self.shared.want(&readers);
    }

    /// What has come already.
    pub(crate) fn try_next(&self) -> Option<Heard> {
        let mut waiting = self.mailbox.lock();
        if let Some(event) = waiting.events.pop_front() {
            waiting.bytes -= event.json.len();
            return Some(Heard::Event(event));
        }
        if waiting.missed == 0 || std::mem::replace(&mut waiting.told, true) {
            return None;
        }
        Some(Heard::Missed(waiting.missed))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut readers = self.shared.lock();
        readers.retain(|reader| !Arc::ptr_eq(reader, &self.mailbox));
        self.shared.want(&readers);
    }
}

#[cfg(test)]
impl Live {
    /// One with the usual mask.
    pub(crate) fn of_a_test() -> Arc<Self> {
        Arc::new(Self::new(Mask::new(None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(heard: Option<Heard>) -> String {
        match heard {
            Some(Heard::Event(event)) => String::from_utf8(event.json.clone()).expect("text"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_put_into_words_that_nobody_wants() {
        let live = Live::of_a_test();
        let never = || panic!("nobody wants it");
        live.tell(Kind::Line, "10.0.0.1", never);
        let reader = live.subscribe([Kind::Line].into_iter().collect(), "10.2.").expect("room");
        assert!(live.wants(Kind::Line) && !live.wants(Kind::Command));
        live.tell(Kind::Command, "10.2.0.1", never);
        live.tell(Kind::Line, "10.20.0.1", never);
        live.tell(Kind::Line, "10.2.0.1", || b"hi".to_vec());
        assert_eq!(text(reader.try_next()), "hi");
        assert!(reader.try_next().is_none());
        drop(reader);
        assert!(!live.wants(Kind::Line));
        live.tell(Kind::Line, "10.2.0.1", never);
    }

    #[tokio::test]
    async fn one_that_is_too_slow_is_told_once_and_the_others_hear_all() {
        let live = Live::of_a_test();
        let [slow, fast] = [(); 2].map(|()| live.subscribe(Kinds::all(), "").expect("room"));
        for number in 0..WAITING_MAX + 5 {
            live.tell(Kind::Line, "a", || number.to_string().into_bytes());
            assert_eq!(text(fast.next().await), number.to_string());
        }
        for number in 0..WAITING_MAX {
            assert_eq!(text(slow.next().await), number.to_string());
        }
        live.tell(Kind::Line, "a", Vec::new);
        assert!(matches!(slow.next().await, Some(Heard::Missed(6))));
        live.tell(Kind::Line, "a", Vec::new);
        assert!(slow.next().await.is_none() && slow.next().await.is_none());
    }

    #[test]
    fn large_events_are_bounded_by_their_bytes() {
        let live = Live::of_a_test();
        let reader = live.subscribe(Kinds::all(), "").expect("room");
        let large = || vec![b'x'; WAITING_BYTES_MAX / 2];
        for _ in 0..4 {
            live.tell(Kind::Line, "a", large);
        }
        assert!(matches!(reader.try_next(), Some(Heard::Event(_))));
        assert!(matches!(reader.try_next(), Some(Heard::Event(_))));
        assert!(matches!(reader.try_next(), Some(Heard::Missed(2))));
    }

    #[test]
    fn one_that_changes_its_mind_keeps_what_it_has() {
        let live = Live::of_a_test();
        let reader = live.subscribe([Kind::Line].into_iter().collect(), "").expect("room");
        live.tell(Kind::Line, "a", || b"1".to_vec());
        reader.want([Kind::Command].into_iter().collect());
        live.tell(Kind::Line, "a", || panic!("nobody wants it"));
        live.tell(Kind::Command, "a", || b"2".to_vec());
        assert_eq!([(); 2].map(|()| text(reader.try_next())), ["1", "2"]);
    }

    #[test]
    fn there_are_only_so_many_readers() {
        let live = Live::of_a_test();
        let mut all: Vec<_> = (0..READERS_MAX).map(|_| live.subscribe(Kinds::all(), "")).collect();
        assert!(all.iter().all(Option::is_some) && live.subscribe(Kinds::all(), "").is_none());
        all.pop();
        assert!(live.subscribe(Kinds::all(), "").is_some());
    }

    #[test]
    fn kinds_go_by_their_words() {
        let some: Kinds = [Kind::Line, Kind::Outcome].into_iter().collect();
        assert_eq!(Kinds::parse("line, outcome"), Ok(some));
        assert!(Kinds::parse("line,lines").is_err() && Kinds::parse("").is_err());
        assert!(some.has(Kind::Line) && !some.has(Kind::Presence));
    }
}
