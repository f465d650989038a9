-- lapin-idempotent, replies, PostgreSQL, version 1.
-- A row is what a request was answered with; it goes after the identity of the request.
CREATE TABLE IF NOT EXISTS {table} (
    scope      text        COLLATE "C" NOT NULL,
    message_id text        COLLATE "C" NOT NULL,
    properties text,                    -- JSON; NULL: persistent, and nothing else set
    body       bytea       NOT NULL,
    replied_at timestamptz NOT NULL,
    PRIMARY KEY (scope, message_id)
);
-- For the purge. Not a block range index: purged rows leave room to new ones, and after one retention each range holds rows of all ages.
CREATE INDEX IF NOT EXISTS {index} ON {table} (replied_at);
