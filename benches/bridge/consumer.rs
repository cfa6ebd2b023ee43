//! The first limit: a consumer on lapin that acknowledges and does nothing else. What the bridge does comes on
//! top of this. With prefetch 1 each delivery is acknowledged by itself; with more, one acknowledgement stands
//! for all before it, after half the prefetch.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use serde::{Deserialize, Serialize};

use crate::{
    broker::Broker,
    clock::now_us,
    drain::{CpuOf, Run},
    load::{Load, QUEUE},
    process::{Process, cpu_of, piped},
    publisher::Publisher,
};

const LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug, Serialize, Deserialize)]
struct Report {
    first_us: u64,
    last_us: u64,
    cpu: Duration,
}

/// Fills the queue and lets a consumer in a process of its own empty it.
pub(crate) fn measure(broker: &Broker, prefetch: u16, commands: u64) -> Result<Run> {
    let mut publisher = Publisher::connect(broker.port)?;
    publisher.declare(QUEUE)?;
    publisher.purge(QUEUE)?;
    Load::for_devices(1)?.fill(&mut publisher, commands, 0)?;
    let program = std::env::current_exe()?;
    let arguments = [broker.port.to_string(), prefetch.to_string(), commands.to_string()];
    let program = program.to_str().context("the benchmark's own path is not UTF-8")?;
    let mut command = piped(program);
    command.arg("bare-consumer").args(arguments);
    let broker_cpu = broker.process.cpu()?;
    let mut consumer = Process::start("bare consumer", &mut command)?;
    let report: Report = serde_json::from_str(&consumer.lines()?.next(LIMIT)?)?;
    let cpu = CpuOf {
        bridge: report.cpu,
        broker: broker.process.cpu()?.saturating_sub(broker_cpu),
        devices: Duration::ZERO,
    };
    Ok(Run::new(commands, report.first_us, report.last_us, cpu))
}

/// The inside of that process.
pub(crate) fn run(port: u16, prefetch: u16, count: u64) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let report =
        runtime.block_on(async move { tokio::spawn(consume(port, prefetch, count)).await? })?;
    writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
    // The connection is not closed in good order: the benchmark kills this process.
    Ok(())
}

/// A connection of lapin's to the benchmark's own broker.
#[expect(
    clippy::disallowed_methods,
    reason = "the benchmark's own broker answers, and the benchmark waits with a limit"
)]
pub(crate) async fn connect(port: u16) -> Result<Connection> {
    let uri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    Ok(Connection::connect(&uri, ConnectionProperties::default()).await?)
}

async fn consume(port: u16, prefetch: u16, count: u64) -> Result<Report> {
    let connection = connect(port).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions { global: false }).await?;
    let options =
        BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false };
    let mut deliveries =
        channel.basic_consume(QUEUE.into(), "".into(), options, FieldTable::default()).await?;

    let together = u64::from(prefetch / 2).max(1);
    let cpu = cpu_of("self")?;
    let mut first_us = 0;
    for number in 1..=count {
        let delivery = deliveries.next().await.context("the broker ended the consumer")??;
        if number == 1 {
            first_us = now_us();
        }
        if number % together == 0 || number == count {
            channel
                .basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: together > 1 })
                .await?;
        }
    }
    Ok(Report { first_us, last_us: now_us(), cpu: cpu_of("self")?.saturating_sub(cpu) })
}
