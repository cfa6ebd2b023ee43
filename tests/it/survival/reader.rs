//! Reads a queue whatever becomes of the nodes, each message at least once.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use crate::harness::{Amqp, Letter, runtime};

/// Read and not acknowledged, at most: what comes again when a node is lost.
const PREFETCH: u16 = 500;
/// What was read is acknowledged when this many have come, or none for `QUIET`.
const ACK_EVERY: u64 = 100;
const QUIET: Duration = Duration::from_millis(20);
/// For everything that is asked of a node, and between two attempts.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

pub(super) struct Reader(JoinHandle<()>);

impl Reader {
    /// Hands everything that comes to `queue` to `take`, through any of the nodes at `ports`.
    pub(super) fn start(
        mut ports: Vec<u16>,
        queue: String,
        mut take: impl FnMut(&Letter) + Send + 'static,
    ) -> Self {
        Self(runtime().spawn(async move {
            loop {
                // Whatever it ended with: the next node.
                if let Err(error) = read(ports[0], &queue, &mut take).await {
                    println!("the reader of {queue} goes to another node: {error}");
                }
                ports.rotate_left(1);
                sleep(AGAIN).await;
            }
        }))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a node that does not answer in time is to whoever asked it.
pub(super) fn late(_: Elapsed) -> lapin::Error {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

async fn read(port: u16, queue: &str, take: &mut impl FnMut(&Letter)) -> Result<(), lapin::Error> {
    let amqp = timeout(PATIENCE, Amqp::open(port)).await.map_err(late)??;
    let consuming = async {
        let channel = amqp.channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions { global: false }).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel.basic_consume(queue.into(), "".into(), options, none).await?;
        Ok::<_, lapin::Error>((channel, consumer))
    };
    let (channel, mut consumer) = timeout(PATIENCE, consuming).await.map_err(late)??;
    let (mut read, mut unacked) = (0, 0);
    loop {
        let next = if unacked == 0 {
            consumer.next().await
        } else {
            let next = timeout(QUIET, consumer.next()).await;
            if next.is_err() || unacked == ACK_EVERY {
                channel.basic_ack(read, BasicAckOptions { multiple: true }).await?;
                unacked = 0;
            }
            let Ok(next) = next else { continue };
            next
        };
        let Some(delivery) = next else { return Ok(()) };
        let delivery = delivery?;
        read = delivery.delivery_tag;
        unacked += 1;
        take(&Letter {
            key: delivery.routing_key.to_string(),
            properties: delivery.properties,
            body: delivery.data,
        });
    }
}
