//! `Silence`: how long a device has sent nothing, or has not ended what it began to send, and what is
//! done about it. Pure: the time is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::EndReason;

/// What is to be done about a device that sends nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// It is to be sent a heartbeat.
    Heartbeat,
    /// It counts as silent from now on.
    Silent,
    /// It is to be disconnected.
    End(EndReason),
}

/// Watches one device for silence.
#[derive(Debug)]
pub(super) struct Silence {
    limit: Option<Duration>,
    /// It ends the connection after this, because the device has said that it would not be so long.
    end_after: Option<Duration>,
    heard: Instant,
    /// Which frame has begun, and when it has to be at its end.
    frame_ends_by: Option<(u64, Instant)>,
    /// What was done about this silence.
    done: Option<Due>,
}

impl Silence {
    /// Watches from `now` on, if there is a limit.
    pub(super) fn new(limit: Option<Duration>, now: Instant) -> Self {
        Self { limit, end_after: None, heard: now, frame_ends_by: None, done: None }
    }

    /// From now on the device must not be silent for longer than this.
    pub(super) fn end_after(&mut self, limit: Duration) {
        self.end_after = Some(limit);
    }

    /// Which frame has begun whose end has not come, if any: that must come by then, or the moment
    /// that was said when it began.
    pub(super) fn is_amid(&mut self, frame: Option<u64>, by: Instant) {
        let known = |frame| self.frame_ends_by.filter(|(known, _)| *known == frame);
        self.frame_ends_by = frame.map(|frame| known(frame).unwrap_or((frame, by)));
    }

    /// The device has sent something; true if it was silent.
    pub(super) fn heard(&mut self, now: Instant) -> bool {
        self.heard = now;
        self.done.take() == Some(Due::Silent)
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let end = self.end_after.map(|limit| self.heard + limit);
        self.step().into_iter().chain(end).chain(self.frame_ends_by.map(|(_, by)| by)).min()
    }

    /// When a heartbeat or silence is due.
    fn step(&self) -> Option<Instant> {
        let limit = self.limit?;
        match self.done {
            None => Some(self.heard + limit / 2),
            Some(Due::Heartbeat) => Some(self.heard + limit),
            Some(Due::Silent | Due::End(_)) => None,
        }
    }

    /// What is due, once.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        if self.end_after.is_some_and(|limit| self.heard + limit <= now) {
            return Some(Due::End(EndReason::HeartbeatTimeout));
        }
        if self.frame_ends_by.is_some_and(|(_, by)| by <= now) {
            return Some(Due::End(EndReason::LineTimeout));
        }
        if self.step()? > now {
            return None;
        }
        self.done = Some(match self.done {
            None => Due::Heartbeat,
            Some(Due::Heartbeat | Due::Silent | Due::End(_)) => Due::Silent,
        });
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_sent_a_heartbeat_and_then_counts_as_silent_until_it_is_heard() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(Some(Duration::from_secs(10)), start);
        assert_eq!((silence.deadline(), silence.due(at(4))), (Some(at(5)), None));
        assert_eq!(silence.due(at(5)), Some(Due::Heartbeat));
        assert_eq!((silence.deadline(), silence.due(at(6))), (Some(at(10)), None));
        assert_eq!(silence.due(at(10)), Some(Due::Silent));
        assert_eq!((silence.deadline(), silence.due(at(99))), (None, None));
        assert!(silence.heard(at(100)), "it was silent");
        assert!(!silence.heard(at(101)));
        assert_eq!(silence.deadline(), Some(at(106)));
        assert_eq!(Silence::new(None, start).deadline(), None);
    }

    #[test]
    fn a_frame_has_its_time_from_its_beginning_to_its_end() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(None, start);
        silence.is_amid(Some(0), at(5));
        silence.is_amid(Some(1), at(10));
        silence.is_amid(Some(1), at(11));
        silence.heard(at(9));
        assert_eq!((silence.deadline(), silence.due(at(9))), (Some(at(10)), None));
        assert_eq!(silence.due(at(10)), Some(Due::End(EndReason::LineTimeout)));
        silence.is_amid(None, at(20));
        assert_eq!((silence.deadline(), silence.due(at(99))), (None, None));
    }

    #[test]
    fn a_device_that_has_promised_to_be_heard_is_let_go_when_it_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(Some(Duration::from_secs(4)), start);
        silence.end_after(Duration::from_secs(4));
        assert_eq!(silence.due(at(2)), Some(Due::Heartbeat));
        assert_eq!(silence.due(at(4)), Some(Due::End(EndReason::HeartbeatTimeout)));
        silence.heard(at(4));
        assert_eq!((silence.due(at(5)), silence.deadline()), (None, Some(at(6))));
    }
}
