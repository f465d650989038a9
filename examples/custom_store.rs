//! A store of your own, and the suite that tries it: `cargo run --example custom_store --features
//! testing`.
//!
//! Identities in this process's memory, one open session at a time. Effects would be written into
//! `Books`, too.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lapin_idempotent::{
    IdempotencyStore, MessageId,
    idempotency::{Claim, ClaimRequest, Claims, Scope, StoreError, StoreErrorKind},
    message::Fingerprint,
    testing::conformance::{self, Capabilities},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

// Identity is exact, and a pair: joined into one text, ("ab", "c") would be ("a", "bc").
type Books = HashMap<(Scope, MessageId), (Fingerprint, SystemTime, Instant)>;

#[derive(Clone, Default)]
struct BooksStore(Arc<Mutex<Books>>);

/// What the handler gets. Nothing is in the books before `complete`, so dropping it gives the
/// claims back.
struct Entry(OwnedMutexGuard<Books>, Vec<ClaimRequest>);

impl IdempotencyStore for BooksStore {
    type Session = Entry;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Entry>, StoreError> {
        // Lock first, then look: what a rival completes in between must be seen. And never wait for
        // ever.
        let wait = tokio::time::timeout(Duration::from_secs(5), Arc::clone(&self.0).lock_owned());
        let books = wait.await.map_err(|elapsed| StoreError::new(StoreErrorKind::Busy, elapsed))?;
        let (mut claims, mut new) = (Vec::new(), Vec::new());
        for request in requests {
            let known = books.get(&(request.scope.clone(), request.message_id.clone()));
            if known.is_none() {
                new.push(request.clone());
            }
            claims.push(known.map_or(Claim::Acquired, |&(fingerprint, processed_at, _)| {
                Claim::completed(fingerprint, processed_at)
            }));
        }
        // A session exactly if something is new.
        Ok(Claims::new((!new.is_empty()).then(|| Entry(books, new)), claims))
    }

    async fn complete(&self, Entry(mut books, new): Entry) -> Result<(), StoreError> {
        // All of them, and the effects, in one step: no error, panic or await can come between.
        for ClaimRequest { scope, message_id, fingerprint, .. } in new {
            books.insert((scope, message_id), (fingerprint, SystemTime::now(), Instant::now()));
        }
        Ok(())
    }

    async fn release(&self, _: Entry) -> Result<(), StoreError> {
        Ok(())
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        // By a clock that nobody sets; and at most `limit`, so that claims do not wait for long.
        let (mut books, mut forgotten) = (self.0.lock().await, 0);
        books.retain(|_, (_, _, at)| {
            let goes = forgotten < u64::from(limit) && at.elapsed() > retention;
            forgotten += u64::from(goes);
            !goes
        });
        Ok(forgotten)
    }
}

#[tokio::main]
async fn main() {
    let store = BooksStore::default();
    // A handle on the same identities each time, as a second consumer would have it.
    let open = || async { store.clone() };
    let report = conformance::run(open, Capabilities::transactional().exclusive()).await;
    println!("{report}");
    report.assert();
}
