//! What happened, as a table.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use lapin_idempotent::{Outcome, idempotency::DuplicateCause};

use crate::bank::Books;

/// Counts outcomes while they happen.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    processed: AtomicUsize,
    retried: AtomicUsize,
    redelivered: AtomicUsize,
    republished: AtomicUsize,
    other: AtomicUsize,
}

impl Tally {
    pub(crate) fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Processed => &self.processed,
            Outcome::Duplicate(duplicate) => match duplicate.cause {
                DuplicateCause::PublisherRetry => &self.retried,
                DuplicateCause::BrokerRedelivery => &self.redelivered,
                _ => &self.republished,
            },
            _ => &self.other,
        };
        counter.fetch_add(1, Relaxed);
    }
}

pub(crate) struct Report {
    pub(crate) orders: usize,
    pub(crate) attempts: u32,
    pub(crate) copies: u32,
    pub(crate) tally: Arc<Tally>,
    pub(crate) books: Books,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { processed, retried, redelivered, republished, other } = &*self.tally;
        let [processed, retried, redelivered, republished, other] =
            [processed, retried, redelivered, republished, other].map(|count| count.load(Relaxed));
        let delivered = processed + retried + redelivered + republished + other;
        let row = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn fmt::Display| {
            writeln!(f, "  {name:<46} {value:>12}")
        };
        writeln!(f)?;
        row(f, "orders published and confirmed", &self.orders)?;
        row(f, "attempts that this took", &self.attempts)?;
        row(f, "copies in the queue", &self.copies)?;
        row(f, "deliveries decided", &delivered)?;
        row(f, "duplicates absorbed: sent twice", &retried)?;
        row(f, "duplicates absorbed: delivered twice", &redelivered)?;
        if republished + other > 0 {
            row(f, "other outcomes", &(republished + other))?;
        }
        row(f, "rows in the ledger", &self.books.ledger_rows)?;
        row(f, "sum of all balances, expected", &self.books.expected)?;
        row(f, "sum of all balances, found", &self.books.found)?;
        let Books { accounts, accounts_off, .. } = self.books;
        match accounts_off {
            0 => write!(f, "\n  all {accounts} balances are right"),
            off => write!(f, "\n  {off} of {accounts} balances are WRONG"),
        }
    }
}
