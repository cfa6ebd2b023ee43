//! `Fate`: what became of a command, why, and when that was known.

use crate::clock::Moment;
use crate::command::{Outcome, Reason};

/// What became of a command.
#[derive(Debug, Clone)]
pub(crate) struct Fate {
    pub(crate) outcome: Outcome,
    /// When that was known.
    pub(crate) at: Moment,
    /// Why, unless it was delivered.
    pub(crate) reason: Reason,
    /// What the device answered.
    pub(crate) answer: Option<Box<[u8]>>,
}

impl Fate {
    pub(crate) fn new(outcome: Outcome, reason: impl Into<Reason>) -> Self {
        Self { outcome, at: Moment::now(), reason: reason.into(), answer: None }
    }

    pub(crate) fn delivered(outcome: Outcome, at: Moment) -> Self {
        Self { outcome, at, reason: "".into(), answer: None }
    }

    pub(crate) fn answered(answer: &[u8], at: Moment) -> Self {
        Self { answer: Some(answer.into()), ..Self::delivered(Outcome::Answered, at) }
    }
}
