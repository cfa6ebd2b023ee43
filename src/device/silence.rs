//! `Silence`: how long a device has sent nothing, and what is done about it. Pure: the time is an
//! argument.

use std::time::Duration;

use tokio::time::Instant;

/// What is to be done about a device that sends nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// It is to be sent a heartbeat.
    Heartbeat,
    /// It counts as silent from now on.
    Silent,
}

/// Watches one device for silence.
#[derive(Debug)]
pub(super) struct Silence {
    limit: Option<Duration>,
    heard: Instant,
    /// What was done about this silence.
    done: Option<Due>,
}

impl Silence {
    /// Watches from `now` on, if there is a limit.
    pub(super) fn new(limit: Option<Duration>, now: Instant) -> Self {
        Self { limit, heard: now, done: None }
    }

    /// The device has sent something; true if it was silent.
    pub(super) fn heard(&mut self, now: Instant) -> bool {
        self.heard = now;
        self.done.take() == Some(Due::Silent)
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let limit = self.limit?;
        match self.done {
            None => Some(self.heard + limit / 2),
            Some(Due::Heartbeat) => Some(self.heard + limit),
            Some(Due::Silent) => None,
        }
    }

    /// What is due, once.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        if self.deadline()? > now {
            return None;
        }
        self.done = Some(match self.done {
            None => Due::Heartbeat,
            Some(Due::Heartbeat | Due::Silent) => Due::Silent,
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
}
