//! What the SQL stores share.

use std::fmt;

/// The name of a table, safe to be put into a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableName(String);

/// A table name that does not match `[a-z_][a-z0-9_]{0,62}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a table name must match [a-z_][a-z0-9_]{{0,62}}")]
pub struct InvalidTableName(());

impl TableName {
    pub(super) fn new(name: &str) -> Result<Self, InvalidTableName> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts_well = name.starts_with(|c: char| plain(c) && !c.is_ascii_digit());
        if starts_well && name.len() <= 63 && name.chars().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidTableName(()))
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TableName {
    fn default() -> Self {
        Self("processed_messages".to_owned())
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_taken() {
        for name in ["a", "_x9", "processed_messages", &"a".repeat(63)] {
            assert!(TableName::new(name).is_ok(), "{name}");
        }
        for name in ["", "9a", "A", "a b", "a;drop", "a\"", "ä", &"a".repeat(64)] {
            assert!(TableName::new(name).is_err(), "{name}");
        }
    }
}
