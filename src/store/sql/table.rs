//! The name of the store's table, safe to be put into a statement.

use std::fmt;

use crate::error::bounded;

/// A table, in a schema of its database or in the one that the connection picks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    pub(super) schema: Option<String>,
    pub(super) table: String,
}

/// A name of a table or schema that does not match `[a-z_][a-z0-9_]{0,39}`.
///
/// Names are quoted in every statement, so that reserved words may be used. They are at most 40
/// bytes long, because the names of indexes and partitions are made from them, and PostgreSQL cuts
/// names after 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name of a table or schema must match [a-z_][a-z0-9_]{{0,39}}: {}", .0)]
pub struct InvalidTableName(String);

impl TableName {
    /// Reads `table` or `schema.table`.
    pub(super) fn new(name: &str) -> Result<Self, InvalidTableName> {
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(checked(schema)?), table),
            None => (None, name),
        };
        Ok(Self { schema, table: checked(table)? })
    }

    /// The table's name with something appended, in the same schema.
    pub(in crate::store) fn with_suffix(&self, suffix: &str) -> Self {
        Self { schema: self.schema.clone(), table: format!("{}{suffix}", self.table) }
    }

    /// The table's own name.
    pub(in crate::store) fn name(&self) -> &str {
        &self.table
    }

    /// The schema, if one was named.
    pub(in crate::store) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The name as statements have it.
    pub(in crate::store) fn quoted(&self, quote: char) -> String {
        match &self.schema {
            Some(schema) => format!("{quote}{schema}{quote}.{quote}{}{quote}", self.table),
            None => format!("{quote}{}{quote}", self.table),
        }
    }
}

fn checked(name: &str) -> Result<String, InvalidTableName> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts_well = name.starts_with(|c: char| plain(c) && !c.is_ascii_digit());
    if starts_well && name.len() <= 40 && name.chars().all(plain) {
        Ok(name.to_owned())
    } else {
        Err(InvalidTableName(bounded(name)))
    }
}

impl Default for TableName {
    fn default() -> Self {
        Self { schema: None, table: "processed_messages".to_owned() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_taken() {
        for name in ["a", "_x9", "processed_messages", "billing.order", &"a".repeat(40)] {
            assert!(TableName::new(name).is_ok(), "{name}");
        }
        for name in ["", "9a", "A", "a b", "a;drop", "a\"", "ä", "a.b.c", ".a", "a.", &"a".repeat(41)] {
            assert!(TableName::new(name).is_err(), "{name}");
        }
    }
}
