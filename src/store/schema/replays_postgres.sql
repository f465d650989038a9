-- lapin-idempotent, replays, PostgreSQL, version 1.
-- A row is an opening: messages of the epoch take effect once more in the scope while closed_at is NULL.
CREATE TABLE IF NOT EXISTS {replays} (
    scope     text        COLLATE "C" NOT NULL,
    epoch     text        COLLATE "C" NOT NULL,
    opening   bigint      NOT NULL,      -- 1, and more if it was opened again
    opened_at timestamptz NOT NULL,
    opened_by text        NOT NULL,
    reason    text        NOT NULL,
    closed_at timestamptz,
    PRIMARY KEY (scope, epoch, opening)
);
-- What took effect in an epoch, committed with the effect.
CREATE TABLE IF NOT EXISTS {replayed} (
    scope           text        COLLATE "C" NOT NULL,
    epoch           text        COLLATE "C" NOT NULL,
    message_id      text        COLLATE "C" NOT NULL,
    fingerprint     bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
    first_effect_at timestamptz,         -- of the original; NULL: not known
    handled_at      timestamptz NOT NULL,
    PRIMARY KEY (scope, epoch, message_id)
);
