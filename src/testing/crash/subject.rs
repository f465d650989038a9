//! What is crashed.

use std::{convert::Infallible, fmt, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::LocalBoxFuture;

use super::outbox::CrashingOutbox;
use crate::{
    error::BoxError,
    idempotency::StoreError,
    outbox::{Outbox, Relay},
    testing::{BedPublisher, points::Points},
};

/// A dead relay holds its lanes for so long.
const LEASE: Duration = Duration::from_millis(100);

/// How long a relay that is not told waits.
const POLL: Duration = Duration::from_millis(5);

/// What a service is called by.
pub(super) type Service = Box<dyn Fn(BedPublisher) -> LocalBoxFuture<'static, Result<(), BoxError>>>;

type State = dyn Fn() -> LocalBoxFuture<'static, String>;

/// What is crashed everywhere: a store and a handler, made anew for each run, and how to look at
/// what they did.
#[must_use = "nothing is tried before `run`"]
pub struct Subject<S, H> {
    pub(super) store: S,
    pub(super) handler: H,
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

impl<S, H> Subject<S, H> {
    /// A handler, guarded by a store.
    pub fn new(store: S, handler: H) -> Self {
        let state = Box::new(|| Box::pin(async { String::new() }) as LocalBoxFuture<'static, String>);
        Self { store, handler, state, services: Vec::new(), relaying: None }
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

impl<S, H> fmt::Debug for Subject<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").finish_non_exhaustive()
    }
}
