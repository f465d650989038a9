-- lapin-idempotent, replays, MySQL and MariaDB, version 1.
-- A row is an opening: messages of the epoch take effect once more in the scope while closed_at is NULL.
-- Binary columns: what was put in is read byte by byte. Times are UTC.
CREATE TABLE IF NOT EXISTS {replays} (
    scope     VARBINARY(255)  NOT NULL,
    epoch     VARBINARY(128)  NOT NULL,
    opening   BIGINT          NOT NULL,     -- 1, and more if it was opened again
    opened_at DATETIME(6)     NOT NULL,
    opened_by VARBINARY(255)  NOT NULL,
    reason    VARBINARY(1000) NOT NULL,
    closed_at DATETIME(6),
    PRIMARY KEY (scope, epoch, opening)
) ENGINE = InnoDB;
-- What took effect in an epoch, committed with the effect.
CREATE TABLE IF NOT EXISTS {replayed} (
    scope           VARBINARY(255) NOT NULL,
    epoch           VARBINARY(128) NOT NULL,
    message_id      VARBINARY(255) NOT NULL,
    fingerprint     BINARY(32)     NOT NULL,
    first_effect_at DATETIME(6),             -- of the original; NULL: not known
    handled_at      DATETIME(6)    NOT NULL,
    PRIMARY KEY (scope, epoch, message_id)
) ENGINE = InnoDB;
