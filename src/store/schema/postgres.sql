-- lapin-idempotent, PostgreSQL, version 1.
-- Identity is compared byte by byte; collation "C" keeps the index in byte order too, which is the cheapest.
CREATE TABLE IF NOT EXISTS {table} (
    scope        text        COLLATE "C" NOT NULL,
    message_id   text        COLLATE "C" NOT NULL,
    fingerprint  bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
    processed_at timestamptz NOT NULL,
    token        bigint,               -- the last lease's fencing token
    leased_until timestamptz,          -- NULL: completed
    PRIMARY KEY (scope, message_id)
);
-- For the purge. Not a block range index: purged rows leave room to new ones, and after one retention each range holds rows of all ages.
CREATE INDEX IF NOT EXISTS {index} ON {table} (processed_at);
