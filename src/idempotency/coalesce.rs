//! Claims and completions of messages that are handled beside each other, in common round trips.
//!
//! What is asked at the same moment is answered together. Nobody waits for others to ask, nor for
//! their handlers: each message is still claimed, handled and completed by itself.

use std::{collections::HashSet, convert::Infallible, fmt, future::Future, mem::take, sync::Mutex};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{Notify, oneshot};

use super::{
    claim::{ClaimRequest, Claims},
    store::{IdempotencyStore, StoreError, StoreErrorKind},
};

/// At most so many in one round trip: while the server works on one, the next is written, and the
/// answers of the one before are read.
const ROUND: usize = 16;

type Claimed<S> = Result<Claims<<S as IdempotencyStore>::Session>, StoreError>;
type Completed = Result<(), StoreError>;

/// What was asked since the last round trip began.
pub(crate) struct Coalescer<S: IdempotencyStore> {
    claims: Mutex<Asked<ClaimRequest, Claimed<S>>>,
    completions: Mutex<Asked<S::Session, Completed>>,
    asked: Notify,
}

/// What is asked, and who waits for its answer.
type Asked<Q, A> = Vec<(Q, oneshot::Sender<A>)>;

impl<S: IdempotencyStore> Default for Coalescer<S> {
    fn default() -> Self {
        Self { claims: Mutex::default(), completions: Mutex::default(), asked: Notify::new() }
    }
}

impl<S: IdempotencyStore> Coalescer<S> {
    pub(super) async fn claim(&self, request: ClaimRequest) -> Claimed<S> {
        let answer = self.ask(&self.claims, request).await;
        answer.unwrap_or_else(|| Err(StoreErrorKind::Unavailable.into()))
    }

    pub(super) async fn complete(&self, session: S::Session) -> Completed {
        let answer = self.ask(&self.completions, session).await;
        answer.unwrap_or_else(|| Err(StoreErrorKind::OutcomeUnknown.into()))
    }

    async fn ask<Q, A>(&self, asked: &Mutex<Asked<Q, A>>, question: Q) -> Option<A> {
        let (answer, answered) = oneshot::channel();
        locked(asked).push((question, answer));
        self.asked.notify_one();
        answered.await.ok()
    }

    /// Asks the store for all of them, for ever; dropped, it leaves those who wait without an
    /// answer. Several round trips may be under way, so that a slow one holds up only those who are
    /// part of it.
    pub(super) async fn run(&self, store: &S) -> Infallible {
        let mut rounds: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            let mut claims = take(&mut *locked(&self.claims));
            // Nobody would release what is claimed for one who is gone.
            claims.retain(|(_, answer)| !answer.is_closed());
            for (requests, answers) in turns(claims).into_iter().flat_map(parts) {
                rounds.push(Box::pin(async move { send(answers, store.claim_each(&requests)).await }));
            }
            for (sessions, answers) in parts(take(&mut *locked(&self.completions))) {
                rounds.push(Box::pin(send(answers, store.complete_each(sessions))));
            }
            tokio::select! {
                () = self.asked.notified() => {}
                Some(()) = rounds.next() => {}
            }
        }
    }
}

/// Claims in turns in each of which no identity occurs twice: copies ask by themselves.
fn turns<A>(mut asked: Asked<ClaimRequest, A>) -> Vec<Asked<ClaimRequest, A>> {
    let mut turns = Vec::new();
    while !asked.is_empty() {
        let mut seen = HashSet::with_capacity(asked.len());
        let is_first = |(request, _): &(ClaimRequest, _)| {
            seen.insert((request.scope.clone(), request.message_id.clone()))
        };
        let (turn, later): (Vec<_>, Vec<_>) = asked.into_iter().partition(is_first);
        turns.push(turn);
        asked = later;
    }
    turns
}

/// What is asked, in parts for one round trip each, apart from who asked.
fn parts<Q, A>(asked: Asked<Q, A>) -> impl Iterator<Item = (Vec<Q>, Vec<oneshot::Sender<A>>)> {
    let mut asked = asked.into_iter();
    std::iter::from_fn(move || {
        let part: (Vec<_>, Vec<_>) = asked.by_ref().take(ROUND).unzip();
        if part.0.is_empty() { None } else { Some(part) }
    })
}

async fn send<A>(to: Vec<oneshot::Sender<A>>, answers: impl Future<Output = Vec<A>>) {
    for (to, answer) in to.into_iter().zip(answers.await) {
        // A caller that does not wait any more has given the message up: its lease runs out.
        let _ = to.send(answer);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // No code of others runs under the lock.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<S: IdempotencyStore> fmt::Debug for Coalescer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalescer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, future::join_all};

    use super::*;
    use crate::{
        idempotency::{Guard, HandlerResult, IdempotentHandler, Lease, Outcome, Scope},
        message::IncomingMessage,
    };

    /// Acquires and completes everything; loses the lease of the message "lost".
    #[derive(Default)]
    struct Fake {
        rounds: Mutex<Vec<(&'static str, usize)>>,
        silent: bool,
    }

    impl IdempotencyStore for Fake {
        type Session = Lease;

        async fn claim(&self, _: &[ClaimRequest]) -> Claimed<Self> {
            Err(StoreErrorKind::Configuration.into())
        }

        async fn claim_each(&self, requests: &[ClaimRequest]) -> Vec<Claimed<Self>> {
            if self.silent {
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
            self.rounds.lock().unwrap().push(("claim", requests.len()));
            requests.iter().map(|request| Ok(Claims::leased(Lease::new(request, 1)))).collect()
        }

        async fn complete(&self, _: Lease) -> Completed {
            Err(StoreErrorKind::Configuration.into())
        }

        async fn complete_each(&self, sessions: Vec<Lease>) -> Vec<Completed> {
            tokio::task::yield_now().await;
            self.rounds.lock().unwrap().push(("complete", sessions.len()));
            sessions.iter().map(|_| Ok(())).collect()
        }

        async fn release(&self, _: Lease) -> Completed {
            Ok(())
        }

        async fn purge(&self, _: Duration, _: u32) -> Result<u64, StoreError> {
            Ok(0)
        }

        fn pipelines(&self) -> bool {
            true
        }

        fn keep_alive(&self, session: &Lease) -> Option<BoxFuture<'static, StoreError>> {
            let lost = session.message_id().as_str() == "lost";
            lost.then(|| async { StoreErrorKind::LeaseLost.into() }.boxed())
        }
    }

    /// Has the effect at once, except for "slow" and "lost".
    struct Handler(Notify);

    impl IdempotentHandler<Fake> for Handler {
        async fn handle(&self, message: &IncomingMessage, _: &mut Lease) -> HandlerResult {
            match message.raw_message_id() {
                Some("slow") => self.0.notified().await,
                Some("lost") => std::future::pending().await,
                _ => {}
            }
            Ok(())
        }
    }

    fn guard(silent: bool) -> Guard<Fake> {
        Guard::new(Fake { silent, ..Fake::default() }, Scope::new("test").unwrap()).coalesced()
    }

    fn message(id: &str) -> IncomingMessage {
        IncomingMessage::new("").with_message_id(id)
    }

    async fn beside<T>(guard: &Guard<Fake>, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = guard.drive() => match never {},
        }
    }

    #[tokio::test]
    async fn who_asks_at_the_same_moment_is_answered_together() {
        let (guard, handler) = (guard(false), Handler(Notify::new()));
        let messages: Vec<_> = (0..40).map(|n| message(&format!("m{n}"))).collect();
        let all = join_all(messages.iter().map(|message| guard.process(message, &handler)));
        for outcome in beside(&guard, all).await {
            assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
        }
        let rounds = guard.store().rounds.lock().unwrap().clone();
        for what in ["claim", "complete"] {
            let sizes: Vec<usize> =
                rounds.iter().filter(|(name, _)| *name == what).map(|round| round.1).collect();
            assert_eq!(sizes.iter().sum::<usize>(), 40, "{what}");
            assert!(sizes.len() <= 6 && sizes.iter().all(|size| *size <= ROUND), "{what}: {sizes:?}");
        }
    }

    #[tokio::test]
    async fn copies_are_not_asked_about_together() {
        let (guard, handler) = (guard(false), Handler(Notify::new()));
        let messages = ["a", "b", "a", "a"].map(message);
        let all = join_all(messages.iter().map(|message| guard.process(message, &handler)));
        beside(&guard, all).await;
        let rounds = guard.store().rounds.lock().unwrap().clone();
        let mut claims: Vec<usize> =
            rounds.iter().filter(|round| round.0 == "claim").map(|round| round.1).collect();
        claims.sort_unstable();
        assert_eq!(claims, [1, 1, 2]);
    }

    #[tokio::test]
    async fn slow_handler_and_lost_lease_concern_nobody_else() {
        let (guard, handler) = (guard(false), Handler(Notify::new()));
        let messages = ["slow", "a", "lost", "b"].map(message);
        let mut working: FuturesUnordered<_> = (messages.iter())
            .map(|message| async {
                (message.raw_message_id(), guard.process(message, &handler).await.name())
            })
            .collect();
        let work = async {
            let mut first = Vec::new();
            for _ in 0..3 {
                first.extend(working.next().await);
            }
            first.sort_unstable();
            assert_eq!(
                first,
                [(Some("a"), "processed"), (Some("b"), "processed"), (Some("lost"), "lease_lost")]
            );
            handler.0.notify_one();
            assert_eq!(working.next().await, Some((Some("slow"), "processed")));
        };
        beside(&guard, work).await;
    }

    #[tokio::test]
    async fn unanswered_is_an_error() {
        let (guard, handler, message) = (guard(true), Handler(Notify::new()), message("a"));
        let mut work = std::pin::pin!(guard.process(&message, &handler));
        tokio::select! {
            outcome = &mut work => panic!("{outcome:?}"),
            never = guard.drive() => match never {},
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        assert_eq!(work.await.name(), "store_unavailable");
    }
}
