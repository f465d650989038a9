//! Counters and gauges through the `metrics` facade, from one status to the next: nothing is
//! recorded per message.

use std::panic::{AssertUnwindSafe, catch_unwind};

use metrics::{counter, gauge};

use super::status::PublisherStatus;

/// Records what has changed. Several publishers of a process add up.
///
/// A recorder is the application's, and a panic in it must not end the task that publishes.
pub(super) fn record(before: &PublisherStatus, now: &PublisherStatus) {
    if catch_unwind(AssertUnwindSafe(|| record_all(before, now))).is_err() {
        tracing::error!("the recorder of metrics panicked");
    }
}

fn record_all(before: &PublisherStatus, now: &PublisherStatus) {
    let counters = [
        ("confirmed", before.confirmed, now.confirmed),
        ("retried", before.retried, now.retried),
        ("returned", before.returned, now.returned),
        ("nacked", before.nacked, now.nacked),
        ("refused", before.refused, now.refused),
        ("timed_out", before.timed_out, now.timed_out),
        ("disconnected", before.disconnected, now.disconnected),
    ];
    for (outcome, before, now) in counters {
        if now > before {
            counter!("idempotent_publisher_attempts_total", "outcome" => outcome).increment(now - before);
        }
    }
    if now.failed > before.failed {
        counter!("idempotent_publisher_failed_total").increment(now.failed - before.failed);
    }
    if now.reconnects > before.reconnects {
        counter!("idempotent_publisher_reconnects_total").increment(now.reconnects - before.reconnects);
    }
    let gauges = [
        ("idempotent_publisher_in_flight", before.in_flight, now.in_flight),
        ("idempotent_publisher_connections", before.connected, now.connected),
        ("idempotent_publisher_blocked_connections", before.blocked, now.blocked),
    ];
    for (name, before, now) in gauges {
        #[allow(clippy::cast_precision_loss)]
        if now > before {
            gauge!(name).increment((now - before) as f64);
        } else if now < before {
            gauge!(name).decrement((before - now) as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{
        publisher::{error::PublishErrorKind, permits::InFlightPermits, status::Monitor},
        test_support::Recorded,
    };

    #[test]
    fn differences_add_up_over_publishers_and_reports() {
        let recorded = Recorded::default();
        metrics::with_local_recorder(&recorded, || {
            for _ in 0..2 {
                let permits = Arc::new(InFlightPermits::new(4, 100));
                let monitor = Monitor::new(1, 1, Arc::clone(&permits));
                monitor.confirmed(5);
                monitor.report();
                let held = permits.try_enter(1);
                monitor.confirmed(2);
                monitor.count(PublishErrorKind::Nacked, 3);
                monitor.report();
                drop(held);
                monitor.report();
                monitor.report();
            }
        });
        let expected = [
            ("idempotent_publisher_attempts_total confirmed", 14.0),
            ("idempotent_publisher_attempts_total nacked", 6.0),
            ("idempotent_publisher_in_flight", 0.0),
        ];
        assert_eq!(recorded.values(), expected.map(|(name, value)| (name.to_owned(), value)).into());
    }
}
