//! Runs cases, one after the other.

use std::{any::Any, future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, timeout};

use super::{
    capabilities::{Capabilities, Need},
    fixture::{Fixture, Outcome, Stop},
    report::{CaseReport, Report, Verdict},
};
use crate::idempotency::IdempotencyStore;

type Open<'a, S> = dyn Fn() -> BoxFuture<'a, S> + Send + Sync + 'a;

pub(super) struct Runner<'a, S> {
    open: Box<Open<'a, S>>,
    capabilities: Capabilities,
    cases: Vec<CaseReport>,
}

impl<'a, S: IdempotencyStore> Runner<'a, S> {
    pub(super) fn new<O, F>(open: &'a O, capabilities: Capabilities) -> Self
    where
        O: Fn() -> F + Send + Sync,
        F: Future<Output = S> + Send + 'a,
    {
        Self { open: Box::new(move || open().boxed()), capabilities, cases: Vec::new() }
    }

    pub(super) fn report(self) -> Report {
        Report::new(self.cases)
    }

    /// Runs one case with two handles of its own, if the store has what it needs.
    pub(super) async fn case<C, R>(
        &mut self,
        (name, cites): (&'static str, &'static str),
        needs: &[Need],
        case: C,
    ) where
        C: FnOnce(Fixture<S>) -> R + Send,
        R: Future<Output = Outcome> + Send,
    {
        let started = Instant::now();
        let missing = needs.iter().find(|need| !self.capabilities.has(**need));
        let verdict = match missing {
            Some(need) => Verdict::NotApplicable(need.missing().to_owned()),
            None => self.run(name, case).await,
        };
        self.cases.push(CaseReport { name, cites, verdict, elapsed: started.elapsed() });
    }

    async fn run<C, R>(&self, name: &str, case: C) -> Verdict
    where
        C: FnOnce(Fixture<S>) -> R + Send,
        R: Future<Output = Outcome> + Send,
    {
        let work = async {
            let (a, b) = (Arc::new((self.open)().await), Arc::new((self.open)().await));
            case(Fixture::new(name, a, b, &self.capabilities)).await
        };
        let limit = self.capabilities.limit();
        // On the heap: the future of each case would otherwise be a part of the whole run's.
        match timeout(limit, Box::pin(AssertUnwindSafe(work).catch_unwind())).await {
            Ok(Ok(Ok(()))) => Verdict::Passed,
            Ok(Ok(Err(Stop::Failed(text)))) => Verdict::Failed(text),
            Ok(Ok(Err(Stop::NotApplicable(reason)))) => Verdict::NotApplicable(reason),
            Ok(Err(panic)) => Verdict::Failed(format!("expected no panic; came {:?}", panic_text(&*panic))),
            Err(_) => Verdict::Failed(format!("expected an end within {limit:?}; the store does not answer")),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text")
}
