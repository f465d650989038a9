//! Partitions by the time inside the message ID.
//!
//! The partition of an ID is a function of the ID, so "unique in its partition" is "unique". A
//! partition is dropped when its time range is older than the retention *and* nothing in it was
//! processed since: a late message puts a young row into an old partition.

use std::time::{Duration, SystemTime};

use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, PgPool, Postgres, Row};
use tokio::time::sleep;

use super::{LOCK, Limits, Statements, TableName, begun, codes::by_code, micros};
use crate::{
    message::MessageId,
    store::sql::{Cause, Dialect},
};

/// The first wait for the lock on the whole table; each one after it is twice as long. It is got
/// while no transaction has the table open, and all claims queue up behind a statement that waits
/// for it.
const BRIEF: Duration = Duration::from_millis(100);

/// How often that lock is asked for in one purge: the last wait is 1.6 seconds, which is less than
/// the time that claims wait.
const TRIES: u32 = 5;

/// The time inside an ID in milliseconds since 1970; -1, which only the default partition takes,
/// for an ID without one.
pub(super) fn id_time(id: &MessageId) -> i64 {
    let since = id.time().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(-1)
}

pub(super) fn default_of(table: &TableName) -> TableName {
    table.with_suffix("_default")
}

/// A span of seconds since 1970; the end is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    start: i64,
    end: i64,
}

impl Span {
    /// The parts of it that none of the others has.
    fn without(self, others: &[Self]) -> Vec<Self> {
        let mut others = others.to_vec();
        others.sort_unstable();
        let (mut parts, mut start) = (Vec::new(), self.start);
        for other in others {
            let end = other.start.min(self.end);
            if start < end {
                parts.push(Self { start, end });
            }
            start = start.max(other.end);
        }
        if start < self.end {
            parts.push(Self { start, end: self.end });
        }
        parts
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

/// The spans that should exist at a time: the one it is in, the one before for clocks that are
/// behind, and two ahead.
fn wanted(now: i64, hours: u32) -> impl Iterator<Item = Span> {
    let width = i64::from(hours) * 3600;
    let first = now.div_euclid(width) - 1;
    (first..first + 4).map(move |n| Span { start: n * width, end: (n + 1) * width })
}

/// What is missing of them. Partitions of another width, from before it was changed, stay; those
/// that are made now fill the gaps between.
fn missing(now: i64, hours: u32, existing: &[Span], horizon: i64) -> Vec<Span> {
    let gaps = wanted(now, hours).flat_map(|span| span.without(existing));
    // Not one that would be dropped again at once.
    gaps.filter(|gap| gap.end >= horizon).collect()
}

/// Creates the partitions that will be needed, and drops those that are not; returns how many rows
/// went with them, by the server's statistics.
pub(super) async fn maintain(
    pool: &PgPool,
    statements: &Statements,
    limits: &Limits,
    hours: u32,
    retention: Option<Duration>,
) -> Result<u64, sqlx::Error> {
    let now: i64 = sqlx::query_scalar("SELECT extract(epoch FROM now())::bigint").fetch_one(pool).await?;
    let existing = partitions(pool, statements).await?;
    let old = retention
        .map_or(i64::MAX / 2, |retention| i64::try_from(retention.as_secs()).unwrap_or(i64::MAX / 2));
    let horizon = now - old;
    let missing = |existing: &[(Span, u64)]| {
        let spans: Vec<Span> = existing.iter().map(|(span, _)| *span).collect();
        missing(now, hours, &spans, horizon)
    };
    if !missing(&existing).is_empty() {
        let mut tries = Tries::default();
        while let Err(error) = create(pool, statements, &tries.limits(limits), missing).await {
            if !tries.again(error).await? {
                tracing::warn!(table = %statements.table, "no partitions made ahead, as the table is in use: the next purge tries again");
                break;
            }
        }
    }
    let Some(retention) = retention else { return Ok(0) };
    let mut dropped = 0;
    for (span, rows) in existing {
        if span.end >= horizon || is_young(pool, statements, span, retention).await? {
            continue;
        }
        let mut tries = Tries::default();
        loop {
            match drop_if_old(pool, statements, &tries.limits(limits), span, retention).await {
                Ok(gone) => {
                    dropped += if gone { rows } else { 0 };
                    break;
                }
                Err(error) => {
                    if !tries.again(error).await? {
                        // The next purge tries again.
                        return Ok(dropped);
                    }
                }
            }
        }
    }
    Ok(dropped)
}

/// How often the lock on the table was not free.
#[derive(Default)]
struct Tries(u32);

impl Tries {
    /// With the wait for a lock of this try.
    fn limits(&self, limits: &Limits) -> Limits {
        Limits { lock: limits.lock.min(BRIEF * 2_u32.pow(self.0)), ..*limits }
    }

    /// Whether to try again, after a pause; an error of another kind is given back.
    async fn again(&mut self, error: sqlx::Error) -> Result<bool, sqlx::Error> {
        match &error {
            sqlx::Error::Database(reason)
                if by_code(&reason.code().unwrap_or_default(), None) == Cause::Busy => {}
            _ => return Err(error),
        }
        self.0 += 1;
        if self.0 < TRIES {
            // The claims that queued up behind this one go first.
            sleep(BRIEF.mul_f64(1.0 + fastrand::f64())).await;
        }
        Ok(self.0 < TRIES)
    }
}

/// The partitions but the default one, each with the rows that the statistics count in it.
async fn partitions(
    executor: impl PgExecutor<'_>,
    statements: &Statements,
) -> Result<Vec<(Span, u64)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT relname::text, COALESCE(pg_stat_get_live_tuples(pg_class.oid), 0) FROM pg_inherits \
         JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = to_regclass($1)",
    )
    .bind(&statements.quoted)
    .fetch_all(executor)
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(span) = Span::read(&statements.table, row.try_get(0)?) {
            found.push((span, u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or_default()));
        }
    }
    Ok(found)
}

/// Creates the partitions that are still missing once nobody else makes any.
async fn create(
    pool: &PgPool,
    statements: &Statements,
    limits: &Limits,
    missing: impl Fn(&[(Span, u64)]) -> Vec<Span> + Send + Sync + Copy,
) -> Result<(), sqlx::Error> {
    let mut transaction = begun(pool, Postgres::begin(limits)).await?;
    let lock = format!("SELECT pg_advisory_xact_lock({LOCK})");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *transaction).await?;
    for span in missing(&partitions(&mut *transaction, statements).await?) {
        sqlx::raw_sql(AssertSqlSafe(creation(statements, span))).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Makes a partition, and moves what the default one holds of its span: an attached partition must
/// find nothing of its own there.
fn creation(statements: &Statements, span: Span) -> String {
    let partition = span.partition_of(&statements.table).quoted('"');
    let (table, default) = (&statements.quoted, default_of(&statements.table).quoted('"'));
    let (start, end) = (span.start * 1000, span.end * 1000);
    let statements = [
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
    statements.join("; ")
}

/// Whether something in a partition is younger than the retention.
async fn is_young(
    pool: &PgPool,
    statements: &Statements,
    span: Span,
    retention: Duration,
) -> Result<bool, sqlx::Error> {
    let partition = span.partition_of(&statements.table).quoted('"');
    let leased = format!(
        "SELECT EXISTS (SELECT FROM {partition} WHERE leased_until >= now() - $1::bigint * interval '1 microsecond')"
    );
    let mut connection = pool.acquire().await?;
    let young = async {
        if was_processed_since(&mut connection, &partition, retention).await? {
            return Ok(true);
        }
        sqlx::query_scalar(AssertSqlSafe(leased)).bind(micros(retention)).fetch_one(&mut *connection).await
    };
    match young.await {
        // Another process dropped it.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok(true),
        young => young,
    }
}

async fn was_processed_since(
    connection: &mut PgConnection,
    partition: &str,
    retention: Duration,
) -> Result<bool, sqlx::Error> {
    let processed = format!(
        "SELECT EXISTS (SELECT FROM {partition} WHERE processed_at >= now() - $1::bigint * interval '1 microsecond')"
    );
    let processed = sqlx::query_scalar(AssertSqlSafe(processed)).bind(micros(retention));
    processed.fetch_one(connection).await
}

/// Drops a partition that was found to be old, unless something in it was processed since. That is
/// asked of an index: all claims wait meanwhile.
async fn drop_if_old(
    pool: &PgPool,
    statements: &Statements,
    limits: &Limits,
    span: Span,
    retention: Duration,
) -> Result<bool, sqlx::Error> {
    let partition = span.partition_of(&statements.table).quoted('"');
    let mut transaction = begun(pool, Postgres::begin(limits)).await?;
    // The lock of the whole table first, as DROP takes it: claims that are under way end, and none
    // begins.
    let lock = format!(
        "SELECT pg_advisory_xact_lock({LOCK}); LOCK TABLE {} IN ACCESS EXCLUSIVE MODE; LOCK TABLE {partition} IN ACCESS EXCLUSIVE MODE",
        statements.quoted
    );
    let locked = sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *transaction).await;
    match locked {
        // Another process dropped it.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => return Ok(false),
        locked => locked?,
    };
    // A lease that was renewed since had not run out before; one that is taken over counts as
    // processed.
    if was_processed_since(&mut transaction, &partition, retention).await? {
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

    const WIDTHS: [u32; 8] = [1, 2, 5, 24, 31, 168, 744, 65_535];

    /// Each half hour of two days, and a second to either side of it: a day ends, a month, a year,
    /// and February of a leap year.
    fn starts() -> impl Iterator<Item = i64> {
        let days = [1_795_564_800_i64, 1_709_164_800, 1_798_675_200, 1_774_742_400, 1_792_886_400];
        let halves = days.into_iter().flat_map(|day| (0..96).map(move |half| day + half * 1800));
        halves.flat_map(|half| half - 1..=half + 1)
    }

    #[test]
    fn wanted_spans_touch_and_hold_the_present() {
        for (now, hours) in starts().flat_map(|now| WIDTHS.map(|hours| (now, hours))) {
            let spans: Vec<Span> = wanted(now, hours).collect();
            assert!(spans.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(spans[1].start <= now && now < spans[1].end);
        }
    }

    #[test]
    fn what_is_wanted_is_covered_once_whatever_the_width_was_before() {
        for (now, before) in starts().flat_map(|now| WIDTHS.map(|before| (now, before))) {
            for (after, later) in WIDTHS.into_iter().flat_map(|after| [0, 1, 40].map(|later| (after, later)))
            {
                let mut spans: Vec<Span> = wanted(now, before).collect();
                let now = now + later * 3600;
                spans.extend(missing(now, after, &spans, i64::MIN));
                spans.sort_unstable();
                let of = (now, before, after);
                assert!(
                    spans.windows(2).all(|pair| pair[0].end <= pair[1].start),
                    "{of:?} overlap: {spans:?}"
                );
                let left: Vec<_> = wanted(now, after).flat_map(|span| span.without(&spans)).collect();
                assert_eq!(left, [], "{of:?}: nothing covers these");
                assert_eq!(missing(now, after, &spans, i64::MIN), [], "{of:?}: made once");
            }
        }
    }

    #[test]
    fn a_gap_that_is_over_is_left() {
        let hour = |start: i64| Span { start: start * 3600, end: (start + 1) * 3600 };
        let gaps = |horizon: i64| missing(30 * 3600 + 1, 10, &[hour(22), hour(24), hour(30)], horizon * 3600);
        let all = [(20, 22), (23, 24), (25, 30), (31, 40), (40, 50), (50, 60)]
            .map(|(start, end)| Span { start: start * 3600, end: end * 3600 });
        assert_eq!(gaps(0), all);
        assert_eq!(gaps(24), all[1..]);
        assert_eq!(gaps(25), all[2..]);
    }

    #[test]
    fn only_ids_with_a_time_have_one() {
        let now = id_time(&MessageId::from(uuid::Uuid::now_v7()));
        assert!(now > 1_700_000_000_000);
        assert_eq!(id_time(&MessageId::new("order-42").unwrap()), -1);
        assert_eq!(id_time(&MessageId::from(uuid::Uuid::new_v4())), -1);
    }
}
