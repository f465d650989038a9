//! Counters, gauges and histograms of an outbox through the `metrics` facade.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use metrics::{counter, gauge, histogram};

use super::status::{RelayState, RelayStatus};

/// Records what has changed of a relay. What is of a relay adds up over several of a process; what
/// is of the table is the same for all.
pub(super) fn record(before: &RelayStatus, now: &RelayStatus) {
    guarded(|| record_all(before, now));
}

/// The relays in a state.
fn relays(state: RelayState) -> metrics::Gauge {
    gauge!("idempotent_outbox_relays", "state" => state.name())
}

/// A relay runs, in its first state.
pub(super) fn starts() {
    guarded(|| relays(RelayState::Starting).increment(1));
}

/// Messages were turned into rows. Whether they are committed, only the database knows.
pub(super) fn enqueued() {
    guarded(|| counter!("idempotent_outbox_enqueued_total").increment(1));
}

/// A message was confirmed so long after it was enqueued.
pub(super) fn relayed(after: Duration) {
    guarded(|| histogram!("idempotent_outbox_relay_seconds").record(after.as_secs_f64()));
}

/// So many rows were removed at once.
#[allow(clippy::cast_precision_loss)]
pub(super) fn removed(rows: usize) {
    guarded(|| histogram!("idempotent_outbox_delete_batch").record(rows as f64));
}

/// The table was read.
pub(super) fn read(cause: &'static str) {
    guarded(|| counter!("idempotent_outbox_reads_total", "by" => cause).increment(1));
}

/// For so long a transaction has kept reads from beginning behind what was removed.
pub(super) fn horizon_held(held: Duration) {
    guarded(|| gauge!("idempotent_outbox_horizon_held_seconds").set(held.as_secs_f64()));
}

/// A recorder is the application's, and a panic in it must not end the relay.
fn guarded(record: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(record)).is_err() {
        tracing::error!("the recorder of metrics panicked");
    }
}

#[allow(clippy::cast_precision_loss)]
fn record_all(before: &RelayStatus, now: &RelayStatus) {
    if now.relayed > before.relayed {
        counter!("idempotent_outbox_relayed_total").increment(now.relayed - before.relayed);
    }
    for (kind, failed) in &now.failed {
        let known = before.failed.get(kind).copied().unwrap_or_default();
        if *failed > known {
            counter!("idempotent_outbox_failed_total", "kind" => *kind).increment(failed - known);
        }
    }
    let gauges = [
        ("idempotent_outbox_lanes", before.lanes, now.lanes),
        ("idempotent_outbox_in_flight", before.in_flight, now.in_flight),
        ("idempotent_outbox_held_routes", before.held_routes, now.held_routes),
        ("idempotent_outbox_listening", before.listening.into(), now.listening.into()),
    ];
    for (name, before, now) in gauges {
        if now > before {
            gauge!(name).increment((now - before) as f64);
        } else if now < before {
            gauge!(name).decrement((before - now) as f64);
        }
    }
    if now.state != before.state {
        let running = |status: &RelayStatus| Some(status.state).filter(|state| *state != RelayState::Stopped);
        if let Some(state) = running(before) {
            relays(state).decrement(1);
        }
        if let Some(state) = running(now) {
            relays(state).increment(1);
        }
    }
    if let Some(table) = now.table.filter(|_| now.table != before.table) {
        gauge!("idempotent_outbox_backlog").set(table.backlog as f64);
        gauge!("idempotent_outbox_parked").set(table.parked as f64);
        gauge!("idempotent_outbox_oldest_seconds").set(table.oldest.unwrap_or_default().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        outbox::status::{RelayMonitor, StoppedOnDrop},
        test_support::Recorded,
    };

    #[test]
    fn differences_add_up_over_relays() {
        let recorded = Recorded::default();
        metrics::with_local_recorder(&recorded, || {
            for _ in 0..2 {
                let monitor = RelayMonitor::new();
                starts();
                monitor.change(|status| (status.relayed, status.lanes) = (3, 8));
                monitor.change(|status| status.state = RelayState::Relaying);
                monitor.change(|status| {
                    status.relayed = 5;
                    status.failed.insert("nacked", 2);
                });
                drop(StoppedOnDrop(monitor));
            }
            let monitor = RelayMonitor::new();
            starts();
            monitor.change(|status| status.state = RelayState::TableAway);
            enqueued();
            read("poll");
            removed(512);
            relayed(Duration::from_secs(2));
        });
        let expected = [
            ("idempotent_outbox_relayed_total", 10.0),
            ("idempotent_outbox_failed_total nacked", 4.0),
            ("idempotent_outbox_lanes", 0.0),
            ("idempotent_outbox_relays starting", 0.0),
            ("idempotent_outbox_relays relaying", 0.0),
            ("idempotent_outbox_relays table_away", 1.0),
            ("idempotent_outbox_enqueued_total", 1.0),
            ("idempotent_outbox_reads_total poll", 1.0),
            ("idempotent_outbox_delete_batch", 512.0),
            ("idempotent_outbox_relay_seconds", 2.0),
        ];
        assert_eq!(recorded.values(), expected.map(|(name, value)| (name.to_owned(), value)).into());
    }
}
