//! What a handler is told, what it can say, and how it is named.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::expect_used, clippy::unwrap_used)]

mod support {
    pub mod transactions;
}

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use lapin_idempotent::{
    BoxError, Guard, HandlerError, HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage,
    Lease, MemoryStore, Outcome, Scope, handler_fn,
    idempotency::{KeySource, MissingIdPolicy, effect_key},
    message::DecodeError,
};
use support::transactions::{Commit, Faults, Transaction, Transactions};

fn scope(name: &str) -> Scope {
    Scope::new(name).unwrap()
}

fn guard<S: IdempotencyStore>(store: S) -> Guard<S> {
    Guard::new(store, scope("billing"))
}

fn transactions() -> Transactions {
    Transactions::new(&BTreeMap::new(), &BTreeSet::new())
}

/// Notes under which identity each message takes effect.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl<S: IdempotencyStore> IdempotentHandler<S> for Notes {
    async fn handle(&self, message: &IncomingMessage, _: &mut S::Session) -> HandlerResult {
        let identity = message.identity().expect("a guard calls this");
        let key = effect_key(identity.scope(), identity.message_id(), "charge");
        assert_eq!(message.effect_key("charge"), Some(key));
        self.0.lock().unwrap().push(format!("{}/{}", identity.scope(), identity.message_id().as_str()));
        Ok(())
    }
}

/// By one path each, and the clients in the versions that the signatures name.
#[test]
fn the_root_names_what_signatures_name() {
    use lapin_idempotent as root;
    let _: Option<(root::Lease, root::Scope, root::ConsumeError, root::ConnectError)> = None;
    #[cfg(feature = "postgres")]
    let _: fn(&root::PostgresStore) -> &root::sqlx::PgPool = root::PostgresStore::pool;
    #[cfg(feature = "mysql")]
    let _: fn(&root::MySqlStore) -> &root::sqlx::MySqlPool = root::MySqlStore::pool;
    #[cfg(feature = "sqlite")]
    let _: fn(&root::SqliteStore) -> &root::sqlx::SqlitePool = root::SqliteStore::pool;
    #[cfg(feature = "redis")]
    let _: Option<(root::RedisStore, root::redis::Client)> = None;
    #[cfg(feature = "postgres")]
    let _: Option<root::PostgresTransaction> = None;
    #[cfg(feature = "mysql")]
    let _: Option<root::MySqlTransaction> = None;
    #[cfg(feature = "sqlite")]
    let _: Option<root::SqliteTransaction> = None;
}

#[tokio::test]
async fn handler_knows_the_identity_whatever_the_key() {
    let message = || IncomingMessage::new(r#"{"order":7}"#).with_message_id("m").with_header("order", "h");
    let keys = [
        (KeySource::message_id(), "m"),
        (KeySource::header("order"), "h"),
        (KeySource::from_fn(|message| Ok(Some(message.body().len().to_string().parse()?))), "11"),
    ];
    let notes = Notes::default();
    for (key, id) in keys {
        let message = message();
        assert_eq!((message.identity(), message.effect_key("charge")), (None, None), "no guard has seen it");
        let outcome = guard(MemoryStore::new(10)).key(key.clone()).process(&message, &notes).await;
        assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
        let outcome = guard(transactions()).key(key).process(&message, &notes).await;
        assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
        let expected = format!("billing/{id}");
        assert_eq!(notes.take(), [expected.clone(), expected]);
    }
    let derived = guard(MemoryStore::new(10)).missing_id(MissingIdPolicy::DeriveFromContent);
    for _ in 0..2 {
        let _ = derived.process(&IncomingMessage::new("500"), &notes).await;
    }
    assert_eq!(notes.take().len(), 1, "the second is a duplicate");
}

#[tokio::test]
async fn each_message_of_a_batch_has_its_identity() {
    let message = |order| IncomingMessage::new("500").with_message_id("m").with_header("order", order);
    let batch: Vec<_> = ["a", "b", "a", "c"].into_iter().map(message).collect();
    let notes = Notes::default();
    let store = transactions();
    let outcomes = guard(store.clone()).key(KeySource::header("order")).process_batch(&batch, &notes).await;
    assert!(outcomes.iter().all(Outcome::is_handled), "{outcomes:?}");
    assert_eq!(notes.take(), ["billing/a", "billing/b", "billing/c"]);
    assert_eq!(store.commits(), 1, "together");

    // One by one, after the common session was rolled back.
    let store = transactions();
    let failed = Commit::Fails { kind: lapin_idempotent::idempotency::StoreErrorKind::Conflict, made: false };
    store.fail(Faults::new(Vec::new(), vec![failed], false));
    let _ = guard(store.clone()).key(KeySource::header("order")).process_batch(&batch, &notes).await;
    let all = ["billing/a", "billing/b", "billing/c"];
    assert_eq!(notes.take(), [all, all].concat());
    assert_eq!(store.commits(), 3, "each alone");
}

/// Copies of one message for two consumers in one process: the effect keys must not mix.
#[tokio::test]
async fn two_guards_give_a_message_their_own_identities() {
    let store = transactions();
    let message = IncomingMessage::new("500").with_message_id("m").with_header("order", "h");
    let batch = [message.clone(), IncomingMessage::new("500").with_message_id("n")];
    let notes = Notes::default();
    let _ = guard(store.clone()).process_batch(&batch, &notes).await;
    let other = Guard::new(transactions(), scope("ledger"));
    let _ = other.process_batch(&batch, &notes).await;
    assert_eq!(notes.take(), ["billing/m", "billing/n", "ledger/m", "ledger/n"]);

    for (scope_name, key) in [("a", KeySource::message_id()), ("a", KeySource::header("order"))] {
        let guard = Guard::new(MemoryStore::new(10), scope(scope_name)).key(key);
        let _ = guard.process(&message, &notes).await;
    }
    assert_eq!(notes.take(), ["a/m", "a/h"]);
    assert_eq!(message.identity().expect("the first one's").message_id().as_str(), "m");
}

/// Handles batches, and nothing else.
struct InBulk;

impl IdempotentHandler<Transactions> for InBulk {
    async fn handle(&self, _: &IncomingMessage, _: &mut Transaction) -> HandlerResult {
        Err(HandlerError::reject("one by one"))
    }

    async fn handle_batch(
        &self,
        messages: &[&IncomingMessage],
        transaction: &mut Transaction,
    ) -> HandlerResult {
        transaction.effects.push((format!("{} messages", messages.len()), String::new()));
        Ok(())
    }
}

#[tokio::test]
async fn one_handler_serves_two_consumers_behind_an_arc() {
    let notes = Arc::new(Notes::default());
    let message = IncomingMessage::new("500").with_message_id("m");
    let _ = guard(MemoryStore::new(10)).process(&message, &Arc::clone(&notes)).await;
    let _ = Guard::new(transactions(), scope("ledger")).process(&message, &notes).await;
    assert_eq!(notes.take(), ["billing/m", "ledger/m"]);

    let batch = [message, IncomingMessage::new("500").with_message_id("n")];
    let store = transactions();
    let outcomes = guard(store.clone()).process_batch(&batch, &Arc::new(InBulk)).await;
    assert!(outcomes.iter().all(Outcome::is_handled), "{outcomes:?}");
    assert_eq!(store.effects(), [("2 messages".to_owned(), String::new())], "its own handle_batch");
}

#[tokio::test]
async fn closure_is_a_handler() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handler = handler_fn(|message, lease: &mut Lease| {
        let seen = Arc::clone(&seen);
        Box::pin(async move {
            tokio::task::yield_now().await;
            seen.lock().unwrap().push(format!("{} {}", lease.message_id().as_str(), message.text()?));
            Ok(())
        })
    });
    let guard = guard(MemoryStore::new(10));
    let message = IncomingMessage::new("500").with_message_id("m");
    assert!(matches!(guard.process(&message, &handler).await, Outcome::Processed));
    assert!(matches!(guard.process(&message, &handler).await, Outcome::Duplicate(_)));
    assert_eq!(*seen.lock().unwrap(), ["m 500"]);
}

#[test]
fn handler_error_says_what_it_asks_for() {
    let told = |error: &HandlerError| {
        let asks = (error.is_retry(), error.is_reject(), error.is_unavailable());
        (asks, error.delay(), error.source().to_string())
    };
    let (retry, reject, unavailable) = ((true, false, false), (false, true, false), (false, false, true));
    let minute = Duration::from_secs(60);
    assert_eq!(told(&HandlerError::retry("away")), (retry, None, "away".into()));
    assert_eq!(told(&HandlerError::retry_after(minute, "busy")), (retry, Some(minute), "busy".into()));
    assert_eq!(told(&HandlerError::reject("no such account")), (reject, None, "no such account".into()));
    assert_eq!(told(&HandlerError::unavailable("down")), (unavailable, None, "down".into()));
    let error = HandlerError::from(std::fmt::Error);
    assert!(error.source().is::<std::fmt::Error>(), "as it was");
}

/// The application's own error, as it is mostly made.
#[derive(Debug, thiserror::Error)]
enum DebitError {
    #[error("the message is no debit")]
    Message(#[from] DecodeError),
    #[error(transparent)]
    Transparent(DecodeError),
    #[error("the ledger is away")]
    Ledger(#[source] std::io::Error),
}

#[derive(Debug, thiserror::Error)]
#[error("debit")]
struct Outer(#[source] DebitError);

#[test]
fn decode_error_anywhere_in_the_chain_is_a_reject() {
    fn converted<E: std::error::Error + Send + Sync + 'static>(error: E) -> HandlerError {
        fn question_mark<E: std::error::Error + Send + Sync + 'static>(error: E) -> HandlerResult {
            Err(error)?
        }
        question_mark(error).unwrap_err()
    }
    let json = || IncomingMessage::new("{").json::<u32>().unwrap_err();
    let text = || IncomingMessage::new(&b"\xff"[..]).text().unwrap_err();
    assert!(converted(json()).is_reject() && converted(text()).is_reject());
    assert!(converted(DebitError::from(json())).is_reject());
    assert!(converted(DebitError::Transparent(text())).is_reject(), "shown as its cause");
    assert!(converted(Outer(DebitError::Message(json()))).is_reject());
    assert!(converted(Outer(DebitError::Transparent(json()))).is_reject());
    assert!(converted(std::io::Error::other(json())).is_reject(), "shown as its cause");

    let away = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    assert!(converted(away()).is_retry());
    assert!(converted(Outer(DebitError::Ledger(away()))).is_retry());
    let own = serde_json::from_str::<u32>("{").unwrap_err();
    assert!(converted(own).is_retry(), "not of the message, as far as we know");
}

#[test]
fn boxed_errors_are_what_the_handler_says() {
    let error = || -> BoxError { "away".into() };
    assert!(HandlerError::retry(error()).is_retry());
    assert!(HandlerError::reject(error()).is_reject());
}

/// Depends on something that is away, for some messages.
#[derive(Default)]
struct Depends(Mutex<Vec<String>>);

impl Depends {
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the card network is away")]
struct Away(#[source] std::io::Error);

impl<S: IdempotencyStore> IdempotentHandler<S> for Depends {
    async fn handle(&self, message: &IncomingMessage, _: &mut S::Session) -> HandlerResult {
        let id = message.raw_message_id().unwrap().to_owned();
        self.0.lock().unwrap().push(id.clone());
        match id.as_str() {
            "needs it" => Err(HandlerError::unavailable(Away(std::io::ErrorKind::ConnectionRefused.into()))),
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn unavailable_is_no_failure_and_releases_the_claim() {
    let message = IncomingMessage::new("500").with_message_id("needs it");
    let handler = Depends::default();
    let store = MemoryStore::new(10);
    let guard = guard(store.clone()).immediate_retries(5);
    for _ in 0..2 {
        let outcome = guard.process(&message, &handler).await;
        assert!(matches!(outcome, Outcome::DependencyUnavailable { .. }), "{outcome:?}");
        assert!(outcome.is_unavailable() && !outcome.is_handled());
        assert_eq!(handler.asked(), ["needs it"], "not again at once, and the claim was released");
    }
    assert!(matches!(guard.process(&message, &Notes::default()).await, Outcome::Processed));
}

/// Fails, and finds what it depends on away when it is run again.
#[tokio::test]
async fn failure_before_the_handler_said_unavailable_is_counted() {
    let message = IncomingMessage::new("500").with_message_id("order-42");
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let handler = handler_fn(move |_: &IncomingMessage, _: &mut Lease| {
        let run = counted.fetch_add(1, SeqCst);
        Box::pin(async move {
            Err(match run {
                0 => HandlerError::retry("no such account"),
                _ => HandlerError::unavailable("the card network is away"),
            })
        })
    });
    let outcome = guard(MemoryStore::new(10)).immediate_retries(5).process(&message, &handler).await;
    let Outcome::Retry { after: None, failures: 1, error } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(error.to_string(), "the card network is away");
    assert_eq!(runs.load(SeqCst), 2);
    let outcome = guard(MemoryStore::new(10)).process(&message, &handler).await;
    assert!(matches!(outcome, Outcome::DependencyUnavailable { .. }), "{outcome:?}");
}

#[tokio::test]
async fn rest_of_a_batch_is_not_asked_what_is_away() {
    let ids = ["a", "needs it", "b", "c"];
    let batch = ids.map(|id| IncomingMessage::new("500").with_message_id(id));
    let (store, handler) = (transactions(), Depends::default());
    let outcomes = guard(store.clone()).process_batch(&batch, &handler).await;
    let names: Vec<_> = outcomes.iter().map(Outcome::name).collect();
    let away = "dependency_unavailable";
    assert_eq!(names, ["processed", away, away, away]);
    assert_eq!(handler.asked(), ["a", "needs it", "a", "needs it"], "together, then one by one");
    assert_eq!(store.commits(), 1);
    let Outcome::DependencyUnavailable { error } = &outcomes[3] else { panic!("{outcomes:?}") };
    assert_eq!(error.to_string(), "the card network is away: connection refused", "with its causes");
}
