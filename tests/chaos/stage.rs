//! Three RabbitMQ nodes with a quorum queue, and PostgreSQL.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use super::support::{amqp::Client, node::Cluster, server::Server};

/// What the sessions of the run itself are called, so that they are left alone.
const OURS: &str = "chaos";

pub const NODES: usize = 3;

/// Queues that are not empty, and how many messages are in them.
pub type Left = Vec<(String, u64)>;

pub struct Stage {
    pub cluster: Cluster,
    pub postgres: Server,
    pool: PgPool,
}

impl Stage {
    pub async fn set() -> Self {
        let (cluster, postgres) = tokio::join!(Cluster::start(NODES), Server::start("postgres", &[]));
        let options: PgConnectOptions = postgres.url().parse().expect("URL");
        let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(10));
        let pool = pool.connect_lazy_with(options.application_name(OURS));
        Self { cluster, postgres, pool }
    }

    pub fn nodes(&self) -> Vec<&str> {
        self.cluster.urls()
    }

    /// A quorum queue that outlives any one node.
    pub async fn queue(&self) -> String {
        let queue = Client::connect(self.nodes()[0]).await.quorum_queue("chaos").await;
        // A node that is killed before can start again without it.
        for node in self.cluster.nodes() {
            node.sync().await;
        }
        queue
    }

    pub async fn run(&self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.map(drop)
    }

    /// The rows of two integers of a query.
    pub async fn rows(&self, sql: &str) -> Result<Vec<(i64, i64)>, sqlx::Error> {
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&self.pool).await
    }

    /// The one integer of a query; none if the database does not answer in time.
    pub async fn number(&self, sql: &str, limit: Duration) -> Option<i64> {
        let asked = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool);
        timeout(limit, asked).await.ok()?.ok()
    }

    /// Ends about half of the consumers' sessions, or the only one: how many.
    pub async fn terminate_backends(&self) -> Option<i64> {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND application_name <> '{OURS}' \
             ORDER BY random() LIMIT (SELECT (count(*) + 1) / 2 FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND application_name <> '{OURS}')) AS half"
        );
        self.number(&sql, Duration::from_secs(10)).await
    }

    /// Everything runs again, whatever became of a fault.
    pub async fn mend(&self) {
        for node in self.cluster.nodes() {
            // One that is dead cannot be resumed, and one that runs is not started again.
            let _ = AssertUnwindSafe(node.resume()).catch_unwind().await;
            node.start_again().await;
            node.memory_alarm(false).await;
        }
        let _ = AssertUnwindSafe(self.postgres.resume()).catch_unwind().await;
        self.postgres.start_again().await;
    }

    /// What is left in the queue and in those that belong to it, unacked or not, as of some seconds
    /// ago.
    pub async fn left(&self, queue: &str) -> Left {
        let listed =
            self.cluster.nodes()[0].ctl(&["list_queues", "--no-table-headers", "name", "messages"]).await;
        let queues = listed.lines().filter_map(|line| {
            let (name, count) = line.rsplit_once('\t')?;
            Some((name.to_owned(), count.parse().ok()?))
        });
        queues.filter(|(name, count): &(String, u64)| name.starts_with(queue) && *count > 0).collect()
    }

    /// What is ready in the queue now.
    pub async fn ready(&self, queue: &str) -> Left {
        let count = Client::connect(self.nodes()[0]).await.ready(queue).await;
        Some((queue.to_owned(), count.into())).filter(|_| count > 0).into_iter().collect()
    }

    /// What it is made of.
    pub async fn versions(&self) -> (String, String) {
        let rabbitmq = self.cluster.nodes()[0].ctl(&["version"]).await;
        let postgres =
            sqlx::query_scalar("SHOW server_version").fetch_one(&self.pool).await.expect("version");
        (rabbitmq, postgres)
    }
}
