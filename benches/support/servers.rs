//! What servers the figures are of.

use lapin_idempotent::{
    MySqlStore, PostgresStore, RedisStore, SqliteStore, amqp::ServerVersion, store::ServerFacts,
};
use tokio::runtime::Runtime;

/// The broker's version, and those of the databases.
pub(crate) fn servers() -> Vec<(&'static str, String)> {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name}: run `make bench`"));
    let asking = async {
        let broker = ServerVersion::ask(variable("AMQP_URL")).await.expect("broker");
        let postgres = PostgresStore::connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
        let mysql = MySqlStore::connect(&variable("MYSQL_URL")).await.expect("MySQL");
        let redis = RedisStore::connect(&variable("REDIS_URL")).await.expect("Redis");
        let sqlite = SqliteStore::connect("sqlite::memory:").await.expect("SQLite");
        let of = |facts: ServerFacts| facts.version;
        vec![
            ("RabbitMQ", broker.to_string()),
            ("PostgreSQL", of(postgres.server().await.expect("PostgreSQL"))),
            ("MySQL", of(mysql.server().await.expect("MySQL"))),
            ("Redis", of(redis.server().await.expect("Redis"))),
            ("SQLite", of(sqlite.server().await.expect("SQLite"))),
        ]
    };
    Runtime::new().expect("runtime").block_on(asking)
}
