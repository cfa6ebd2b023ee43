//! `AcceptRate`: so many connections a second, at most one second's worth of them at once. Pure.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// How many may come at once after a quiet time, as the time in which they would come one by one.
const BURST: Duration = Duration::from_secs(1);

/// A limit on how fast connections are accepted; those that wait do so in the kernel's queue.
#[derive(Debug)]
pub(crate) struct AcceptRate {
    /// The time one connection takes up.
    each: Duration,
    /// Until when what was accepted takes up the time: at most `BURST` ahead of now.
    taken_until: Option<Instant>,
}

impl AcceptRate {
    pub(crate) fn new(a_second: NonZeroU32) -> Self {
        Self { each: Duration::from_secs(1) / a_second.get(), taken_until: None }
    }

    /// Counts one more connection; or how long to wait before there is room for it.
    pub(crate) fn accept(&mut self, now: Instant) -> Result<(), Duration> {
        let from = self.taken_until.map_or(now, |until| until.max(now));
        let ahead = from + self.each - now;
        if ahead > BURST {
            return Err(ahead - BURST);
        }
        self.taken_until = Some(from + self.each);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(a_second: u32) -> AcceptRate {
        AcceptRate::new(NonZeroU32::new(a_second).expect("not zero"))
    }

    #[test]
    fn one_seconds_worth_comes_at_once_and_then_one_by_one() {
        let (mut rate, start) = (rate(4), Instant::now());
        let quarter = Duration::from_millis(250);
        let mut at = |quarters: u32| rate.accept(start + quarter * quarters);
        assert_eq!([(); 5].map(|()| at(0)), [Ok(()), Ok(()), Ok(()), Ok(()), Err(quarter)]);
        assert_eq!([at(1), at(1)], [Ok(()), Err(quarter)]);
        assert_eq!([(); 4].map(|()| at(100)), [Ok(()); 4], "a quiet time fills it, once");
        assert_eq!(at(100), Err(quarter));
    }

    proptest! {
        #[test]
        fn no_second_sees_more_than_twice_as_many_and_who_waits_is_let_in(
            a_second in 1u32..2000, steps in prop::collection::vec(0u64..3000, 1..200),
        ) {
            let (mut rate, mut now) = (rate(a_second), Instant::now());
            let mut accepted = Vec::new();
            for step in steps {
                now += Duration::from_micros(step * 1000 / u64::from(a_second));
                if let Err(wait) = rate.accept(now) {
                    prop_assert!(wait <= Duration::from_secs(1) / a_second);
                    now += wait;
                    prop_assert_eq!(rate.accept(now), Ok(()));
                }
                accepted.push(now);
            }
            for (index, from) in accepted.iter().enumerate() {
                let until = *from + Duration::from_secs(1);
                let count = accepted[index..].iter().take_while(|at| **at < until).count();
                prop_assert!(count <= 2 * a_second as usize);
            }
        }
    }
}
