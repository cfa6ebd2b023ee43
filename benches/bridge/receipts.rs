//! Who asks for receipts: a consumer on lapin, in a thread of its own, that takes them without acknowledging from
//! a queue that lives as long as it does, and checks each of them.

use std::{collections::HashSet, net::IpAddr, sync::mpsc, thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::StreamExt;
use lapin::{
    Connection, Consumer,
    options::{BasicConsumeOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde::Deserialize;

use crate::{clock::now_us, consumer::connect, load::address};

/// The queue that receipts go to.
pub(crate) const RECEIPTS: &str = "bench-receipts";

/// Receipts that have not all come after this long never will.
const LIMIT: Duration = Duration::from_secs(60);
const WRITTEN: &str = "written";

/// When the last receipt of a device came, and the summary.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) last_receipt_us: u64,
    pub(crate) summary_us: u64,
}

/// Waits for the receipts of one command.
#[derive(Debug)]
pub(crate) struct Receipts {
    told: mpsc::Receiver<Result<Option<Times>>>,
}

/// What both a receipt and a summary can be.
#[derive(Debug, Deserialize)]
struct Receipt {
    id: String,
    address: Option<IpAddr>,
    outcome: Option<String>,
    members: Option<usize>,
    outcomes: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Receipts {
    /// Consumes, as soon as this returns, the receipts of the command `id` for `devices` devices.
    pub(crate) fn begin(port: u16, id: &str, devices: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tell, told) = mpsc::sync_channel(2);
        let open = HashSet::from_iter((0..devices).map(address).collect::<Result<Vec<_>>>()?);
        let id = id.to_owned();
        thread::spawn(move || {
            let took = runtime.block_on(async {
                let (connection, consumer) = consumer(port).await?;
                tell.send(Ok(None))?;
                let times = take(consumer, &id, open).await;
                // Dropped here, not before: its consumer ends with it.
                drop(connection);
                times
            });
            // Who does not wait any more has failed already.
            tell.send(took.map(Some)).ok();
        });
        let receipts = Self { told };
        ensure!(receipts.next()?.is_none(), "receipts came before the command");
        Ok(receipts)
    }

    /// Waits until all of them have come, the summary behind.
    pub(crate) fn all(&self) -> Result<Times> {
        self.next()?.context("no receipt came")
    }

    fn next(&self) -> Result<Option<Times>> {
        self.told
            .recv_timeout(LIMIT)
            .map_err(|error| anyhow!("receipts did not all come within {LIMIT:?}: {error}"))?
    }
}

async fn consumer(port: u16) -> Result<(Connection, Consumer)> {
    let connection = connect(port).await?;
    let channel = connection.create_channel().await?;
    let declare = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(RECEIPTS.into(), declare, FieldTable::default()).await?;
    let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consumer =
        channel.basic_consume(RECEIPTS.into(), "".into(), consume, FieldTable::default()).await?;
    Ok((connection, consumer))
}

/// Takes one receipt, `written`, of each device in `open`, then the summary that says the same.
async fn take(mut receipts: Consumer, id: &str, mut open: HashSet<IpAddr>) -> Result<Times> {
    let devices = open.len();
    let mut last_receipt_us = 0;
    loop {
        let missing = || format!("{} of {devices} receipts came", devices - open.len());
        let delivery = receipts.next().await.with_context(missing)?.with_context(missing)?;
        let said = || String::from_utf8_lossy(&delivery.data);
        let receipt: Receipt = serde_json::from_slice(&delivery.data)
            .with_context(|| format!("a receipt says {:?}", said()))?;
        ensure!(receipt.id == id, "a receipt of another command: {}", said());
        let Some(address) = receipt.address else {
            let summary_us = now_us();
            ensure!(open.is_empty(), "the summary came before the receipts: {}", missing());
            let written = receipt.outcomes.as_ref().and_then(|of| of.get(WRITTEN)?.as_u64());
            let are_all = receipt.members == Some(devices) && written == Some(devices as u64);
            ensure!(are_all, "the summary of {devices} devices says {}", said());
            return Ok(Times { last_receipt_us, summary_us });
        };
        let is_written = receipt.outcome.as_deref() == Some(WRITTEN);
        ensure!(
            open.remove(&address) && is_written,
            "one receipt too many, or a wrong one: {}",
            said()
        );
        last_receipt_us = now_us();
    }
}
