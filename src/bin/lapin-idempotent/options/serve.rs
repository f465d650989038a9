//! What the web page is told.

#![allow(clippy::doc_markdown)]

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The parking queues to show, such as payments.debit.parked
    #[arg(value_name = "QUEUE")]
    pub(crate) queues: Vec<String>,
    /// The delivery limit of the parking queues, 0 for none: a look counts as a delivery there, so
    /// messages near the limit go to the end of their queue, counted from 0 again
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) delivery_limit: u32,
    /// Keep as many messages of a queue as this; those behind them are counted
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub(crate) limit: u64,
    /// Where to listen, without TLS. Beyond this machine, reading needs the token, too
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    pub(crate) listen: SocketAddr,
    /// A name that browsers reach it by, besides the address and localhost
    #[arg(long = "host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
    /// A file whose first line is the token that changes need; or SERVE_TOKEN has it. By default
    /// one is made up and told once, on standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}
