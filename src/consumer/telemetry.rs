//! What an application sees of single deliveries: spans, events, metrics.

use tracing::{Span, field};

use crate::{idempotency::Outcome, message::IncomingMessage};

/// The span of one batch, from the claim to the commit. Names are those of OpenTelemetry's
/// messaging conventions.
///
/// A message alone is described by itself, with the publisher's `traceparent` and `tracestate`,
/// which a subscriber can make the span's parent. Those of a batch have several parents, and are
/// told apart in its events.
pub(super) fn span(queue: &str, scope: &str, messages: &[IncomingMessage]) -> Span {
    let span = tracing::info_span!(
        "process",
        otel.kind = "consumer",
        messaging.system = "rabbitmq",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = queue,
        messaging.consumer.group.name = scope,
        messaging.batch.message_count = messages.len(),
        messaging.message.id = field::Empty,
        messaging.message.body.size = field::Empty,
        traceparent = field::Empty,
        tracestate = field::Empty,
        outcome = field::Empty,
        otel.status_code = field::Empty,
    );
    if let ([message], false) = (messages, span.is_disabled()) {
        span.record("messaging.message.id", field::display(name(message)));
        span.record("messaging.message.body.size", message.body().len());
        if let Some(context) = message.trace_context() {
            span.record("traceparent", context.traceparent());
            span.record("tracestate", context.tracestate());
        }
    }
    span
}

/// How the batch ended: an event for each duplicate, with its cause, and for each delivery that did
/// not take effect.
pub(super) fn finish(span: &Span, messages: &[IncomingMessage], outcomes: &[Outcome]) {
    if span.is_disabled() {
        return;
    }
    if let [outcome] = outcomes {
        span.record("outcome", outcome.name());
    }
    if outcomes.iter().any(|outcome| !outcome.is_handled()) {
        span.record("otel.status_code", "ERROR");
    }
    let _entered = span.enter();
    for (message, outcome) in messages.iter().zip(outcomes) {
        match outcome {
            Outcome::Processed => {}
            Outcome::Duplicate(duplicate) => {
                let age = duplicate.processed_at.elapsed().unwrap_or_default();
                tracing::info!(
                    message_id = %name(message),
                    cause = duplicate.cause.name(),
                    age_seconds = age.as_secs_f64(),
                    "duplicate"
                );
            }
            other => {
                tracing::info!(message_id = %name(message), outcome = other.name(), "not handled");
            }
        }
    }
}

/// What a message is called in logs: its ID, or else the hash of its body.
pub(super) fn name(message: &IncomingMessage) -> String {
    match message.raw_message_id() {
        Some(id) => id.escape_debug().to_string(),
        None => message.fingerprint().to_string(),
    }
}

/// A message was passed on: to a delay queue, or for a reason to parking.
#[cfg(feature = "metrics")]
pub(super) fn passed_on(scope: &str, reason: Option<&'static str>) {
    let scope = ("scope", scope.to_owned());
    match reason {
        None => metrics::counter!("idempotent_consumer_delayed_total", &[scope]).increment(1),
        Some(reason) => {
            let labels = [scope, ("reason", reason.to_owned())];
            metrics::counter!("idempotent_consumer_parked_total", &labels).increment(1);
        }
    }
}

/// A message was published anew to its own queue, for the broker's limits.
#[cfg(feature = "metrics")]
pub(super) fn published_anew(scope: &str) {
    metrics::counter!("idempotent_consumer_moved_total", "scope" => scope.to_owned()).increment(1);
}

/// A delivery was answered, or is acked without that.
pub(super) fn answered(scope: &str, request: &IncomingMessage, how: &'static str) {
    let id = name(request);
    if how == "lost" {
        tracing::warn!(message_id = %id, scope, "request took effect, and its reply is not there");
    } else {
        tracing::debug!(message_id = %id, scope, how, "request answered");
    }
    #[cfg(feature = "metrics")]
    {
        let labels = [("scope", scope.to_owned()), ("result", how.to_owned())];
        metrics::counter!("idempotent_consumer_replies_total", &labels).increment(1);
    }
}

/// Counters and a histogram through the `metrics` facade, once for each batch.
#[cfg(feature = "metrics")]
pub(super) fn record(scope: &str, outcomes: &[Outcome], took: std::time::Duration) {
    use std::collections::BTreeMap;

    use metrics::{counter, histogram};

    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for outcome in outcomes {
        let cause = match outcome {
            Outcome::Duplicate(duplicate) => duplicate.cause.name(),
            _ => "",
        };
        *counts.entry((outcome.name(), cause)).or_default() += 1;
    }
    for ((outcome, cause), count) in counts {
        let labels =
            [("scope", scope.to_owned()), ("outcome", outcome.to_owned()), ("cause", cause.to_owned())];
        counter!("idempotent_consumer_deliveries_total", &labels).increment(count);
    }
    histogram!("idempotent_consumer_batch_seconds", "scope" => scope.to_owned()).record(took.as_secs_f64());
    #[allow(clippy::cast_precision_loss)]
    histogram!("idempotent_consumer_batch_messages", "scope" => scope.to_owned())
        .record(outcomes.len() as f64);
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{idempotency::Duplicate, test_support::Recorded};

    #[test]
    fn deliveries_are_counted_by_outcome_and_duplicates_by_cause() {
        let again = Duplicate::new(&IncomingMessage::new("").with_redelivered(true), SystemTime::now());
        let anew = Duplicate::new(&IncomingMessage::new(""), SystemTime::now());
        let outcomes = [
            Outcome::Processed,
            Outcome::Duplicate(again),
            Outcome::Duplicate(anew),
            Outcome::Processed,
            Outcome::MissingId,
        ];
        let recorded = Recorded::default();
        metrics::with_local_recorder(&recorded, || {
            record("ledger", &outcomes, Duration::from_secs(2));
            record("ledger", &outcomes[..1], Duration::from_secs(1));
            passed_on("ledger", None);
            published_anew("ledger");
            passed_on("ledger", Some("rejected"));
            passed_on("ledger", Some("rejected"));
            answered("ledger", &IncomingMessage::new(""), "sent");
        });
        let expected = [
            ("idempotent_consumer_batch_messages ledger", 6.0),
            ("idempotent_consumer_batch_seconds ledger", 3.0),
            ("idempotent_consumer_delayed_total ledger", 1.0),
            ("idempotent_consumer_deliveries_total ledger duplicate broker_redelivery", 1.0),
            ("idempotent_consumer_deliveries_total ledger duplicate republished", 1.0),
            ("idempotent_consumer_deliveries_total ledger missing_id ", 1.0),
            ("idempotent_consumer_deliveries_total ledger processed ", 3.0),
            ("idempotent_consumer_moved_total ledger", 1.0),
            ("idempotent_consumer_parked_total ledger rejected", 2.0),
            ("idempotent_consumer_replies_total ledger sent", 1.0),
        ];
        assert_eq!(recorded.values(), expected.map(|(name, value)| (name.to_owned(), value)).into());
    }
}
