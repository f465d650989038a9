//! What is particular to the Redis store, against real servers: a single one (`REDIS_URL`), a
//! cluster (`REDIS_CLUSTER_URL`, comma separated), and private ones. `make test` starts them;
//! without them these tests are listed as ignored.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::unused_async)]
#[cfg(all(feature = "redis", feature = "testing"))]
mod run;

#[cfg(all(feature = "redis", feature = "testing"))]
fn main() -> std::process::ExitCode {
    run::main()
}

#[cfg(not(all(feature = "redis", feature = "testing")))]
fn main() {
    eprintln!("left out for want of the features `redis`, `testing`: all tests. `make test` runs them.");
}
