//! The promises, against a real broker. `make test` starts one; without `AMQP_URL` these tests are
//! listed as ignored.

#![allow(
    unreachable_pub,
    missing_debug_implementations,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::missing_panics_doc
)]
#[cfg(feature = "sqlite")]
mod run;

#[cfg(feature = "sqlite")]
fn main() -> std::process::ExitCode {
    run::main()
}

#[cfg(not(feature = "sqlite"))]
fn main() {
    eprintln!("left out for want of the feature `sqlite`: all service tests. `make test` runs them.");
}
