//! What becomes of the rows of a real table, confirm by confirm.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage, RetryPolicy,
    outbox::{Outbox, Relay, RelayState},
};

use super::{
    Boxed, Kind,
    orders::Orders,
    support::{
        DEADLINE, broker, eventually,
        proxy::{Action, From, Proxy, method},
        scripted::{Published, ScriptedBroker, ack, nack, returned},
    },
};

trials! {
    row_is_deleted_only_after_its_own_confirm<Postgres, MySql, Sqlite>,
    broker_that_is_away_costs_no_row_a_write<Postgres, MySql, Sqlite>,
}

const HOUR: Duration = Duration::from_secs(3600);

/// The rows that are there, and are to be.
struct Rows<K: Kind> {
    boxed: Boxed<K>,
    there: BTreeSet<String>,
}

impl<K: Kind> Rows<K> {
    /// Enqueues messages, each of which goes its own way. Gives their IDs.
    async fn enqueue(&mut self, key: Option<&str>, count: usize) -> Vec<String> {
        let mut tx = self.boxed.begin().await;
        let mut ids = Vec::new();
        for n in 0..count {
            let message = OutgoingMessage::to("orders", format!("way-{n}")).text(n.to_string());
            let id = match key {
                Some(key) => self.boxed.outbox.enqueue_in_order(&mut tx, key, message).await,
                None => self.boxed.outbox.enqueue(&mut tx, message).await,
            };
            ids.push(id.expect("enqueued").to_string());
        }
        tx.commit().await.expect("commit");
        self.there.extend(ids.iter().cloned());
        ids
    }

    /// These are confirmed: they may go from now on.
    fn confirmed(&mut self, confirmed: &[&Published]) {
        for published in confirmed {
            assert!(self.there.remove(&published.id()), "it was there");
        }
    }

    /// These go, and none of the others, at no time.
    async fn go(&mut self, gone: &[&Published]) {
        self.confirmed(gone);
        self.stay().await;
    }

    /// Waits until nothing is there but what is to be.
    async fn stay(&self) {
        eventually(&format!("all but {:?} go", self.there), async || {
            let now: BTreeSet<String> = self.boxed.ids().await.into_iter().collect();
            let gone: Vec<_> = self.there.difference(&now).collect();
            assert!(gone.is_empty(), "gone without a confirm: {gone:?}");
            (now == self.there).then_some(())
        })
        .await;
    }

    /// Waits until an attempt is counted for exactly these.
    async fn counted(&self, failed: &[&Published]) {
        let failed: BTreeSet<String> = failed.iter().map(|published| published.id()).collect();
        eventually("the failures are noted", async || {
            let rows = self.boxed.all().await;
            let noted: BTreeSet<String> = rows
                .iter()
                .filter(|row| row.attempts > 0)
                .map(|row| {
                    assert_eq!(row.attempts, 1, "{}", row.message_id);
                    row.message_id.to_string()
                })
                .collect();
            assert!(noted.is_subset(&failed), "{noted:?}");
            (noted == failed).then_some(())
        })
        .await;
    }
}

/// The broker says something about one message after the other, in no order, about several at once,
/// and that it does not want some.
pub async fn row_is_deleted_only_after_its_own_confirm<K: Kind>() {
    let broker = ScriptedBroker::start().await;
    let mut rows = Rows { boxed: Boxed::<K>::create().await, there: BTreeSet::new() };
    rows.enqueue(None, 12).await;
    let publisher = IdempotentPublisher::builder(broker.url())
        .retry(RetryPolicy::never())
        .confirm_timeout(DEADLINE)
        .connect_lazy()
        .expect("publisher");
    let relay = Relay::new(rows.boxed.again().await.outbox, publisher);
    let relay = relay.retry_delays(HOUR, HOUR).spawn();
    let mut peer = broker.accept().await;
    let sent = peer.take(12).await;
    // By the tag.
    let sent = |tag: usize| &sent[tag - 1];
    assert_eq!((sent(1).tag, sent(12).tag), (1, 12));
    rows.stay().await;

    for tag in [7, 3] {
        peer.ack(tag, false).await;
        rows.go(&[sent(usize::try_from(tag).expect("a tag"))]).await;
    }
    // It has no room for the fifth.
    peer.say(&[nack(5, false), ack(9, false)]).await;
    rows.go(&[sent(9)]).await;
    // The second has no way.
    peer.say(&[returned(sent(2)), ack(2, false), ack(4, false)]).await;
    rows.go(&[sent(4)]).await;
    rows.counted(&[sent(2)]).await;
    // All up to the sixth, of which five are decided.
    peer.ack(6, true).await;
    rows.go(&[sent(1), sent(6)]).await;
    // Of a return before such an ack the publisher knows for certain whose it was when nothing else
    // is in flight: there is room for the fifth again.
    peer.say(&[returned(sent(10)), ack(11, true)]).await;
    rows.confirmed(&[sent(8), sent(11)]);
    peer.ack(12, false).await;
    rows.confirmed(&[sent(12)]);
    let again = peer.next().await;
    assert_eq!(again.id(), sent(5).id());
    peer.ack(again.tag, false).await;
    rows.go(&[&again]).await;
    rows.counted(&[sent(2), sent(10)]).await;

    // The next one of a key goes when the one before it is confirmed.
    let in_order = rows.enqueue(Some("key"), 3).await;
    rows.boxed.outbox.wake();
    for id in in_order {
        let published = peer.next().await;
        assert_eq!(published.id(), id);
        rows.stay().await;
        peer.ack(published.tag, false).await;
        rows.go(&[&published]).await;
    }

    // What is in flight when the connection ends is not confirmed.
    rows.enqueue(None, 2).await;
    let unconfirmed = peer.take(2).await;
    drop(peer);
    let mut peer = broker.accept().await;
    let again = peer.take(2).await;
    let ids = |published: &[Published]| published.iter().map(Published::id).collect::<BTreeSet<_>>();
    assert_eq!(ids(&again), ids(&unconfirmed));
    rows.stay().await;
    for published in again.iter().rev() {
        peer.ack(published.tag, false).await;
        rows.go(&[published]).await;
    }

    relay.stop().await;
    rows.stay().await;
    rows.counted(&[sent(2), sent(10)]).await;
    assert_eq!(rows.boxed.outbox.status().await.expect("status").parked, 0);
}

/// What the server knows of changes of the rows, and of locks of them; or what can be seen of it.
async fn written<K: Kind>(boxed: &Boxed<K>) -> i64 {
    let sum = match K::NAME {
        "PostgreSQL" => "CAST(COALESCE(SUM(seq * (xmin::text::bigint + xmax::text::bigint)), 0) AS bigint)",
        _ => "COUNT(*)",
    };
    let touched = "attempts <> 0 OR retry_at IS NOT NULL OR error IS NOT NULL OR parked_at IS NOT NULL";
    let fresh = format!("SELECT COUNT(*) FROM {} WHERE lane < 0 OR {touched}", boxed.name);
    assert_eq!(boxed.number(&fresh).await, 0, "a row is written");
    boxed.number(&format!("SELECT {sum} FROM {}", boxed.name)).await
}

pub async fn broker_that_is_away_costs_no_row_a_write<K: Kind>() {
    const MANY: usize = 10;
    let boxed = Boxed::<K>::create().await;
    let mut orders = Orders::create().await;
    let proxy = Proxy::start(&broker()).await;
    let publisher = IdempotentPublisher::builder(proxy.url())
        .retry(RetryPolicy::never().max_elapsed(Duration::from_millis(500)))
        .confirm_timeout(Duration::from_millis(400))
        .connect_lazy()
        .expect("publisher");
    let failures = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&failures);
    // What is counted is parked at once.
    let relay = Relay::new(boxed.again().await.outbox, publisher).max_attempts(1);
    let relay = relay.on_outcome(move |relayed| {
        counting.fetch_add(usize::from(relayed.result.is_err()), Ordering::SeqCst);
    });
    let relay = relay.spawn();
    orders.commit(&boxed, "early", &["a", "b"], 1).await;
    orders.arrived("the broker is there").await;
    boxed.drained("that is published").await;

    // Nobody answers.
    proxy.rule(|_| Action::CutBefore);
    proxy.cut_all();
    orders.commit(&boxed, "late", &["a", "b"], 5).await;
    boxed.outbox.wake();
    let before = written(&boxed).await;
    eventually("it waits for the broker", async || {
        let waits = relay.monitor().status().state == RelayState::BrokerAway;
        assert_eq!(written(&boxed).await, before);
        waits.then_some(())
    })
    .await;
    // It answers, and breaks off over every message; then it is silent over every message.
    for over in [Action::CutBefore, Action::Freeze] {
        let so_far = failures.load(Ordering::SeqCst);
        proxy.rule(
            move |frame| {
                if frame.is(From::Client, method::BASIC_PUBLISH) { over } else { Action::Pass }
            },
        );
        eventually(&format!("it fails again and again, by {over:?}"), async || {
            assert_eq!(written(&boxed).await, before, "{over:?}");
            (failures.load(Ordering::SeqCst) >= so_far + MANY).then_some(())
        })
        .await;
        assert_eq!(written(&boxed).await, before, "{over:?}");
    }
    proxy.rule(|_| Action::Pass);
    proxy.cut_all();
    let copies = orders.arrived("it is back").await;
    assert!(copies.values().all(|copies| *copies == 1), "{copies:?}");
    boxed.drained("all is published").await;
    relay.stop().await;
    assert_eq!(boxed.outbox.status().await.expect("status").parked, 0);
    orders.arrivals.delete().await;
}
