//! `Answers`: which line of a device answers which command. Pure: the time is an argument.
//!
//! Without ids, the next line that looks like an answer belongs to the one command that waits for
//! one; others wait in the lane. A command whose time ran out leaves the question open whose answer
//! the next line is, so for as long again no other is asked, and a line that comes in that time is
//! late. With ids, each line says which command it answers, and any number may be on their way.

use std::collections::VecDeque;
use std::time::Duration;

use regex::bytes::Regex;
use tokio::time::Instant;

/// Ids of commands that were given up, kept to know a late answer by.
const LATE_IDS_MAX: usize = 32;

/// How answers are known from other lines.
#[derive(Debug, Default)]
pub(crate) struct Rule {
    /// What a line must match; none means that every line may be one.
    pub(crate) pattern: Option<Regex>,
    /// The named group of it that holds the command's id.
    pub(crate) id_group: Option<String>,
}

impl Rule {
    /// Whether answers name the command they are for.
    pub(crate) fn with_ids(&self) -> bool {
        self.id_group.is_some()
    }

    /// What `line` claims to answer; None if it is no answer at all.
    fn claim<'a>(&self, line: &'a [u8]) -> Option<Claim<'a>> {
        let Some(pattern) = &self.pattern else { return Some(Claim::Next) };
        let Some(group) = &self.id_group else {
            return pattern.is_match(line).then_some(Claim::Next);
        };
        Some(Claim::Id(pattern.captures(line)?.name(group)?.as_bytes()))
    }
}

enum Claim<'a> {
    Next,
    Id(&'a [u8]),
}

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LineIs<T> {
    /// The answer to this command.
    Answer(T),
    /// An answer to a command that was given up.
    Late,
    /// Something else.
    Uplink,
}

/// The commands of one device that wait for its answer.
#[derive(Debug)]
pub(super) struct Answers<T> {
    awaited: VecDeque<Awaited<T>>,
    /// Ids of commands whose time ran out, newest last. Used with ids only.
    late: VecDeque<Box<str>>,
    /// Until when a line may be the late answer to a command that was given up. Used without ids only.
    in_doubt_until: Option<Instant>,
}

#[derive(Debug)]
struct Awaited<T> {
    id: Option<Box<str>>,
    deadline: Instant,
    timeout: Duration,
    item: T,
}

impl<T> Answers<T> {
    /// None awaited. It holds no memory until one is.
    pub(super) fn new() -> Self {
        Self { awaited: VecDeque::new(), late: VecDeque::new(), in_doubt_until: None }
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        self.awaited.is_empty() && self.late.is_empty() && self.in_doubt_until.is_none()
    }

    /// Whether one more command that wants an answer may be written now.
    pub(super) fn may_begin(&self, rule: &Rule, now: Instant) -> bool {
        rule.with_ids()
            || self.awaited.is_empty() && self.in_doubt_until.is_none_or(|until| until <= now)
    }

    /// Awaits the answer to `item`, which has just been written.
    pub(super) fn begin(&mut self, item: T, id: Option<&str>, timeout: Duration, now: Instant) {
        let id = id.map(Into::into);
        self.awaited.push_back(Awaited { id, deadline: now + timeout, timeout, item });
    }

    /// What a line of the device is.
    pub(super) fn line(&mut self, rule: &Rule, line: &[u8], now: Instant) -> LineIs<T> {
        match rule.claim(line) {
            None => LineIs::Uplink,
            Some(Claim::Next) => {
                if let Some(awaited) = self.take_at(0) {
                    return LineIs::Answer(awaited.item);
                }
                match self.in_doubt_until.take() {
                    Some(until) if now < until => LineIs::Late,
                    _ => LineIs::Uplink,
                }
            }
            Some(Claim::Id(id)) => {
                let is_it = |known: &str| known.as_bytes() == id;
                let position =
                    self.awaited.iter().position(|one| one.id.as_deref().is_some_and(is_it));
                if let Some(awaited) = position.and_then(|at| self.take_at(at)) {
                    return LineIs::Answer(awaited.item);
                }
                match self.late.iter().position(|late| is_it(late)) {
                    Some(at) => {
                        self.late.remove(at);
                        LineIs::Late
                    }
                    None => LineIs::Uplink,
                }
            }
        }
    }

    /// Gives up the next command whose time has run out.
    pub(super) fn next_expired(&mut self, rule: &Rule, now: Instant) -> Option<T> {
        let position = self.awaited.iter().position(|one| one.deadline <= now)?;
        let awaited = self.take_at(position)?;
        if !rule.with_ids() {
            self.in_doubt_until = Some(now + awaited.timeout);
        } else if let Some(id) = awaited.id {
            self.late.push_back(id);
            if self.late.len() > LATE_IDS_MAX {
                self.late.pop_front();
            }
        }
        Some(awaited.item)
    }

    /// When something changes by itself: a command's time runs out, or the doubt ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.awaited.iter().map(|one| one.deadline).chain(self.in_doubt_until).min()
    }

    /// Ends a doubt whose time has come.
    pub(super) fn forget_doubt(&mut self, now: Instant) {
        self.in_doubt_until = self.in_doubt_until.filter(|until| now < *until);
    }

    /// Those awaited.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.awaited.iter_mut().map(|awaited| &mut awaited.item)
    }

    /// Takes out all that are awaited, oldest first.
    pub(super) fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.awaited).into_iter().map(|awaited| awaited.item)
    }

    fn take_at(&mut self, position: usize) -> Option<Awaited<T>> {
        let awaited = self.awaited.remove(position)?;
        if self.awaited.is_empty() {
            // An idle device owns no buffer.
            self.awaited = VecDeque::new();
        }
        Some(awaited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rule(pattern: &str, id_group: Option<&str>) -> Rule {
        Rule {
            pattern: (!pattern.is_empty()).then(|| Regex::new(pattern).expect("a pattern")),
            id_group: id_group.map(Into::into),
        }
    }

    #[test]
    fn the_next_line_answers_the_one_command_that_waits() {
        let (rule, now) = (rule("", None), Instant::now());
        let mut answers = Answers::new();
        assert_eq!(answers.line(&rule, b"HELLO", now), LineIs::Uplink);
        assert!(answers.may_begin(&rule, now));
        answers.begin("a", None, SECOND, now);
        assert!(!answers.may_begin(&rule, now), "one at a time");
        assert_eq!(answers.line(&rule, b"OK", now), LineIs::Answer("a"));
        assert!(answers.may_begin(&rule, now));
        assert_eq!(answers.line(&rule, b"OK", now), LineIs::Uplink);
        assert_eq!(answers.awaited.capacity(), 0, "an idle device holds no memory");
    }

    #[test]
    fn lines_that_do_not_match_are_no_answers() {
        let (rule, now) = (rule("^(OK|ERR)", None), Instant::now());
        let mut answers = Answers::new();
        answers.begin("a", None, SECOND, now);
        assert_eq!(answers.line(&rule, b"temp=21", now), LineIs::Uplink);
        assert_eq!(answers.line(&rule, b"ERR 5", now), LineIs::Answer("a"));
    }

    #[test]
    fn after_one_was_given_up_no_line_is_taken_for_the_answer_to_the_next() {
        let (rule, now) = (rule("", None), Instant::now());
        let mut answers = Answers::new();
        answers.begin("a", None, SECOND, now);
        assert_eq!(answers.next_expired(&rule, now), None);
        assert_eq!(answers.next_expired(&rule, now + SECOND), Some("a"));
        assert!(!answers.may_begin(&rule, now + SECOND));
        assert_eq!(answers.deadline(), Some(now + 2 * SECOND));
        assert_eq!(answers.line(&rule, b"OK", now + SECOND), LineIs::Late);
        assert!(answers.may_begin(&rule, now + SECOND), "the late one has come");
        // And if it never comes.
        answers.begin("b", None, SECOND, now + SECOND);
        assert_eq!(answers.next_expired(&rule, now + 2 * SECOND), Some("b"));
        answers.forget_doubt(now + 3 * SECOND);
        assert!(answers.may_begin(&rule, now + 3 * SECOND));
        assert_eq!(answers.deadline(), None);
    }

    #[test]
    fn with_ids_each_line_finds_its_command_and_late_ones_are_known() {
        let (rule, now) = (rule(r"^ACK (?<id>\S+)", Some("id")), Instant::now());
        let mut answers = Answers::new();
        for (item, id) in [("a", "1"), ("b", "2"), ("c", "3")] {
            assert!(answers.may_begin(&rule, now));
            let timeout = if id == "3" { 9 * SECOND } else { SECOND };
            answers.begin(item, Some(id), timeout, now);
        }
        assert_eq!(answers.line(&rule, b"ACK 2 done", now), LineIs::Answer("b"));
        assert_eq!(answers.line(&rule, b"ACK 9", now), LineIs::Uplink);
        assert_eq!(answers.next_expired(&rule, now + SECOND), Some("a"));
        assert_eq!(answers.line(&rule, b"ACK 1", now + SECOND), LineIs::Late);
        assert_eq!(answers.line(&rule, b"ACK 1", now + SECOND), LineIs::Uplink);
        assert_eq!(answers.take().collect::<Vec<_>>(), ["c"]);
    }
}
