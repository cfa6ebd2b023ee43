//! `Door`: what a listener asks of a connection before it is a device, made once from the settings.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use super::Rules;
use crate::access::gate::flapping::{Flapping, Flaps};
use crate::access::gate::rate::AcceptRate;
use crate::access::gate::unknown::Unknown;
use crate::access::gate::{Gate, Limits, Ticket, TotalTicket};
use crate::access::tls::{self, Files};
use crate::access::tokens::{FileTokens, RedisTokens, Source, Tokens};
use crate::settings::{
    CertificateName, Identity, Listener, Networks, Pattern, Protocol, Second, Secret, Size,
};
use crate::watched::Watched;

/// What a connection to one listener has to show.
#[derive(Debug)]
pub(crate) struct Door {
    pub(super) rules: Arc<Rules>,
    pub(super) who: Who,
    pub(super) second: Second,
    pub(super) tls: Option<Watched<ServerConfig>>,
    pub(super) proxies: Networks,
    pub(super) gate: Arc<Gate>,
    pub(super) unknown: Unknown,
    pub(super) flapping: Option<Flapping>,
    /// For all of what comes before a device is known.
    pub(super) timeout: Duration,
}

/// What names a device.
#[derive(Debug)]
pub(super) enum Who {
    Ip,
    Peer,
    Hello(Pattern, Option<Tokens>),
    Chat(Option<Tokens>),
    Certificate(CertificateName),
}

/// Why a connection did not become a device. A closed set: metrics, logs and docs use these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There are `DEVICE_CONNECTIONS_MAX`.
    Total,
    /// There are `DEVICE_CONNECTIONS_PER_IP` from its address.
    PerIp,
    /// There are `DEVICE_CONNECTIONS_PER_NET` from its network.
    PerNet,
    /// It took longer than `DEVICE_HELLO_TIMEOUT` to say who it is.
    Timeout,
    /// It had to make room for others that came later.
    PushedOut,
    /// It ended before it was known who it is.
    Left,
    /// It comes from a proxy and has no PROXY header.
    Proxy,
    /// No TLS could be agreed on, or its certificate is not trusted.
    Tls,
    /// What it said is no hello, or names nobody.
    Hello,
    /// Its token is wrong.
    Token,
    /// Its peer gave a wrong token for this device too often of late.
    TooSoon,
    /// Nobody could say whether its token is right.
    TokensAway,
    /// Its device connects too often.
    Flapping,
    /// Its device is connected, and `DEVICE_SECOND` is `reject`.
    Taken,
}

impl Refusal {
    /// Every reason there is.
    pub const ALL: [Self; 14] = [
        Self::Total,
        Self::PerIp,
        Self::PerNet,
        Self::Timeout,
        Self::PushedOut,
        Self::Left,
        Self::Proxy,
        Self::Tls,
        Self::Hello,
        Self::Token,
        Self::TooSoon,
        Self::TokensAway,
        Self::Flapping,
        Self::Taken,
    ];

    /// The word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::PerIp => "per_ip",
            Self::PerNet => "per_net",
            Self::Timeout => "timeout",
            Self::PushedOut => "pushed_out",
            Self::Left => "left",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Hello => "hello",
            Self::Token => "token",
            Self::TooSoon => "too_soon",
            Self::TokensAway => "tokens_away",
            Self::Flapping => "flapping",
            Self::Taken => "taken",
        }
    }
}

/// What a connection holds for as long as it lasts.
#[derive(Debug)]
pub(crate) struct Tickets {
    pub(crate) _total: TotalTicket,
    pub(crate) _place: Ticket,
}

impl Door {
    /// The door of `listener`, to be asked of `redis` about tokens if that is so set; else what is
    /// wrong with a file it needs.
    pub(crate) fn new(
        listener: &Listener,
        rules: Arc<Rules>,
        redis: &Secret,
    ) -> Result<Self, String> {
        let access = &listener.access;
        let tokens = match (&access.tokens_file, &access.tokens_redis_key) {
            (Some(path), _) => Some(Source::File(FileTokens::open(path.clone())?)),
            (None, Some(key)) => Some(Source::Redis(RedisTokens::new(redis.expose(), key)?)),
            (None, None) => None,
        };
        let tokens = tokens.map(Tokens::new);
        let who = match (listener.device.protocol, access.identity) {
            (Protocol::Chat, _) => Who::Chat(tokens),
            (_, Identity::Ip) => Who::Ip,
            (_, Identity::Peer) => Who::Peer,
            (_, Identity::Hello) => Who::Hello(access.hello_pattern.clone(), tokens),
            (_, Identity::Certificate) => Who::Certificate(access.certificate_name),
        };
        let files = access.tls_certificate.clone().zip(access.tls_key.clone());
        let client_ca = access.tls_client_ca.clone();
        let files = files.map(|(certificate, key)| Files { certificate, key, client_ca });
        let flaps = access.flap_max.map(|max| max.0);
        let (within, pause) = (access.flap_window, access.flap_pause);
        Ok(Self {
            rules,
            who,
            second: access.second,
            tls: files.map(tls::watch).transpose()?,
            proxies: access.proxy_from.clone(),
            gate: Arc::new(Gate::new(limits(listener))),
            unknown: Unknown::new(access.unknown_max.0),
            flapping: flaps.map(|max| Flapping::new(Flaps { max, within, pause })),
            timeout: access.hello_timeout,
        })
    }

    /// The door of `/message` on the HTTP side: each connection is a device of its own, and `listener`
    /// says how many there may be.
    pub(crate) fn of_topics(listener: &Listener, bridge: &Arc<str>) -> Self {
        Self {
            rules: Arc::new(Rules::of_topics(listener, bridge)),
            who: Who::Peer,
            second: Second::Replace,
            tls: None,
            proxies: Networks::default(),
            gate: Arc::new(Gate::new(limits(listener))),
            unknown: Unknown::new(1),
            flapping: None,
            timeout: listener.access.hello_timeout,
        }
    }

    /// The rate at which connections are taken up, if it is limited.
    pub(super) fn accept_rate(listener: &Listener) -> Option<AcceptRate> {
        let rate = u32::try_from(listener.access.accept_rate?.0).unwrap_or(u32::MAX);
        NonZeroU32::new(rate).map(AcceptRate::new)
    }

    /// Whether a connection from `peer` is known for what it is at once.
    pub(super) fn knows_at_once(&self, peer: IpAddr) -> bool {
        matches!(self.who, Who::Ip | Who::Peer) && self.tls.is_none() && !self.proxies.contain(peer)
    }
}

fn limits(listener: &Listener) -> Limits {
    let size = |size: Option<Size>| size.map(|size| size.0);
    Limits {
        per_ip: size(listener.access.connections_per_ip),
        per_net: size(listener.access.connections_per_net),
    }
}
