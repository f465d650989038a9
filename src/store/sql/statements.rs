//! The statements, written once in the words of each database.

use super::{dialect::Dialect, table::TableName};

/// The words that differ.
#[derive(Debug)]
pub(in crate::store) struct Syntax {
    /// The n-th value to be bound, from 1.
    pub(in crate::store) value: fn(usize) -> String,
    /// The server's clock, as the table keeps times.
    pub(in crate::store) now: &'static str,
    /// The same, whether or not a transaction is open.
    pub(in crate::store) moment: &'static str,
    /// A time of the table, in microseconds since 1970.
    pub(in crate::store) micros: fn(&str) -> String,
    /// The time so many microseconds from now; the number is an expression.
    pub(in crate::store) later: fn(&str) -> String,
    /// Microseconds from now until a time of the table.
    pub(in crate::store) until: fn(&str) -> String,
}

/// Everything that a store says to its database, except for claims, which each database has its own
/// way to write.
#[derive(Debug, Clone)]
pub struct Statements {
    pub(in crate::store) table: TableName,
    pub(in crate::store) quoted: String,
    /// Up to the rows, or to the arrays that hold them.
    pub(in crate::store) insert: String,
    /// The same for rows of which none is there.
    #[cfg(feature = "postgres")]
    pub(in crate::store) insert_new: String,
    /// The same for leases.
    #[cfg(feature = "postgres")]
    pub(in crate::store) insert_leased: String,
    /// Up to the identities.
    pub(in crate::store) select: String,
    pub(in crate::store) take_over: String,
    pub(in crate::store) take_over_leased: String,
    pub(in crate::store) renew: String,
    pub(in crate::store) complete: String,
    /// Up to the identities with their tokens.
    pub(in crate::store) complete_all: String,
    pub(in crate::store) release: String,
    pub(in crate::store) count: String,
    /// How many a purge would forget.
    pub(in crate::store) count_older: String,
    /// The server's clock, in microseconds since 1970.
    pub(in crate::store) clock: String,
    pub(in crate::store) forget: String,
    pub(in crate::store) forget_leased: String,
    pub(in crate::store) purge: String,
    pub(in crate::store) schema: String,
    /// Makes the index that a table of an earlier version lacks, beside work that goes on.
    pub(in crate::store) index: String,
    /// Hours that a partition spans, where the layout has partitions.
    pub(in crate::store) partition_hours: Option<u32>,
}

/// The columns, as the check of the schema wants them.
pub(super) const COLUMNS: [&str; 6] =
    ["scope", "message_id", "fingerprint", "processed_at", "token", "leased_until"];

impl Statements {
    /// The statements for a table; `insert` and its variants, `purge`, `schema` and `index` are
    /// left to the database.
    pub(in crate::store) fn new<DB: Dialect>(table: TableName, syntax: &Syntax) -> Self {
        let t = table.quoted(DB::QUOTE);
        let Syntax { now, micros, until, .. } = syntax;
        let v = syntax.value;
        let later = |n: usize| (syntax.later)(&v(n));
        let identity = |n: usize| format!("scope = {} AND message_id = {}", v(n), v(n + 1));
        // A lease is held while the row has its token and is not completed, also after it ran out,
        // until a rival takes it over with a greater token.
        let held =
            |n: usize| format!("{} AND token = {} AND leased_until IS NOT NULL", identity(n), v(n + 2));
        Self {
            insert: String::new(),
            #[cfg(feature = "postgres")]
            insert_new: String::new(),
            #[cfg(feature = "postgres")]
            insert_leased: String::new(),
            select: format!(
                "SELECT scope, message_id, fingerprint, {}, token, {} FROM {t} ",
                micros("processed_at"),
                until("leased_until")
            ),
            take_over: format!(
                "UPDATE {t} SET fingerprint = {}, processed_at = {now}, leased_until = NULL \
                 WHERE {} AND leased_until <= {now}",
                v(1),
                held(2)
            ),
            take_over_leased: format!(
                "UPDATE {t} SET fingerprint = {}, processed_at = {now}, token = token + 1, leased_until = {} \
                 WHERE {} AND leased_until <= {now}",
                v(1),
                later(2),
                held(3)
            ),
            renew: format!("UPDATE {t} SET leased_until = {} WHERE {}", later(1), held(2)),
            complete_all: format!(
                "UPDATE {t} SET processed_at = {now}, leased_until = NULL \
                 WHERE leased_until IS NOT NULL AND (scope, message_id, token) IN ("
            ),
            complete: format!("UPDATE {t} SET processed_at = {now}, leased_until = NULL WHERE {}", held(1)),
            // The row stays, so that the next lease has a greater token.
            release: format!("UPDATE {t} SET leased_until = {now} WHERE {}", held(1)),
            count: format!("SELECT COUNT(*) FROM {t} WHERE scope = {} AND leased_until IS NULL", v(1)),
            count_older: format!(
                "SELECT COUNT(*) FROM {t} WHERE processed_at < {} AND (leased_until IS NULL OR leased_until < {})",
                later(1),
                later(2)
            ),
            clock: format!("SELECT {}", micros(syntax.moment)),
            forget: format!(
                "DELETE FROM {t} WHERE {} AND leased_until IS NULL AND token IS NULL",
                identity(1)
            ),
            forget_leased: format!(
                "UPDATE {t} SET leased_until = {now} WHERE {} AND leased_until IS NULL AND token IS NOT NULL",
                identity(1)
            ),
            purge: String::new(),
            schema: String::new(),
            index: String::new(),
            partition_hours: None,
            quoted: t,
            table,
        }
    }
}
