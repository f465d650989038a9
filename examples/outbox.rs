//! An order is written and announced in one transaction; a relay publishes in the background what
//! was committed, also after a crash, and whether or not the broker is there when the order comes.
//!
//! ```sh
//! cargo run --example outbox --features sqlite
//! curl -i localhost:3000/orders -H 'content-type: application/json' -d '{"id":"42","amount":500}'
//! curl -i localhost:3000/healthz localhost:3000/readyz
//! ```

use std::{net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::{State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use lapin_idempotent::{
    BoxError, IdempotentPublisher, OutgoingMessage, Relay, SqliteOutbox,
    outbox::{EnqueueError, RelayMonitor},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

/// While so many wait to be announced, requests should go elsewhere. A status counts no further
/// than 10,000 in each lane, and SQLite has one.
const MAX_BACKLOG: u64 = 10_000;

#[derive(Parser)]
struct Options {
    #[arg(long, env = "AMQP_URL", default_value = "amqp://localhost")]
    amqp: String,
    #[arg(long, default_value = "orders.placed")]
    queue: String,
    #[arg(long, default_value = "sqlite:outbox.db")]
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

/// Both are committed, or none is: what is answered with `201` will be announced. `false` if there
/// is such an order.
async fn place(service: &Service, order: &Order) -> Result<bool, BoxError> {
    let mut tx = service.outbox.pool().begin().await?;
    let placed = sqlx::query("INSERT INTO orders (id, amount) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(&order.id)
        .bind(order.amount)
        .execute(&mut *tx)
        .await?;
    if placed.rows_affected() == 0 {
        return Ok(false);
    }
    let placed = OutgoingMessage::to("", &service.queue)
        .idempotency_key_parts(["placed", &order.id])
        .kind("order.placed")
        .json(order)?;
    // Refused before any SQL if it could not be published; then nothing is committed.
    service.outbox.enqueue_in_order(&mut tx, &order.id, placed).await?;
    tx.commit().await?;
    service.outbox.wake();
    Ok(true)
}

async fn orders(State(service): State<Service>, body: Result<Json<Order>, JsonRejection>) -> Response {
    let order = match body {
        Ok(Json(order)) => order,
        Err(rejection) => return (StatusCode::BAD_REQUEST, rejection.body_text()).into_response(),
    };
    match place(&service, &order).await {
        Ok(true) => StatusCode::CREATED.into_response(),
        Ok(false) => (StatusCode::CONFLICT, "there is such an order").into_response(),
        Err(error) => {
            if let Some(EnqueueError::Invalid { source, .. }) = error.downcast_ref() {
                return (StatusCode::BAD_REQUEST, source.to_string()).into_response();
            }
            tracing::error!(error, order = order.id, "an order was not placed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn probe(good: bool, text: String) -> (StatusCode, String) {
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn live(State(service): State<Service>) -> (StatusCode, String) {
    let status = service.relay.status();
    probe(status.is_live(), format!("relay {}\n", status.state.name()))
}

/// Ready without the broker, too, but not without end.
async fn ready(State(service): State<Service>) -> (StatusCode, String) {
    let table = service.relay.status().table.unwrap_or_default();
    let text = format!("{} to be published, {} parked\n", table.backlog, table.parked);
    probe(table.backlog < MAX_BACKLOG, text)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let Options { amqp, queue, database, listen } = Options::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
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
        // `connect` would fail without a broker, and no order could be taken.
        .connect_lazy()?;
    let relay = Relay::new(outbox.clone(), publisher.clone());
    relay.check().await?;
    let relay = relay.spawn();

    let service = Service { queue, outbox, relay: relay.monitor() };
    let routes = Router::new()
        .route("/orders", post(orders))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .with_state(service);
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    axum::serve(listener, routes).with_graceful_shutdown(stopped).await?;
    // What was sent is waited for; the rest is in the table, for the next start.
    relay.stop().await;
    Ok(publisher.close(Duration::from_secs(5)).await?)
}
