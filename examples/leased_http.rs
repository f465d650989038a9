//! Charges cards through another company's HTTP API, which no transaction here can hold. A lease
//! keeps two consumers from one message at a time, and the API's idempotency key, the same in every
//! run, keeps a crash between charge and ack from charging twice.
//!
//! `cargo run --example leased_http --features postgres`; Ctrl-C or SIGTERM stops it. `AMQP_URL`,
//! `POSTGRES_URL`, `QUEUE` and `API_URL` say where.

use std::time::Duration;

use lapin_idempotent::{
    BoxError, HandlerError, HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler,
    IncomingMessage, PostgresStore, idempotency::Lease,
};
use reqwest::{StatusCode, header::RETRY_AFTER};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

struct Charge {
    http: reqwest::Client,
    url: String,
}

impl<S: IdempotencyStore<Session = Lease>> IdempotentHandler<S> for Charge {
    async fn handle(&self, message: &IncomingMessage, lease: &mut Lease) -> HandlerResult {
        let charge: Value = message.json()?; // not decodable: parked
        let request = self.http.post(&self.url).json(&charge);
        // No answer at all: delivered again, under the same key.
        let response = request.header("Idempotency-Key", lease.effect_key("charge").as_str()).send().await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
                let seconds =
                    response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
                let delay = Duration::from_secs(seconds.unwrap_or(30));
                Err(HandlerError::retry_after(delay, format!("the API is busy: {status}")))
            }
            status if status.is_client_error() => {
                Err(HandlerError::reject(format!("the API refused the charge: {status}")))
            }
            status => Err(HandlerError::retry(format!("the API failed: {status}"))),
        }
    }
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let store =
        PostgresStore::connect(&setting("POSTGRES_URL", "postgres://postgres@localhost/postgres")).await?;
    store.create_schema().await?;
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
    let charge = Charge { http, url: setting("API_URL", "http://localhost:8080/charges") };
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    IdempotentConsumer::builder(
        setting("AMQP_URL", "amqp://localhost"),
        setting("QUEUE", "payments.charge"),
        // Renewed while the handler runs; if this process dies, another one takes over after so
        // long.
        store.leased(Duration::from_secs(30))?,
    )
    .scope("charging")
    .workers(16) // calls at once
    .handler_timeout(Duration::from_secs(20))
    .on_outcome(|message, outcome| {
        println!("{} {}", message.raw_message_id().unwrap_or("-"), outcome.name());
    })
    .run_until(charge, stopped)
    .await?;
    Ok(())
}
