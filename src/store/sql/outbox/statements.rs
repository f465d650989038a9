//! What an outbox says to its database, written once in the words of each.

use crate::store::sql::{dialect::Dialect, statements::Syntax, table::TableName};

/// How many rows of a lane, and parked rows, are counted.
const COUNTED: u32 = 10_000;

/// How long ago a relay was last heard of that is still counted, and one that is still known, in
/// microseconds.
const COUNTED_RELAY: i64 = 60_000_000;
const KNOWN_RELAY: i64 = 86_400_000_000;

/// The words that differ, beside those of a store.
pub(in crate::store) struct OutboxSyntax {
    pub(in crate::store) words: &'static Syntax,
    /// How many lanes its tables have.
    pub(in crate::store) lanes: u16,
    /// An expression as a 64-bit integer.
    pub(in crate::store) integer: fn(&str) -> String,
    /// What makes the insertion of a relay that is there an update.
    pub(in crate::store) upsert: &'static str,
    /// What makes a SELECT lock its rows against a change.
    pub(in crate::store) share: &'static str,
    /// What makes a SELECT use the primary key, behind the table's name.
    pub(in crate::store) by_key: &'static str,
    /// What creates the tables.
    pub(in crate::store) schema: &'static str,
}

/// Everything that an outbox says to its database.
#[derive(Debug, Clone)]
pub struct OutboxStatements {
    pub(in crate::store) table: TableName,
    pub(in crate::store) lanes_table: TableName,
    pub(in crate::store) relays_table: TableName,
    pub(in crate::store) quoted: String,
    /// What is read of a row, as `rows::decode` wants it.
    pub(in crate::store) columns: String,
    /// The n-th value to be bound, from 1.
    pub(in crate::store) value: fn(usize) -> String,
    /// The rest is left to the database: up to the rows, or to the arrays that hold them.
    pub(in crate::store) put: String,
    /// The same for a lone row, whole.
    #[cfg(feature = "postgres")]
    pub(in crate::store) put_one: String,
    /// Whole, or as far as it does not depend on the request.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(in crate::store) read: String,
    pub(in crate::store) remove: String,
    #[cfg(feature = "postgres")]
    pub(in crate::store) notify: String,
    pub(in crate::store) register: String,
    pub(in crate::store) forget: String,
    pub(in crate::store) beat: String,
    pub(in crate::store) ownership: String,
    pub(in crate::store) expire: String,
    pub(in crate::store) take: String,
    pub(in crate::store) release: String,
    pub(in crate::store) leave: String,
    pub(in crate::store) disown: String,
    pub(in crate::store) fence: String,
    pub(in crate::store) retry: String,
    pub(in crate::store) park: String,
    pub(in crate::store) parked_keys: String,
    pub(in crate::store) follows: String,
    pub(in crate::store) status: String,
    pub(in crate::store) lanes_there: String,
    /// Up to the condition, which [`selected`](Self::selected) goes on with.
    pub(in crate::store) list_parked: String,
    pub(in crate::store) unpark: String,
    pub(in crate::store) discard: String,
    pub(in crate::store) schema: String,
}

/// The columns of the three tables, as the check of the schema wants them.
pub(super) const COLUMNS: [&str; 13] = [
    "lane",
    "seq",
    "message_id",
    "exchange",
    "routing_key",
    "order_key",
    "properties",
    "body",
    "enqueued_at",
    "attempts",
    "retry_at",
    "error",
    "parked_at",
];
pub(super) const LANE_COLUMNS: [&str; 3] = ["lane", "relay", "term"];
pub(super) const RELAY_COLUMNS: [&str; 3] = ["relay", "name", "beat_at"];

impl OutboxStatements {
    /// The statements for a table, but for `put`, `read`, `remove` and `notify`.
    pub(in crate::store) fn new<DB: Dialect>(table: TableName, syntax: &OutboxSyntax) -> Self {
        let (lanes_table, relays_table) = (table.with_suffix("_lanes"), table.with_suffix("_relays"));
        let [t, l, r] = [&table, &lanes_table, &relays_table].map(|table| table.quoted(DB::QUOTE));
        let OutboxSyntax { integer, upsert, share, by_key, .. } = syntax;
        let Syntax { value: v, now, later, until, .. } = syntax.words;
        let columns = format!(
            "{}, seq, message_id, exchange, routing_key, order_key, properties, body, {}, {}, {}",
            integer("lane"),
            until("enqueued_at"),
            integer("attempts"),
            until("retry_at")
        );
        let term = |n: usize| format!("lane = {} AND term = {}", v(n), v(n + 1));
        let row = |n: usize| format!("lane = {} AND seq = {} AND message_id = {}", v(n), v(n + 1), v(n + 2));
        let back = "attempts = 0, retry_at = NULL, error = NULL, parked_at = NULL";
        Self {
            register: format!(
                "INSERT INTO {r} (relay, name, beat_at) VALUES ({}, {}, {now}) {upsert}",
                v(1),
                v(2)
            ),
            forget: format!("DELETE FROM {r} WHERE beat_at < {}", later(&format!("-{KNOWN_RELAY}"))),
            beat: format!(
                "UPDATE {r} SET beat_at = {now} WHERE relay = {} AND beat_at > {}",
                v(1),
                later(&v(2))
            ),
            ownership: format!(
                "SELECT relay, {}, {} FROM {r} WHERE beat_at > {} UNION ALL SELECT relay, {}, term FROM {l}",
                integer("-1"),
                integer("0"),
                later(&v(1)),
                integer("lane")
            ),
            expire: format!("DELETE FROM {r} WHERE beat_at <= {} AND relay <> {}", later(&v(1)), v(2)),
            // A relay that is not in the table is dead for good. The term is compared, as a rival
            // that waited for this row may look for its new owner in an old snapshot.
            take: format!(
                "UPDATE {l} SET relay = {}, term = term + 1 WHERE {} AND (relay IS NULL OR relay NOT IN \
                 (SELECT relay FROM {r})) AND {} IN (SELECT relay FROM {r})",
                v(1),
                term(2),
                v(4)
            ),
            release: format!("UPDATE {l} SET relay = NULL WHERE {}", term(1)),
            leave: format!("DELETE FROM {r} WHERE relay = {}", v(1)),
            disown: format!("UPDATE {l} SET relay = NULL WHERE relay = {}", v(1)),
            fence: format!(
                "SELECT {} FROM {l} WHERE {} AND relay IS NOT NULL {share}",
                integer("lane"),
                term(1)
            ),
            retry: format!(
                "UPDATE {t} SET attempts = attempts + {}, retry_at = {}, error = {} WHERE {}",
                v(1),
                later(&v(2)),
                v(3),
                row(4)
            ),
            park: format!(
                "UPDATE {t} SET attempts = attempts + {}, retry_at = NULL, parked_at = {now}, error = {}, \
                 lane = -1 - lane WHERE {}",
                v(1),
                v(2),
                row(3)
            ),
            parked_keys: format!(
                "SELECT {}, {}, order_key FROM {t} {by_key} WHERE lane < 0 AND order_key IS NOT NULL \
                 GROUP BY lane, order_key",
                integer("lane"),
                integer("MIN(seq)")
            ),
            follows: follows(&t, *v),
            status: status(&t, &r, syntax),
            lanes_there: format!("SELECT COUNT(*) FROM {l} WHERE lane >= 0 AND lane < {}", syntax.lanes),
            list_parked: format!(
                "SELECT {columns}, error, {} FROM {t} {by_key} WHERE lane < 0 AND seq > {}",
                until("parked_at"),
                v(1)
            ),
            unpark: format!("UPDATE {t} SET {back}, lane = -1 - lane WHERE lane < 0"),
            discard: format!("DELETE FROM {t} WHERE lane < 0"),
            schema: schema(syntax, [&t, &l, &r], &table, DB::QUOTE),
            put: format!(
                "INSERT INTO {t} (lane, message_id, exchange, routing_key, order_key, properties, body) "
            ),
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            read: String::new(),
            remove: String::new(),
            #[cfg(feature = "postgres")]
            put_one: String::new(),
            #[cfg(feature = "postgres")]
            notify: String::new(),
            value: *v,
            columns,
            quoted: t,
            table,
            lanes_table,
            relays_table,
        }
    }
}

/// Whether a row of its key with a lower number is parked.
fn follows(table: &str, value: fn(usize) -> String) -> String {
    format!(
        "SELECT 1 FROM {table} AS one JOIN {table} AS other \
         ON other.order_key = one.order_key AND other.lane = -1 - one.lane AND other.seq < one.seq \
         WHERE one.lane = {} AND one.seq = {} LIMIT 1",
        value(1),
        value(2)
    )
}

/// For each lane, for what is parked (-1) and for the relays (-2): how many, and microseconds until
/// its oldest row came, which is negative.
fn status(table: &str, relays: &str, syntax: &OutboxSyntax) -> String {
    let OutboxSyntax { integer, by_key, .. } = syntax;
    let Syntax { later, until, .. } = syntax.words;
    let counted = |condition: &str| {
        format!(
            "(SELECT COUNT(*) FROM (SELECT 1 FROM {table} {by_key} WHERE {condition} LIMIT {COUNTED}) AS c)"
        )
    };
    let of_lane = |lane: u16| {
        let condition = format!("lane = {lane}");
        format!(
            "SELECT {}, {}, (SELECT {} FROM {table} {by_key} WHERE {condition} ORDER BY seq LIMIT 1)",
            integer(&lane.to_string()),
            counted(&condition),
            until("enqueued_at")
        )
    };
    let mut parts: Vec<String> = (0..syntax.lanes).map(of_lane).collect();
    parts.push(format!("SELECT {}, {}, NULL", integer("-1"), counted("lane < 0")));
    let young = later(&format!("-{COUNTED_RELAY}"));
    parts.push(format!(
        "SELECT {}, (SELECT COUNT(*) FROM {relays} WHERE beat_at > {young}), NULL",
        integer("-2")
    ));
    parts.join(" UNION ALL ")
}

fn schema(syntax: &OutboxSyntax, [table, lanes, relays]: [&str; 3], name: &TableName, quote: char) -> String {
    let rows: Vec<String> = (0..syntax.lanes).map(|lane| format!("({lane})")).collect();
    let own = |suffix: &str| format!("{quote}{}{suffix}{quote}", name.name());
    syntax
        .schema
        .replace("{table}", table)
        .replace("{lanes}", lanes)
        .replace("{relays}", relays)
        .replace("{every_lane}", &rows.join(", "))
        // An index is named without a schema, and on a table without one in SQLite.
        .replace("{name}", &own(""))
        .replace("{parked}", &name.with_suffix("_parked").quoted(quote))
}
