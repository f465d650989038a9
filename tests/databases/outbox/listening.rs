//! Relays are woken by commits.

use std::time::Duration;

use lapin_idempotent::{SqliteOutbox, outbox::Outbox};
use sqlx::{Postgres, Sqlite};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{Boxed, Kind, row, support::DEADLINE};

trials! {
    wake_reaches_this_process_in_each_database<Postgres, MySql, Sqlite>,
    notify_wakes_well_before_the_poll,
    enqueue_sends_no_notify_in_the_callers_transaction,
    relays_of_other_tables_are_not_woken,
    many_wakes_are_few_notifications,
    listener_that_lost_its_connection_hears_again,
    listener_without_a_table_waits_for_it,
    commit_of_another_connection_wakes,
    database_in_memory_is_not_heard,
    database_that_tells_nothing_is_not_heard,
}

/// A relay of another process, as far as hearing goes.
struct Ear<K: Kind> {
    boxed: Boxed<K>,
    woken: watch::Receiver<u64>,
    hears: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl<K: Kind> Drop for Ear<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K: Kind> Ear<K> {
    async fn of(boxed: &Boxed<K>) -> Self {
        let boxed = boxed.again().await;
        let (sender, hears) = watch::channel(false);
        let task = tokio::spawn(boxed.outbox.listen(sender));
        Self { woken: boxed.outbox.waker().subscribe(), hears, task, boxed }
    }

    /// One that hears, and has heard whatever there was.
    async fn that_hears(boxed: &Boxed<K>) -> Self {
        let mut ear = Self::of(boxed).await;
        ear.until(true).await;
        ear.hush().await;
        ear
    }

    async fn until(&mut self, hears: bool) {
        timeout(DEADLINE, self.hears.wait_for(|now| *now == hears))
            .await
            .expect("in time")
            .expect("it listens");
    }

    async fn hush(&mut self) {
        while self.heard(Duration::from_millis(100)).await {}
    }

    /// Whether it is woken within a time.
    async fn heard(&mut self, within: Duration) -> bool {
        timeout(within, self.woken.changed()).await.is_ok()
    }
}

pub async fn wake_reaches_this_process_in_each_database<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let mut woken = boxed.outbox.waker().subscribe();
    let clone = boxed.outbox.clone();
    clone.wake();
    assert!(woken.has_changed().expect("it is there"));
    woken.mark_unchanged();
    // It has a signal of its own.
    clone.table("another").expect("name").wake();
    assert!(!woken.has_changed().expect("it is there"));
    // Without a runtime, too.
    let outbox = boxed.outbox.clone();
    std::thread::spawn(move || outbox.wake()).join().expect("no panic");
    assert!(woken.has_changed().expect("it is there"));
}

pub async fn notify_wakes_well_before_the_poll() {
    let boxed = Boxed::<Postgres>::create().await;
    let mut ear = Ear::that_hears(&boxed).await;
    let mut took = Vec::new();
    for n in 0..10 {
        boxed.put(&[row(&format!("m{n}"))]).await;
        let start = Instant::now();
        boxed.outbox.wake();
        assert!(ear.heard(DEADLINE).await);
        took.push(start.elapsed());
        sleep(Duration::from_millis(30)).await;
    }
    took.sort_unstable();
    // Other tests have the machine, too.
    assert!(took[5] < Duration::from_millis(100), "{took:?}");
    println!("from wake to woken: {took:?}");
}

pub async fn enqueue_sends_no_notify_in_the_callers_transaction() {
    let boxed = Boxed::<Postgres>::create().await;
    let mut ear = Ear::that_hears(&boxed).await;
    boxed.put(&[row("a"), row("b")]).await;
    assert!(!ear.heard(Duration::from_millis(500)).await, "a commit by itself tells nobody");
    boxed.outbox.wake();
    assert!(ear.heard(DEADLINE).await);
}

pub async fn relays_of_other_tables_are_not_woken() {
    let boxed = Boxed::<Postgres>::create().await;
    let other = Boxed::<Postgres>::create().await;
    let mut ear = Ear::that_hears(&boxed).await;
    other.outbox.wake();
    assert!(!ear.heard(Duration::from_millis(500)).await);
    // Nor by what it tells itself: it was woken by that already.
    let mut own = ear.boxed.outbox.waker().subscribe();
    ear.boxed.outbox.wake();
    assert!(ear.heard(Duration::from_millis(500)).await);
    own.mark_unchanged();
    assert!(!ear.heard(Duration::from_millis(500)).await);
}

pub async fn many_wakes_are_few_notifications() {
    let boxed = Boxed::<Postgres>::create().await;
    let mut ear = Ear::that_hears(&boxed).await;
    let start = Instant::now();
    let mut heard = 0;
    while start.elapsed() < Duration::from_secs(1) {
        for _ in 0..100 {
            boxed.outbox.wake();
        }
        heard += u32::from(ear.heard(Duration::from_millis(1)).await);
    }
    while ear.heard(Duration::from_millis(100)).await {
        heard += 1;
    }
    assert!((5..=52).contains(&heard), "{heard}");
    // And the next one is not held back.
    boxed.outbox.wake();
    assert!(ear.heard(DEADLINE).await);
}

pub async fn listener_that_lost_its_connection_hears_again() {
    let boxed = Boxed::<Postgres>::create().await;
    let mut ear = Ear::that_hears(&boxed).await;
    let killed = boxed
        .number(
            "WITH named AS (SELECT 'LISTEN \"lapin_outbox_' || to_hex(hashtextextended(current_database() || '/' || nspname || '/' || relname, 0)) || '\"' AS q \
             FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = to_regclass('TABLE')) \
             SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity JOIN named ON query = q"
                .replace("TABLE", &boxed.name)
                .as_str(),
        )
        .await;
    assert_eq!(killed, 1);
    ear.until(false).await;
    // Meanwhile something is committed, and nobody hears.
    boxed.put(&[row("a")]).await;
    ear.woken.mark_unchanged();
    ear.until(true).await;
    assert!(ear.heard(DEADLINE).await, "for what was committed in between");
    ear.hush().await;
    boxed.outbox.wake();
    assert!(ear.heard(DEADLINE).await);
}

pub async fn listener_without_a_table_waits_for_it() {
    let boxed = Boxed::<Postgres>::open(&Postgres::url(), &super::short("ob")).await;
    let mut ear = Ear::of(&boxed).await;
    sleep(Duration::from_millis(300)).await;
    assert!(!*ear.hears.borrow());
    boxed.outbox.create_schema().await.expect("schema");
    ear.until(true).await;
}

pub async fn commit_of_another_connection_wakes() {
    let boxed = Boxed::<Sqlite>::create().await;
    let mut ear = Ear::that_hears(&boxed).await;
    assert!(!ear.heard(Duration::from_millis(200)).await, "nothing was committed");
    boxed.put(&[row("a")]).await;
    let start = Instant::now();
    assert!(ear.heard(DEADLINE).await);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    ear.hush().await;
    let mut tx = boxed.begin().await;
    boxed.outbox.put(&mut tx, &[row("b")]).await.expect("put");
    tx.rollback().await.expect("rollback");
    assert!(!ear.heard(Duration::from_millis(200)).await, "nothing was committed");
    assert!(*ear.hears.borrow());
}

pub async fn database_in_memory_is_not_heard() {
    let outbox = SqliteOutbox::connect("sqlite::memory:").await.expect("connect");
    outbox.create_schema().await.expect("schema");
    let (sender, hears) = watch::channel(false);
    let ended = timeout(Duration::from_millis(300), outbox.listen(sender)).await;
    assert!(ended.is_err(), "it never ends");
    assert!(!*hears.borrow());
}

pub async fn database_that_tells_nothing_is_not_heard() {
    let boxed = Boxed::<sqlx::MySql>::create().await;
    let (sender, hears) = watch::channel(false);
    assert!(timeout(Duration::from_millis(300), boxed.outbox.listen(sender)).await.is_err(), "it never ends");
    assert!(!*hears.borrow());
}
