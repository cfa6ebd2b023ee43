//! `Outbox`: what a session says that is no command, and its socket has not taken yet: answers of its
//! protocol, what other devices say to it. Pure, bounded, without memory while it is empty.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::protocol::Frame;

/// Bytes that may wait for one device that does not read; beyond it more is dropped, until it reads or
/// is disconnected.
const BYTES_MAX: usize = 256 * 1024;

/// Frames that wait, the first of them perhaps begun.
#[derive(Debug, Default)]
pub(super) struct Outbox(Option<Box<Waiting>>);

#[derive(Debug)]
struct Waiting {
    frames: VecDeque<Frame>,
    /// How much of the first is sent.
    sent: usize,
    bytes: usize,
    /// When the socket last took something, or since when there is something to take.
    moved: Instant,
}

/// There is no room for one more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Since when nothing has moved, if there is something.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        self.0.as_ref().map(|waiting| waiting.moved)
    }

    /// Adds a frame behind the others.
    pub(super) fn push(&mut self, frame: Frame, now: Instant) -> Result<(), Full> {
        let fresh = || Waiting { frames: VecDeque::new(), sent: 0, bytes: 0, moved: now };
        let waiting = self.0.get_or_insert_with(|| Box::new(fresh()));
        if waiting.bytes > 0 && waiting.bytes + frame.len() > BYTES_MAX {
            return Err(Full);
        }
        waiting.bytes += frame.len();
        waiting.frames.push_back(frame);
        Ok(())
    }

    /// What is to be sent next.
    pub(super) fn next(&self) -> Option<&[u8]> {
        let waiting = self.0.as_ref()?;
        waiting.frames.front()?.get(waiting.sent..)
    }

    /// The socket has taken so much of what is next.
    pub(super) fn took(&mut self, bytes: usize, now: Instant) {
        let Some(waiting) = &mut self.0 else { return };
        waiting.sent += bytes;
        waiting.moved = now;
        let length = waiting.frames.front().map_or(0, |first| first.len());
        if waiting.sent >= length {
            waiting.frames.pop_front();
            waiting.bytes -= length;
            waiting.sent = 0;
        }
        if waiting.frames.is_empty() {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Frame {
        Frame::copy_from_slice(bytes)
    }

    #[test]
    fn frames_go_out_whole_and_in_order_however_little_the_socket_takes() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        for frame in [&b"one"[..], b"four"] {
            outbox.push(self::frame(frame), now).expect("room");
        }
        let mut sent = Vec::new();
        while let Some(byte) = outbox.next().and_then(|next| next.first().copied()) {
            sent.push(byte);
            outbox.took(1, now);
        }
        assert_eq!(sent, b"onefour");
        assert!(outbox.is_empty() && outbox.0.is_none(), "no memory");
    }

    #[test]
    fn no_more_than_so_much_waits_but_one_frame_always_may() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.push(frame(&vec![0; BYTES_MAX + 1]), now).expect("the only one");
        assert_eq!(outbox.push(frame(b"x"), now), Err(Full));
        outbox.took(BYTES_MAX + 1, now);
        outbox.push(frame(b"x"), now).expect("room");
    }
}
