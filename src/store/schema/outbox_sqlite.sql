-- lapin-idempotent, outbox, SQLite, version 1.
-- A row is a message to be published, and is deleted when it was. Lane: 0; -1: parked.
-- Times are milliseconds since 1970-01-01 UTC, by the clock of the machine that wrote them.
CREATE TABLE IF NOT EXISTS {table} (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,    -- numbers are never used again
    lane        INTEGER NOT NULL,
    message_id  TEXT    NOT NULL CHECK (length(CAST(message_id AS BLOB)) BETWEEN 1 AND 255),
    exchange    TEXT    NOT NULL,
    routing_key TEXT    NOT NULL,
    order_key   TEXT    COLLATE BINARY CHECK (length(CAST(order_key AS BLOB)) BETWEEN 1 AND 255),
    properties  TEXT,                                 -- JSON; NULL: persistent, and nothing else set
    body        BLOB    NOT NULL,
    enqueued_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    attempts    INTEGER NOT NULL DEFAULT 0,
    retry_at    INTEGER,
    error       TEXT,
    parked_at   INTEGER
) STRICT;
-- Of parked rows only, so that no other one pays for it.
CREATE INDEX IF NOT EXISTS {parked} ON {name} (seq) WHERE lane < 0;
CREATE TABLE IF NOT EXISTS {lanes} (lane INTEGER PRIMARY KEY, relay TEXT, term INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS {relays} (relay TEXT PRIMARY KEY, name TEXT NOT NULL, beat_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO {lanes} (lane) VALUES {every_lane};
