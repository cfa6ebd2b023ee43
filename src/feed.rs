//! `Feed`: what comes from Redis. A list of commands goes to the command queue; what is published to a
//! channel is said to the group of the same name.
//!
//! A command is moved from the list to another, published, and deleted there once the broker has
//! confirmed it: so none is lost, and one may come twice if the bridge ends in between.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use serde_json::value::RawValue;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::device::Devices;
use crate::protocol::{Audience, Content, Payload, Reach};
use crate::settings::{Secret, Source};

/// How long Redis is waited for when the list is empty; then it is asked again, so that a connection
/// that is dead without anybody having been told is noticed.
const ASK_FOR: Duration = Duration::from_secs(5);
/// How much longer than that an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The wait after a failure: long enough not to fill the log.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// A command on its way from the list to the broker: one at a time.
#[derive(Debug)]
pub(crate) struct Outlet {
    work: Arc<Notify>,
    /// Held for a move, never across an await.
    next: Mutex<Option<(Vec<u8>, oneshot::Sender<()>)>>,
}

impl Outlet {
    /// Nothing on its way; `work` is told when there is something to publish.
    pub(crate) fn new(work: Arc<Notify>) -> Self {
        Self { work, next: Mutex::default() }
    }

    /// What is to be published, and who is to be told when it is confirmed.
    pub(crate) fn next(&self) -> Option<(Vec<u8>, oneshot::Sender<()>)> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Has it published, and waits until the broker has confirmed it; false if it was not.
    async fn publish(&self, body: Vec<u8>) -> bool {
        let (confirmed, done) = oneshot::channel();
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some((body, confirmed));
        self.work.notify_one();
        done.await.is_ok()
    }
}

/// What is taken from Redis.
#[derive(Debug)]
pub(crate) struct Feed {
    client: Client,
    list: Option<String>,
    /// Where a command is while it is published: a list of this bridge's own.
    taken: String,
    channel: Option<String>,
    outlet: Arc<Outlet>,
    devices: Arc<Devices>,
}

impl Feed {
    /// What the settings say, if they say something; else what is wrong with the URL.
    pub(crate) fn new(
        source: &Source,
        url: &Secret,
        bridge: &str,
        outlet: Arc<Outlet>,
        devices: Arc<Devices>,
    ) -> Result<Option<Self>, String> {
        let (list, channel) = (source.redis_list.clone(), source.redis_channel.clone());
        if list.is_none() && channel.is_none() {
            return Ok(None);
        }
        let client = Client::open(url.expose())
            .map_err(|error| format!("expected a URL as in redis://127.0.0.1:6379/0: {error}"))?;
        let taken = format!("{}:taken:{bridge}", list.as_deref().unwrap_or_default());
        Ok(Some(Self { client, list, taken, channel, outlet, devices }))
    }

    /// Takes what comes until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            never = self.take_lists() => match never {},
            never = self.hear_channels() => match never {},
        }
    }

    async fn take_lists(&self) -> Infallible {
        let Some(list) = &self.list else { return std::future::pending().await };
        loop {
            match self.take_list(list).await {
                Ok(never) => match never {},
                Err(error) => rest("list", error).await,
            }
        }
    }

    async fn hear_channels(&self) -> Infallible {
        let Some(channel) = &self.channel else { return std::future::pending().await };
        loop {
            match self.hear(channel).await {
                Ok(never) => match never {},
                Err(error) => rest("channel", error).await,
            }
        }
    }

    async fn take_list(&self, list: &str) -> Result<Infallible, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ASK_FOR + ANSWER_TIMEOUT));
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        info!(list, "taking commands from Redis");
        // What was taken and not published when a bridge of this name ended.
        while let Some(body) = self.first_taken(&mut connection).await? {
            self.pass_on(&mut connection, body).await?;
        }
        loop {
            let mut take = redis::cmd("BLMOVE");
            take.arg(list).arg(&self.taken).arg("RIGHT").arg("LEFT").arg(ASK_FOR.as_secs());
            let body: Option<Vec<u8>> = take.query_async(&mut connection).await?;
            if let Some(body) = body {
                self.pass_on(&mut connection, body).await?;
            }
        }
    }

    async fn first_taken(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<Vec<u8>>, RedisError> {
        redis::cmd("LINDEX").arg(&self.taken).arg(-1).query_async(connection).await
    }

    async fn pass_on(
        &self,
        connection: &mut MultiplexedConnection,
        body: Vec<u8>,
    ) -> Result<(), RedisError> {
        // It stays where it is until it is in the command queue.
        while !self.outlet.publish(body.clone()).await {}
        redis::cmd("RPOP").arg(&self.taken).query_async(connection).await
    }

    async fn hear(&self, channel: &str) -> Result<Infallible, RedisError> {
        let mut subscription = self.client.get_async_pubsub().await?;
        subscription.subscribe(channel).await?;
        info!(channel, "hearing a channel of Redis");
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            let text = String::from_utf8_lossy(message.get_payload_bytes()).into_owned();
            // JSON is passed on as it is, anything else as text.
            let content = match serde_json::from_str::<&RawValue>(&text) {
                Ok(json) => Content::of(json),
                Err(_) => Content::Text(text.into()),
            };
            let (group, reach): (Arc<str>, _) = (channel.into(), Reach::Several);
            let audience = Audience::Group(Arc::clone(&group));
            // Every bridge hears it from Redis itself.
            self.devices.hear(audience, Payload { content, group: Some(group), from: None, reach });
        }
        Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
    }
}

/// Says what went wrong, and waits until it may be tried again.
async fn rest(what: &str, error: RedisError) {
    warn!(%error, "Redis: the {what} cannot be used; trying again.");
    tokio::time::sleep(TRY_AGAIN).await;
}
