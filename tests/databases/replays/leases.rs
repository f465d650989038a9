//! Replays that are listed in the code, for stores of leases.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use lapin_idempotent::{
    Guard, HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, Lease, MemoryStore,
    RedisStore,
    idempotency::{ReplayPolicy, StoreErrorKind},
};

use super::{
    super::database::{Kind, Table, message, short},
    EPOCH, epoch, replayed, scope,
};

trials! {
    listed_replay_takes_effect_once<Postgres, MySql, Sqlite>,
    listed_replay_takes_effect_once_in_redis_and_in_memory,
}

#[derive(Default)]
struct Call(AtomicU32);

impl<S: IdempotencyStore<Session = Lease>> IdempotentHandler<S> for Call {
    async fn handle(&self, message: &IncomingMessage, lease: &mut Lease) -> HandlerResult {
        self.0.fetch_add(1, Ordering::SeqCst);
        let identity = message.identity().expect("a guard calls this");
        assert_eq!(identity.message_id().as_str(), "order-42", "the original's");
        assert_eq!(message.replay_epoch().is_some(), lease.message_id() != identity.message_id());
        Ok(())
    }
}

async fn takes_effect_once<S: IdempotencyStore<Session = Lease> + Clone>(store: S) {
    let listed = ReplayPolicy::Listed(vec![epoch("another"), epoch(EPOCH)]);
    let guard = Guard::new(store.clone(), scope("test")).replays(listed);
    let call = Call::default();
    let unlisted = message("order-42").with_replay_epoch(epoch("nobody listed it"));
    for (message, expected) in [
        (message("order-42"), "processed"),
        (replayed("order-42"), "processed"),
        (replayed("order-42"), "duplicate"),
        (message("order-42"), "duplicate"),
        (unlisted, "replay_refused"),
    ] {
        assert_eq!(guard.process(&message, &call).await.name(), expected);
    }
    assert_eq!(call.0.load(Ordering::SeqCst), 2);
    // It cannot tell what is open.
    let opened = Guard::new(store.clone(), scope("test")).replays(ReplayPolicy::Opened);
    assert_eq!(opened.process(&replayed("order-43"), &call).await.name(), "replay_refused");
    let error = store.check_replays().await.expect_err("no list");
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
}

pub async fn listed_replay_takes_effect_once<K: Kind>() {
    let table = Table::<K>::create().await;
    takes_effect_once(table.store.clone().leased(Duration::from_secs(60)).expect("lease")).await;
}

pub async fn listed_replay_takes_effect_once_in_redis_and_in_memory() {
    takes_effect_once(MemoryStore::new(100)).await;
    let url = std::env::var("REDIS_URL").expect("REDIS_URL");
    takes_effect_once(RedisStore::connect(&url).await.expect("connect").prefix(&short("replays"))).await;
}
