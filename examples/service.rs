//! A whole service: publishes a debit on a request, and books debits in the background. Health
//! probes, Prometheus metrics, graceful stop.
//!
//! ```sh
//! cargo run --example service --features sqlite,metrics
//! curl -i localhost:3000/debits -H 'content-type: application/json' -d '{"order":"42","account":"A","amount":500}'
//! curl localhost:3000/healthz localhost:3000/readyz localhost:3000/metrics
//! ```

use std::{net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::{State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use futures_util::{FutureExt, future::try_join};
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use lapin_idempotent::{
    BoxError, HandlerResult, IdempotentConsumer, IdempotentHandler, IdempotentPublisher, IncomingMessage,
    OutgoingMessage, SqliteStore,
    consumer::ConsumerMonitor,
    publisher::{PublishErrorKind, PublisherState},
    store::SqliteTransaction,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

#[derive(Parser)]
struct Options {
    #[arg(long, env = "AMQP_URL", default_value = "amqp://localhost")]
    amqp: String,
    #[arg(long, default_value = "payments.debit")]
    queue: String,
    #[arg(long, default_value = "sqlite:service.db")]
    database: String,
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
}

#[derive(Serialize, Deserialize)]
struct Debit {
    order: String,
    account: String,
    amount: i64,
}

#[derive(Clone)]
struct Service {
    queue: String,
    publisher: IdempotentPublisher,
    consumer: ConsumerMonitor,
    metrics: PrometheusHandle,
}

/// `202` only when the broker has confirmed it. A client that repeats its request publishes the
/// same message again, which takes effect once.
async fn debit(
    State(service): State<Service>,
    headers: HeaderMap,
    body: Result<Json<Debit>, JsonRejection>,
) -> Response {
    let debit = match body {
        Ok(Json(debit)) => debit,
        Err(rejection) => return (StatusCode::BAD_REQUEST, rejection.body_text()).into_response(),
    };
    let key = match headers.get("idempotency-key").map(|key| key.to_str()) {
        None => format!("debit/{}", debit.order),
        Some(Ok(key)) => key.to_owned(),
        // Never replaced: the client repeats its request under the key that it gave.
        Some(Err(error)) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let message = OutgoingMessage::to("", &service.queue).idempotency_key(key);
    let message = match message.json(&debit) {
        Ok(message) => message,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    match service.publisher.publish_idempotent(message).await {
        Ok(receipt) => {
            let receipt =
                json!({ "message_id": receipt.message_id().as_str(), "attempts": receipt.attempts() });
            (StatusCode::ACCEPTED, Json(receipt)).into_response()
        }
        Err(error) if error.kind() == PublishErrorKind::Invalid => {
            (StatusCode::BAD_REQUEST, error.to_string()).into_response()
        }
        Err(error) => {
            let unsure = error.may_have_been_published();
            let answer = json!({ "error": error.to_string(), "may_have_been_published": unsure });
            (StatusCode::SERVICE_UNAVAILABLE, Json(answer)).into_response()
        }
    }
}

fn probe(good: bool, text: String) -> (StatusCode, String) {
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn live(State(service): State<Service>) -> (StatusCode, String) {
    let status = service.consumer.status();
    probe(status.is_live(), status.state.name().to_owned())
}

async fn ready(State(service): State<Service>) -> (StatusCode, String) {
    let (consumer, publisher) = (service.consumer.status(), service.publisher.status());
    let good = consumer.is_ready() && publisher.state == PublisherState::Connected;
    probe(good, format!("consumer {}, publisher {:?}", consumer.state.name(), publisher.state))
}

struct Book;

impl IdempotentHandler<SqliteStore> for Book {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let debit: Debit = message.json()?;
        sqlx::query("INSERT INTO ledger (order_number, account, amount) VALUES (?, ?, ?)")
            .bind(debit.order)
            .bind(debit.account)
            .bind(debit.amount)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let Options { amqp, queue, database, listen } = Options::parse();
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let declared = queue.clone();
    let publisher = IdempotentPublisher::builder(&amqp)
        .app_id("service")
        .topology(move |channel| {
            let queue = declared.clone();
            async move {
                let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(queue.into(), durable, FieldTable::default()).await.map(drop)
            }
        })
        .connect()
        .await?;
    let store = SqliteStore::connect(&database).await?;
    store.create_schema().await?;
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS ledger (order_number TEXT, account TEXT, amount INTEGER)")
        .execute(store.pool())
        .await?;
    let consumer = IdempotentConsumer::builder(&amqp, &queue, store).scope("ledger");
    let service = Service { queue, publisher: publisher.clone(), consumer: consumer.monitor(), metrics };
    let router = Router::new()
        .route("/debits", post(debit))
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|State(service): State<Service>| async move {
                service.metrics.run_upkeep();
                service.metrics.render()
            }),
        )
        .with_state(service);

    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    let stopped = stopped.shared();
    let serving = axum::serve(listener, router).with_graceful_shutdown(stopped.clone());
    let serving = async { serving.await.map_err(BoxError::from) };
    let consuming = async { consumer.run_until(Book, stopped).await.map_err(BoxError::from) };
    // Requests and handlers that run are let finish; if one of the two fails, so does the service.
    try_join(serving, consuming).await?;
    publisher.close(Duration::from_secs(10)).await?;
    Ok(())
}
