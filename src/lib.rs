//! Both halves of message idempotency over RabbitMQ.
//!
//! A service publishes "debit 500 from account A for order 42". The confirm is lost, and it
//! publishes again. The broker delivers again after a cut connection. A deployment moves consumers
//! about. The queue now holds three copies of one message, and the account must be debited once.
//!
//! * [`IdempotentPublisher`] gives every message an ID and does not stop until the broker has
//!   confirmed it, always under the same ID.
//! * [`IdempotentConsumer`] turns at-least-once delivery into one committed effect per message ID;
//!   in a consume loop of your own, [`Guard`] does with a [`consumer::DeliverySettler`]. A service
//!   implements [`IdempotentHandler`].
//!
//! # What is guaranteed, and where it stops
//!
//! Delivery is at least once. The effect is committed at most once per (scope, message ID) within
//! the retention period, when the effect is written through the session that the store opens. A
//! message that was confirmed to the publisher is never lost by this crate, and a message that was
//! not confirmed is never reported as published.
//!
//! Not covered: effects outside of the session, such as an e-mail or a call to another service;
//! messages that the broker loses after it has confirmed them; IDs that were forgotten (purged, or
//! lost with a store's disk); two messages that the application gives the same ID *and* the same
//! body.
//!
//! # Publishing
//!
//! ```no_run
//! use lapin_idempotent::{IdempotentPublisher, OutgoingMessage};
//! # #[derive(serde::Serialize)]
//! # struct Debit { account: &'static str, amount: i64 }
//! # async fn example() -> Result<(), lapin_idempotent::BoxError> {
//! let publisher = IdempotentPublisher::builder("amqp://localhost").app_id("orders").connect().await?;
//! let message = OutgoingMessage::to("payments", "debit")
//!     .idempotency_key("debit/order-42")
//!     .json(&Debit { account: "A", amount: 500 })?;
//! let receipt = publisher.publish_idempotent(message).await?;
//! println!("{} confirmed after {} attempt(s)", receipt.message_id(), receipt.attempts());
//! # Ok(())
//! # }
//! ```
//!
#![cfg_attr(feature = "sqlite", doc = "# Consuming")]
#![cfg_attr(feature = "sqlite", doc = "")]
#![cfg_attr(feature = "sqlite", doc = "```no_run")]
#![cfg_attr(feature = "sqlite", doc = include_str!("docs/consume.rs"))]
#![cfg_attr(feature = "sqlite", doc = "```")]
//!
//! # Stores
//!
//! | Store | Feature | Session of the handler | Identity and effect | Survives |
//! |---|---|---|---|---|
//! | `PostgresStore` | `postgres` | `PostgresTransaction` | committed together | a crash, and a power loss unless `synchronous_commit` is off |
//! | `MySqlStore` | `mysql` | `MySqlTransaction` | committed together | a crash, and a power loss if `innodb_flush_log_at_trx_commit` and `sync_binlog` are 1 |
//! | `SqliteStore` | `sqlite` | `SqliteTransaction` | committed together | a crash, and a power loss if opened by `connect` |
//! | `.leased(..)` of these | | [`Lease`] | one after the other | the same |
//! | `RedisStore` | `redis` | [`Lease`] | one after the other | what Redis survives: see its documentation |
//! | [`MemoryStore`] | – | [`Lease`] | one after the other | nothing: it ends with the process |
//!
//! With a lease the effect is not part of the guard's commit: a crash between the two repeats it,
//! once the lease has run out.
//!
//! A store of your own implements [`IdempotencyStore`]; with the feature `testing`,
//! `testing::conformance` tries it against every point of the contract
//! (`examples/custom_store.rs`).
//!
//! # Features
//!
//! | Feature | Default | What it adds |
//! |---|---|---|
//! | `tls` | yes | `amqps://`, `rediss://` and TLS to the SQL databases, with rustls, ring and the system's certificates |
//! | `postgres` | no | `PostgresStore` |
//! | `mysql` | no | `MySqlStore`, for MySQL 8 and MariaDB 10.6 and newer |
//! | `sqlite` | no | `SqliteStore`, with SQLite compiled in |
//! | `redis` | no | `RedisStore`, for Redis 5 or later and Valkey, single servers and clusters |
//! | `metrics` | no | counters, gauges and histograms through the `metrics` facade |
//! | `testing` | no | `testing`: tests of a handler without a broker, crashed everywhere; a conformance suite for stores and outboxes of your own, a clock set by hand, an outbox and a publisher in memory; with tokio's `test-util` |
//! | `cli` | no | the program `lapin-idempotent`, for those who run the services: schema, store, outbox, parked messages, a doctor; with `tls` and all stores |
//! | `backoff` | no | a `backoff::ExponentialBackoff` where a [`RetryPolicy`] goes (that crate is unmaintained: RUSTSEC-2025-0012) |
//!
//! # The guide
//!
//! [`guide`] has twelve pages: quick start, how it works, message IDs, stores, failures,
//! production, reference, the outbox, requests and replies, a loop or a store of your own, testing
//! your handler, and replays.
//!
//! # The tree
//!
//! [`message`] is what travels, [`idempotency`] the protocol, [`publisher`] sends, [`consumer`]
//! receives, [`outbox`] publishes what a transaction has committed, [`store`] remembers, [`amqp`]
//! connects; `testing` tries handlers and stores.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod amqp;
pub mod consumer;
mod error;
pub mod guide;
pub mod idempotency;
pub mod message;
mod now;
pub mod outbox;
pub mod publisher;
pub mod store;
mod task;
#[cfg(all(test, feature = "metrics"))]
#[allow(clippy::unwrap_used)]
mod test_support;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;

/// The AMQP client underneath, in the version that this crate's own signatures name.
pub use lapin;
/// The client of Redis, in the version that this crate's own signatures name.
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use redis;
/// The client of the SQL databases, in the version that this crate's own signatures name.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))))]
pub use sqlx;

pub use amqp::ConnectError;
pub use consumer::{ConsumeError, IdempotentConsumer};
pub use error::BoxError;
pub use idempotency::{
    Guard, HandlerError, HandlerResult, IdempotencyStore, IdempotentHandler, Lease, Outcome, Scope,
    handler_fn,
};
pub use message::{IdStrategy, IncomingMessage, MessageId, OutgoingMessage};
pub use outbox::Relay;
pub use publisher::{IdempotentPublisher, Publish, PublishError, Receipt, RetryPolicy};
pub use store::MemoryStore;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use store::RedisStore;
#[cfg(feature = "mysql")]
#[cfg_attr(docsrs, doc(cfg(feature = "mysql")))]
pub use store::{MySqlOutbox, MySqlStore, MySqlTransaction};
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use store::{PostgresOutbox, PostgresStore, PostgresTransaction};
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use store::{SqliteOutbox, SqliteStore, SqliteTransaction};

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
