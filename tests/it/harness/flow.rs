//! Commands that go on while brokers come and go: a client that publishes to each device of a fleet in turn, and goes to
//! another node when the one it is on fails it.
//!
//! The next command for a device is published when the broker has confirmed the one before, so that what it publishes
//! again comes behind nothing that it published later: order per device is that of the numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lapin::{BasicProperties, Confirmation};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::stream::line;
use super::wait::{block_on, runtime};
use super::{Amqp, Scene, Stream, address, persistent};

/// From one round to the next: what a small machine with three nodes and a bridge carries, and more would only be a queue.
const ROUND: Duration = Duration::from_millis(100);
/// A node that has not confirmed a round within this is left: an election of a queue's leader takes less.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Flow {
    devices: usize,
    rounds: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

struct Client {
    ports: Vec<u16>,
    exchange: String,
    key: String,
    properties: BasicProperties,
    amqp: Option<Amqp>,
}

impl Flow {
    /// Publishes round after round to the devices of a fleet, through any of the nodes at `ports`; receipts go to the
    /// queue `receipts`.
    pub(crate) fn start(scene: &Scene, ports: Vec<u16>, devices: usize, receipts: &str) -> Self {
        let (rounds, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut client = Client {
            ports,
            exchange: scene.exchange(),
            key: scene.queue(),
            properties: persistent().with_reply_to(receipts.into()),
            amqp: None,
        };
        let (done, over) = (Arc::clone(&rounds), Arc::clone(&stop));
        let task = runtime().spawn(async move {
            let mut ticks = interval(ROUND);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut missing: Vec<usize> = (0..devices).collect();
            while !over.load(Ordering::Relaxed) || missing.len() < devices {
                ticks.tick().await;
                let number = done.load(Ordering::Relaxed);
                if client.publish(&mut missing, number).await.is_none() {
                    // What it knew of confirms is gone with it.
                    client.amqp = None;
                    client.ports.rotate_left(1);
                } else {
                    missing = (0..devices).collect();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { devices, rounds, stop, task }
    }

    /// How many commands the broker has confirmed.
    pub(crate) fn confirmed(&self) -> usize {
        self.rounds.load(Ordering::Relaxed) * self.devices
    }

    /// Ends when the round is confirmed that has begun; what was sent.
    pub(crate) fn stop(self) -> Stream {
        self.stop.store(true, Ordering::Relaxed);
        block_on(self.task).expect("the client of the flow");
        let rounds = self.rounds.load(Ordering::Relaxed);
        Stream::of(vec![rounds; self.devices])
    }
}

/// The id of a command of the flow.
pub(crate) fn flow_id(device: usize, number: usize) -> String {
    format!("{device}-{number}")
}

impl Client {
    /// Publishes to the devices that are missing, and takes those off whose command is confirmed. Nothing if the node
    /// has failed before all were.
    async fn publish(&mut self, missing: &mut Vec<usize>, number: usize) -> Option<()> {
        if self.amqp.is_none() {
            let opening = timeout(PATIENCE, Amqp::open(*self.ports.first()?)).await;
            self.amqp = Some(opening.ok()?.ok()?);
        }
        let amqp = self.amqp.as_ref()?;
        let publishing = async {
            let mut confirms = Vec::new();
            for device in missing.iter() {
                let (address, cmd) = (address(*device), line(*device, number));
                let body = json!({"address": address, "cmd": cmd, "id": flow_id(*device, number)});
                let body = body.to_string().into_bytes();
                let properties = self.properties.clone();
                confirms.push((
                    *device,
                    amqp.begin(&self.exchange, &self.key, &body, properties).await.ok()?,
                ));
            }
            Some(confirms)
        };
        let confirms = timeout(PATIENCE, publishing).await.ok()??;
        for (device, confirm) in confirms {
            let Ok(Ok(Confirmation::Ack(None))) = timeout(PATIENCE, confirm).await else {
                return None;
            };
            missing.retain(|it| *it != device);
        }
        Some(())
    }
}
