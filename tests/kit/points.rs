//! Which points there are.

use std::collections::BTreeSet;

use lapin_idempotent::{
    HandlerResult, IdempotentHandler, IncomingMessage, OutgoingMessage, SqliteStore, SqliteTransaction,
    testing::{Point, crash_everywhere},
};

use super::{
    correct::Announce,
    shop::{Debit, Shop, debit},
};

/// As many as there are kinds of them; of awaits there is one kind.
const KINDS: usize = 24;

/// Waits at least once, however quick its database is.
struct Waits(Announce);

impl IdempotentHandler<SqliteStore> for Waits {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        tokio::task::yield_now().await;
        self.0.handle(message, tx).await
    }
}

/// Of a handler that waits, an outbox and a relay, and a message that fails.
#[tokio::test]
async fn every_point_is_hit() {
    let rejected = OutgoingMessage::to("payments", "debit").idempotency_key("bad").text("no JSON");
    let report = crash_everywhere(async |_| {
        let shop = Shop::open().await;
        let outbox = shop.outbox.clone();
        shop.clone().subject(Waits(Announce(shop))).outbox(outbox)
    })
    .bind("payments", "debit")
    .sink("events", "debited")
    .messages([debit(42), rejected])
    .run()
    .await;
    report.assert_same_everywhere();
    let kind = |point: Point| match point {
        Point::Await(_) => Point::Await(1),
        other => other,
    };
    let hit: BTreeSet<Point> = report.points().map(kind).collect();
    assert_eq!(hit.len(), KINDS, "{hit:?}");
}

/// The second of two things that go wrong is named behind the first.
#[tokio::test]
async fn pairs_are_named_in_their_order() {
    let report = crash_everywhere(async |_| Shop::open().await.subject(Debit))
        .bind("payments", "debit")
        .messages([debit(42)])
        .pairs()
        .run()
        .await;
    report.assert_same_everywhere();
    assert!(report.runs() > 150, "{report}");
    let single = crash_everywhere(async |_| Shop::open().await.subject(Debit))
        .bind("payments", "debit")
        .messages([debit(42)])
        .run()
        .await;
    assert!(single.runs() < 60, "{single}");
}
