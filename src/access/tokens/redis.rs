//! Tokens from Redis: a hash for each id, in which one field is the token.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncConnectionConfig, Client, ErrorKind, RedisError};
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// Limit for an answer, connecting included if that is needed: a device waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Stands for the id in the name of a key.
const ID: &str = "<id>";
const FIELD: &str = "token";

/// One connection, made by whoever needs it first; the others wait for that.
type Link = Arc<OnceCell<MultiplexedConnection>>;

/// A Redis server that knows tokens.
pub(crate) struct RedisTokens {
    client: Client,
    /// The name of an id's hash, with `<id>` in it.
    key: String,
    /// The connection all use; replaced once it fails. (The crate's own manager of connections stays
    /// for ever with one that is refused for a reason other than the network's, as by a server that
    /// is loading its data.) Held for a clone, never across an await.
    link: Mutex<Link>,
    compare: hmac::Key,
}

impl RedisTokens {
    /// Does not connect yet: the server may be away.
    pub(crate) fn new(url: &str, key: &str) -> Result<Self, String> {
        if !key.contains(ID) {
            return Err(format!("expected the name of a key with {ID} in it, as in device:{ID}"));
        }
        let client = Client::open(url).map_err(|error| {
            format!("expected a URL as in redis://127.0.0.1:6379/0, which this is not: {error}")
        })?;
        let compare = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| "the system gives no random numbers".to_owned())?;
        Ok(Self { client, key: key.to_owned(), link: Mutex::default(), compare })
    }

    /// Whether `token` is the one of `id`.
    pub(super) async fn is_right(&self, id: &str, token: &str) -> Result<bool, String> {
        let Some(expected) = self.token_of(id).await? else { return Ok(false) };
        if expected.is_empty() {
            return Ok(false);
        }
        // Tags take the same time to compare, whatever they are tags of.
        let tag = hmac::sign(&self.compare, &expected);
        Ok(hmac::verify(&self.compare, token.as_bytes(), tag.as_ref()).is_ok())
    }

    async fn token_of(&self, id: &str) -> Result<Option<Vec<u8>>, String> {
        let link = self.link();
        let asking = async {
            let may_be_stale = link.initialized();
            match self.ask(&link, id).await {
                // The server may have been started again since: that is no answer yet.
                Err(error) if may_be_stale && is_of_connection(&error) => {
                    self.ask(&self.replaced(&link), id).await
                }
                answer => answer,
            }
        };
        match timeout(ANSWER_TIMEOUT, asking).await {
            Ok(answer) => answer.map_err(|error| format!("Redis: {error}")),
            Err(_) => {
                // It may be dead without anybody having been told.
                self.replaced(&link);
                let limit = humantime::format_duration(ANSWER_TIMEOUT);
                Err(format!("Redis: no answer in {limit}"))
            }
        }
    }

    async fn ask(&self, link: &Link, id: &str) -> Result<Option<Vec<u8>>, RedisError> {
        let connect = || async {
            // One limit for all of it is enough.
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                .set_response_timeout(None);
            self.client.get_multiplexed_async_connection_with_config(&config).await
        };
        let mut connection = link.get_or_try_init(connect).await?.clone();
        connection.hget(self.key.replace(ID, id), FIELD).await
    }

    fn link(&self) -> Link {
        Arc::clone(&self.link.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connection that takes the place of `failed`, unless somebody has replaced it already.
    fn replaced(&self, failed: &Link) -> Link {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&link, failed) {
            *link = Link::default();
        }
        Arc::clone(&link)
    }
}

/// Whether it is about the connection; else the server has answered, if only to refuse.
fn is_of_connection(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse)
}

impl fmt::Debug for RedisTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the client, whose URL may hold a password.
        f.debug_struct("RedisTokens").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
