-- lapin-idempotent, replays, SQLite, version 1.
-- A row is an opening: messages of the epoch take effect once more in the scope while closed_at is NULL.
-- Times are milliseconds since 1970-01-01 UTC, by the clock of the machine that wrote them.
CREATE TABLE IF NOT EXISTS {replays} (
    scope     TEXT    NOT NULL COLLATE BINARY,
    epoch     TEXT    NOT NULL COLLATE BINARY,
    opening   INTEGER NOT NULL,          -- 1, and more if it was opened again
    opened_at INTEGER NOT NULL,
    opened_by TEXT    NOT NULL,
    reason    TEXT    NOT NULL,
    closed_at INTEGER,
    PRIMARY KEY (scope, epoch, opening)
) STRICT, WITHOUT ROWID;
-- What took effect in an epoch, committed with the effect.
CREATE TABLE IF NOT EXISTS {replayed} (
    scope           TEXT    NOT NULL COLLATE BINARY,
    epoch           TEXT    NOT NULL COLLATE BINARY,
    message_id      TEXT    NOT NULL COLLATE BINARY,
    fingerprint     BLOB    NOT NULL CHECK (length(fingerprint) = 32),
    first_effect_at INTEGER,             -- of the original; NULL: not known
    handled_at      INTEGER NOT NULL,
    PRIMARY KEY (scope, epoch, message_id)
) STRICT, WITHOUT ROWID;
