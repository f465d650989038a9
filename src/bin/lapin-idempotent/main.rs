//! `lapin-idempotent`: what those need who run the services. Each command is a call or two of the
//! library, which has whatever the command line has.
//!
//! Reads: `options` (what can be asked), `servers` (URLs, and who answers there), `print` (what is
//! shown, and how it is made harmless), `screen` (a terminal that is drawn on), and a file for each
//! command, of which `browse` and `serve` are folders.

mod ask;
mod browse;
mod doctor;
mod exported;
mod log;
mod options;
mod outbox;
mod parked;
mod print;
mod progress;
mod replay;
mod schema;
mod screen;
mod serve;
mod servers;
mod signals;
mod snapshot;
mod store;
mod watch;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use self::{
    ask::{Done, Failure},
    options::{Command, Options},
    print::{Printer, escaped},
    servers::Servers,
};

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return refused(&error),
    };
    // What the library warns of: a lost index, what was forgotten on request, by this program too.
    let written = tracing_subscriber::fmt::layer().with_writer(|| log::Log).with_ansi(false);
    let named = Targets::new().with_target("lapin_idempotent", LevelFilter::WARN);
    tracing_subscriber::registry().with(written.without_time().with_target(false)).with(named).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("no runtime: {error}"), 1),
    };
    let servers = Servers::new(&options.common);
    let ended = runtime.block_on(run(&options, &servers));
    // A server that does not answer must not keep the program from ending.
    runtime.shutdown_background();
    match ended {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::Found) => ExitCode::from(3),
        // Such as `head`, which has seen enough.
        Err(Failure::Unread) => ExitCode::from(1),
        Err(Failure::Usage(text)) => failed(&servers.without_secrets(&text), 2),
        Err(Failure::Failed(text)) => failed(&servers.without_secrets(&text), 1),
    }
}

async fn run(options: &Options, servers: &Servers) -> Result<Done, Failure> {
    if servers::is_secret_told() {
        eprintln!(
            "warning: an argument holds a password, which `ps` shows to everyone: use STORE_URL, AMQP_URL, --store-file or --amqp-file"
        );
    }
    let printer = Printer { json: options.common.json };
    match &options.command {
        Command::Schema(command) => schema::run(command, servers, printer).await,
        Command::Store(command) => store::run(command, servers, printer).await,
        Command::Outbox(command) => outbox::run(command, servers, printer).await,
        Command::Parked(command) => parked::run(command, servers, printer).await,
        Command::Replay(command) => replay::run(command, servers, printer).await,
        Command::Doctor(command) => doctor::run(command, servers, printer).await,
        Command::Serve(command) => serve::run(command, servers).await,
    }
}

/// Help and version are no errors. A wrong argument may be a URL in the wrong place.
fn refused(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            for line in servers::without_passwords(&error.render().to_string()).lines() {
                eprintln!("{}", escaped(line, 4096));
            }
            ExitCode::from(2)
        }
    }
}

fn failed(text: &str, code: u8) -> ExitCode {
    for (index, line) in text.lines().enumerate() {
        eprintln!("{}{}", if index == 0 { "error: " } else { "" }, escaped(line, 4096));
    }
    ExitCode::from(code)
}
