//! `Trail`: what happened lately, for who asks: the last commands, and the last connections of each
//! device, also of one that is gone.
//!
//! Bounded rings, kept in memory only. A command costs one pointer here; its times are in its facts,
//! where whoever takes a step with it notes them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::command::Address;
use crate::order::Facts;

/// Commands remembered, the last ones.
const COMMANDS_MAX: usize = 10_000;
/// Bytes of messages remembered with them, so that a few large ones do not take all the memory.
const COMMANDS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Devices whose past connections are remembered, those that ended last. With `CONNECTIONS_MAX` of
/// some 64 bytes each that is 5 MB at most.
const DEVICES_MAX: usize = 10_000;
/// Past connections remembered of one device.
const CONNECTIONS_MAX: usize = 8;

/// The last commands and connections.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    /// Each held for one push or one look, never across an await.
    commands: Mutex<Commands>,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Commands {
    last: VecDeque<Arc<Facts>>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Connections {
    of: HashMap<Address, VecDeque<Connection>>,
    /// Its keys, in the order in which they came.
    order: VecDeque<Address>,
}

/// A connection that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) epoch: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) since_ms: u64,
    pub(crate) until_ms: u64,
    pub(crate) reason: &'static str,
}

impl Trail {
    /// A command was taken up.
    pub(crate) fn command(&self, facts: &Arc<Facts>) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.bytes += facts.origin.size;
        commands.last.push_back(Arc::clone(facts));
        while commands.last.len() > COMMANDS_MAX || commands.bytes > COMMANDS_BYTES_MAX {
            let Some(oldest) = commands.last.pop_front() else { break };
            commands.bytes -= oldest.origin.size;
        }
    }

    /// The last commands for which `wanted` holds, at most `limit`, newest first.
    pub(crate) fn commands(
        &self,
        wanted: impl Fn(&Facts) -> bool,
        limit: usize,
    ) -> Vec<Arc<Facts>> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let newest_first = commands.last.iter().rev();
        newest_first.filter(|facts| wanted(facts)).take(limit).cloned().collect()
    }

    /// A connection of `address` has ended.
    pub(crate) fn connection(&self, address: &Address, connection: Connection) {
        let mut all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let Connections { of, order } = &mut *all;
        let past = of.entry(address.clone()).or_insert_with(|| {
            order.push_back(address.clone());
            VecDeque::new()
        });
        if past.len() == CONNECTIONS_MAX {
            past.pop_front();
        }
        past.push_back(connection);
        if order.len() > DEVICES_MAX
            && let Some(oldest) = order.pop_front()
        {
            of.remove(&oldest);
        }
    }

    /// The past connections of `address` that are remembered, newest first.
    pub(crate) fn connections(&self, address: &Address) -> Vec<Connection> {
        let all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        all.of.get(address).into_iter().flatten().rev().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::tests::facts;

    #[test]
    fn the_last_commands_are_remembered_and_the_newest_comes_first() {
        let trail = Trail::default();
        for number in 0..COMMANDS_MAX + 5 {
            trail.command(&Arc::new(facts(Some(&number.to_string()), "ON")));
        }
        let is = |id: &'static str| move |facts: &Facts| facts.origin.id.as_deref() == Some(id);
        assert!(trail.commands(is("4"), 9).is_empty(), "forgotten");
        assert_eq!(trail.commands(is("5"), 9).len(), 1);
        let newest = trail.commands(|_| true, 1);
        assert_eq!(newest[0].origin.id.as_deref(), Some("10004"));
    }

    #[test]
    fn the_last_connections_of_a_device_are_remembered() {
        let trail = Trail::default();
        let address = facts(None, "ON").command.address;
        for epoch in 1..=10 {
            let peer = SocketAddr::from(([127, 0, 0, 2], 4000));
            let connection =
                Connection { epoch, peer, since_ms: epoch, until_ms: epoch, reason: "closed" };
            trail.connection(&address, connection);
        }
        let epochs: Vec<u64> = trail.connections(&address).iter().map(|c| c.epoch).collect();
        assert_eq!(epochs, [10, 9, 8, 7, 6, 5, 4, 3]);
    }
}
