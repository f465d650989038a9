//! Partitions by the time inside the message ID.
//!
//! The partition of an ID is a function of the ID, so "unique in its partition" is "unique". A partition is dropped when its time range is
//! older than the retention *and* nothing in it was processed since: a late message puts a young row into an old partition.

use std::time::{Duration, SystemTime};

use sqlx::{AssertSqlSafe, PgPool, Row};

use super::{LOCK, Limits, TableName, Texts, micros};
use crate::{message::MessageId, store::sql::Dialect};

/// The time inside an ID in milliseconds since 1970; -1, which only the default partition takes, for an ID without one.
pub(super) fn id_time(id: &MessageId) -> i64 {
    let since = id.time().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(-1)
}

pub(super) fn default_of(table: &TableName) -> TableName {
    table.with_suffix("_default")
}

/// A span of seconds since 1970; the end is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: i64,
    end: i64,
}

impl Span {
    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn partition_of(self, table: &TableName) -> TableName {
        table.with_suffix(&format!("_{}_{}", self.start, self.end))
    }

    /// The span that a partition's name tells.
    fn read(table: &TableName, partition: &str) -> Option<Self> {
        let (start, end) = partition.strip_prefix(table.name())?.strip_prefix('_')?.split_once('_')?;
        Some(Self { start: start.parse().ok()?, end: end.parse().ok()? })
    }
}

/// The spans that should exist at a time: the one it is in, the one before for clocks that are behind, and two ahead.
fn wanted(now: i64, hours: u32) -> impl Iterator<Item = Span> {
    let width = i64::from(hours) * 3600;
    let first = now.div_euclid(width) - 1;
    (first..first + 4).map(move |n| Span { start: n * width, end: (n + 1) * width })
}

/// Creates the partitions that will be needed, and drops those that are not; returns how many rows went with them, by the
/// server's statistics.
pub(super) async fn maintain(
    pool: &PgPool,
    texts: &Texts,
    limits: &Limits,
    hours: u32,
    retention: Option<Duration>,
) -> Result<u64, sqlx::Error> {
    let now: i64 = sqlx::query_scalar("SELECT extract(epoch FROM now())::bigint").fetch_one(pool).await?;
    let existing = partitions(pool, texts).await?;
    let old = retention
        .map_or(i64::MAX / 2, |retention| i64::try_from(retention.as_secs()).unwrap_or(i64::MAX / 2));
    let horizon = now - old;
    // Not one that would be dropped again at once.
    for span in wanted(now, hours).filter(|span| span.end >= horizon) {
        if !existing.iter().any(|(other, _)| span.overlaps(*other)) {
            create(pool, texts, limits, span).await?;
        }
    }
    let Some(retention) = retention else { return Ok(0) };
    let mut dropped = 0;
    for (span, rows) in existing {
        if span.end < horizon && drop_if_old(pool, texts, limits, span, retention).await? {
            dropped += rows;
        }
    }
    Ok(dropped)
}

/// The partitions but the default one, each with the rows that the statistics count in it.
async fn partitions(pool: &PgPool, texts: &Texts) -> Result<Vec<(Span, u64)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT relname::text, COALESCE(pg_stat_get_live_tuples(pg_class.oid), 0) FROM pg_inherits \
         JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = to_regclass($1)",
    )
    .bind(&texts.quoted)
    .fetch_all(pool)
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(span) = Span::read(&texts.table, row.try_get(0)?) {
            found.push((span, u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or_default()));
        }
    }
    Ok(found)
}

/// Creates a partition, and moves what the default one holds of its span: an attached partition must find nothing of its own there.
async fn create(pool: &PgPool, texts: &Texts, limits: &Limits, span: Span) -> Result<(), sqlx::Error> {
    let partition = span.partition_of(&texts.table).quoted('"');
    let (table, default) = (&texts.quoted, default_of(&texts.table).quoted('"'));
    let (start, end) = (span.start * 1000, span.end * 1000);
    let statements = [
        format!("SELECT pg_advisory_xact_lock({LOCK})"),
        format!(
            "CREATE TABLE IF NOT EXISTS {partition} (LIKE {table} INCLUDING CONSTRAINTS INCLUDING INDEXES)"
        ),
        // No claim may put a row there between the move and the new bounds.
        format!("LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE"),
        format!(
            "WITH moved AS (DELETE FROM {default} WHERE id_time >= {start} AND id_time < {end} RETURNING *) \
             INSERT INTO {partition} SELECT * FROM moved"
        ),
        format!("ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES FROM ({start}) TO ({end})"),
    ];
    let mut transaction = pool.begin_with(AssertSqlSafe(sqlx::Postgres::begin(limits))).await?;
    sqlx::raw_sql(AssertSqlSafe(statements[0].as_str())).execute(&mut *transaction).await?;
    // Another process may have made it while we waited.
    let attached: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = to_regclass($1) AND inhrelid = to_regclass($2))",
    )
    .bind(table)
    .bind(&partition)
    .fetch_one(&mut *transaction)
    .await?;
    if !attached {
        sqlx::raw_sql(AssertSqlSafe(statements[1..].join("; "))).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Drops a partition unless something in it is younger than the retention.
async fn drop_if_old(
    pool: &PgPool,
    texts: &Texts,
    limits: &Limits,
    span: Span,
    retention: Duration,
) -> Result<bool, sqlx::Error> {
    let partition = span.partition_of(&texts.table).quoted('"');
    let mut transaction = pool.begin_with(AssertSqlSafe(sqlx::Postgres::begin(limits))).await?;
    // The lock of the whole table first, as DROP takes it: claims that are under way end, and none begins.
    let lock = format!(
        "SELECT pg_advisory_xact_lock({LOCK}); LOCK TABLE {} IN ACCESS EXCLUSIVE MODE; LOCK TABLE {partition} IN ACCESS EXCLUSIVE MODE",
        texts.quoted
    );
    let locked = sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *transaction).await;
    match locked {
        // Another process dropped it.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => return Ok(false),
        locked => locked?,
    };
    let young = format!(
        "SELECT EXISTS (SELECT FROM {partition} WHERE processed_at >= now() - $1::bigint * interval '1 microsecond' \
         OR leased_until >= now() - $1::bigint * interval '1 microsecond')"
    );
    let young: bool =
        sqlx::query_scalar(AssertSqlSafe(young)).bind(micros(retention)).fetch_one(&mut *transaction).await?;
    if young {
        transaction.rollback().await?;
        return Ok(false);
    }
    sqlx::raw_sql(AssertSqlSafe(format!("DROP TABLE {partition}"))).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_after_its_span() {
        let table = TableName::default();
        let span = Span { start: 3600, end: 7200 };
        let partition = span.partition_of(&table);
        assert_eq!(partition.name(), "processed_messages_3600_7200");
        assert_eq!(Span::read(&table, partition.name()), Some(span));
        assert_eq!(Span::read(&table, default_of(&table).name()), None);
        assert_eq!(Span::read(&table, "processed_messages2_1_2"), None);
    }

    #[test]
    fn wanted_spans_touch_and_hold_the_present() {
        for hours in [1, 24, 168] {
            let spans: Vec<Span> = wanted(1_766_000_000, hours).collect();
            assert!(spans.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(spans[1].start <= 1_766_000_000 && 1_766_000_000 < spans[1].end);
        }
    }

    #[test]
    fn only_ids_with_a_time_have_one() {
        let now = id_time(&MessageId::from(uuid::Uuid::now_v7()));
        assert!(now > 1_700_000_000_000);
        assert_eq!(id_time(&MessageId::new("order-42").unwrap()), -1);
        assert_eq!(id_time(&MessageId::from(uuid::Uuid::new_v4())), -1);
    }
}
