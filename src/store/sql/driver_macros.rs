//! Running statements with the driver of one database.

/// The parts of [`Dialect`](super::Dialect) that are the same words for every driver, whose types
/// have nothing in common.
macro_rules! runs_statements {
    ($text:expr) => {
        async fn execute(
            connection: &mut Self::Connection,
            sql: &str,
            values: &[$crate::store::sql::Value<'_>],
        ) -> Result<u64, sqlx::Error> {
            let sql = sqlx::AssertSqlSafe(sql);
            if values.is_empty() {
                // The simple protocol: several statements in one round trip.
                return Ok(sqlx::raw_sql(sql).execute(connection).await?.rows_affected());
            }
            Ok(Self::bound(sqlx::query(sql), values).execute(connection).await?.rows_affected())
        }

        async fn integer(
            connection: &mut Self::Connection,
            sql: &str,
            values: &[$crate::store::sql::Value<'_>],
        ) -> Result<i64, sqlx::Error> {
            let row =
                Self::bound(sqlx::query(sqlx::AssertSqlSafe(sql)), values).fetch_one(connection).await?;
            sqlx::Row::try_get(&row, 0)
        }

        async fn strings(
            connection: &mut Self::Connection,
            sql: &str,
            values: &[$crate::store::sql::Value<'_>],
        ) -> Result<Vec<String>, sqlx::Error> {
            let rows =
                Self::bound(sqlx::query(sqlx::AssertSqlSafe(sql)), values).fetch_all(connection).await?;
            rows.iter().map(|row| sqlx::Row::try_get(row, 0)).collect()
        }

        fn bound<'q>(
            mut query: sqlx::query::Query<'q, Self, <Self as sqlx::Database>::Arguments>,
            values: &[$crate::store::sql::Value<'_>],
        ) -> sqlx::query::Query<'q, Self, <Self as sqlx::Database>::Arguments> {
            use $crate::store::sql::Value;
            for value in values {
                query = match *value {
                    Value::Text(text) => query.bind($text(text)),
                    Value::Bytes(bytes) => query.bind(bytes.to_vec()),
                    Value::Integer(integer) => query.bind(integer),
                };
            }
            query
        }
    };
}

/// A row of `Statements::select`, whatever the driver.
macro_rules! found {
    ($row:expr) => {{
        use sqlx::Row as _;
        let (row, text) = ($row, |bytes: Vec<u8>| {
            String::from_utf8(bytes).map_err(|error| sqlx::Error::Decode(error.into()))
        });
        let fingerprint: Vec<u8> = row.try_get(2)?;
        let fingerprint = $crate::message::Fingerprint::try_from(fingerprint.as_slice());
        Ok::<_, sqlx::Error>($crate::store::sql::Found {
            scope: text(row.try_get_unchecked(0)?)?,
            message_id: text(row.try_get_unchecked(1)?)?,
            fingerprint: fingerprint.map_err(|error| sqlx::Error::Decode(error.into()))?,
            processed_at: row.try_get(3)?,
            token: row.try_get(4)?,
            remaining: row.try_get(5)?,
        })
    }};
}

pub(in crate::store) use {found, runs_statements};
