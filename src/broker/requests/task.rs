//! `Requester`: the task that has the connection. It publishes what is asked and hands out what comes back.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery;
use lapin::options::BasicPublishOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Event};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::super::BrokerError;
use super::super::client::{DIRECT_REPLY_TO, unpublished, with_receipts};
use super::super::connection::Link;
use super::super::decode::Defaults;
use super::super::message::{PERSISTENT, stamped};
use super::super::nodes::Nodes;
use super::super::retry::Retry;
use super::{CLOSED, CONFIRM_LIMIT, REQUESTS_MAX, Refusal, Request, Requests, Waiters};
use crate::clock::Moment;
use crate::protocol::Wire;
use crate::settings::Settings;

/// Publishes what comes over HTTP.
#[derive(Debug)]
pub(crate) struct Requester {
    settings: Arc<Settings>,
    nodes: Arc<Nodes>,
    bridge: Arc<str>,
    requests: mpsc::Receiver<Request>,
    waiters: Arc<Waiters>,
    /// Why the broker takes no publications now, if it does not.
    blocked: Option<String>,
    /// Numbers of requests that no queue took, and whose confirm is still to come.
    returned: HashSet<u64>,
}

/// One publication: who waits for it, and what the broker says.
type Confirming = Pin<Box<dyn Future<Output = Confirmed> + Send>>;

struct Confirmed {
    number: u64,
    told: oneshot::Sender<Result<(), Refusal>>,
    result: lapin::Result<Confirmation>,
}

impl Requester {
    /// The task, and what hands it commands. `wires` is what devices speak.
    pub(crate) fn new(
        settings: Arc<Settings>,
        nodes: Arc<Nodes>,
        bridge: Arc<str>,
        wires: Vec<Wire>,
    ) -> (Requests, Self) {
        let waiters = Arc::new(Waiters::default());
        let (queue, requests) = mpsc::channel(REQUESTS_MAX);
        let handle = Requests {
            defaults: Defaults::of(&settings, wires),
            limit: nodes.open_limit() + CONFIRM_LIMIT,
            room: Arc::new(Semaphore::new(REQUESTS_MAX)),
            queue,
            waiters: Arc::clone(&waiters),
            numbers: AtomicU64::new(1),
        };
        let (blocked, returned) = (None, HashSet::new());
        (handle, Self { settings, nodes, bridge, requests, waiters, blocked, returned })
    }

    /// Publishes until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut next = tokio::select! {
            () = stop.cancelled() => return,
            next = self.requests.recv() => next,
        };
        let mut retry = Retry::of("requests");
        while let Err(error) = self.attempt(&mut next, &stop).await {
            self.waiters.lost(&error.to_string());
            let why = format!("the broker is away: {error}");
            let refuse = |request: Request| refuse(request, Refusal::Away(why.clone()));
            next.take().into_iter().for_each(refuse);
            let waiting = retry.wait(&error, &stop);
            tokio::pin!(waiting);
            loop {
                tokio::select! {
                    goes_on = &mut waiting => if goes_on { break } else { return },
                    Some(request) = self.requests.recv() => refuse(request),
                }
            }
        }
        self.waiters.lost(CLOSED);
    }

    async fn attempt(
        &mut self,
        next: &mut Option<Request>,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        self.blocked = None;
        self.returned.clear();
        let link = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            link = self.nodes.open(&self.bridge, "requests") => link?,
        };
        let result = tokio::select! {
            result = self.serve(&link, next, stop) => result,
            error = link.lost() => Err(error),
        };
        link.end(result).await
    }

    async fn serve(
        &mut self,
        link: &Link,
        next: &mut Option<Request>,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let mut events = link.events();
        let (channel, mut replies) = with_receipts(link).await?;
        let mut confirms = FuturesUnordered::new();
        loop {
            confirms.extend(next.take().and_then(|request| self.begin(&channel, request)));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(confirmed) = confirms.next(), if !confirms.is_empty() => {
                    self.confirmed(confirmed, &mut confirms)?;
                }
                reply = replies.next() => self.replied(reply)?,
                Some(event) = events.next() => self.event(event)?,
                request = self.requests.recv() => match request {
                    Some(request) => *next = Some(request),
                    None => return Ok(()),
                },
            }
            // lapin's futures know nothing of tokio's budget.
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Publishes a request, unless nobody waits for it any more or the broker takes nothing.
    fn begin(&self, channel: &Channel, request: Request) -> Option<Confirming> {
        if request.told.is_closed() {
            return None;
        }
        if let Some(reason) = &self.blocked {
            let why = format!("the broker takes no publications: {reason}");
            refuse(request, Refusal::Away(why));
            return None;
        }
        let properties = properties(&request);
        let Request { number, body, told, .. } = request;
        let mq = &self.settings.mq;
        let (exchange, key) =
            (ShortString::from(mq.exchange.as_str()), ShortString::from(mq.command_key()));
        let channel = channel.clone();
        Some(Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let publishing = channel.basic_publish(exchange, key, options, &body, properties);
            let result = match publishing.await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            Confirmed { number, told, result }
        }))
    }

    /// Tells who waits what the broker said. lapin may hand a returned message out with the confirm of
    /// another publication: so all that are there are looked at before anybody is told.
    fn confirmed(
        &mut self,
        first: Confirmed,
        confirms: &mut FuturesUnordered<Confirming>,
    ) -> Result<(), BrokerError> {
        let mut ready = vec![first];
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(more)) = confirms.poll_next_unpin(&mut context) {
            ready.push(more);
        }
        for confirmed in &ready {
            if let Ok(Confirmation::Ack(Some(returned))) = &confirmed.result {
                self.returned.extend(number(&returned.delivery.properties));
            }
        }
        let mut lost = Ok(());
        for Confirmed { number, told, result } in ready {
            let verdict = match result {
                Ok(Confirmation::Ack(_) | Confirmation::NotRequested)
                    if self.returned.remove(&number) =>
                {
                    let why = unpublished(&self.settings, "no queue takes the command");
                    Err(Refusal::Away(why.to_string()))
                }
                Ok(Confirmation::Ack(_) | Confirmation::NotRequested) => Ok(()),
                Ok(Confirmation::Nack(_)) => {
                    let why = unpublished(&self.settings, "the broker could not take the command");
                    Err(Refusal::Away(why.to_string()))
                }
                Err(error) => {
                    let error = BrokerError::during("publishing a command")(error);
                    let why = error.to_string();
                    lost = Err(error);
                    Err(Refusal::Unknown(why))
                }
            };
            // Who asked may be gone.
            told.send(verdict).ok();
        }
        if confirms.is_empty() {
            self.returned.clear();
        }
        lost
    }

    fn replied(&self, reply: Option<lapin::Result<Delivery>>) -> Result<(), BrokerError> {
        let cancelled = || BrokerError::Cancelled { queue: DIRECT_REPLY_TO.to_owned() };
        let reply = reply.ok_or_else(cancelled)?;
        let reply = reply.map_err(BrokerError::during("waiting for receipts"))?;
        if let Some(number) = number(&reply.properties) {
            self.waiters.receipt(number, &reply.data);
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<(), BrokerError> {
        if let Event::ConnectionBlocked(reason) = event {
            self.blocked = Some(reason);
        } else if matches!(event, Event::ConnectionUnblocked) {
            self.blocked = None;
        } else if let Event::Error(error) = event {
            return Err(BrokerError::during("publishing a command")(error));
        }
        Ok(())
    }
}

/// What the message of a request says besides its body.
fn properties(request: &Request) -> BasicProperties {
    let now_ms = Moment::now().wall_ms;
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_timestamp(now_ms / 1000)
        .with_headers(stamped(FieldTable::default(), now_ms))
        .with_correlation_id(request.number.to_string().into());
    if let Some(id) = &request.made_id {
        properties = properties.with_message_id(id.as_str().into());
    }
    if request.wants_receipts {
        properties = properties.with_reply_to(DIRECT_REPLY_TO.into());
    }
    properties
}

/// The number of the request that a message is about.
fn number(properties: &BasicProperties) -> Option<u64> {
    properties.correlation_id().as_ref()?.as_str().parse().ok()
}

fn refuse(request: Request, refusal: Refusal) {
    // Who asked may be gone.
    request.told.send(Err(refusal)).ok();
}
