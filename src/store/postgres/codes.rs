//! What the server's errors mean.

use crate::store::sql::Cause;

/// By SQLSTATE (PostgreSQL manual, appendix A), and the server's routine.
pub(super) fn by_code(code: &str, routine: Option<&str>) -> Cause {
    match code {
        "23505" => Cause::Duplicate,
        "40001" | "40P01" => Cause::Conflict,
        // lock_not_available, query_canceled (the statement time-out)
        "55P03" | "57014" => Cause::Busy,
        // undefined table, column, schema; no default partition for a row
        "42P01" | "42703" | "3F000" => Cause::Schema,
        // read_only_sql_transaction
        "25006" => Cause::ReadOnly,
        // A column's type was changed: "cached plan must not change result type".
        "0A000" if routine == Some("RevalidateCachedQuery") => Cause::Stale,
        // invalid_sql_statement_name, duplicate_prepared_statement: a pooler gave it
        // another session.
        "26000" | "42P05" => Cause::Stale,
        // The server shuts down, the backend was terminated; 25P03: it was idle for too long.
        "25P03" => Cause::Unavailable,
        // insufficient_privilege is also what a policy for rows says.
        "42501" => Cause::Row,
        _ => match code.get(..2).unwrap_or_default() {
            "08" | "53" | "57" | "58" | "XX" => Cause::Unavailable,
            // data exception, integrity constraint, triggered action or change, WITH CHECK OPTION,
            // program limit, RAISE
            "22" | "23" | "09" | "27" | "44" | "54" | "P0" => Cause::Row,
            _ => Cause::Refused,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_the_manual_says() {
        let codes = [
            ("23505", Cause::Duplicate),
            ("40001", Cause::Conflict),
            ("40P01", Cause::Conflict),
            ("55P03", Cause::Busy),
            ("57014", Cause::Busy),
            ("42P01", Cause::Schema),
            ("25006", Cause::ReadOnly),
            ("26000", Cause::Stale),
            ("42P05", Cause::Stale),
            ("57P01", Cause::Unavailable),
            ("53300", Cause::Unavailable),
            ("25P03", Cause::Unavailable),
            ("22P05", Cause::Row),
            ("22001", Cause::Row),
            ("23514", Cause::Row),
            ("23502", Cause::Row),
            ("42501", Cause::Row),
            ("44000", Cause::Row),
            ("P0001", Cause::Row),
            ("0A000", Cause::Refused),
            ("42601", Cause::Refused),
            ("", Cause::Refused),
        ];
        for (code, cause) in codes {
            assert_eq!(by_code(code, None), cause, "{code}");
        }
        assert_eq!(by_code("0A000", Some("RevalidateCachedQuery")), Cause::Stale);
    }
}
