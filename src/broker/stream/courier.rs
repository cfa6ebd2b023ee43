//! `Courier`: publications and bindings on one channel, which the broker takes in their order.
//!
//! An unbinding is done before what is published behind it is routed, and what no queue takes comes back
//! before it is confirmed. lapin may hand a returned message out with the confirm of another; here each
//! is told for what it is.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker, ready};

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame};
use amq_protocol::protocol::basic::AMQPMethod as OfBasic;
use amq_protocol::protocol::exchange::{self, AMQPMethod as OfExchange};
use amq_protocol::protocol::{AMQPClass, BasicProperties, basic, confirm};
use amq_protocol::types::{AMQPValue, FieldTable};
use tokio::time::timeout;

use super::super::BrokerError;
use super::super::connection as link;
use super::super::publication::Publication;
use super::frames::BASIC;
use super::{CHANNEL, Came, Stream, out_of_place};
use crate::settings::{Broker, Endpoint};

/// The header that tells which publication it is that comes back.
pub(in super::super) const NUMBER_HEADER: &str = "x-route-number";
/// Bytes that may wait to be sent before no more is taken on: some hundred commands.
const WAITING_MAX: usize = 256 * 1024;
/// Publications and bindings the broker has not answered: as many as keep it busy. It does them one after the other, and
/// on a busy cluster 150 to 300 a second, so each more is time that the next waits.
const UNANSWERED_MAX: usize = 384;

/// What the broker said of what was handed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Said {
    /// It has the publication with this number.
    Taken(u64),
    /// No queue takes it.
    Returned(u64),
    /// It cannot take it now.
    Refused(u64),
    /// The oldest binding or unbinding that was open is done.
    Bound,
}

/// Publications and bindings on one channel.
pub(in super::super) struct Courier {
    stream: Stream,
    /// The number of the last publication; it is its delivery tag, too.
    last: u64,
    /// Numbers of publications that are not confirmed, and whether they came back.
    open: VecDeque<(u64, bool)>,
    /// Bindings and unbindings that are not answered.
    binding: usize,
    said: VecDeque<Said>,
}

impl Courier {
    /// Opens a connection to `host`, which bears `name` in RabbitMQ's own lists, with one channel that confirms.
    pub(in super::super) async fn open(
        mq: &Broker,
        host: &Endpoint,
        name: &str,
    ) -> Result<Self, BrokerError> {
        let opening = async {
            let mut stream = Stream::connect(mq, host, name, String::new()).await?;
            let select = confirm::AMQPMethod::Select(confirm::Select { nowait: false });
            let selecting = async {
                stream.put(CHANNEL, AMQPClass::Confirm(select))?;
                stream
                    .expect("confirm.select-ok", |reply| {
                        matches!(reply, AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(_)))
                            .then_some(())
                    })
                    .await
            };
            selecting.await.map_err(BrokerError::during("asking for publisher confirms"))?;
            let (open, said) = (VecDeque::new(), VecDeque::new());
            Ok(Self { stream, last: 0, open, binding: 0, said })
        };
        let opened = timeout(mq.connect_timeout, opening).await;
        opened.unwrap_or_else(|_| Err(link::silent(mq, host)))
    }

    /// Whether it takes more on.
    pub(in super::super) fn has_room(&self) -> bool {
        self.stream.wire.waiting() < WAITING_MAX && self.unanswered() < UNANSWERED_MAX
    }

    /// How much the broker has not answered.
    pub(in super::super) fn unanswered(&self) -> usize {
        self.open.len() + self.binding
    }

    /// Takes a publication on; gives its number.
    pub(in super::super) fn publish(&mut self, what: Publication) -> Result<u64, BrokerError> {
        self.last += 1;
        let Publication { exchange, key, properties, body, mandatory } = what;
        let mut headers = properties.headers().clone().unwrap_or_default();
        let number = i64::try_from(self.last).unwrap_or(i64::MAX);
        headers.insert(NUMBER_HEADER.into(), AMQPValue::LongLongInt(number));
        let header = AMQPContentHeader {
            class_id: BASIC,
            body_size: body.len() as u64,
            properties: properties.with_headers(headers),
        };
        let publish = basic::Publish { exchange, routing_key: key, mandatory, immediate: false };
        let putting = || -> lapin::Result<()> {
            let wire = &mut self.stream.wire;
            let method = AMQPClass::Basic(OfBasic::Publish(publish));
            wire.put(&AMQPFrame::Method(CHANNEL, method))?;
            wire.put(&AMQPFrame::Header(CHANNEL, header))?;
            for piece in body.chunks(wire.body_max()) {
                wire.put(&AMQPFrame::Body(CHANNEL, piece.to_vec()))?;
            }
            Ok(())
        };
        putting().map_err(BrokerError::during("publishing"))?;
        self.open.push_back((self.last, false));
        Ok(self.last)
    }

    /// Binds `to` to `from` with `key`.
    pub(in super::super) fn bind(
        &mut self,
        from: &str,
        to: &str,
        key: &str,
    ) -> Result<(), BrokerError> {
        self.change(OfExchange::Bind(exchange::Bind {
            destination: to.into(),
            source: from.into(),
            routing_key: key.into(),
            nowait: false,
            arguments: FieldTable::default(),
        }))
    }

    /// Ends such a binding.
    pub(in super::super) fn unbind(
        &mut self,
        from: &str,
        to: &str,
        key: &str,
    ) -> Result<(), BrokerError> {
        self.change(OfExchange::Unbind(exchange::Unbind {
            destination: to.into(),
            source: from.into(),
            routing_key: key.into(),
            nowait: false,
            arguments: FieldTable::default(),
        }))
    }

    fn change(&mut self, method: OfExchange) -> Result<(), BrokerError> {
        let put = self.stream.put(CHANNEL, AMQPClass::Exchange(method));
        put.map_err(BrokerError::during("binding"))?;
        self.binding += 1;
        Ok(())
    }

    /// Sends what was taken on, as far as that goes at once; `next` sends the rest.
    pub(in super::super) fn flush(&mut self) -> Result<(), BrokerError> {
        match self.stream.wire.poll_flush(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => Err(BrokerError::during("publishing")(error.into())),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// What the broker says next. Whoever waits here keeps the connection alive.
    pub(in super::super) async fn next(&mut self) -> Result<Said, BrokerError> {
        let next = poll_fn(|cx| self.poll_said(cx)).await;
        next.map_err(BrokerError::during("publishing"))
    }

    /// Closes the connection, when the broker has taken all that was handed to it.
    pub(in super::super) async fn close(&mut self) -> Result<(), BrokerError> {
        self.stream.close().await
    }

    fn poll_said(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<Said>> {
        loop {
            if let Some(said) = self.said.pop_front() {
                return Poll::Ready(Ok(said));
            }
            match ready!(self.stream.poll_came(cx))? {
                Came::Returned(properties) => self.came_back(&properties),
                Came::Reply(AMQPClass::Basic(OfBasic::Ack(ack))) => {
                    self.confirmed(ack.delivery_tag, ack.multiple, false);
                }
                Came::Reply(AMQPClass::Basic(OfBasic::Nack(nack))) => {
                    self.confirmed(nack.delivery_tag, nack.multiple, true);
                }
                Came::Reply(AMQPClass::Exchange(
                    OfExchange::BindOk(_) | OfExchange::UnbindOk(_),
                )) => {
                    self.binding = self.binding.saturating_sub(1);
                    self.said.push_back(Said::Bound);
                }
                Came::Reply(other) => {
                    let said = format!("expected a confirm, got {other:?}");
                    return Poll::Ready(Err(io::Error::other(said).into()));
                }
                Came::Delivered(_) => return Poll::Ready(Err(out_of_place())),
            }
        }
    }

    fn came_back(&mut self, properties: &BasicProperties) {
        let headers = properties.headers().as_ref();
        let number = headers.and_then(|headers| headers.inner().get(NUMBER_HEADER));
        if let Some(AMQPValue::LongLongInt(number)) = number
            && let Ok(number) = u64::try_from(*number)
            && let Ok(at) = self.open.binary_search_by_key(&number, |(open, _)| *open)
            && let Some((_, returned)) = self.open.get_mut(at)
        {
            *returned = true;
        }
    }

    fn confirmed(&mut self, tag: u64, multiple: bool, refused: bool) {
        let mut kept = VecDeque::new();
        while let Some(&(number, returned)) = self.open.front().filter(|(open, _)| *open <= tag) {
            self.open.pop_front();
            if number != tag && !multiple {
                kept.push_back((number, returned));
                continue;
            }
            self.said.push_back(match (refused, returned) {
                (true, _) => Said::Refused(number),
                (false, true) => Said::Returned(number),
                (false, false) => Said::Taken(number),
            });
        }
        for open in kept.into_iter().rev() {
            self.open.push_front(open);
        }
    }
}
