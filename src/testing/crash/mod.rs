//! A handler, crashed everywhere.

#![allow(clippy::future_not_send, reason = "a run is awaited where the test is")]

mod handler;
mod outbox;
mod report;
mod run;
mod store;
mod subject;

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
};

use super::{
    BedPublisher,
    bed::wiring::{Wiring, wiring_settings},
    points::{Passage, Point},
};
use crate::{
    idempotency::{IdempotencyStore, IdempotentHandler},
    message::OutgoingMessage,
};

use report::Observed;
pub use report::{CrashReport, Finding};
use run::Run;
pub use subject::Subject;

/// More points than these are not tried: the test would never end.
const MOST: usize = 20_000;

/// There is nothing to compare with.
const UNLIKE: &str = "two undisturbed runs end differently; does `setup` make everything anew, and has each \
                      message an ID or a key?";

/// A point that is not passed in so many runs, as the handler waited less often, is left out.
const TRIES: u32 = 3;

/// The same for its awaits: a database that is quick is not waited for each time.
const TRIES_TO_WAIT: u32 = 8;

/// Tries whether a handler is idempotent: publishes messages and handles them once undisturbed, and
/// then once for each [`Point`] at which the process can end or something can fail, and compares
/// how it ends.
///
/// `setup` makes everything anew for each run: tables, store, handler. It gets what publishes to
/// the run's broker in memory, for a handler that publishes by itself. See [`Subject`] for what is
/// tried and what is compared.
///
/// # What is promised
///
/// A handler all of whose effects are in its session passes; one with an effect outside of it is
/// told after which point. With a store of leases an effect is never in the session, so only one
/// that is idempotent by itself passes. What is not tried: the crash of a server, a lost network
/// between store and handler, several consumers at once, what happens between two awaits, and one
/// statement of several that fails: a handler that passes on the error of its first and swallows
/// that of its second is not found.
///
/// # Time
///
/// A message that waits for a retry does not: see [`TestBed`](super::TestBed). A lease of a process
/// that ended does run out, so give a [`MemoryStore`](crate::MemoryStore) a test with
/// `#[tokio::test(start_paused = true)]`. Not so one with a database: its timeouts would be over at
/// once. A process that does nothing for 20 seconds is a finding. With SQLite in memory a run takes
/// some milliseconds.
///
/// ```
/// use lapin_idempotent::{
///     HandlerResult, IdempotentHandler, IncomingMessage, OutgoingMessage, SqliteStore, SqliteTransaction,
///     sqlx, testing::{Subject, crash_everywhere},
/// };
///
/// struct Debit;
///
/// impl IdempotentHandler<SqliteStore> for Debit {
///     async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
///         let amount: i64 = message.json()?;
///         sqlx::query("INSERT INTO ledger VALUES (?)").bind(amount).execute(&mut **tx).await?;
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// crash_everywhere(async |_| {
///     let store = SqliteStore::connect("sqlite::memory:").await.unwrap();
///     store.create_schema().await.unwrap();
///     let pool = store.pool().clone();
///     sqlx::query("CREATE TABLE ledger (amount INTEGER)").execute(&pool).await.unwrap();
///     Subject::new(store, Debit).state(async move || {
///         sqlx::query_scalar::<_, i64>("SELECT amount FROM ledger").fetch_all(&pool).await.unwrap()
///     })
/// })
/// .messages([OutgoingMessage::to("", "test").idempotency_key("debit/42").body("500")])
/// .run()
/// .await
/// .assert_same_everywhere();
/// # }
/// ```
pub fn crash_everywhere<S: IdempotencyStore, H, F>(setup: F) -> CrashTest<F>
where
    F: AsyncFn(BedPublisher) -> Subject<S, H>,
{
    let wiring = Wiring {
        // One message after the other, so that each has all points of its own.
        batch: 1,
        // What fails goes through a delay queue.
        immediate_retries: 0,
        ..Wiring::default()
    };
    CrashTest { setup, wiring, messages: Vec::new(), pairs: false }
}

/// Sets up what [`crash_everywhere`] does.
#[must_use = "nothing is tried before `run`"]
pub struct CrashTest<F> {
    setup: F,
    wiring: Wiring,
    messages: Vec<OutgoingMessage>,
    pairs: bool,
}

/// # Settings
impl<F> CrashTest<F> {
    wiring_settings!();

    /// Publishes these messages, one after the other, and each again until its publish succeeds: as
    /// an application does that was not told. Give them an ID, or a key that makes one, or each try
    /// is another message. One that fails once is handled after the next ones: several that only
    /// come out right in their order are found.
    pub fn messages(mut self, messages: impl IntoIterator<Item = OutgoingMessage>) -> Self {
        self.messages.extend(messages);
        self
    }

    /// Lets what is published so go somewhere else, where nobody handles it. That is compared as
    /// well: by exchange, routing key and ID, however many copies of it.
    pub fn sink(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.wiring.sinks.push((exchange.into(), routing_key.into()));
        self
    }

    /// Handles so many messages in one session. Default: 1.
    pub fn batch(mut self, messages: usize) -> Self {
        self.wiring.batch = messages;
        self
    }

    /// Tries each pair of points as well: what ends a process once, and then what handles it again.
    /// As many runs as there are points, squared.
    pub fn pairs(mut self) -> Self {
        self.pairs = true;
        self
    }
}

impl<F> CrashTest<F> {
    /// A run in which these are hit, as far as they come.
    async fn hitting<S, H>(&self, chosen: &[Passage]) -> Run
    where
        F: AsyncFn(BedPublisher) -> Subject<S, H>,
        S: IdempotencyStore<Session: 'static>,
        H: IdempotentHandler<S>,
    {
        let awaits = chosen.iter().any(|passage| matches!(passage.point, Point::Await(_)));
        let most = if awaits { TRIES_TO_WAIT } else { TRIES };
        let mut tries = 1;
        loop {
            let run = Box::pin(self.once(chosen)).await;
            if run.hit.len() == chosen.len() || tries == most {
                return run;
            }
            tries += 1;
        }
    }

    /// Does all runs, one after the other.
    ///
    /// # Panics
    ///
    /// If there is nothing to compare with: the undisturbed run does not come to rest, handles
    /// nothing, or ends in another way when it is done again. And if `setup` or the state panics.
    pub async fn run<S, H>(self) -> CrashReport
    where
        F: AsyncFn(BedPublisher) -> Subject<S, H>,
        S: IdempotencyStore<Session: 'static>,
        H: IdempotentHandler<S>,
    {
        let Run { passed, end, last, .. } = Box::pin(self.once(&[])).await;
        let expected = end.unwrap_or_else(|what| panic!("undisturbed, {what}"));
        let is_handled = passed.iter().any(|passage| passage.point == Point::Committed);
        assert!(is_handled, "undisturbed, no message is handled{}", last.unwrap_or_default());
        assert!(!expected.is_blank(), "there is nothing to compare: give the `Subject` a `state`");
        let again = Box::pin(self.once(&[])).await.end;
        let differs = again.map_or_else(Some, |again| expected.difference(&again));
        if let Some(difference) = differs {
            panic!("{UNLIKE} {difference}");
        }
        let mut report = CrashReport { runs: 2, points: BTreeSet::new(), findings: Vec::new() };
        let usual: BTreeSet<Point> = passed.iter().map(|passage| passage.point).collect();
        let mut left: VecDeque<Passage> = passed.into();
        // A handler that waits for a server does not have to.
        left.push_back(Passage { point: Point::Await(1), nth: 0 });
        let mut tried = BTreeSet::new();
        while let Some(passage) = left.pop_front() {
            if !tried.insert(passage) || tried.len() > MOST {
                continue;
            }
            let run = self.hitting(&[passage]).await;
            let is_hit = !run.hit.is_empty();
            if let (true, Point::Await(count)) = (is_hit, passage.point) {
                // A handler that waits for something may wait once more another time.
                left.push_front(Passage { point: Point::Await(count + 1), ..passage });
            }
            if !is_hit {
                continue;
            }
            // What is passed only because something failed is tried in any case.
            let is_unusual = |point: Point| !usual.contains(&point) && !matches!(point, Point::Await(_));
            let is_new = |passed: &Passage| self.pairs || (passed.nth == 0 && is_unusual(passed.point));
            let behind = run.passed.iter().skip_while(|passed| **passed != passage).skip(1);
            let seconds: Vec<Passage> = behind.filter(|passed| is_new(passed)).copied().collect();
            if report.add(&expected, run) {
                for second in seconds {
                    report.add(&expected, self.hitting(&[passage, second]).await);
                }
            }
        }
        // What goes wrong at one point is told before what needs two.
        report.findings.sort_by_key(|finding| finding.points.len());
        report
    }
}

impl CrashReport {
    /// Gives whether it ended as expected.
    fn add(&mut self, expected: &Observed, run: Run) -> bool {
        self.runs += 1;
        let points: Vec<Point> = run.hit.iter().map(|passage| passage.point).collect();
        self.points.extend(&points);
        let difference = match run.end {
            Ok(observed) => expected.difference(&observed),
            Err(what) => Some(what),
        };
        let is_same = difference.is_none();
        self.findings.extend(difference.map(|difference| Finding { points, difference }));
        is_same
    }
}

impl<F> fmt::Debug for CrashTest<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrashTest").field("wiring", &self.wiring).finish_non_exhaustive()
    }
}
