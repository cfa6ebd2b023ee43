//! What the tests stand on: a real broker node, the real program as a child process, devices that are plain sockets
//! at a 127.x address of their own or behind a link that can go dead (`Site`), an AMQP client, and one way to wait
//! (`eventually`).
//!
//! Blocking calls throughout, so that a test reads from top to bottom; the AMQP client and device fleets run on a
//! tokio runtime of their own behind them. Every wait has a deadline and names the fact it waits for.

mod amqp;
mod bad_peers;
mod bridge;
mod broker;
mod browser;
mod cluster;
mod database;
mod device;
mod dice;
mod fleet;
mod flow;
mod http;
mod links;
mod manager;
mod netns;
mod program;
mod proxy;
mod reaper;
mod redis;
mod scene;
mod schema;
mod scripted;
mod shared;
mod signal;
mod sse;
mod stall;
mod stream;
mod tls;
mod tokens;
mod wait;

pub(crate) use amqp::{Amqp, Inbox, Letter, persistent, table};
pub(crate) use bad_peers::BadPeer;
pub(crate) use bridge::{Bridge, Setup};
pub(crate) use broker::{Broker, free_port};
pub(crate) use browser::Browser;
pub(crate) use cluster::Cluster;
pub(crate) use database::{Database, PASSWORD, Postgres};
pub(crate) use device::{Device, dial};
pub(crate) use dice::Dice;
pub(crate) use fleet::{Fleet, address};
pub(crate) use flow::{Flow, flow_id};
pub(crate) use http::{Answer, get};
pub(crate) use manager::Manager;
pub(crate) use netns::Site;
pub(crate) use program::{Finished, Program};
pub(crate) use proxy::Proxy;
pub(crate) use redis::Redis;
pub(crate) use scene::{Scene, command, park, reply_to};
pub(crate) use schema::Api;
pub(crate) use scripted::ScriptedClient;
pub(crate) use sse::Events;
pub(crate) use stall::{
    STALL_LINE_MAX, goes_on_where_it_moved, stall, stalling_line, stalling_number, stalling_numbers,
};
pub(crate) use stream::{Arrived, Stream, line_of};
pub(crate) use tls::{Authority, Certificate, TlsDevice, TlsFiles};
pub(crate) use tokens::TokensFile;
pub(crate) use wait::{block_on, eventually, runtime, within};
