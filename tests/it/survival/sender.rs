//! A backend that sends command after command, through whichever node of the broker works.
//!
//! Each is published once, under a number of its own. One whose confirm is lost with its connection may be in the broker or
//! not: it is left at that, and what it was to do is sent again under another number.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Confirmation};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::account::{Account, Sent, Spec, Told, now_ms};
use super::reader::late;
use super::size::Size;
use crate::harness::{Amqp, Dice, address, block_on, persistent, runtime, table};

/// Between two portions.
const TICK: Duration = Duration::from_millis(10);
/// Unconfirmed at most: what comes in while a queue's leader is elected, and then the broker has enough.
const WINDOW: usize = 8_192;
/// A node that has not confirmed anything for this long is left: an election takes less.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Sender {
    stop: Arc<AtomicBool>,
    confirmed: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// Where commands are published.
pub(super) struct Ways {
    pub(super) ports: Vec<u16>,
    pub(super) exchange: String,
    pub(super) key: String,
    pub(super) routes: String,
    pub(super) receipts: String,
}

struct Client {
    ways: Ways,
    account: Arc<Mutex<Account>>,
    confirmed: Arc<AtomicUsize>,
    dice: Dice,
    size: Size,
    /// What is to be sent again.
    again: VecDeque<Spec>,
}

impl Sender {
    pub(super) fn start(account: &Arc<Mutex<Account>>, ways: Ways, size: Size, dice: Dice) -> Self {
        let (stop, confirmed) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let account = Arc::clone(account);
        let mut client = Client {
            ways,
            account,
            confirmed: Arc::clone(&confirmed),
            dice,
            size,
            again: VecDeque::new(),
        };
        let over = Arc::clone(&stop);
        let task = runtime().spawn(async move {
            while !client.send(&over).await {
                client.ways.ports.rotate_left(1);
            }
        });
        Self { stop, confirmed, task }
    }

    /// How many commands the broker has confirmed.
    pub(super) fn confirmed(&self) -> usize {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Ends when the broker has confirmed all.
    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        block_on(self.task).expect("the sender");
    }
}

impl Client {
    /// Sends through one node; true when it is over and all is confirmed, false when the node fails.
    async fn send(&mut self, over: &AtomicBool) -> bool {
        let opening = timeout(PATIENCE, Amqp::open(self.ways.ports[0])).await;
        let Ok(Ok(amqp)) = opening else { return false };
        let mut unconfirmed = FuturesUnordered::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let portion = (self.size.rate * TICK.as_millis() as usize).div_ceil(1_000);
        let works = loop {
            let is_over = over.load(Ordering::Relaxed) && self.again.is_empty();
            if is_over && unconfirmed.is_empty() {
                break true;
            }
            let full = unconfirmed.len() >= WINDOW;
            tokio::select! {
                _ = ticks.tick(), if !is_over && !full => {
                    let mut failed = false;
                    for _ in 0..portion {
                        let new = || Spec::draw(&mut self.dice, self.size.devices, self.size.never, self.size.park_one_in);
                        let spec = self.again.pop_front().unwrap_or_else(new);
                        let number = self.note(spec.clone());
                        let Ok(confirm) = self.publish(&amqp, number, &spec).await else {
                            failed = true;
                            self.again.push_back(spec);
                            break;
                        };
                        unconfirmed.push(async move { (number, spec, confirm.await) });
                    }
                    if failed {
                        break false;
                    }
                }
                done = timeout(PATIENCE, unconfirmed.next()), if !unconfirmed.is_empty() => match done {
                    Ok(Some((number, _, Ok(Confirmation::Ack(returned))))) => {
                        let returned = returned.map(|returned| returned.delivery.properties.message_id().clone());
                        let returned = returned.map(|id| id.and_then(|id| id.as_str().parse().ok()).expect("an id of ours"));
                        self.confirm(number, returned);
                    }
                    Ok(Some((_, spec, _))) => {
                        self.again.push_back(spec);
                        break false;
                    }
                    Ok(None) => {}
                    Err(_silent) => break false,
                },
            }
        };
        // Of some the confirm may have come, before the end.
        while let Ok(Some((number, spec, confirm))) = timeout(TICK, unconfirmed.next()).await {
            match confirm {
                Ok(Confirmation::Ack(None)) => self.confirm(number, None),
                _ => self.again.push_back(spec),
            }
        }
        works
    }

    fn note(&self, spec: Spec) -> usize {
        let mut account = self.account.lock().expect("no panic with the account");
        account.commands.push(Told {
            spec,
            published_ms: now_ms(),
            sent: Sent::Unsure,
            seen: Vec::new(),
            receipts: Vec::new(),
            undelivered: Vec::new(),
        });
        account.commands.len() - 1
    }

    async fn publish(
        &self,
        amqp: &Amqp,
        number: usize,
        spec: &Spec,
    ) -> lapin::Result<lapin::PublisherConfirm> {
        let stamp = AMQPValue::LongLongInt(i64::try_from(now_ms()).expect("not that late"));
        let properties: BasicProperties = persistent()
            .with_message_id(number.to_string().into())
            .with_reply_to(self.ways.receipts.as_str().into())
            .with_headers(table(&[("timestamp_in_ms", stamp)]));
        let to = address(spec.device);
        let (exchange, key) = if spec.direct {
            (&self.ways.routes, &to)
        } else {
            (&self.ways.exchange, &self.ways.key)
        };
        let body = spec.body(number);
        let publishing = amqp.begin(exchange, key, &body, properties);
        timeout(PATIENCE, publishing).await.map_err(late)?
    }

    /// The broker has taken a command. What it says with that has come back may be another one: lapin hands it out with
    /// whichever confirm is next.
    fn confirm(&self, number: usize, returned: Option<usize>) {
        let mut account = self.account.lock().expect("no panic with the account");
        if let Some(returned) = returned {
            account.commands[returned].sent = Sent::Returned;
        }
        if account.commands[number].sent == Sent::Unsure {
            account.commands[number].sent = Sent::Confirmed;
        }
        self.confirmed.fetch_add(1, Ordering::Relaxed);
    }
}
