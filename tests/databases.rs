//! What the stores promise, on real servers. `make test` starts them; without `POSTGRES_URL`,
//! `MYSQL_URL`, `REDIS_URL` and `AMQP_URL` these tests are listed as ignored.

#![allow(
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
#[macro_use]
#[allow(dead_code)]
mod support;

#[cfg(all(
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "redis",
    feature = "testing"
))]
mod databases {
    use super::support;

    mod batches;
    mod changes;
    mod claims;
    mod commit;
    mod conformance;
    mod consuming;
    mod copies;
    mod crashes;
    mod database;
    mod examples;
    mod flow;
    mod kit;
    mod leases;
    mod limits;
    mod outages;
    mod outbox;
    mod partitions;
    mod pooled;
    mod processes;
    mod reconnects;
    mod refusals;
    mod replays;
    mod replies;
    mod retention;
    mod schema;
    mod seeds;
    mod sharing;
    mod shop;
    mod sweep;
    mod tags;
    mod worker;

    pub(crate) fn main() -> std::process::ExitCode {
        if let Some(code) = processes::child() {
            return code;
        }
        // PgBouncer is installed with the servers where that can be done.
        let pooled = |there| pooled::trials(there && pooled::version().is_some());
        support::trials::run(
            &["AMQP_URL", "POSTGRES_URL", "MYSQL_URL", "REDIS_URL"],
            &[
                batches::trials,
                changes::trials,
                claims::trials,
                commit::trials,
                conformance::trials,
                copies::trials,
                crashes::trials,
                examples::trials,
                kit::trials,
                leases::trials,
                limits::trials,
                outages::trials,
                outbox::trials,
                partitions::trials,
                processes::trials,
                reconnects::trials,
                refusals::trials,
                replays::trials,
                replies::trials,
                retention::trials,
                schema::trials,
                seeds::trials,
                sharing::trials,
                shop::trials,
                sweep::trials,
                tags::trials,
                pooled,
            ],
        )
    }
}

#[cfg(all(
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "redis",
    feature = "testing"
))]
fn main() -> std::process::ExitCode {
    databases::main()
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
