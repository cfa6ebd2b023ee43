//! The broker side: the only part that knows lapin.
//!
//! What publishes has a connection of its own, because a broker under a memory or disk alarm blocks
//! such a connection as a whole, acknowledgements included. What consumes has two, which live and end
//! together: one for commands and their acknowledgements alone, which the consumer reads and writes
//! itself, and one of lapin's for the topology and for what is parked. Each side is rebuilt from nothing
//! after any trouble; what the other does, and the devices, go on meanwhile. What HTTP
//! asks has another, which is there only once somebody has asked, and so have the tap and what parks commands.

mod acks;
pub mod client;
mod collector;
mod connection;
mod consumer;
pub(crate) mod decode;
mod drain;
mod hand;
mod heartbeat;
mod inbox;
mod intake;
mod jobs;
mod knocker;
mod message;
mod nodes;
mod parked_queues;
mod parker;
mod publication;
mod publisher;
mod requests;
mod retry;
mod routes;
mod stream;
mod talker;
mod tap;
mod tap_client;
mod tls;
mod topology;
mod undelivered;
mod window;

pub(crate) use collector::{Collector, Keeper, Letter};
pub(crate) use consumer::Consumer;
#[cfg(fuzzing)]
pub(crate) use decode::Recipients;
pub(crate) use decode::Terms;
pub(crate) use drain::Drainer;
pub(crate) use intake::Intake;
pub(crate) use jobs::Jobs;
pub(crate) use knocker::Knocker;
pub use message::Message;
pub(crate) use nodes::Nodes;
pub(crate) use parker::Parker;
pub(crate) use publisher::Publisher;
pub(crate) use requests::{
    BODY_MAX as REQUEST_BODY_MAX, Gathered, Requester, Requests, Unpublished,
};
pub(crate) use retry::Retry;
pub(crate) use routes::{Leaving, Routes};
pub(crate) use talker::Talker;
pub(crate) use tap::Tap;
pub(crate) use tap_client::{Drop, Tapped};
pub use topology::check;
pub(crate) use undelivered::{
    LOOKED_MAX as UNDELIVERED_LOOKED_MAX, Letter as UndeliveredLetter,
    Trouble as UndeliveredTrouble, Undelivered,
};

/// What went wrong with the broker: one sentence that names the object and what to change.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No TCP connection.
    #[error(
        "cannot reach the broker at {address}: {source}; check MQ_HOST and MQ_PORT, and that RabbitMQ runs there"
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A TCP connection, and then silence.
    #[error(
        "the broker at {address} did not answer within {limit}; check that MQ_HOST and MQ_PORT lead to RabbitMQ's AMQP port, and MQ_TLS to how it speaks there"
    )]
    Silent {
        /// Host and port.
        address: String,
        /// How long it had.
        limit: humantime::FormattedDuration,
    },
    /// A TCP connection, and an end before AMQP was agreed on.
    #[error(
        "no AMQP with {address}: {said}; check that MQ_HOST and MQ_PORT lead to RabbitMQ's AMQP port, and MQ_TLS to how it speaks there"
    )]
    Handshake {
        /// Host and port.
        address: String,
        /// What happened instead.
        said: String,
    },
    /// TLS could not be agreed on.
    #[error(
        "no TLS with the broker at {address}: {source}; check MQ_TLS and MQ_CA_FILE, and that the certificate names this host"
    )]
    Tls {
        /// Host and port.
        address: String,
        /// What the TLS library said.
        source: std::io::Error,
    },
    /// The user or the password is wrong.
    #[error(
        "the broker at {address} refuses to log in user `{username}`; check MQ_USERNAME and MQ_PASSWORD (or MQ_PASSWORD_FILE). It said: {said}"
    )]
    Login {
        /// Host and port.
        address: String,
        /// As whom.
        username: String,
        /// What the broker said.
        said: String,
    },
    /// The virtual host does not exist, or is not for this user.
    #[error(
        "the broker at {address} refuses virtual host `{vhost}`; check MQ_VHOST and the permissions of `{username}`. It said: {said}"
    )]
    Vhost {
        /// Host and port.
        address: String,
        /// Which one.
        vhost: String,
        /// As whom.
        username: String,
        /// What the broker said.
        said: String,
    },
    /// An exchange or a queue is not as the bridge needs it.
    #[error("{object}: {said}; {advice}")]
    Topology {
        /// Its kind and name.
        object: String,
        /// What the broker said.
        said: String,
        /// What to change.
        advice: &'static str,
    },
    /// The queue stopped delivering.
    #[error(
        "the broker ended the consumer of queue `{queue}`: it was deleted, or its node went away"
    )]
    Cancelled {
        /// Which queue.
        queue: String,
    },
    /// What came of a connection, and where it led.
    #[error("{address}: {source}")]
    At {
        /// Host and port.
        address: String,
        /// What went wrong.
        source: Box<Self>,
    },
    /// Anything else that AMQP or the connection said.
    #[error("{during}: {source}")]
    Amqp {
        /// What was being done.
        during: &'static str,
        /// What lapin said.
        source: lapin::Error,
    },
}

impl BrokerError {
    fn during(during: &'static str) -> impl Fn(lapin::Error) -> Self {
        move |source| Self::Amqp { during, source }
    }
}
