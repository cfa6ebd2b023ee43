//! `Batch`: events of one transaction, folded to one row a key. Pure.
//!
//! Whatever order events come in and however often, the rows are the same in the end: of two that are
//! about the same thing, what they say themselves decides which is the later one. The statements in
//! `sql` hold a row against the one that the database has by the same rules.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::event::{Address, Event, Heartbeat, Line, Name, Number, Outcome, Presence, Run};
use super::rows::{Bridge, Command, Connection, Device, Seen, State};
use super::sql::{self, Statement};
use crate::settings::Kinds;

/// The reason with which the bridge tells that a connection begins.
const BEGINS: &str = "connected";

/// Rows of one transaction. In the order of their keys, so that two recorders never wait for each
/// other in a circle.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bridges: BTreeMap<Name, Bridge>,
    /// All processes of them that said something.
    runs: BTreeSet<(Name, Run)>,
    devices: BTreeMap<Address, Device>,
    connections: BTreeMap<(Address, Number, Name), Connection>,
    commands: BTreeMap<(Name, Run, Number, Address), Command>,
    lines: BTreeMap<(Name, Run, Number), Line>,
    /// When connections sent something last.
    seen: BTreeMap<(Address, Number), Seen>,
}

impl Batch {
    /// Takes up an event, if it is of a kind that is recorded.
    pub(super) fn take(&mut self, event: Event, kinds: Kinds) {
        match event {
            Event::Presence(presence) => self.presence(presence),
            Event::Bridge(heartbeat) => self.heartbeat(heartbeat),
            Event::Outcome(outcome) if kinds.outcome => self.outcome(*outcome),
            Event::Uplink(line) if kinds.uplink => self.line(line),
            Event::Outcome(_) | Event::Uplink(_) => {}
        }
    }

    /// The bridges it has events of, by their latest runs.
    pub(super) fn bridges(&self) -> impl Iterator<Item = (&Name, &Bridge)> {
        self.bridges.iter()
    }

    /// The statements that write it, each with its rows as a JSON array. `is_current` tells whether the
    /// latest process of a bridge that the database knows is this one: others have consequences.
    pub(super) fn steps(
        &self,
        is_current: impl Fn(&Name, &Run) -> bool,
    ) -> serde_json::Result<Vec<(&'static Statement, String)>> {
        let changed: BTreeSet<&Name> = self
            .runs
            .iter()
            .filter(|(name, run)| !is_current(name, run))
            .map(|(name, _)| name)
            .collect();
        let of = |wanted: &dyn Fn(&Bridge) -> bool| {
            json(self.bridges.values().filter(|bridge| wanted(bridge)))
        };
        let anew = of(&|bridge| changed.contains(&bridge.name))?;
        let ended = of(&|bridge| bridge.state == State::Offline)?;
        let heard = of(&|bridge| bridge.heard.is_some())?;
        let mut steps = vec![
            (&sql::BRIDGES, json(self.bridges.values())?),
            (&sql::DEVICES, json(self.devices.values())?),
            (&sql::CONNECTIONS, json(self.connections.values())?),
            // What these do follows from the rows above.
            (&sql::DEVICES_GONE, anew.clone()),
            (&sql::CONNECTIONS_GONE, anew),
            (&sql::DEVICES_ENDED, ended.clone()),
            (&sql::CONNECTIONS_ENDED, ended),
            (&sql::DEVICES_BACK, heard),
            (&sql::COMMANDS, json(self.commands.values())?),
            (&sql::LINES, json(self.lines.values())?),
            (&sql::SEEN, json(self.seen.values())?),
        ];
        steps.retain(|(_, rows)| rows != "[]");
        Ok(steps)
    }

    fn presence(&mut self, event: Presence) {
        let Presence { address, online, silent, epoch, bridge, run, seq, at, reason, peer } = event;
        self.bridge(Bridge::heard_of(bridge.clone(), run.clone(), seq));
        let since = (online && reason == BEGINS.into()).then_some(at);
        let connection = Connection {
            address: address.clone(),
            epoch,
            bridge: bridge.clone(),
            run: run.clone(),
            peer: peer.clone(),
            since,
            until: (!online).then_some(at),
            reason: (!online).then(|| reason.clone()),
        };
        let key = (address.clone(), epoch, bridge.clone());
        upsert(&mut self.connections, key, connection, Connection::merge);
        // That it fell silent is no sign of life.
        let last_seen = (!silent).then_some(at);
        let state = State::of(online);
        let device = Device {
            address: address.clone(),
            state,
            silent,
            epoch,
            since,
            last_seen,
            reason,
            bridge,
            run,
            seq,
            peer,
        };
        upsert(&mut self.devices, address, device, Device::merge);
    }

    fn heartbeat(&mut self, event: Heartbeat) {
        let Heartbeat { bridge, run, seq, online, devices, at, expires_ms } = event;
        self.bridge(Bridge {
            heard: Some(at),
            expires_ms: Some(expires_ms),
            devices,
            state: State::of(online),
            ..Bridge::heard_of(bridge, run, seq)
        });
    }

    fn outcome(&mut self, event: Outcome) {
        let Outcome { bridge, run, number, id, address, cmd, confirm, outcome, reason, .. } = event;
        let Outcome { answer, answer_base64, published, taken, written, at, trace, .. } = event;
        self.bridge(Bridge::heard_of(bridge.clone(), run.clone(), Number::default()));
        let address = address.unwrap_or_default();
        let key = (bridge.clone(), run.clone(), number, address.clone());
        let command = Command {
            bridge,
            run,
            number,
            address,
            id,
            cmd,
            confirm,
            outcome,
            reason,
            answer,
            answer_base64,
            published,
            taken,
            written,
            settled: at,
            trace,
        };
        upsert(&mut self.commands, key, command, Command::merge);
    }

    fn line(&mut self, event: Line) {
        let Line { bridge, run, number, address, epoch, at, .. } = &event;
        self.bridge(Bridge::heard_of(bridge.clone(), run.clone(), Number::default()));
        let seen = Seen { address: address.clone(), epoch: *epoch, at: *at };
        upsert(&mut self.seen, (address.clone(), *epoch), seen, Seen::merge);
        let key = (bridge.clone(), run.clone(), *number);
        self.lines.entry(key).or_insert(event);
    }

    fn bridge(&mut self, bridge: Bridge) {
        self.runs.insert((bridge.name.clone(), bridge.run.clone()));
        upsert(&mut self.bridges, bridge.name.clone(), bridge, Bridge::merge);
    }
}

fn json<'a, T: Serialize + 'a>(rows: impl Iterator<Item = &'a T>) -> serde_json::Result<String> {
    serde_json::to_string(&rows.collect::<Vec<_>>())
}

fn upsert<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, row: V, merge: impl FnOnce(&mut V, V)) {
    match map.entry(key) {
        std::collections::btree_map::Entry::Vacant(place) => {
            place.insert(row);
        }
        std::collections::btree_map::Entry::Occupied(place) => merge(place.into_mut(), row),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const ALL: Kinds = Kinds { outcome: true, uplink: true };

    fn at(second: u64) -> String {
        crate::clock::rfc3339(second * 1000)
    }

    fn presence(epoch: u64, seq: u64, online: bool, reason: &str) -> Value {
        json!({"address": "10.0.0.1", "online": online, "silent": reason == "silent", "epoch": epoch,
            "bridge": "b", "run": "a", "seq": seq, "at": at(seq), "reason": reason, "peer": "10.0.0.1:1"})
    }

    fn outcome(number: u64, word: &str, second: u64) -> Value {
        json!({"id": "x", "address": "10.0.0.1", "outcome": word, "cmd": "ON", "confirm": "written",
            "bridge": "b", "run": "a", "number": number, "taken": at(1), "at": at(second)})
    }

    fn folded(events: &[(&str, Value)]) -> Vec<(String, Value)> {
        let mut batch = Batch::default();
        for (key, event) in events {
            let event = Event::read(key, event.to_string().as_bytes()).expect("an event");
            batch.take(event, ALL);
        }
        let steps = batch.steps(|_, _| false).expect("rows");
        let row = |(statement, rows): (&Statement, String)| {
            (statement.name.to_owned(), serde_json::from_str(&rows).expect("JSON"))
        };
        steps.into_iter().map(row).collect()
    }

    fn of(steps: &[(String, Value)], name: &str) -> Value {
        let step = steps.iter().find(|(step, _)| step == name);
        step.unwrap_or_else(|| panic!("no step {name} in {steps:?}")).1.clone()
    }

    #[test]
    fn a_connection_that_came_and_went_is_one_row_of_each() {
        let steps = folded(&[
            ("presence.x", presence(7, 1, true, "connected")),
            ("presence.x", presence(7, 2, true, "silent")),
            ("presence.x", presence(7, 3, false, "timeout")),
        ]);
        let device = of(&steps, "devices");
        assert_eq!(device.as_array().map(Vec::len), Some(1));
        assert_eq!(device[0]["state"], "offline");
        assert_eq!((&device[0]["since"], &device[0]["last_seen"]), (&json!(at(1)), &json!(at(3))));
        let connection = of(&steps, "connections");
        assert_eq!(
            (&connection[0]["since"], &connection[0]["until"]),
            (&json!(at(1)), &json!(at(3)))
        );
        assert_eq!(connection[0]["reason"], "timeout");
        assert_eq!(of(&steps, "bridges")[0]["seq"], 3);
    }

    #[test]
    fn of_one_command_the_last_outcome_counts_and_what_was_known_stays() {
        let mut written = outcome(1, "written", 5);
        written["written"] = json!(at(4));
        let steps = folded(&[
            ("outcome.x", outcome(1, "uncertain", 5)),
            ("outcome.x", written),
            ("outcome.x", outcome(2, "written", 5)),
        ]);
        let commands = of(&steps, "commands");
        assert_eq!(commands.as_array().map(Vec::len), Some(2));
        assert_eq!(
            (&commands[0]["outcome"], &commands[0]["written"]),
            (&json!("uncertain"), &json!(at(4)))
        );
    }

    #[test]
    fn what_is_not_recorded_leaves_no_row() {
        let mut batch = Batch::default();
        let event = outcome(1, "written", 1).to_string();
        let event = Event::read("outcome.x", event.as_bytes()).expect("an event");
        batch.take(event, Kinds { outcome: false, uplink: false });
        assert!(batch.steps(|_, _| false).expect("rows").is_empty());
    }

    proptest! {
        /// Some connections, each event of them any number of times and in any order: the rows are those
        /// of the events once and in order.
        #[test]
        fn order_and_repetition_change_nothing(picks in prop::collection::vec(0usize..9, 0..40)) {
            let mut events = Vec::new();
            for epoch in 1..=3 {
                let seq = epoch * 3;
                events.push(("presence.x", presence(epoch, seq, true, "connected")));
                events.push(("presence.x", presence(epoch, seq + 1, true, "silent")));
                if epoch < 3 {
                    events.push(("presence.x", presence(epoch, seq + 2, false, "closed")));
                }
            }
            events.push(("outcome.x", outcome(1, "written", 3)));
            let once = folded(&events);
            let mut again: Vec<_> = picks.iter().map(|pick| events[*pick].clone()).collect();
            again.extend(events.into_iter().rev());
            prop_assert_eq!(folded(&again), once);
        }
    }
}
