//! `Tokens`: whether a device is who it says it is.
//!
//! Tokens come from a file of ids and argon2 hashes, or from Redis. They are compared in constant
//! time. After a wrong one the same peer has to wait before it is asked again for the same id, longer
//! each time: by peer and id, so that devices behind one address do not shut out each other.

mod failures;
mod file;
mod redis;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::command::ADDRESS_MAX;
pub(crate) use failures::Failures;
pub(crate) use file::{FileTokens, line};
pub(crate) use redis::RedisTokens;

/// Where tokens come from, and who has failed of late.
#[derive(Debug)]
pub(crate) struct Tokens {
    source: Source,
    /// Held for a few map operations, never across an await.
    failures: Mutex<Failures>,
}

/// Where tokens come from.
#[derive(Debug)]
pub(crate) enum Source {
    File(FileTokens),
    Redis(RedisTokens),
}

/// What came of a check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Right,
    Wrong,
    /// Not told: the peer has failed with this id too often of late.
    TooSoon,
    /// The source does not answer; the reason is for the log.
    Unknown(String),
}

impl Tokens {
    pub(crate) fn new(source: Source) -> Self {
        Self { source, failures: Mutex::default() }
    }

    /// Whether `token` is the one of `id`. May wait: whoever asks has a limit of its own.
    pub(crate) async fn check(&self, peer: IpAddr, id: &str, token: &str) -> Checked {
        // No device has such a name, and an empty token is none: nothing to look up, or to remember.
        if id.len() > ADDRESS_MAX || token.is_empty() {
            return Checked::Wrong;
        }
        let came = Instant::now();
        if self.lock().is_waiting(peer, id, came) {
            return Checked::TooSoon;
        }
        let right = match &self.source {
            Source::File(file) => file.is_right(id, token).await,
            Source::Redis(redis) => redis.is_right(id, token).await,
        };
        let mut failures = self.lock();
        match right {
            Err(reason) => Checked::Unknown(reason),
            // Another one has failed meanwhile: of many guesses at the same time one is told.
            Ok(_) if failures.is_waiting(peer, id, came) => Checked::TooSoon,
            Ok(true) => {
                failures.succeeded(peer, id);
                Checked::Right
            }
            Ok(false) => {
                failures.failed(peer, id, Instant::now());
                Checked::Wrong
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn tokens(lines: &[String]) -> Tokens {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), lines.join("\n")).expect("written");
        Tokens::new(Source::File(FileTokens::open(file.path().to_owned()).expect("tokens")))
    }

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn after_a_wrong_token_the_right_one_is_not_told_for_a_while() {
        let tokens = tokens(&[line("p1", "one").expect("a line")]);
        assert_eq!(tokens.check(peer(1), "p1", "one").await, Checked::Right);
        assert_eq!(tokens.check(peer(1), "p1", "two").await, Checked::Wrong);
        // So many more that the wait outlasts any test.
        (0..9).for_each(|_| tokens.lock().failed(peer(1), "p1", Instant::now()));
        assert_eq!(tokens.check(peer(1), "p1", "one").await, Checked::TooSoon);
        assert_eq!(tokens.check(peer(2), "p1", "one").await, Checked::Right, "it, elsewhere");
    }

    #[tokio::test]
    async fn of_many_guesses_at_once_one_is_told() {
        let tokens = tokens(&[line("p1", "one").expect("a line")]);
        let guesses = tokio::join!(
            tokens.check(peer(1), "p1", "two"),
            tokens.check(peer(1), "p1", "three"),
            tokens.check(peer(1), "p1", "one"),
        );
        assert_eq!(guesses, (Checked::Wrong, Checked::TooSoon, Checked::TooSoon));
    }

    #[tokio::test]
    async fn a_source_that_does_not_answer_is_nobodys_failure() {
        let away = RedisTokens::new("redis://127.0.0.1:1", "device:<id>").expect("fine");
        let tokens = Arc::new(Tokens::new(Source::Redis(away)));
        for _ in 0..2 {
            let tokens = Arc::clone(&tokens);
            let check = tokio::spawn(async move { tokens.check(peer(1), "p1", "one").await });
            let checked = check.await.expect("checked");
            assert!(matches!(checked, Checked::Unknown(_)), "{checked:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_a_name_or_a_token_is_wrong_and_not_remembered() {
        let tokens = tokens(&[]);
        assert_eq!(tokens.check(peer(1), &"p".repeat(300), "one").await, Checked::Wrong);
        assert_eq!(tokens.check(peer(1), "p1", "").await, Checked::Wrong);
        assert_eq!(tokens.check(peer(1), "p1", "one").await, Checked::Wrong);
    }
}
