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
-- Rows are written in the order of time: a block range index finds the old ones, and costs next to nothing.
CREATE INDEX IF NOT EXISTS {index} ON {table} USING brin (processed_at) WITH (pages_per_range = 32);
