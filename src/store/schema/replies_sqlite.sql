-- lapin-idempotent, replies, SQLite, version 1.
-- A row is what a request was answered with; it goes after the identity of the request.
-- Times are milliseconds since 1970-01-01 UTC, by the clock of the machine that wrote them.
CREATE TABLE IF NOT EXISTS {table} (
    scope      TEXT    NOT NULL COLLATE BINARY,
    message_id TEXT    NOT NULL COLLATE BINARY,
    properties TEXT,                     -- JSON; NULL: persistent, and nothing else set
    body       BLOB    NOT NULL,
    replied_at INTEGER NOT NULL,
    PRIMARY KEY (scope, message_id)
) STRICT;
CREATE INDEX IF NOT EXISTS {index} ON {name} (replied_at);
