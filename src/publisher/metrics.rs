//! Counters and gauges through the `metrics` facade, from one status to the next: nothing is recorded per message.

use metrics::{counter, gauge};

use super::status::PublisherStatus;

/// Records what has changed. Several publishers of a process add up.
pub(super) fn record(before: &PublisherStatus, now: &PublisherStatus) {
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
