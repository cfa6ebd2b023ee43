//! `Hand`: one device's parked commands, fetched one after the other, and those that are not settled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::first_answers::Turn;
use crate::broker::intake::Intake;
use crate::broker::message::{self, Delivered, Message};
use crate::broker::{BrokerError, topology};
use crate::cluster::control::Control;
use crate::command::Address;
use crate::device::Session;
use crate::router::Routed;
use crate::settings::QueueType;
use crate::settlement::{Settlement, Verdict, Verdicts};

/// Commands of one device in hand at a time: what a device that is slow holds back in memory.
const IN_HAND_MAX: usize = 32;
/// The same where they are parked in a quorum queue. It takes each that is fetched for a consumer of its own, and
/// when the channel or the node is lost it gives back what they hold in the order of their names, which is
/// not that of the commands. With one in hand there is no order to lose.
const IN_HAND_OF_QUORUM_MAX: usize = 1;
/// Commands of one device fetched last, of which the broker may not know that they are acknowledged:
/// those in hand, and as many that were acknowledged since the last one was asked for.
const RECENT_MAX: usize = 2 * IN_HAND_MAX;
/// How often a queue is looked at again while the broker still takes what was first in it to be in
/// the hands of a connection that is lost, or while the node it is on is away.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// One device's parked commands in hand.
pub(super) struct Hand<'a> {
    intake: &'a Intake,
    channel: &'a Channel,
    address: &'a Address,
    verdicts: Arc<Verdicts>,
    settled: mpsc::Receiver<Verdict>,
    in_hand_max: usize,
    /// Commands in hand, with their numbers if this process has parked them.
    open: Vec<(u64, Option<u64>)>,
    /// The ids of those fetched last.
    recent: VecDeque<Box<str>>,
    /// Whether one was given back: then those behind it must not be fetched.
    returned: bool,
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        let holds_some = self.returned || !self.open.is_empty();
        if holds_some && !self.recent.is_empty() {
            let ids = std::mem::take(&mut self.recent).into();
            self.intake.devices().parking.lost(self.address, ids);
        }
    }
}

impl<'a> Hand<'a> {
    pub(super) fn new(intake: &'a Intake, channel: &'a Channel, address: &'a Address) -> Self {
        let (verdicts, settled) = mpsc::channel(IN_HAND_MAX);
        let verdicts = Verdicts::new(verdicts, intake.devices().metrics.clone());
        let in_hand_max = match intake.settings.mq.queue_type {
            QueueType::Classic => IN_HAND_MAX,
            QueueType::Quorum => IN_HAND_OF_QUORUM_MAX,
        };
        let (open, recent, returned) = (Vec::new(), VecDeque::new(), false);
        Self { intake, channel, address, verdicts, settled, in_hand_max, open, recent, returned }
    }

    /// Fetches until the broker has nothing more, which is true, or one was given back.
    pub(super) async fn fetch_all(
        mut self,
        queue: &str,
        session: &Arc<Session>,
        stop: &CancellationToken,
        turn: Turn<'_>,
    ) -> Result<bool, BrokerError> {
        let mut turn = Some(turn);
        let devices = self.intake.devices();
        while !self.returned && !stop.is_cancelled() {
            while let Ok(verdict) = self.settled.try_recv() {
                self.settle(verdict).await?;
            }
            if self.returned {
                break;
            }
            if self.open.len() >= self.in_hand_max {
                self.wait().await?;
                continue;
            }
            devices.parking.asking(self.address);
            turn.iter_mut().for_each(Turn::ask);
            let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: false }).await;
            if is_answer(&got) {
                turn.take().into_iter().for_each(Turn::answered);
                devices.parking.set_silent(self.address, false);
            }
            match got {
                Ok(got) if self.misses_some(got.as_ref()) => {
                    if let Some(early) = got {
                        self.put_back(early.delivery.delivery_tag).await?;
                    }
                    if session.is_closed() {
                        return Ok(false);
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Ok(Some(got)) => self.take_up(got.delivery.into(), session),
                Ok(None) if !self.open.is_empty() => self.wait().await?,
                Ok(None) if session.finish_parked(devices) => return Ok(true),
                Ok(None) if session.is_closed() => return Ok(false),
                Ok(None) => {
                    stop.run_until_cancelled(devices.parking.until_landed(self.address)).await;
                }
                Err(error) if topology::is_missing(&error) => {
                    return Ok(session.finish_parked(devices));
                }
                // What is parked there comes before what comes now, so its node is waited for.
                Err(error) if topology::is_away(&error) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    return Ok(false);
                }
                Err(error) => return Err(BrokerError::during("fetching parked commands")(error)),
            }
        }
        // What was written before one was given back is still to be settled.
        while !self.open.is_empty() {
            self.wait().await?;
        }
        Ok(false)
    }

    fn take_up(&mut self, delivered: Delivered, session: &Arc<Session>) {
        let tag = delivered.tag;
        let devices = self.intake.devices();
        let settlement = Settlement::new(tag, &self.verdicts);
        if is_knock(&delivered.message) {
            self.open.push((tag, None));
            settlement.settle();
            return;
        }
        let id = message::parked_id(&delivered.message.properties).map(Into::into);
        let (order, number) = self.intake.parked_order(delivered, self.address, settlement);
        self.open.push((tag, number));
        self.recent.extend(id);
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
        let order = match order {
            Ok(order) => order,
            Err(settlement) => {
                settlement.into_iter().for_each(Settlement::settle);
                return;
            }
        };
        let now = order.facts.origin.arrived;
        match self.intake.router.route_parked(order, session, now.mono) {
            Ok(Routed::Waiting) => {}
            Ok(Routed::Written(settlement)) => settlement.into_iter().for_each(Settlement::settle),
            Ok(Routed::Concluded(order, fate)) => devices.reporter.report(order, fate),
            Err(order) => {
                self.returned = true;
                devices.hand_back_untouched(order);
            }
        }
    }

    /// Whether what was in hand on an earlier connection has to come before what the broker shows.
    fn misses_some(&self, shown: Option<&BasicGetMessage>) -> bool {
        let id = shown.and_then(|shown| message::parked_id(&shown.delivery.properties));
        self.intake.devices().parking.misses_some(self.address, id, Instant::now())
    }

    /// Puts one back in its place in the queue.
    async fn put_back(&self, tag: u64) -> Result<(), BrokerError> {
        let options = BasicNackOptions { multiple: false, requeue: true };
        let put = self.channel.basic_nack(tag, options).await;
        put.map_err(BrokerError::during("putting a parked command back"))
    }

    /// Waits until one in hand is settled.
    async fn wait(&mut self) -> Result<(), BrokerError> {
        match self.settled.recv().await {
            Some(verdict) => self.settle(verdict).await,
            None => Ok(()),
        }
    }

    async fn settle(&mut self, verdict: Verdict) -> Result<(), BrokerError> {
        let (tag, is_done) = match verdict {
            Verdict::Ack(tag) => (tag, true),
            Verdict::Return(tag) => (tag, false),
        };
        let position = self.open.iter().position(|(open, _)| *open == tag);
        let number = position.and_then(|at| self.open.remove(at).1);
        if !is_done {
            self.returned = true;
            return Ok(());
        }
        let acked = self.channel.basic_ack(tag, BasicAckOptions { multiple: false }).await;
        acked.map_err(BrokerError::during("acknowledging parked commands"))?;
        self.intake.devices().parking.fetched(self.address, number);
        Ok(())
    }
}

/// Whether the queue is well enough for the broker to say what is in it, or that it is not there.
fn is_answer(got: &Result<Option<BasicGetMessage>, lapin::Error>) -> bool {
    got.as_ref()
        .map_or_else(|error| topology::is_missing(error) || topology::is_away(error), |_| true)
}

/// Whether a bridge has asked with it whether the queue is there.
fn is_knock(message: &Message) -> bool {
    message.is_control() && Control::read(message.body()) == Ok(Control::Knock)
}
