//! Publishers and consumers as processes, a cluster of three RabbitMQ nodes and PostgreSQL, and
//! whatever can go wrong with them, all at once: nothing is lost and nothing takes effect twice.
//! The same without the guard doubles effects, or the run is void.
//!
//! `make chaos` runs it for as long as you like; as a test it is short. Every fault follows from
//! the seed, but for the moment that it hits.
//!
//! ```text
//! plan       which faults, when, to whom        stage     brokers and database        tally     what the processes have noted
//! faults     how each is done, and seen         crew      the processes               verdict   lost, doubled, left over
//! act        one run under faults               publisher, consumer   what they run   report    Markdown, SVG, live view
//!                                               producer  enqueues and relays         audit     what was published, in its order
//! ```

#![allow(
    unreachable_pub,
    missing_debug_implementations,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::missing_panics_doc
)]

#[macro_use]
#[allow(dead_code)]
mod support;

mod chaos {
    use super::support;

    pub mod act;
    pub mod audit;
    pub mod consumer;
    pub mod crew;
    pub mod faults;
    pub mod journal;
    pub mod link;
    pub mod plan;
    pub mod process;
    pub mod producer;
    pub mod publisher;
    pub mod report;
    pub mod run;
    pub mod stage;
    pub mod tally;
    pub mod timeline;
    pub mod verdict;
    pub mod view;

    trials! {
        short_run_nothing_lost_nothing_doubled,
        short_run_with_an_outbox_what_is_committed_is_published,
    }

    async fn short_run_nothing_lost_nothing_doubled() {
        assert!(run::run(&run::Options::short(false)).await.expect("runs"), "see above");
    }

    async fn short_run_with_an_outbox_what_is_committed_is_published() {
        assert!(run::run(&run::Options::short(true)).await.expect("runs"), "see above");
    }
}

use std::process::ExitCode;

use clap::Parser;
use lapin_idempotent::BoxError;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

use chaos::{
    consumer, producer, publisher,
    run::{self, Options},
};

#[derive(Parser)]
#[command(name = "chaos")]
enum Command {
    /// Runs publishers and consumers under random faults, and counts what became of every message
    Run(Options),
    /// A publisher, as the run starts it
    #[command(hide = true)]
    Publish(publisher::Options),
    /// A producer with an outbox and a relay, as the run starts it
    #[command(hide = true)]
    Produce(producer::Options),
    /// A consumer, as the run starts it
    #[command(hide = true)]
    Consume(consumer::Options),
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("run" | "publish" | "produce" | "consume") => {}
        _ => return support::trials::run(&["AMQP_URL", "POSTGRES_URL"], &[chaos::trials]),
    }
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("lapin_idempotent=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr);
    let command = Command::parse();
    let work = async {
        match command {
            Command::Run(options) => run::run(&options).await,
            Command::Publish(options) => {
                log.init();
                publisher::run(&options).await.map(|()| true)
            }
            Command::Produce(options) => {
                log.init();
                producer::run(&options).await.map(|()| true)
            }
            Command::Consume(options) => {
                log.init();
                consumer::run(&options).await.map(|()| true)
            }
        }
    };
    let done: Result<bool, BoxError> =
        Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime").block_on(work);
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
