-- lapin-idempotent, PostgreSQL, partitioned by the time inside the message ID, version 1.
-- id_time is decided by the ID alone (milliseconds since 1970 of a UUIDv7 or ULID, -1 for any other), so the key is unique on
-- (scope, message_id) as well. What no partition covers is in the default one.
CREATE TABLE IF NOT EXISTS {table} (
    scope        text        COLLATE "C" NOT NULL,
    message_id   text        COLLATE "C" NOT NULL,
    id_time      bigint      NOT NULL,
    fingerprint  bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
    processed_at timestamptz NOT NULL,
    token        bigint,               -- the last lease's fencing token
    leased_until timestamptz,          -- NULL: completed
    PRIMARY KEY (scope, message_id, id_time)
) PARTITION BY RANGE (id_time);
CREATE INDEX IF NOT EXISTS {index} ON {table} (processed_at);
CREATE TABLE IF NOT EXISTS {default} PARTITION OF {table} DEFAULT;
