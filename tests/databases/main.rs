//! What the stores promise, on real servers. `make test` starts them; without `POSTGRES_URL`,
//! `MYSQL_URL`, `REDIS_URL` and `AMQP_URL` these tests are listed as ignored.

#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::missing_panics_doc
)]
#[cfg(all(
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "redis",
    feature = "testing"
))]
mod run;

#[cfg(all(
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "redis",
    feature = "testing"
))]
fn main() -> std::process::ExitCode {
    run::main()
}

#[cfg(not(all(
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "redis",
    feature = "testing"
)))]
fn main() {
    eprintln!(
        "left out for want of the features `postgres`, `mysql`, `sqlite`, `redis`, `testing`: all tests. `make test` runs them."
    );
}
