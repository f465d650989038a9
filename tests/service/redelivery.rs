//! Failed messages: tried again at once, then after delays in the broker, then parked.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lapin::{
    options::{BasicPublishOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions},
    types::{AMQPValue, FieldArray, FieldTable},
};
use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotentHandler, IncomingMessage, SqliteStore, consumer::Redelivery,
    store::SqliteTransaction,
};

use super::support::{
    amqp::{Client, header, with_id},
    broker, eventually,
    ledger::{Debit, Ledger},
    proxy::{Action, From, Proxy, method, nth},
    unique,
};

trials! {
    failures_are_delayed_counted_and_parked,
    attempts_are_counted_across_restarts,
    held_instead_of_delayed_if_wanted,
    delayed_message_holds_nobody_up,
    handlers_own_delay_is_kept,
    message_that_expired_here_before_is_not_dropped_as_a_cycle,
    message_stays_when_it_cannot_be_delayed,
    no_duration_is_too_long_for_a_consumer,
    ack_behind_a_delayed_copy_lost_one_effect,
    confirm_of_a_delayed_copy_lost_one_effect,
    deleted_delay_queue_is_declared_anew,
}

pub(super) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a handler saw.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) at: Instant,
    pub(super) message: IncomingMessage,
}

/// Debits as `Debit` does, after as many failures as it is told; each with its own delay, if it is
/// told one.
#[derive(Clone)]
pub(super) struct Flaky {
    debit: Debit,
    failures: usize,
    after: Option<Duration>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Flaky {
    pub(super) fn new(failures: usize) -> Self {
        Self { debit: Debit::default(), failures, after: None, seen: Arc::default() }
    }

    /// Asks for this delay, when it fails.
    pub(super) fn after(self, delay: Duration) -> Self {
        Self { after: Some(delay), ..self }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("seen").clone()
    }
}

impl IdempotentHandler<SqliteStore> for Flaky {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let runs = {
            let mut seen = self.seen.lock().expect("seen");
            seen.push(Seen { at: Instant::now(), message: message.clone() });
            seen.len()
        };
        self.debit.handle(message, tx).await?;
        match self.after {
            _ if runs > self.failures => Ok(()),
            None => Err(HandlerError::retry("the bank is closed")),
            Some(after) => Err(HandlerError::retry_after(after, "the bank is closed")),
        }
    }
}

pub(super) async fn wait_for_parked(client: &Client, queue: &str, count: u32) {
    let parking = format!("{queue}.parked");
    let parked = async || {
        let there = client.ready(queue).await == 0 && client.ready(&parking).await == count;
        there.then_some(())
    };
    eventually("it is parked", parked).await;
}

/// Deletes a queue with all that its consumer declared.
pub(super) async fn delete(client: &Client, queue: &str, delays: &[u64]) {
    client.delete(queue).await;
    client.delete(&format!("{queue}.parked")).await;
    for delay in delays {
        client.delete(&format!("{queue}.retry.{delay}")).await;
    }
}

pub async fn failures_are_delayed_counted_and_parked() {
    let client = Client::connect(&broker()).await;
    let (queue, exchange) = (client.queue("delayed").await, unique("payments"));
    let (options, arguments) = (ExchangeDeclareOptions::default(), FieldTable::default());
    let kind = lapin::ExchangeKind::Topic;
    client
        .channel
        .exchange_declare(exchange.as_str().into(), kind, options, arguments)
        .await
        .expect("exchange");
    let (from, key) = (exchange.as_str().into(), "debit.#".into());
    let bind = client.channel.queue_bind(
        queue.as_str().into(),
        from,
        key,
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bind.await.expect("bind");
    let mut headers = FieldTable::default();
    headers.insert("tenant".into(), AMQPValue::LongString("t-1".into()));
    let properties =
        with_id("order-42").with_headers(headers).with_priority(3).with_expiration("60000".into());
    let (exchange_name, options) = (exchange.as_str().into(), BasicPublishOptions::default());
    let published =
        client.channel.basic_publish(exchange_name, "debit.eu".into(), options, b"500", properties);
    published.await.expect("publish").await.expect("confirm");

    let ledger = Ledger::create().await;
    let handler = Flaky::new(usize::MAX);
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
        b.immediate_retries(1).max_attempts(7).retry_delays(millis(60), millis(240))
    });
    let monitor = consumer.monitor.clone();
    wait_for_parked(&client, &queue, 1).await;
    consumer.stop().await;

    let seen = handler.seen();
    assert_eq!(seen.len(), 7, "twice in each delivery, and once in the last");
    let failures: Vec<u32> = seen.iter().map(|seen| seen.message.failures()).collect();
    assert_eq!(failures, [0, 0, 2, 2, 4, 4, 6]);
    // A delay may take longer, never less.
    for (delivery, least) in [(1, 60), (2, 240), (3, 240)] {
        let delay = seen[2 * delivery].at - seen[2 * delivery - 1].at;
        assert!(delay >= millis(least), "{delay:?} before delivery {delivery}");
    }
    for seen in &seen {
        let message = &seen.message;
        assert_eq!(message.raw_message_id(), Some("order-42"));
        assert_eq!((message.exchange(), message.routing_key()), (exchange.as_str(), "debit.eu"));
        assert_eq!(&message.body()[..], b"500");
        assert_eq!(message.header("tenant").and_then(|tenant| tenant.as_str()), Some("t-1"));
        assert_eq!(message.priority(), Some(3));
    }
    let status = monitor.status();
    assert_eq!((status.delayed, status.parked.get("attempts-exhausted")), (3, Some(&1)));
    let parked = client.get(&format!("{queue}.parked")).await.expect("parked");
    assert_eq!(parked.data, b"500");
    assert_eq!(header(&parked, "x-idempotency-parked-reason").as_deref(), Some("attempts-exhausted"));
    assert_eq!(header(&parked, "x-idempotency-parked-error").as_deref(), Some("the bank is closed"));
    assert_eq!(header(&parked, "x-idempotency-parked-attempts").as_deref(), Some("LongLongInt(7)"));
    assert_eq!(header(&parked, "x-idempotency-original-exchange").as_deref(), Some(exchange.as_str()));
    assert_eq!(header(&parked, "x-idempotency-original-routing-key").as_deref(), Some("debit.eu"));
    assert_eq!(header(&parked, "x-idempotency-original-queue").as_deref(), Some(queue.as_str()));
    let first = header(&parked, "x-idempotency-first-seen").expect("first seen");
    assert!(first <= header(&parked, "x-idempotency-parked-at").expect("parked at"), "{first}");
    assert_eq!(ledger.rows().await, (0, 0), "no failed run left anything behind");
    let _ = client.channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await;
    delete(&client, &queue, &[60, 240]).await;
}

pub async fn attempts_are_counted_across_restarts() {
    let client = Client::connect(&broker()).await;
    let queue = client.quorum_queue("restarts").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let handler = Flaky::new(usize::MAX);
    for runs in [2, 4] {
        let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
            b.immediate_retries(0).max_attempts(4).retry_delays(millis(50), millis(50))
        });
        eventually("it failed", async || (handler.seen().len() >= runs).then_some(())).await;
        consumer.stop().await;
    }
    wait_for_parked(&client, &queue, 1).await;
    assert_eq!(handler.seen().len(), 4, "each consumer goes on counting where the other stopped");
    delete(&client, &queue, &[50]).await;
}

pub async fn held_instead_of_delayed_if_wanted() {
    let client = Client::connect(&broker()).await;
    let queue = client.quorum_queue("held").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let handler = Flaky::new(usize::MAX);
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
        b.redelivery(Redelivery::Held)
            .immediate_retries(0)
            .max_attempts(3)
            .retry_delays(millis(30), millis(30))
    });
    wait_for_parked(&client, &queue, 1).await;
    consumer.stop().await;
    let seen: Vec<_> =
        handler.seen().iter().map(|seen| (seen.message.redelivered(), seen.message.failures())).collect();
    assert_eq!(seen, [(false, 0), (false, 1), (false, 2)], "the same delivery each time");
    let parked = client.get(&format!("{queue}.parked")).await.expect("parked");
    assert_eq!(header(&parked, "x-idempotency-parked-attempts").as_deref(), Some("LongLongInt(3)"));
    delete(&client, &queue, &[]).await;
}

/// A failed message waits in the broker: it holds neither the prefetch window nor a worker.
pub async fn delayed_message_holds_nobody_up() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("overtaken").await;
    client.publish(&queue, b"1", with_id("late")).await;
    for n in 0..5 {
        client.publish(&queue, b"1", with_id(&format!("m{n}"))).await;
    }
    let ledger = Ledger::create().await;
    let handler = Flaky::new(1);
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
        b.prefetch(1).immediate_retries(0).retry_delays(millis(500), millis(500))
    });
    eventually("all are handled", async || (ledger.rows().await == (6, 6)).then_some(())).await;
    consumer.stop().await;
    let order: Vec<String> =
        handler.seen().iter().filter_map(|seen| seen.message.raw_message_id().map(str::to_owned)).collect();
    assert_eq!(order, ["late", "m0", "m1", "m2", "m3", "m4", "late"]);
    delete(&client, &queue, &[500]).await;
}

/// Longer than any delay queue: made of several delays, and counted once.
pub async fn handlers_own_delay_is_kept() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("own-delay").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let handler = Flaky::new(1).after(millis(700));
    let consumer =
        ledger.consume_with(&broker(), &queue, handler.clone(), |b| b.retry_delays(millis(50), millis(200)));
    eventually("the effect", async || (ledger.rows().await == (1, 1)).then_some(())).await;
    let outcomes = consumer.decided(3).await;
    consumer.stop().await;
    assert_eq!((outcomes.first(), outcomes.last()), (Some(&"retry"), Some(&"processed")));
    assert!(outcomes[1..outcomes.len() - 1].iter().all(|outcome| *outcome == "too_early"), "{outcomes:?}");
    let seen = handler.seen();
    assert_eq!(seen.len(), 2, "not tried again at once, either");
    assert!(seen[1].at - seen[0].at >= millis(700), "{:?}", seen[1].at - seen[0].at);
    assert_eq!(seen[1].message.failures(), 1);
    delete(&client, &queue, &[50, 200]).await;
}

/// RabbitMQ drops a message that dead-letters to a queue in which it had expired before.
pub async fn message_that_expired_here_before_is_not_dropped_as_a_cycle() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cycle").await;
    let mut death = FieldTable::default();
    death.insert("queue".into(), AMQPValue::LongString(queue.as_str().into()));
    death.insert("reason".into(), AMQPValue::LongString("expired".into()));
    death.insert("exchange".into(), AMQPValue::LongString("".into()));
    death.insert("count".into(), AMQPValue::LongLongInt(1));
    let keys = FieldArray::from(vec![AMQPValue::LongString(queue.as_str().into())]);
    death.insert("routing-keys".into(), AMQPValue::FieldArray(keys));
    death.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
    let mut headers = FieldTable::default();
    let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death)]);
    headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
    client.publish(&queue, b"500", with_id("order-42").with_headers(headers)).await;
    let ledger = Ledger::create().await;
    let handler = Flaky::new(2);
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
        b.immediate_retries(0).retry_delays(millis(30), millis(30))
    });
    eventually("the effect", async || (ledger.rows().await == (1, 1)).then_some(())).await;
    consumer.stop().await;
    delete(&client, &queue, &[30]).await;
}

/// Where there is no delay queue to be had, the message is not lost, and says why in the status.
pub async fn message_stays_when_it_cannot_be_delayed() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("undeclarable").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    // Somebody else's, with other arguments: declaring it fails.
    let taken = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    let name = format!("{queue}.retry.40");
    client.channel.queue_declare(name.as_str().into(), taken, FieldTable::default()).await.expect("declare");
    let ledger = Ledger::create().await;
    let handler = Flaky::new(2);
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
        b.immediate_retries(0).retry_delays(millis(40), millis(40))
    });
    let monitor = consumer.monitor.clone();
    eventually("the effect", async || (ledger.rows().await == (1, 1)).then_some(())).await;
    consumer.stop().await;
    let error = monitor.status().last_error.expect("an error");
    assert!(error.contains("declared") && error.contains("PRECONDITION_FAILED"), "{error}");
    assert_eq!(client.ready(&name).await, 0, "nothing was put where nobody brings it back");
    delete(&client, &queue, &[40]).await;
}

pub async fn deleted_delay_queue_is_declared_anew() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("delay-deleted").await;
    let ledger = Ledger::create().await;
    let handler = Flaky::new(3);
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
        b.immediate_retries(0).retry_delays(millis(30), millis(30))
    });
    client.publish(&queue, b"500", with_id("a")).await;
    eventually("the first effect", async || (ledger.rows().await == (1, 1)).then_some(())).await;
    client.delete(&format!("{queue}.retry.30")).await;
    handler.seen.lock().expect("seen").clear();
    client.publish(&queue, b"500", with_id("b")).await;
    eventually("the second effect", async || (ledger.rows().await == (2, 2)).then_some(())).await;
    consumer.stop().await;
    assert!(handler.seen().iter().all(|seen| !seen.message.redelivered()), "delayed, not requeued");
    delete(&client, &queue, &[30]).await;
}

/// Confirmed in the delay queue, but the original's ack is lost: both copies come.
pub async fn ack_behind_a_delayed_copy_lost_one_effect() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("delayed-ack-lost").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let proxy = Proxy::start(&broker()).await;
    proxy.rule(nth(0, From::Client, method::BASIC_ACK, Action::CutBefore));
    let ledger = Ledger::create().await;
    let consumer = ledger.consume_with(proxy.url(), &queue, Flaky::new(1), |b| {
        b.immediate_retries(0).retry_delays(millis(4000), millis(4000))
    });
    let monitor = consumer.monitor.clone();
    assert_eq!(consumer.decided(3).await, ["retry", "processed", "duplicate"]);
    consumer.stop().await;
    assert_eq!(monitor.status().duplicates.get("delayed_redelivery"), Some(&1));
    assert_eq!((ledger.rows().await, client.ready(&queue).await), ((1, 1), 0));
    delete(&client, &queue, &[4000]).await;
}

/// Nothing is acked before the copy is confirmed; it is sent again, under the same ID.
pub async fn confirm_of_a_delayed_copy_lost_one_effect() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("delayed-confirm-lost").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let proxy = Proxy::start(&broker()).await;
    proxy.rule(nth(0, From::Broker, method::BASIC_ACK, Action::CutBefore));
    let ledger = Ledger::create().await;
    let consumer = ledger.consume_with(proxy.url(), &queue, Flaky::new(1), |b| {
        b.immediate_retries(0).retry_delays(millis(50), millis(50))
    });
    assert_eq!(consumer.decided(3).await, ["retry", "processed", "duplicate"]);
    consumer.stop().await;
    assert_eq!((ledger.rows().await, client.ready(&queue).await), ((1, 1), 0));
    delete(&client, &queue, &[50]).await;
}

/// The longest there are: no panic, neither at a failure, at a lost connection nor at the end.
pub async fn no_duration_is_too_long_for_a_consumer() {
    for redelivery in [Redelivery::Delayed, Redelivery::Held] {
        let client = Client::connect(&broker()).await;
        let queue = client.quorum_queue("for-ever").await;
        client.publish(&queue, b"500", with_id("fails")).await;
        client.publish(&queue, b"500", with_id("before")).await;
        let (proxy, ledger, handler) =
            (Proxy::start(&broker()).await, Ledger::create().await, Flaky::new(1).after(Duration::MAX));
        let consumer = ledger.consume_with(proxy.url(), &queue, handler.clone(), |b| {
            b.redelivery(redelivery)
                .batch(1)
                .retry_delays(Duration::MAX, Duration::MAX)
                .drain_timeout(Duration::MAX)
                .handler_timeout(Duration::MAX)
                .consumer_timeout(Duration::MAX)
                .connect_timeout(Duration::MAX)
        });
        let handled = async |id: &str| {
            let seen = || handler.seen().into_iter().any(|seen| seen.message.raw_message_id() == Some(id));
            eventually(id, async || seen().then_some(())).await;
        };
        handled("before").await;
        if redelivery == Redelivery::Delayed {
            let status = || consumer.monitor.status();
            eventually("the broker has it", async || (status().delayed == 1).then_some(())).await;
        }
        proxy.cut_all();
        client.publish(&queue, b"500", with_id("behind")).await;
        handled("behind").await;
        consumer.stop().await;
        delete(&client, &queue, &[u32::MAX.into()]).await;
    }
}
