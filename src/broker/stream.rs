//! `Stream`: deliveries from one queue, on a connection that does nothing else.
//!
//! lapin reads and writes in a thread of its own, which costs three changes of thread for each command.
//! This one is read and written by the task that polls it: the consumer's, which takes a delivery,
//! writes to a device and acknowledges without leaving its thread. The codec is that of lapin.

mod closing;
mod courier;
mod frames;
mod handshake;
mod wire;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use amq_protocol::frame::AMQPFrame;
use amq_protocol::protocol::basic::AMQPMethod as OfBasic;
use amq_protocol::protocol::{AMQPClass, basic};
use amq_protocol::types::{AMQPValue, FieldTable, ShortString};
use tokio::time::timeout;

pub(super) use self::courier::{Courier, NUMBER_HEADER, Said};
use self::frames::{Deliver, Frame, Header};
use self::wire::Wire;
use super::acks::Ack;
use super::connection as link;
use super::message::{Delivered, Message, Properties};
use super::{BrokerError, tls, topology};
use crate::settings::{Broker, Endpoint};

/// The channel of what concerns the connection as a whole, and the only other one.
const CONNECTION: u16 = 0;
const CHANNEL: u16 = 1;
/// Room made for a message's body before any of it has come: what a header says may not be true.
const BODY_ROOM_MAX: u64 = 64 * 1024;

/// Below the priority of all others.
const LAST_PRIORITY: i32 = -1_000;

/// Whom the broker serves first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// As any other consumer of the queue.
    Equal,
    /// Only when all others have no credit.
    Last,
}

/// Deliveries from one queue.
pub(super) struct Stream {
    wire: Wire,
    queue: String,
    /// That of its consumers.
    rank: Rank,
    /// The name of the consumer that runs.
    tag: ShortString,
    /// The routing key of the last delivery: they have it in common, nearly always.
    key: Arc<str>,
    /// A delivery of which not all has come.
    partial: Option<Partial>,
    /// What came while something else was waited for.
    early: VecDeque<Delivered>,
}

/// What a message comes with.
enum Begun {
    Delivery { tag: u64, redelivered: bool, routing_key: Arc<str> },
    Return,
}

/// A message of which not all has come.
struct Partial {
    begun: Begun,
    /// The length of the body, and the properties.
    header: Option<(u64, Properties)>,
    body: Vec<u8>,
}

/// What came.
enum Came {
    Delivered(Delivered),
    /// The broker gives back what no queue takes.
    Returned(Properties),
    Reply(AMQPClass),
}

impl Stream {
    /// Opens a connection to `host`, which bears `name` in RabbitMQ's own lists, and consumes from `queue`.
    pub(super) async fn open(
        mq: &Broker,
        host: &Endpoint,
        name: &str,
        queue: String,
        rank: Rank,
    ) -> Result<Self, BrokerError> {
        let opening = async {
            let mut stream = Self::connect(mq, host, name, queue).await?;
            stream.rank = rank;
            stream.consume().await?;
            Ok(stream)
        };
        let opened = timeout(mq.connect_timeout, opening).await;
        opened.unwrap_or_else(|_| Err(link::silent(mq, host)))
    }

    async fn connect(
        mq: &Broker,
        host: &Endpoint,
        name: &str,
        queue: String,
    ) -> Result<Self, BrokerError> {
        let tls = tls::connector(mq, host)?;
        let socket = link::dial(host, tls.as_ref(), |_| Ok(())).await;
        let mut stream = Self {
            wire: Wire::new(socket.map_err(|(error, _)| error)?),
            queue,
            rank: Rank::Equal,
            tag: ShortString::default(),
            key: Arc::default(),
            partial: None,
            early: VecDeque::new(),
        };
        stream.agree(mq, name).await.map_err(|error| link::refused(mq, host, error))?;
        Ok(stream)
    }

    /// Starts a consumer, with all its credit.
    pub(super) async fn consume(&mut self) -> Result<(), BrokerError> {
        self.consume_as(self.rank).await
    }

    async fn consume_as(&mut self, rank: Rank) -> Result<(), BrokerError> {
        let mut arguments = FieldTable::default();
        if rank == Rank::Last {
            arguments.insert("x-priority".into(), AMQPValue::LongInt(LAST_PRIORITY));
        }
        let consume = basic::Consume {
            queue: self.queue.as_str().into(),
            // The broker makes the tag: it is unique on the channel, renewed consumers included.
            consumer_tag: ShortString::default(),
            no_local: false,
            no_ack: false,
            exclusive: false,
            nowait: false,
            arguments,
        };
        let consuming = async {
            self.put(CHANNEL, AMQPClass::Basic(OfBasic::Consume(consume)))?;
            self.expect("basic.consume-ok", |reply| {
                let AMQPClass::Basic(OfBasic::ConsumeOk(ok)) = reply else { return None };
                Some(ok.consumer_tag)
            })
            .await
        };
        self.tag = consuming.await.map_err(|error| match topology::code(&error) {
            Some(_) => {
                let advice = "let MQ_USERNAME read from it; if it is sick while all nodes run, which the broker's log says, delete it";
                topology::refusal(format!("queue `{}`", self.queue), &error, advice)
            }
            None => BrokerError::during("consuming")(error),
        })?;
        Ok(())
    }

    /// The name of the consumer that was started last.
    pub(super) fn consumer(&self) -> ShortString {
        self.tag.clone()
    }

    /// Ends a consumer to which nothing is on its way.
    pub(super) fn drop_consumer(&mut self, name: ShortString) -> Result<(), BrokerError> {
        let cancel = basic::Cancel { consumer_tag: name, nowait: true };
        let put = self.put(CHANNEL, AMQPClass::Basic(OfBasic::Cancel(cancel)));
        put.map_err(BrokerError::during("cancelling a consumer"))
    }

    /// Ends the consumer. What the broker sent before it heard of that is still given out.
    pub(super) async fn cancel(&mut self) -> Result<(), BrokerError> {
        let cancel = basic::Cancel { consumer_tag: self.tag.clone(), nowait: false };
        let cancelling = async {
            self.put(CHANNEL, AMQPClass::Basic(OfBasic::Cancel(cancel)))?;
            self.expect("basic.cancel-ok", |reply| {
                matches!(reply, AMQPClass::Basic(OfBasic::CancelOk(_))).then_some(())
            })
            .await
        };
        cancelling.await.map_err(BrokerError::during("cancelling the consumer"))
    }

    /// Ends the consumer. What has come and was not given out goes back to the queue with the channel.
    pub(super) async fn stop(&mut self) -> Result<(), BrokerError> {
        self.cancel().await?;
        self.early.clear();
        Ok(())
    }

    /// The next delivery. Whoever waits here keeps the connection alive.
    pub(super) async fn next(&mut self) -> Result<Delivered, BrokerError> {
        poll_fn(|cx| self.poll_delivered(cx)).await
    }

    /// Keeps the connection alive while nothing is taken, until it is lost. What comes meanwhile, at most the prefetch, is
    /// given out later.
    pub(super) async fn read_ahead(&mut self) -> BrokerError {
        loop {
            let came = poll_fn(|cx| self.poll_came(cx)).await;
            match self.delivery(came) {
                Ok(delivered) => self.early.push_back(delivered),
                Err(error) => return error,
            }
        }
    }

    /// A delivery that is here already.
    pub(super) fn ready(&mut self) -> Result<Option<Delivered>, BrokerError> {
        match self.poll_delivered(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(delivered) => delivered.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Puts an acknowledgement behind what is to be sent.
    pub(super) fn acknowledge(&mut self, Ack { tag, multiple }: Ack) -> Result<(), BrokerError> {
        let ack = basic::Ack { delivery_tag: tag, multiple };
        let put = self.put(CHANNEL, AMQPClass::Basic(OfBasic::Ack(ack)));
        put.map_err(BrokerError::during("acknowledging"))
    }

    /// Sends what is to be sent, as far as that goes at once; `next` sends the rest.
    pub(super) fn flush(&mut self) -> Result<(), BrokerError> {
        match self.wire.poll_flush(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => Err(BrokerError::during("acknowledging")(error.into())),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// How many deliveries each consumer that begins may have in hand.
    async fn set_prefetch(&mut self, prefetch_count: u16) -> lapin::Result<()> {
        let qos = basic::Qos { prefetch_count, global: false };
        self.put(CHANNEL, AMQPClass::Basic(OfBasic::Qos(qos)))?;
        self.expect("basic.qos-ok", |reply| {
            matches!(reply, AMQPClass::Basic(OfBasic::QosOk(_))).then_some(())
        })
        .await
    }

    fn put(&mut self, channel: u16, method: AMQPClass) -> lapin::Result<()> {
        self.wire.put(&AMQPFrame::Method(channel, method))
    }

    /// Waits for the answer to what was put last.
    async fn expect<T>(
        &mut self,
        what: &str,
        take: impl Fn(AMQPClass) -> Option<T>,
    ) -> lapin::Result<T> {
        loop {
            match poll_fn(|cx| self.poll_came(cx)).await? {
                Came::Delivered(delivered) => self.early.push_back(delivered),
                Came::Returned(_) => return Err(out_of_place()),
                Came::Reply(reply) => {
                    let said = format!("expected {what}, got {reply:?}");
                    return take(reply).ok_or_else(|| io::Error::other(said).into());
                }
            }
        }
    }

    fn poll_delivered(&mut self, cx: &mut Context<'_>) -> Poll<Result<Delivered, BrokerError>> {
        if let Some(delivered) = self.early.pop_front() {
            return Poll::Ready(Ok(delivered));
        }
        let came = ready!(self.poll_came(cx));
        Poll::Ready(self.delivery(came))
    }

    /// What came, if it is a delivery.
    fn delivery(&self, came: lapin::Result<Came>) -> Result<Delivered, BrokerError> {
        match came {
            Ok(Came::Delivered(delivered)) => Ok(delivered),
            Ok(Came::Reply(AMQPClass::Basic(OfBasic::Cancel(_)))) => {
                Err(BrokerError::Cancelled { queue: self.queue.clone() })
            }
            Ok(Came::Reply(other)) => {
                let said = format!("expected a delivery, got {other:?}");
                Err(BrokerError::during("consuming")(io::Error::other(said).into()))
            }
            Ok(Came::Returned(_)) => Err(BrokerError::during("consuming")(out_of_place())),
            Err(error) => Err(BrokerError::during("consuming")(error)),
        }
    }

    fn poll_came(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<Came>> {
        loop {
            if let Some(came) = self.take_frames()? {
                return Poll::Ready(Ok(came));
            }
            ready!(self.wire.poll_fill(cx))?;
        }
    }

    /// Takes up frames that have come until they make something whole.
    fn take_frames(&mut self) -> lapin::Result<Option<Came>> {
        while let Some(frame) = self.wire.next()? {
            match frame {
                Frame::Deliver(Deliver { tag, redelivered, routing_key }) => {
                    if *self.key != *routing_key {
                        self.key = routing_key.into();
                    }
                    let routing_key = Arc::clone(&self.key);
                    let begun = Begun::Delivery { tag, redelivered, routing_key };
                    self.partial = Some(Partial { begun, header: None, body: Vec::new() });
                }
                Frame::Method(_, AMQPClass::Basic(OfBasic::Return(_))) => {
                    let begun = Begun::Return;
                    self.partial = Some(Partial { begun, header: None, body: Vec::new() });
                }
                Frame::Method(channel, method) => {
                    self.wire.refuse_end(channel, &method)?;
                    return Ok(Some(Came::Reply(method)));
                }
                Frame::Header(Header { body_size, properties }) => {
                    let partial = self.partial.as_mut().ok_or_else(out_of_place)?;
                    let room = body_size.min(BODY_ROOM_MAX);
                    partial.body.reserve_exact(usize::try_from(room).unwrap_or_default());
                    let properties = Properties::read(properties).ok_or_else(unreadable)?;
                    partial.header = Some((body_size, properties));
                }
                Frame::Body(bytes) => {
                    let partial = self.partial.as_mut().ok_or_else(out_of_place)?;
                    partial.body.extend_from_slice(bytes);
                }
                Frame::Heartbeat => continue,
            }
            if let Some(partial) = self.partial.take_if(|partial| partial.is_whole()) {
                return partial.whole().map(Some);
            }
        }
        Ok(None)
    }
}

impl Partial {
    fn is_whole(&self) -> bool {
        let header = self.header.as_ref();
        header.is_some_and(|(body_size, _)| self.body.len() as u64 >= *body_size)
    }

    fn whole(self) -> lapin::Result<Came> {
        let Self { begun, header, body } = self;
        let header = header.filter(|(body_size, _)| *body_size == body.len() as u64);
        let (_, properties) = header.ok_or_else(out_of_place)?;
        let Begun::Delivery { tag, redelivered, routing_key } = begun else {
            return Ok(Came::Returned(properties));
        };
        let message = Message { body, properties, routing_key };
        Ok(Came::Delivered(Delivered { tag, redelivered, message }))
    }
}

fn unreadable() -> lapin::Error {
    io::Error::other("the broker sent properties that cannot be read").into()
}

fn out_of_place() -> lapin::Error {
    io::Error::other("the broker sent a message's parts out of their order").into()
}
