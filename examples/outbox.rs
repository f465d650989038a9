//! An order is written and announced in one transaction; a relay publishes in the background what
//! was committed, also after a crash.
//!
//! ```sh
//! cargo run --example outbox --features sqlite
//! curl -i localhost:3000/orders -H 'content-type: application/json' -d '{"id":"42","amount":500}'
//! curl localhost:3000/readyz
//! ```

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use lapin_idempotent::{
    BoxError, IdempotentPublisher, OutgoingMessage, Relay, SqliteOutbox, outbox::RelayMonitor,
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

#[derive(Parser)]
struct Options {
    #[arg(long, env = "AMQP_URL", default_value = "amqp://localhost")]
    amqp: String,
    #[arg(long, default_value = "orders.placed")]
    queue: String,
    #[arg(long, default_value = "sqlite:outbox.db?mode=rwc")]
    database: String,
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
}

#[derive(Serialize, Deserialize)]
struct Order {
    id: String,
    amount: i64,
}

#[derive(Clone)]
struct Service {
    queue: String,
    outbox: SqliteOutbox,
    relay: RelayMonitor,
}

/// Both are committed, or none is: what is answered with `201` will be announced.
async fn place(service: &Service, order: &Order) -> Result<(), BoxError> {
    let mut tx = service.outbox.pool().begin().await?;
    sqlx::query("INSERT INTO orders (id, amount) VALUES (?, ?)")
        .bind(&order.id)
        .bind(order.amount)
        .execute(&mut *tx)
        .await?;
    let placed = OutgoingMessage::to("", &service.queue)
        .idempotency_key_parts(["placed", &order.id])
        .kind("order.placed")
        .json(order)?;
    service.outbox.enqueue_in_order(&mut tx, &order.id, placed).await?;
    tx.commit().await?;
    service.outbox.wake();
    Ok(())
}

async fn orders(State(service): State<Service>, Json(order): Json<Order>) -> Response {
    match place(&service, &order).await {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Orders are taken while the broker is away; how much waits is for an alert.
async fn ready(State(service): State<Service>) -> String {
    let status = service.relay.status();
    let table = status.table.unwrap_or_default();
    format!("relay {}, {} to be published, {} parked\n", status.state.name(), table.backlog, table.parked)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let Options { amqp, queue, database, listen } = Options::parse();
    let outbox = SqliteOutbox::connect(&database).await?;
    outbox.create_schema().await?;
    let orders_table =
        "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, amount INTEGER NOT NULL) STRICT";
    sqlx::query(orders_table).execute(outbox.pool()).await?;
    let declared = queue.clone();
    let publisher = IdempotentPublisher::builder(&amqp)
        .app_id("orders")
        .topology(move |channel| {
            let queue = declared.clone();
            async move {
                let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(queue.into(), durable, FieldTable::default()).await.map(drop)
            }
        })
        .connect()
        .await?;
    let relay = Relay::new(outbox.clone(), publisher);
    relay.check().await?;
    let relay = relay.spawn();

    let service = Service { queue, outbox, relay: relay.monitor() };
    let routes =
        Router::new().route("/orders", post(orders)).route("/readyz", get(ready)).with_state(service);
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let mut terminated = signal(SignalKind::terminate())?;
    let shutdown = async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
    };
    axum::serve(listener, routes).with_graceful_shutdown(shutdown).await?;
    // What was sent is waited for; the rest is in the table, for the next start.
    relay.stop().await;
    Ok(())
}
