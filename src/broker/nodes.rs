//! `Nodes`: the hosts of `MQ_HOST`, and which of them the next attempt to connect begins with.
//!
//! There is one for all connections of a process: what one of them learns of a host the next attempt of each
//! goes by, so that a node which is away is waited for once. Connections that are open are left alone. Each
//! process has the hosts in an order of its own, drawn at its start, so that many bridges spread, and those of
//! a node that is lost spread over all the others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::BrokerError;
use super::connection::{self as link, Link};
use super::stream::Courier;
use crate::chance;
use crate::settings::{Broker, Endpoint};

/// Where the broker is.
#[derive(Debug)]
pub(crate) struct Nodes {
    mq: Broker,
    /// Held to read or turn a short list, never across an await.
    hosts: Mutex<Preference>,
}

impl Nodes {
    /// The hosts in the settings, in an order drawn by lot.
    pub(crate) fn new(mq: &Broker) -> Arc<Self> {
        // Without random numbers: in the order in which they are listed.
        let hosts = Mutex::new(Preference::new(mq.endpoints(), chance::draw()));
        Arc::new(Self { mq: mq.clone(), hosts })
    }

    /// Opens a connection to one of the hosts: each is tried, for no longer than `MQ_CONNECT_TIMEOUT`, until one
    /// can be used; one that has failed lately is tried last. The error is that of the last.
    pub(super) async fn open(
        self: &Arc<Self>,
        bridge: &str,
        purpose: &str,
    ) -> Result<Link, BrokerError> {
        let open = |host| async move { Link::open(self, &host, bridge, purpose).await };
        self.first(purpose, open).await
    }

    /// The same for one with nothing but a courier; and where it leads.
    pub(super) async fn open_courier(
        &self,
        bridge: &str,
        purpose: &str,
    ) -> Result<(Courier, Endpoint), BrokerError> {
        let name = &link::name(bridge, purpose);
        let open = |host| async move {
            let courier = Courier::open(&self.mq, &host, name).await?;
            Ok((courier, host))
        };
        self.first(purpose, open).await
    }

    async fn first<T, F: Future<Output = Result<T, BrokerError>>>(
        &self,
        purpose: &str,
        open: impl Fn(Endpoint) -> F,
    ) -> Result<T, BrokerError> {
        let hosts = self.lock().0.clone();
        let mut failure = None;
        for host in hosts {
            if let Some(error) = failure.take() {
                warn!(purpose, next = %host, "{error}");
            }
            match open(host.clone()).await {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    self.failed(&host);
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            let source = std::io::ErrorKind::NotFound.into();
            BrokerError::Unreachable { address: "MQ_HOST".to_owned(), source }
        }))
    }

    /// A connection to this host could not be made, or came to a bad end: the next attempt begins elsewhere.
    pub(super) fn failed(&self, host: &Endpoint) {
        self.lock().failed(host);
    }

    /// The same, of a connection that worked for a while: its error then names the host.
    pub(super) fn blame(&self, host: &Endpoint, error: BrokerError) -> BrokerError {
        self.failed(host);
        BrokerError::At { address: host.to_string(), source: Box::new(error) }
    }

    /// How connections are made, wherever.
    pub(super) fn mq(&self) -> &Broker {
        &self.mq
    }

    /// How long it may take to find that none of the hosts can be used.
    pub(super) fn open_limit(&self) -> Duration {
        let hosts = u32::try_from(self.lock().0.len()).unwrap_or(u32::MAX);
        self.mq.connect_timeout.saturating_mul(hosts)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Preference> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hosts, the one to be tried first before the others: first those that have not failed, then those that
/// have, the latest last.
#[derive(Debug)]
struct Preference(Vec<Endpoint>);

impl Preference {
    /// `lot` chooses one of all orders; none is likelier than the others.
    fn new(mut hosts: Vec<Endpoint>, mut lot: u64) -> Self {
        for (at, count) in (1..hosts.len()).zip(2..) {
            let with = lot % count;
            lot /= count;
            hosts.swap(at, usize::try_from(with).unwrap_or(at));
        }
        Self(hosts)
    }

    fn failed(&mut self, host: &Endpoint) {
        let at = self.0.iter().position(|known| known == host);
        if let Some(from_it_on) = at.and_then(|at| self.0.get_mut(at..)) {
            from_it_on.rotate_left(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn hosts(names: &str) -> Vec<Endpoint> {
        names.chars().map(|name| Endpoint { host: name.into(), port: 5672 }).collect()
    }

    fn shown(preference: &Preference) -> String {
        preference.0.iter().map(|endpoint| endpoint.host.as_str()).collect()
    }

    #[test]
    fn a_host_that_fails_is_tried_last_and_again_once_the_others_have_failed() {
        let mut preference = Preference(hosts("abc"));
        for (failed, expected) in [
            ("a", "bca"),
            // Another connection learns of it later.
            ("a", "bca"),
            ("b", "cab"),
            ("a", "cba"),
            ("c", "bac"),
            ("x", "bac"),
        ] {
            hosts(failed).iter().for_each(|host| preference.failed(host));
            assert_eq!(shown(&preference), expected, "after {failed} failed");
        }
        let mut alone = Preference(hosts("a"));
        alone.failed(&hosts("a")[0]);
        assert_eq!(shown(&alone), "a");
    }

    #[test]
    fn every_order_is_drawn_as_often_as_every_other() {
        let mut drawn = HashMap::new();
        for lot in 0..2400 {
            *drawn.entry(shown(&Preference::new(hosts("abcd"), lot))).or_insert(0) += 1;
        }
        assert_eq!(drawn.len(), 24, "{drawn:?}");
        assert!(drawn.values().all(|times| *times == 100), "{drawn:?}");
        assert_eq!(shown(&Preference::new(hosts("a"), u64::MAX)), "a");
        // As many hosts as there may be.
        assert_eq!(Preference::new(hosts("abcdefghijklmnop"), u64::MAX).0.len(), 16);
    }
}
