//! `Trail`: what happened lately, for who asks: the last commands and the last connections.
//!
//! Bounded rings, kept in memory only. A command costs one pointer here; its times are in its facts,
//! where whoever takes a step with it notes them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::order::Facts;

/// Commands remembered, the last ones.
const COMMANDS_MAX: usize = 10_000;
/// Bytes of messages remembered with them: a few thousand of usual size at 600 bytes, fewer large ones.
const COMMANDS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The last commands and connections.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    /// Held for one push or one look, never across an await.
    commands: Mutex<Commands>,
}

#[derive(Debug, Default)]
struct Commands {
    last: VecDeque<Arc<Facts>>,
    bytes: usize,
}

impl Trail {
    /// A command was taken up.
    pub(crate) fn command(&self, facts: &Arc<Facts>) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.bytes += facts.origin.message.size();
        commands.last.push_back(Arc::clone(facts));
        while commands.last.len() > COMMANDS_MAX || commands.bytes > COMMANDS_BYTES_MAX {
            let Some(oldest) = commands.last.pop_front() else { break };
            commands.bytes -= oldest.origin.message.size();
        }
    }
}
