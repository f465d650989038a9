-- lapin-idempotent, SQLite, version 1.
-- Identity is compared byte by byte (BINARY collation). WITHOUT ROWID: the key is the table, one B-tree.
-- Times are milliseconds since 1970-01-01 UTC, by the clock of the machine that wrote them.
CREATE TABLE IF NOT EXISTS {table} (
    scope        TEXT    NOT NULL COLLATE BINARY,
    message_id   TEXT    NOT NULL COLLATE BINARY,
    fingerprint  BLOB    NOT NULL CHECK (length(fingerprint) = 32),
    processed_at INTEGER NOT NULL,
    token        INTEGER,          -- the last lease's fencing token
    leased_until INTEGER,          -- NULL: completed
    PRIMARY KEY (scope, message_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS {index} ON {name} (processed_at);
