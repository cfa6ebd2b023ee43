//! The end of a stream: all that was acknowledged is taken by the queue, and what is not goes back to it.

use std::io;

use amq_protocol::protocol::{AMQPClass, channel, connection};
use amq_protocol::types::ShortString;
use tokio::time::timeout;

use super::super::BrokerError;
use super::super::connection::CLOSE_TIMEOUT;
use super::{CHANNEL, CONNECTION, Rank, Stream};

impl Stream {
    /// Waits until a quorum queue knows what was acknowledged. It takes so many acknowledgements of a channel at a time; the
    /// rest waits in the channel, and is lost if that is closed: all of them are delivered again. The broker answers to a
    /// consumer that begins when those before it are taken, and passes on the rest. Nothing is to be in hand any more that
    /// is still to be acknowledged.
    pub(in crate::broker) async fn until_acknowledged(&mut self) -> Result<(), BrokerError> {
        let doing = "acknowledging the last deliveries";
        let beginning = async {
            self.set_prefetch(1).await.map_err(BrokerError::during(doing))?;
            // What there is, is for others: this one is given one delivery, and only if no other consumer wants it.
            self.consume_as(Rank::Last).await
        };
        timeout(CLOSE_TIMEOUT, beginning).await.unwrap_or_else(|_| {
            let silent = io::Error::from(io::ErrorKind::TimedOut);
            Err(BrokerError::during(doing)(silent.into()))
        })
    }

    /// Closes it in good order. The broker answers when it has taken all that was said before; what it
    /// delivered and was not acknowledged goes back to the queue.
    pub(in crate::broker) async fn close(&mut self) -> Result<(), BrokerError> {
        let (reply_code, reply_text) = (200, ShortString::from("done"));
        let of_channel = channel::Close {
            reply_code,
            reply_text: reply_text.clone(),
            class_id: 0,
            method_id: 0,
        };
        let of_connection = connection::Close { reply_code, reply_text, class_id: 0, method_id: 0 };
        let closing = async {
            let close = channel::AMQPMethod::Close(of_channel);
            self.put(CHANNEL, AMQPClass::Channel(close))?;
            self.expect("channel.close-ok", |reply| {
                matches!(reply, AMQPClass::Channel(channel::AMQPMethod::CloseOk(_))).then_some(())
            })
            .await?;
            let close = connection::AMQPMethod::Close(of_connection);
            self.put(CONNECTION, AMQPClass::Connection(close))?;
            self.expect("connection.close-ok", |reply| {
                matches!(reply, AMQPClass::Connection(connection::AMQPMethod::CloseOk(_)))
                    .then_some(())
            })
            .await
        };
        let closed = timeout(CLOSE_TIMEOUT, closing).await;
        let silent = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
        closed.unwrap_or_else(|_| silent()).map_err(BrokerError::during("closing the connection"))
    }
}
