//! The guard inside a plain lapin consume loop, for a service that has one already.
//!
//! ```sh
//! cargo run --example existing_loop -- payments.debit
//! ```
//!
//! Consumes a queue that exists, until Ctrl-C or SIGTERM. [`consume`] is the loop to copy: it acks,
//! delays, parks and holds as the consumer of the crate does, pauses while the store or what the
//! handler needs is away, subscribes again after a lost connection, and finishes what it has in
//! hand when it stops.

use std::{collections::VecDeque, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Connection, ConnectionProperties, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::FieldTable,
};
use lapin_idempotent::{
    BoxError, Guard, HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, MemoryStore, Scope,
    consumer::{DeliverySettler, UnsettledDelivery},
    idempotency::Lease,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

/// How many deliveries are here at most, those that are held included.
const PREFETCH: u16 = 32;

/// How long the store, or what the handler depends on, is left alone when it is away.
const AWAY: Duration = Duration::from_secs(1);

/// How long to wait before a lost subscription is made anew.
const RECONNECT: Duration = Duration::from_secs(1);

/// How long connecting may take, and finishing what was begun when the loop stops.
const LIMIT: Duration = Duration::from_secs(10);

/// Consumes until it is told to stop.
pub async fn consume<S: IdempotencyStore, H: IdempotentHandler<S>>(
    (url, queue): (&str, &str),
    (guard, handler): (&Guard<S>, &H),
    settler: &DeliverySettler,
    mut stop: watch::Receiver<bool>,
) {
    // `Ok` when it was told to stop.
    while let Err(error) = subscription((url, queue), (guard, handler), settler, &mut stop).await {
        eprintln!("subscription lost: {error}");
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = sleep(RECONNECT) => {}
        }
    }
    settler.close(LIMIT).await;
}

/// One connection and what it delivers, until it is lost or the loop is told to stop.
async fn subscription<S: IdempotencyStore, H: IdempotentHandler<S>>(
    (url, queue): (&str, &str),
    (guard, handler): (&Guard<S>, &H),
    settler: &DeliverySettler,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), BoxError> {
    let connection = timeout(LIMIT, Connection::connect(url, ConnectionProperties::default())).await??;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = channel.basic_consume(queue.into(), "".into(), options, arguments).await?;

    // What was held, and is due.
    let mut due = VecDeque::new();
    // What is being delayed, parked or held. It goes with its channel: dropped when that is lost.
    let mut settling = FuturesUnordered::new();
    let mut not_before = Instant::now();
    loop {
        let delivery = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Some(settled) = settling.next() => {
                due.extend(settled);
                continue;
            }
            next = next(&mut due, &mut deliveries, settler, not_before) => next?,
        };
        let outcome = guard.process(delivery.message(), handler).await;
        if outcome.is_unavailable() {
            eprintln!("{}; nothing is taken for a while", outcome.name());
            not_before = Instant::now() + AWAY;
        }
        settling.push(settler.settle(delivery, outcome));
    }

    // Nothing more comes; what is being published is waited for, and what is held goes back.
    let finish = async {
        channel.basic_cancel(deliveries.tag(), BasicCancelOptions::default()).await?;
        let _ = timeout(LIMIT / 2, async { while settling.next().await.is_some() {} }).await;
        // Tag 0 is all that is outstanding. RabbitMQ 4.3 and later counts a closed channel towards
        // the delivery limit, and not this.
        channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true }).await?;
        connection.close(200, "stopped".into()).await
    };
    Ok(timeout(LIMIT, finish).await??)
}

/// The next message to ask the guard for, but not before what is away is to be tried again. Those
/// that are due and those that come have their turns: what is away may be so for the due ones only.
async fn next(
    due: &mut VecDeque<UnsettledDelivery>,
    deliveries: &mut Consumer,
    settler: &DeliverySettler,
    not_before: Instant,
) -> Result<UnsettledDelivery, BoxError> {
    sleep_until(not_before).await;
    tokio::select! {
        Some(delivery) = async { due.pop_front() } => Ok(delivery),
        delivered = deliveries.next() => match delivered {
            Some(delivery) => Ok(settler.receive(delivery?)),
            None => Err("the broker cancelled the consumer".into()),
        },
    }
}

struct Print;

impl IdempotentHandler<MemoryStore> for Print {
    async fn handle(&self, message: &IncomingMessage, _lease: &mut Lease) -> HandlerResult {
        println!("handling {}", message.text()?);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let queue = std::env::args().nth(1).unwrap_or_else(|| "payments.debit".to_owned());
    // A service that must not forget at its restart takes the store of a database.
    let guard = Guard::new(MemoryStore::new(100_000), Scope::new("printer")?)
        .immediate_retries(2)
        .handler_timeout(Duration::from_secs(30));
    guard.store().check().await?;
    let settler = DeliverySettler::builder(&url, &queue).build(&guard)?;
    let (stop, stopped) = watch::channel(false);
    let mut terminated = signal(SignalKind::terminate())?;
    let stopping = async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        let _ = stop.send(true);
    };
    tokio::join!(consume((&url, &queue), (&guard, &Print), &settler, stopped), stopping);
    Ok(())
}
