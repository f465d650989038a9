use std::time::Duration;
use lapin_idempotent::{PostgresStore, idempotency::Sweeper};

# async fn example() -> Result<(), lapin_idempotent::BoxError> {
// The pool is as large as the consumer has workers, and then some.
let url = "postgres://localhost/ledger";
let store = PostgresStore::connect_with(url, |pool| pool.max_connections(16))
    .await?
    .lock_timeout(Duration::from_secs(2));
store.create_schema().await?; // or run `schema_sql()` in your own migrations
let sweeper = Sweeper::new(store.clone(), Duration::from_secs(30 * 86_400)).spawn();
# drop(sweeper);
# Ok(())
# }
