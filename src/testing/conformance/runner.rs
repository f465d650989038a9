//! Runs cases, one after the other.

use std::{any::Any, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, timeout};

use super::{
    capabilities::{Capabilities, Need},
    fixture::{Fixture, Outcome, Stop},
    report::{CaseReport, Report, Verdict},
};
use crate::idempotency::IdempotencyStore;

/// Gives a case what it works with, by its name.
type Open<'a, F> = dyn Fn(&'static str) -> BoxFuture<'a, F> + Send + Sync + 'a;

pub(super) struct Cases<'a, F> {
    open: Box<Open<'a, F>>,
    has: Vec<Need>,
    limit: Duration,
    reports: Vec<CaseReport>,
}

/// The cases of stores.
pub(super) type Runner<'a, S> = Cases<'a, Fixture<S>>;

impl<'a, S: IdempotencyStore> Runner<'a, S> {
    pub(super) fn new<O, F>(open: &'a O, capabilities: Capabilities) -> Self
    where
        O: Fn() -> F + Send + Sync,
        F: Future<Output = S> + Send + 'a,
    {
        let (has, limit) = (capabilities.all(), capabilities.limit());
        let two = move |name| {
            let capabilities = capabilities.clone();
            async move {
                let (a, b) = (Arc::new(open().await), Arc::new(open().await));
                Fixture::new(name, a, b, &capabilities)
            }
            .boxed()
        };
        Self::over(two, has, limit)
    }
}

impl<'a, F: Send> Cases<'a, F> {
    pub(super) fn over(
        open: impl Fn(&'static str) -> BoxFuture<'a, F> + Send + Sync + 'a,
        has: Vec<Need>,
        limit: Duration,
    ) -> Self {
        Self { open: Box::new(open), has, limit, reports: Vec::new() }
    }

    pub(super) fn report(self) -> Report {
        Report::new(self.reports)
    }

    /// Runs one case with handles of its own, if what is tried has what it needs.
    pub(super) async fn case<C, R>(
        &mut self,
        (name, cites): (&'static str, &'static str),
        needs: &[Need],
        case: C,
    ) where
        C: FnOnce(F) -> R + Send,
        R: Future<Output = Outcome> + Send,
    {
        let started = Instant::now();
        let missing = needs.iter().find(|need| !self.has.contains(need));
        let verdict = match missing {
            Some(need) => Verdict::NotApplicable(need.missing().to_owned()),
            None => self.run(name, case).await,
        };
        self.reports.push(CaseReport { name, cites, verdict, elapsed: started.elapsed() });
    }

    async fn run<C, R>(&self, name: &'static str, case: C) -> Verdict
    where
        C: FnOnce(F) -> R + Send,
        R: Future<Output = Outcome> + Send,
    {
        let work = async { case((self.open)(name).await).await };
        let limit = self.limit;
        // On the heap: the future of each case would otherwise be a part of the whole run's.
        match timeout(limit, Box::pin(AssertUnwindSafe(work).catch_unwind())).await {
            Ok(Ok(Ok(()))) => Verdict::Passed,
            Ok(Ok(Err(Stop::Failed(text)))) => Verdict::Failed(text),
            Ok(Ok(Err(Stop::NotApplicable(reason)))) => Verdict::NotApplicable(reason),
            Ok(Err(panic)) => Verdict::Failed(format!("expected no panic; came {:?}", panic_text(&*panic))),
            Err(_) => Verdict::Failed(format!("expected an end within {limit:?}; there is no answer")),
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text")
}
