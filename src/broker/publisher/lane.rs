//! `Lane`: what the publisher says of one kind, until the broker has it.
//!
//! What the broker cannot take now is said again on the same connection, after a wait: the queue behind it has
//! lost its leader, say, and gets another within seconds. Meanwhile the rest goes on, except where the order
//! counts: there all that was said since is said again behind it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use lapin::Channel;
use tokio::time::Instant;
use tracing::warn;

use super::super::publication::{Publication, Refusal};
use super::super::window::{TRIES_MAX, Window};
use super::item::Item;
use crate::clock;

/// Publications that may be on their way unconfirmed. A window of 200 reached twice the rate of a
/// smaller one on a local broker; more only makes the repetition after a lost connection longer.
const CONFIRM_WINDOW: usize = 256;

/// The first wait before what was refused is said again, and how often it is doubled: up to 1.6 s. A queue of three
/// members has another leader after about a second.
const WAIT_MIN: Duration = Duration::from_millis(100);
const DOUBLED_MAX: u32 = 4;

/// What is said of one kind.
pub(super) struct Lane {
    keeps_order: bool,
    window: Window<Item>,
    /// Confirmed before something older is, where the order counts.
    early: BTreeSet<u64>,
    /// Whether something is refused, and the answers to what was said behind it are waited for; where the order counts.
    is_broken: bool,
    /// What was said in vain, oldest first, and when it may be said again.
    again: VecDeque<Item>,
    rests_until: Option<Instant>,
    /// What the broker has since this was emptied.
    pub(super) confirmed: VecDeque<Item>,
}

impl Lane {
    /// Whatever is refused waits alone.
    pub(super) fn without_order() -> Self {
        Self::new(false)
    }

    /// Nothing is said before what was refused, and all that was said since is said again.
    pub(super) fn in_order() -> Self {
        Self::new(true)
    }

    fn new(keeps_order: bool) -> Self {
        Self {
            keeps_order,
            window: Window::new(),
            early: BTreeSet::new(),
            is_broken: false,
            again: VecDeque::new(),
            rests_until: None,
            confirmed: VecDeque::new(),
        }
    }

    /// Whether all that was said is confirmed.
    pub(super) fn is_idle(&self) -> bool {
        self.window.len() == 0 && self.again.is_empty()
    }

    /// Whether something new may be said.
    pub(super) fn has_room(&self) -> bool {
        let waits = self.is_broken || self.rests_until.is_some();
        self.window.len() < CONFIRM_WINDOW && !(self.keeps_order && waits)
    }

    /// Whether something new may be said and nothing waits to be said before it.
    pub(super) fn is_clear(&self) -> bool {
        self.has_room() && self.again.is_empty()
    }

    /// What is to be said again, if it is time for that.
    pub(super) fn next_again(&mut self) -> Option<Item> {
        if self.rests_until.is_some() {
            return None;
        }
        std::iter::from_fn(|| self.again.pop_front()).find_map(Item::if_owed)
    }

    /// Says something, behind all that was said before.
    pub(super) async fn say(&mut self, channel: &Channel, item: Item) {
        self.window.begin(channel, item.publications.clone(), item).await;
    }

    /// Says it when what was said in vain has been said.
    pub(super) fn say_last(&mut self, item: Item) {
        self.again.push_back(item);
    }

    /// Waits for the broker's next word and draws what follows from it. An error means that the connection is of no
    /// use.
    pub(super) async fn answered(&mut self) -> Result<(), Refusal> {
        let (number, result) = tokio::select! {
            biased;
            answered = self.window.answered() => answered,
            () = clock::until(self.rests_until) => {
                self.rests_until = None;
                return Ok(());
            }
        };
        match result {
            Ok(()) => self.is_confirmed(number),
            Err(Refusal::Now(error)) => self.is_refused(number, Refusal::Now(error))?,
            Err(refusal) => return Err(refusal),
        }
        if self.is_broken && self.window.is_answered() {
            self.is_broken = false;
            self.early.clear();
            let behind = self.window.take().filter(|item| !item.fleeting).rev();
            behind.for_each(|item| self.again.push_front(item));
        }
        Ok(())
    }

    fn is_confirmed(&mut self, number: u64) {
        if !self.keeps_order {
            self.confirmed.extend(self.window.remove(number));
            return;
        }
        self.early.insert(number);
        while let Some((first, _)) =
            self.window.first().filter(|(first, _)| self.early.remove(first))
        {
            self.confirmed.extend(self.window.remove(first));
        }
    }

    fn is_refused(&mut self, number: u64, refusal: Refusal) -> Result<(), Refusal> {
        let Some(item) = self.window.get_mut(number) else { return Ok(()) };
        item.tries += 1;
        if item.tries == TRIES_MAX {
            return Err(refusal);
        }
        if self.rests_until.is_none() {
            let wait = WAIT_MIN * (1 << (item.tries - 1).min(DOUBLED_MAX));
            self.rests_until = Some(Instant::now() + wait);
            warn!(again_in_ms = wait.as_millis(), "{}", refusal.error());
        }
        if self.keeps_order {
            self.is_broken = true;
        } else {
            self.again.extend(self.window.remove(number));
        }
        Ok(())
    }

    /// The connection is lost. What was not confirmed is to be said again first, and before that what came back from
    /// it, unless it is part of that.
    pub(super) fn lost(&mut self, returned: Option<Publication>) {
        let is_among = |publication: &Publication| {
            self.window.iter().any(|item| item.publications.contains(publication))
        };
        let returned = returned.filter(|publication| !is_among(publication));
        (self.is_broken, self.rests_until) = (false, None);
        self.early.clear();
        // Oldest first, before what was to be said again already.
        for item in self.window.take().filter(|item| !item.fleeting).rev() {
            self.again.push_front(item);
        }
        self.again.extend(returned.map(Item::of));
        self.again.iter_mut().for_each(|item| item.tries = 0);
    }
}
