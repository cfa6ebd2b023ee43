//! A stream of numbered commands to a fleet, and the check that it arrived: every command at its own device, at least
//! once, and for each device in order of first receipt.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Dice, Fleet, Scene, address, command, persistent};

/// How many commands each device of a fleet was sent.
pub(crate) struct Stream {
    sent: Vec<usize>,
    total: usize,
}

/// What arrived beyond once each.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) missing: Vec<String>,
    pub(crate) duplicates: usize,
    pub(crate) overtaken: Vec<String>,
}

impl Stream {
    /// Publishes `total` commands, each to a device drawn by lot, and returns when the broker has confirmed all.
    #[track_caller]
    pub(crate) fn publish(scene: &Scene, devices: usize, total: usize) -> Self {
        let mut dice = Dice::new();
        let mut sent = vec![0; devices];
        let messages = (0..total).map(|_| {
            let device = dice.below(devices);
            let command = command(&address(device), &line(device, sent[device]));
            sent[device] += 1;
            (command.to_string().into_bytes(), persistent())
        });
        scene.amqp.publish_all(&scene.exchange(), &scene.queue(), messages);
        Self { sent, total }
    }

    /// What was sent otherwise: so many to each device, with these lines.
    pub(super) fn of(sent: Vec<usize>) -> Self {
        let total = sent.iter().sum();
        Self { sent, total }
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Checks that no device got what is another's or what was never sent, and that each got what it got first in
    /// order; says what did not come and how much came again.
    #[track_caller]
    pub(crate) fn arrived(&self, fleet: &Fleet) -> Arrived {
        let arrived = self.arrived_in_any_order(fleet);
        assert_eq!(arrived.overtaken, Vec::<String>::new(), "the order of first receipt");
        arrived
    }

    /// The same, and which commands came first when a later one of their device had come.
    #[track_caller]
    pub(crate) fn arrived_in_any_order(&self, fleet: &Fleet) -> Arrived {
        let (mut missing, mut duplicates, mut overtaken) = (Vec::new(), 0, Vec::new());
        for (device, sent) in self.sent.iter().enumerate() {
            let received = fleet.lines(device);
            let expected: Vec<String> = (0..*sent).map(|number| line(device, number)).collect();
            let known: HashSet<&String> = expected.iter().collect();
            if let Some(strange) = received.iter().find(|line| !known.contains(line)) {
                panic!("{} received {strange:?}, which was never sent to it", address(device));
            }
            let mut firsts = Vec::new();
            let mut seen = HashSet::new();
            firsts.extend(received.iter().filter(|line| seen.insert(*line)));
            let number: HashMap<&String, usize> = expected.iter().zip(0..).collect();
            let mut latest = 0;
            for first in &firsts {
                let number = number.get(first).copied().expect("a line that was sent");
                if number < latest {
                    overtaken.push((*first).clone());
                }
                latest = latest.max(number);
            }
            duplicates += received.len() - firsts.len();
            missing.extend(expected.iter().filter(|line| !seen.contains(line)).cloned());
        }
        Arrived { missing, duplicates, overtaken }
    }
}

/// The line that a command body of a stream asks for.
pub(crate) fn line_of(body: &Value) -> String {
    body["cmd"].as_str().expect("a string").to_owned()
}

pub(super) fn line(device: usize, number: usize) -> String {
    format!("device {device} command {number}")
}
