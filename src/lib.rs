//! rabbitline carries commands from RabbitMQ to devices in the field.
//!
//! Backends publish `{"address", "cmd"}` to a queue; devices hold TCP connections to the bridge; it
//! writes each command as one line to the device it names, acknowledges to RabbitMQ by what truly
//! became of it, and reports every device that comes and goes.
//!
//! ```text
//! AMQP delivery -> decode -> Order -> Router -> Session::offer -> socket | lane -> Reporter -> ack
//!                     \-> invalid ----------------------------------------------->/    \-> undelivered, receipt
//! TCP accept -> identify -> Registry::admit -> Session::serve -> presence, uplink -> Publisher
//! ```
//!
//! The modules, in the order to read them:

pub mod settings;

mod chance;
pub mod clock;
mod cluster;
pub mod command;
pub mod order;
pub mod settlement;

pub mod broker;
pub mod router;

mod access;
pub mod device;
mod fanout;
mod fate;
mod feed;
mod gathering;
mod groups;
mod job;
mod protocol;

mod backlog;
mod last_values;
mod ledger;
mod live;
mod parking;
mod pem;
pub mod presence;
pub mod report;
mod run;
mod told;
mod trail;
pub mod uplink;

pub mod bridge;
pub mod http;
pub mod metrics;
mod stats;

mod record;

pub mod cli;

mod systemd;
mod watched;

#[cfg(fuzzing)]
pub mod fuzz;
