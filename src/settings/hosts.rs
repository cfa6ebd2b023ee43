//! `MQ_HOST`: where the broker is, which may be several places.

use std::fmt;
use std::net::Ipv6Addr;

use super::value::Value;

/// Hosts in `MQ_HOST`: a RabbitMQ cluster has three or five nodes, seldom seven, and one attempt to connect
/// tries all.
const HOSTS_MAX: usize = 16;

/// The hosts of `MQ_HOST`, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(Vec<Host>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    name: String,
    /// Its own port, if it is not `MQ_PORT`.
    port: Option<u16>,
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name, or an IP address without brackets.
    pub host: String,
    /// Where AMQP is spoken there.
    pub port: u16,
}

impl Hosts {
    /// Each with its own port, or else `port`.
    pub(super) fn endpoints(&self, port: u16) -> Vec<Endpoint> {
        let endpoint =
            |it: &Host| Endpoint { host: it.name.clone(), port: it.port.unwrap_or(port) };
        self.0.iter().map(endpoint).collect()
    }
}

impl Value for Hosts {
    fn expected() -> &'static str {
        "at most 16 host names or addresses with commas between, each with its port or without, as in mq1,10.0.0.2:5673,[fd00::3]:5673"
    }
    fn read(text: &str) -> Option<Self> {
        let hosts: Option<Vec<Host>> = text.split(',').map(host).collect();
        hosts.filter(|hosts| hosts.len() <= HOSTS_MAX).map(Self)
    }
    fn wrong_part(text: &str) -> &str {
        let wrong = text.split(',').find(|item| host(item).is_none()).map(str::trim);
        wrong.filter(|item| !item.is_empty()).unwrap_or(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// The host that `item` names. An IPv6 address with a port needs brackets, or nobody could tell where
/// it ends.
fn host(item: &str) -> Option<Host> {
    let item = item.trim();
    if let Ok(address) = item.parse::<Ipv6Addr>() {
        return Some(Host { name: address.to_string(), port: None });
    }
    let (name, port) = match item.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, behind)) => {
            (address.parse::<Ipv6Addr>().ok()?.to_string(), behind.split_at_checked(1))
        }
        None => {
            let end = item.find(':').unwrap_or(item.len());
            let (name, behind) = item.split_at_checked(end)?;
            let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            let is_name = !name.is_empty() && name.chars().all(is_of_a_name);
            (is_name.then(|| name.to_owned())?, behind.split_at_checked(1))
        }
    };
    let port = match port {
        None => None,
        Some((":", digits)) => Some(digits.parse().ok().filter(|port: &u16| *port > 0)?),
        Some(_) => return None,
    };
    Some(Host { name, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<Vec<String>> {
        let endpoints = Hosts::read(text)?.endpoints(5672);
        Some(endpoints.iter().map(Endpoint::to_string).collect())
    }

    #[test]
    fn a_host_has_a_port_of_its_own_or_that_of_all() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(
                shown(text),
                Some(expected.iter().map(ToString::to_string).collect()),
                "{text}"
            );
        };
        check("localhost", &["localhost:5672"]);
        check("mq1,mq2.example.org:5673", &["mq1:5672", "mq2.example.org:5673"]);
        check(" rabbit_1 , 10.0.0.2:1 ", &["rabbit_1:5672", "10.0.0.2:1"]);
        check("fd00::3,::1", &["[fd00::3]:5672", "[::1]:5672"]);
        check("[fd00:0::3]:5673,[::1]", &["[fd00::3]:5673", "[::1]:5672"]);
        check(&["mq"; HOSTS_MAX].join(","), &["mq:5672"; HOSTS_MAX]);
    }

    #[test]
    fn what_is_no_host_is_shown_alone() {
        let check = |text: &str, part: &str| {
            assert_eq!(Hosts::read(text), None, "{text}");
            assert_eq!(Hosts::wrong_part(text), part);
        };
        check("mq1,mq2:amqp", "mq2:amqp");
        check("mq1, amqp://mq2 ,mq3", "amqp://mq2");
        for wrong in [
            "mq:",
            "mq:0",
            "mq:65536",
            "mq:1:2",
            "a b",
            "me@mq",
            ":5672",
            "[::1",
            "[::1]5672",
            "[mq]:1",
            "[::1]:",
            "é",
        ] {
            check(&format!("mq1,{wrong}"), wrong);
        }
        // Of nothing there is nothing to show.
        check("mq1,,mq2", "mq1,,mq2");
        check(",", ",");
        let many = ["mq"; HOSTS_MAX + 1].join(",");
        check(&many, &many);
    }
}
