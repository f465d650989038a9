//! The statements, written once in the words of each database.

use crate::store::sql::{dialect::Dialect, statements::Syntax, table::TableName};

/// The words that differ.
#[derive(Debug)]
pub struct ReplaySyntax {
    pub(in crate::store) words: &'static Syntax,
    /// Locks what is read, so that others may read it and not change it.
    pub(in crate::store) share: &'static str,
    pub(in crate::store) schema: &'static str,
}

/// Everything that is said about replays.
#[derive(Debug)]
pub(in crate::store::sql) struct ReplayStatements {
    /// Of the openings, and of what took effect.
    pub(super) tables: [TableName; 2],
    pub(super) schema: String,
    /// A row if the epoch is open, which stays so until the transaction ends.
    pub(super) is_open: String,
    /// Records what takes effect, without a time of its first effect, or with the one that its
    /// identity has.
    pub(super) record: [String; 2],
    /// What is recorded of a message: fingerprint, times.
    pub(super) recorded: String,
    pub(super) open: String,
    pub(super) close: String,
    /// With one scope, and all.
    pub(super) list: [String; 2],
    /// What took effect, behind an ID.
    pub(super) list_replayed: String,
}

/// How many bytes a reason has at most.
pub(super) const REASON: usize = 1000;

/// The columns, as the check of the schema wants them.
pub(super) const COLUMNS: [&[&str]; 2] = [
    &["scope", "epoch", "opening", "opened_at", "opened_by", "reason", "closed_at"],
    &["scope", "epoch", "message_id", "fingerprint", "first_effect_at", "handled_at"],
];

/// The primary keys.
pub(super) const KEYS: [&[&str]; 2] = [&["scope", "epoch", "opening"], &["scope", "epoch", "message_id"]];

impl ReplayStatements {
    /// For the table of the identities.
    pub(in crate::store::sql) fn new<DB: Dialect>(identities: &TableName, syntax: &ReplaySyntax) -> Self {
        let tables = [identities.with_suffix("_replays"), identities.with_suffix("_replayed")];
        let [replays, replayed] = [tables[0].quoted(DB::QUOTE), tables[1].quoted(DB::QUOTE)];
        let identities = identities.quoted(DB::QUOTE);
        let Syntax { now, micros, .. } = syntax.words;
        let v = syntax.words.value;
        let of = |n: usize| format!("scope = {} AND epoch = {}", v(n), v(n + 1));
        let record = |first: String| {
            format!(
                "INSERT INTO {replayed} (scope, epoch, message_id, fingerprint, handled_at, first_effect_at) \
                 VALUES ({}, {}, {}, {}, {now}, {first})",
                v(1),
                v(2),
                v(3),
                v(4)
            )
        };
        let first = format!(
            "(SELECT processed_at FROM {identities} WHERE scope = {} AND message_id = {})",
            v(5),
            v(6)
        );
        let list = |wanted: String| {
            format!(
                "SELECT scope, epoch, opened_by, reason, {}, {}, (SELECT COUNT(*) FROM {replayed} AS done \
                 WHERE done.scope = opened.scope AND done.epoch = opened.epoch) FROM {replays} AS opened \
                 {wanted}ORDER BY scope, epoch, opening",
                micros("opened_at"),
                micros("closed_at"),
            )
        };
        Self {
            schema: syntax.schema.replace("{replays}", &replays).replace("{replayed}", &replayed),
            // By the whole key, so that MySQL locks no gap, into which other epochs are opened.
            // Only the last opening can be open.
            is_open: format!(
                "SELECT 'open' FROM {replays} WHERE {} AND opening = \
                 (SELECT MAX(opening) FROM {replays} AS last WHERE {}) AND closed_at IS NULL {}",
                of(1),
                of(3),
                syntax.share
            ),
            record: [record("NULL".to_owned()), record(first)],
            recorded: format!(
                "SELECT fingerprint, {}, {} FROM {replayed} WHERE {} AND message_id = {}",
                micros("handled_at"),
                micros("first_effect_at"),
                of(1),
                v(3)
            ),
            // Of two that open it together, one finds the number taken.
            open: format!(
                "INSERT INTO {replays} (scope, epoch, opened_by, reason, opening, opened_at) \
                 SELECT {}, {}, {}, {}, COALESCE(MAX(opening), 0) + 1, {now} FROM {replays} WHERE {} \
                 HAVING COALESCE(SUM(CASE WHEN closed_at IS NULL THEN 1 ELSE 0 END), 0) = 0",
                v(1),
                v(2),
                v(3),
                v(4),
                of(5)
            ),
            close: format!("UPDATE {replays} SET closed_at = {now} WHERE {} AND closed_at IS NULL", of(1)),
            list: [list(format!("WHERE scope = {} ", v(1))), list(String::new())],
            list_replayed: format!(
                "SELECT message_id, fingerprint, {}, {} FROM {replayed} WHERE {} AND message_id > {} \
                 ORDER BY message_id LIMIT {}",
                micros("handled_at"),
                micros("first_effect_at"),
                of(1),
                v(3),
                v(4)
            ),
            tables,
        }
    }
}
