//! What is crashed.

use std::{convert::Infallible, fmt, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::LocalBoxFuture;

use super::outbox::CrashingOutbox;
use crate::{
    error::BoxError,
    idempotency::StoreError,
    idempotency::{Guard, IdempotencyStore},
    outbox::{Outbox, Relay},
    testing::{BedPublisher, points::Points},
};

/// A dead relay holds its lanes for so long.
const LEASE: Duration = Duration::from_millis(100);

/// How long a relay that is not told waits.
const POLL: Duration = Duration::from_millis(5);

/// What a service is called by.
pub(super) type Service = Box<dyn Fn(BedPublisher) -> LocalBoxFuture<'static, Result<(), BoxError>>>;

/// What is set of a guard.
pub(super) type SetGuard<S> = Box<dyn Fn(Guard<Arc<S>>) -> Guard<Arc<S>>>;

type State = dyn Fn() -> LocalBoxFuture<'static, String>;

/// What is crashed everywhere: a store and a handler, made anew for each run, and how to look at
/// what they did.
#[must_use = "nothing is tried before `run`"]
pub struct Subject<S: IdempotencyStore, H> {
    pub(super) store: S,
    pub(super) handler: Box<dyn Fn() -> Arc<H>>,
    pub(super) guard: SetGuard<S>,
    pub(super) state: Box<State>,
    pub(super) services: Vec<Service>,
    pub(super) relaying: Option<Relaying>,
}

/// A relay over any outbox.
pub(super) struct Relaying {
    #[allow(clippy::type_complexity)]
    pub(super) relay: Box<dyn Fn(BedPublisher, Arc<Points>) -> LocalBoxFuture<'static, Infallible>>,
    /// How many messages are left, if the outbox can tell.
    #[allow(clippy::type_complexity)]
    pub(super) backlog: Box<dyn Fn() -> LocalBoxFuture<'static, Result<u64, StoreError>>>,
}

impl<S: IdempotencyStore, H: 'static> Subject<S, H> {
    /// A handler, guarded by a store. It is one value for all lives of its process: what it keeps
    /// in memory outlives a crash. See [`restarting`](Self::restarting).
    pub fn new(store: S, handler: H) -> Self {
        let handler = Arc::new(handler);
        Self::over(store, move || Arc::clone(&handler))
    }

    /// A handler that is made anew each time that its process starts, as it is in a service: what
    /// it keeps in memory is lost in a crash, such as a set of the messages that it has seen.
    pub fn restarting(store: S, handler: impl Fn() -> H + 'static) -> Self {
        Self::over(store, move || Arc::new(handler()))
    }

    fn over(store: S, handler: impl Fn() -> Arc<H> + 'static) -> Self {
        let state = Box::new(|| Box::pin(async { String::new() }) as LocalBoxFuture<'static, String>);
        let (handler, guard) = (Box::new(handler), Box::new(|guard| guard));
        Self { store, handler, guard, state, services: Vec::new(), relaying: None }
    }

    /// Sets what else can be set of the consumer's [`Guard`], such as its policies and the source
    /// of identities.
    pub fn guard(mut self, set: impl Fn(Guard<Arc<S>>) -> Guard<Arc<S>> + 'static) -> Self {
        self.guard = Box::new(set);
        self
    }

    /// Sets how to look at what has taken effect: rows, balances, files, anything whose [`Debug`]
    /// text tells one state from another. It is looked at when everything has come to rest, and
    /// must be the same after every run: so no times, no IDs that are made anew, rows in an order
    /// of their own (a message that failed once is handled after the next one), no `HashMap`.
    pub fn state<T: fmt::Debug>(mut self, state: impl AsyncFn() -> T + 'static) -> Self {
        let state = Rc::new(state);
        self.state = Box::new(move || {
            let state = Rc::clone(&state);
            Box::pin(async move { format!("{:?}", state().await) })
        });
        self
    }

    /// Calls this once, with what publishes, before messages are handled; and again from its start
    /// if it fails or its process ends within it, as whoever calls your service does. Several are
    /// called one after the other.
    pub fn service<E: Into<BoxError>>(
        mut self,
        service: impl AsyncFn(BedPublisher) -> Result<(), E> + 'static,
    ) -> Self {
        let service = Rc::new(service);
        self.services.push(Box::new(move |publisher| {
            let service = Rc::clone(&service);
            Box::pin(async move { service(publisher).await.map_err(Into::into) })
        }));
        self
    }

    /// Runs a relay from this outbox beside the consumer, which ends with the process as well.
    pub fn outbox<O: Outbox + Clone>(mut self, outbox: O) -> Self {
        let looked_at = outbox.clone();
        let backlog = move || {
            let outbox = looked_at.clone();
            let backlog = async move { outbox.status().await.map(|status| status.backlog) };
            Box::pin(backlog) as LocalBoxFuture<'static, Result<u64, StoreError>>
        };
        let relay = move |publisher: BedPublisher, points: Arc<Points>| {
            let outbox = CrashingOutbox { outbox: outbox.clone(), points };
            let relay = Relay::new(outbox, publisher).lease(LEASE).poll(POLL);
            let relay = async move {
                relay.run_until(std::future::pending()).await;
                std::future::pending().await
            };
            Box::pin(relay) as LocalBoxFuture<'static, Infallible>
        };
        self.relaying = Some(Relaying { relay: Box::new(relay), backlog: Box::new(backlog) });
        self
    }
}

impl<S: IdempotencyStore, H> fmt::Debug for Subject<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").finish_non_exhaustive()
    }
}
