//! The promises of rabbitline, each held by a test that runs the real program against a real RabbitMQ node.
//!
//! Run by `cargo test --test it` (`./dev test` does), not by nextest: nextest gives each test a process of its own, and
//! each would start a node (four seconds and a hundred megabytes); here most tests share one. A test that kills or
//! blocks the broker has a node to itself. Needs Debian's `rabbitmq-server`, `redis-server` and `postgresql`; the tests of links that go dead need
//! `iproute2` and root, to make network namespaces. Without them the tests fail and say so.
//!
//! A test waits for facts with a deadline, never for time to pass, and uses queues and exchanges of its own.

// The harness is part of the tests: a test that cannot set its scene has failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

mod answered;
mod api_docs;
mod bad_peers;
mod black_hole;
mod bridge_loss;
mod broker_cluster;
mod broker_loss;
mod check;
mod cli;
mod cluster;
mod console;
mod copies;
mod dead_links;
mod descriptors;
mod device_tls;
mod documents;
mod drain;
mod events;
mod explain;
mod feed;
mod greeting;
mod groups;
mod hello;
mod http;
mod http_access;
mod http_commands;
mod http_openapi;
mod http_undelivered;
mod hundred_thousand;
mod invalid;
mod last_values;
mod limits;
mod links;
mod listeners;
mod main_path;
mod model;
mod once;
mod order;
mod outcome_events;
mod outcomes;
mod parking;
mod parking_order;
mod parking_trouble;
mod presence;
mod protocols;
mod proxy_protocol;
mod readme;
mod receipts;
mod received;
mod record;
mod redis_tokens;
mod refused;
mod service;
mod settings;
mod silence;
mod snapshot;
mod survival;
mod tap;
mod tls;
mod topology;
mod uncertain;
mod uplink;
