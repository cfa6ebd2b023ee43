//! `Gate`: the exchanges through which what is for a bridge's devices comes into its inbox.
//!
//! A device is bound to one of several shards, all shards lead to the gate, and the gate to the inbox. Whoever takes
//! over from a bridge that is dead deletes its gate, which is done in a moment however many devices were bound, and
//! from then on nothing is routed there. The shards are deleted later, one after the other: to delete an exchange with
//! ten thousand bindings takes a cluster of RabbitMQ 10 to 20 seconds, in which others hardly bind. So that the
//! bridge can come back meanwhile there are several generations of these exchanges, of which one is in use.

use lapin::ExchangeKind;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions};
use lapin::types::FieldTable;
use tokio::time::Instant;
use tracing::debug;

use super::super::BrokerError;
use super::super::connection::Link;
use super::{DURABLE, PRECONDITION_FAILED, bind, code, is_missing, refusal};
use crate::cluster::shards::{SHARDS, shard_of};
use crate::command::Address;
use crate::settings::Settings;

/// How often a bridge may end or die and come back before what the first one left is deleted, which takes a minute or
/// two. One that does so more often takes up again what an earlier process left.
const GENERATIONS: u8 = 8;
/// After each shard others have this many times as long to bind as it took to delete it.
const REST: u32 = 2;

const ADVICE: &str = "let MQ_USERNAME configure it, write to it and read from it";

/// Not durable, and so are the bindings to it, which makes them three times as fast: after a restart of the broker
/// each bridge binds its devices anew anyway.
const TRANSIENT: ExchangeDeclareOptions = ExchangeDeclareOptions { durable: false, ..DURABLE };

/// A bridge's gate and what leads to it, of one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Gate {
    name: String,
}

impl Gate {
    fn of(settings: &Settings, bridge: &str, generation: u8) -> Self {
        Self { name: format!("{}.gate.{generation}", settings.mq.inbox(bridge)) }
    }

    fn all(settings: &Settings, bridge: &str) -> impl Iterator<Item = Self> {
        (0..GENERATIONS).map(|generation| Self::of(settings, bridge, generation))
    }

    /// The exchange to which all shards lead.
    pub(in super::super) fn name(&self) -> &str {
        &self.name
    }

    /// The exchange to which a device is bound.
    pub(in super::super) fn shard_of(&self, address: &Address) -> String {
        self.shard(shard_of(address))
    }

    pub(in super::super) fn shard(&self, number: u32) -> String {
        format!("{}.{number}", self.name)
    }

    /// Declares it, or what is missing of it, and binds all of it together.
    async fn declare(&self, link: &Link, inbox: &str) -> Result<(), BrokerError> {
        declare(link, &self.name).await?;
        bind(link, inbox, &self.name, "", false).await?;
        let channel = link.channel().await?;
        for shard in (0..SHARDS).map(|number| self.shard(number)) {
            declare(link, &shard).await?;
            let options = ExchangeBindOptions { nowait: false };
            let (to, from) = (self.name.as_str().into(), shard.as_str().into());
            let bound =
                channel.exchange_bind(to, from, "".into(), options, FieldTable::default()).await;
            bound.map_err(|error| refusal(format!("exchange `{shard}`"), &error, ADVICE))?;
        }
        Ok(())
    }

    async fn is_open(&self, link: &Link) -> Result<bool, BrokerError> {
        exists(link, &self.name).await
    }

    /// Whether something of it is there. The last shard is declared last, too; but what is there without it leads
    /// nowhere and has no bindings.
    async fn is_left(&self, link: &Link) -> Result<bool, BrokerError> {
        exists(link, &self.shard(SHARDS - 1)).await
    }

    /// From now on nothing comes through it.
    pub(in super::super) async fn shut(&self, link: &Link) -> Result<(), BrokerError> {
        delete(link, &self.name, false).await
    }

    /// Deletes the shards of a gate that is shut; not those of one that is open. Others have time to bind after each.
    pub(in super::super) async fn delete_shards(&self, link: &Link) -> Result<(), BrokerError> {
        for number in 0..SHARDS {
            let began = Instant::now();
            delete(link, &self.shard(number), true).await?;
            tokio::time::sleep(began.elapsed() * REST).await;
        }
        Ok(())
    }
}

/// Opens a bridge's gate, with its inbox behind it.
///
/// That of an earlier connection of this process, `last`, is used with all bindings that lead there: to make ten thousand
/// of them anew takes a cluster of RabbitMQ half a minute. One that a process left behind which died is shut: its devices
/// have connected to other bridges meanwhile, and to end that many bindings one by one takes as long. Only if there is no
/// free generation one with such bindings is used; true then.
pub(in super::super) async fn open_gate(
    link: &Link,
    settings: &Settings,
    bridge: &str,
    last: Option<&Gate>,
) -> Result<(Gate, bool), BrokerError> {
    let inbox = settings.mq.inbox(bridge);
    let (mut free, mut open, mut left) = (None, Vec::new(), None);
    for gate in Gate::all(settings, bridge) {
        if gate.is_open(link).await? {
            if last == Some(&gate) {
                free = Some(gate);
                break;
            }
            open.push(gate);
        } else if free.is_none() {
            let slot = if gate.is_left(link).await? { &mut left } else { &mut free };
            *slot = Some(gate);
        }
    }
    let goes_on = free.is_none();
    let gate =
        free.or_else(|| open.pop()).or(left).unwrap_or_else(|| Gate::of(settings, bridge, 0));
    for gate in open {
        gate.shut(link).await?;
    }
    gate.declare(link, &inbox).await?;
    Ok((gate, goes_on))
}

/// Shuts the gate of a bridge that is dead; false if it was not open: whoever ends in good order closes it.
pub(in super::super) async fn shut_gate(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<bool, BrokerError> {
    let mut was_open = false;
    for gate in Gate::all(settings, bridge) {
        if gate.is_open(link).await? {
            gate.shut(link).await?;
            was_open = true;
        }
    }
    Ok(was_open)
}

/// Deletes what is left of a bridge's gates that were shut, slowly.
pub(in super::super) async fn clear_gates(
    link: &Link,
    settings: &Settings,
    bridge: &str,
) -> Result<(), BrokerError> {
    for gate in Gate::all(settings, bridge) {
        if !gate.is_open(link).await? && gate.is_left(link).await? {
            let began = Instant::now();
            gate.delete_shards(link).await?;
            debug!(exchange = gate.name, took = ?began.elapsed(), "deleted the bindings of a bridge that had died");
        }
    }
    Ok(())
}

async fn declare(link: &Link, name: &str) -> Result<(), BrokerError> {
    let (kind, none) = (ExchangeKind::Fanout, FieldTable::default());
    let declared = link.channel().await?.exchange_declare(name.into(), kind, TRANSIENT, none).await;
    declared.map_err(|error| refusal(format!("exchange `{name}`"), &error, ADVICE))
}

async fn exists(link: &Link, name: &str) -> Result<bool, BrokerError> {
    let channel = link.channel().await?;
    let passive = ExchangeDeclareOptions { passive: true, ..TRANSIENT };
    let (kind, none) = (ExchangeKind::Fanout, FieldTable::default());
    match channel.exchange_declare(name.into(), kind, passive, none).await {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(BrokerError::during("looking for an exchange")(error)),
    }
}

/// Deletes an exchange, if it is there; not one that leads somewhere, if only `unused` ones are to be deleted.
async fn delete(link: &Link, name: &str, unused: bool) -> Result<(), BrokerError> {
    let options = ExchangeDeleteOptions { if_unused: unused, nowait: false };
    match link.channel().await?.exchange_delete(name.into(), options).await {
        Err(error) if unused && code(&error) == Some(PRECONDITION_FAILED) => Ok(()),
        Err(error) if is_missing(&error) => Ok(()),
        deleted => deleted.map_err(|error| refusal(format!("exchange `{name}`"), &error, ADVICE)),
    }
}
