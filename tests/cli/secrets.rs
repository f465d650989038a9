//! A password is in nothing that the program prints, whether it works or not.

use super::{program::variable, support::broker};

pub const CANARY: &str = "canary-s3cr3t";

/// What is run with each pair of URLs.
pub const COMMANDS: [&str; 13] = [
    "--help",
    "schema check --help",
    "schema print",
    "schema check",
    "schema apply --yes",
    "store find ledger order-1",
    "store count ledger --json",
    "replay list",
    "outbox status",
    "outbox relay --until-empty",
    "parked list no.such.queue",
    "doctor --queue no.such.queue --outbox",
    "doctor --json",
];

/// A server's URL with a user and a password put in.
pub fn with_user(url: &str, user: &str, password: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let rest = rest.split_once('@').map_or(rest, |(_, rest)| rest);
    format!("{scheme}://{user}:{password}@{rest}")
}

/// Stores that cannot be used, for one reason or another.
pub fn stores() -> [String; 7] {
    [
        with_user(&variable("POSTGRES_URL"), "nobody.there", CANARY),
        with_user(&variable("MYSQL_URL"), "nobody", CANARY),
        with_user(&variable("REDIS_URL"), "nobody", CANARY),
        format!("postgres://u:{CANARY}@127.0.0.1:1/db?password={CANARY}"),
        format!("mysql://u:{CANARY}@127.0.0.1:99999999/db"),
        format!("redis://u:{CANARY}@127.0.0.1:1/0?x={CANARY}"),
        format!("unknown://u:{CANARY}@127.0.0.1:1"),
    ]
}

/// Brokers, of which one can.
pub fn brokers() -> [String; 3] {
    [
        broker(),
        with_user(&broker(), "nobody", CANARY),
        format!("amqp://u:{CANARY}@127.0.0.1:1/%2f?unknown={CANARY}"),
    ]
}
