//! `Wire`: frames to and from the broker, over one socket. It is read and written by who polls it, so
//! that a command costs no change of thread; and whoever polls it keeps the heartbeat going.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use amq_protocol::frame::AMQPFrame;
use amq_protocol::protocol::channel::AMQPMethod as OfChannel;
use amq_protocol::protocol::connection::AMQPMethod as OfConnection;
use amq_protocol::protocol::{AMQPClass, AMQPError, channel, connection};
use futures_util::io::{AsyncRead, AsyncWrite};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::super::connection::Dialed;
use super::frames::{self, Frame, Frames};

/// Ticks of half a heartbeat without a byte from the broker, after which it is gone.
const SILENT_TICKS_MAX: u32 = 4;

/// One connection's frames.
pub(super) struct Wire {
    socket: Dialed,
    incoming: Frames,
    outgoing: Vec<u8>,
    /// How much of that is sent.
    sent: usize,
    /// Every half of a heartbeat, once that is agreed on.
    ticks: Option<Interval>,
    /// Whether something was sent since the last tick.
    said: bool,
    /// Ticks since something came.
    silent: u32,
}

impl Wire {
    pub(super) fn new(socket: Dialed) -> Self {
        Self {
            socket,
            incoming: Frames::new(),
            outgoing: Vec::new(),
            sent: 0,
            ticks: None,
            said: false,
            silent: 0,
        }
    }

    /// From now on this holds.
    pub(super) fn agree(&mut self, frame_max: usize, heartbeat: Duration) {
        self.incoming.agree(frame_max);
        if !heartbeat.is_zero() {
            let mut ticks = interval(heartbeat / 2);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            self.ticks = Some(ticks);
        }
    }

    /// Puts a frame behind what is to be sent.
    pub(super) fn put(&mut self, frame: &AMQPFrame) -> lapin::Result<()> {
        Ok(frames::put(frame, &mut self.outgoing)?)
    }

    /// Bytes that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// The longest piece of a body that fits into a frame.
    pub(super) fn body_max(&self) -> usize {
        self.incoming.body_max()
    }

    /// Sends what waits, as far as that goes at once.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.outgoing.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.said = true;
            self.sent += sent;
        }
        self.outgoing.clear();
        self.sent = 0;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Waits until something has come, and sends meanwhile what waits. A broker that ends the channel or
    /// the connection, or is silent for too long, is an error.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<()>> {
        if !self.outgoing.is_empty()
            && let Poll::Ready(Err(error)) = self.poll_flush(cx)
        {
            return Poll::Ready(Err(error.into()));
        }
        match Pin::new(&mut self.socket).poll_read(cx, self.incoming.room()) {
            Poll::Ready(Ok(0)) => {
                Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()))
            }
            Poll::Ready(Ok(came)) => {
                self.incoming.filled(came);
                self.silent = 0;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => self.poll_heartbeat(cx).map(Err),
        }
    }

    /// Ends with an error when the broker is silent for too long.
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Error> {
        while let Some(ticks) = &mut self.ticks {
            ready!(ticks.poll_tick(cx));
            self.silent += 1;
            if self.silent > SILENT_TICKS_MAX {
                return Poll::Ready(lapin::ErrorKind::MissingHeartbeatError.into());
            }
            if !std::mem::take(&mut self.said) {
                let flushed = self.put(&AMQPFrame::Heartbeat).map(|()| self.poll_flush(cx));
                match flushed {
                    Ok(Poll::Ready(Err(error))) => return Poll::Ready(error.into()),
                    Err(error) => return Poll::Ready(error),
                    Ok(Poll::Ready(Ok(())) | Poll::Pending) => {}
                }
            }
        }
        Poll::Pending
    }

    /// The next frame that has come. What concerns the connection as a whole is dealt with here.
    pub(super) fn next(&mut self) -> lapin::Result<Option<Frame<'_>>> {
        self.incoming.next().map_err(Into::into)
    }

    /// Answers the broker's end of the channel or the connection, if `method` is that: then it is an error.
    pub(super) fn refuse_end(&mut self, channel: u16, method: &AMQPClass) -> lapin::Result<()> {
        let (answer, code, text) = if let AMQPClass::Channel(OfChannel::Close(close)) = method {
            let ok = AMQPClass::Channel(OfChannel::CloseOk(channel::CloseOk {}));
            (ok, close.reply_code, &close.reply_text)
        } else if let AMQPClass::Connection(OfConnection::Close(close)) = method {
            let ok = AMQPClass::Connection(OfConnection::CloseOk(connection::CloseOk {}));
            (ok, close.reply_code, &close.reply_text)
        } else {
            return Ok(());
        };
        self.put(&AMQPFrame::Method(channel, answer))?;
        // The connection is dropped next: whether this arrives matters to nobody.
        drop(self.poll_flush(&mut Context::from_waker(Waker::noop())));
        Err(match AMQPError::from_id(code, text.clone()) {
            Some(error) => lapin::ErrorKind::ProtocolError(error).into(),
            None => io::Error::other(format!("{code}: {text}")).into(),
        })
    }
}
