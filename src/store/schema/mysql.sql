-- lapin-idempotent, MySQL and MariaDB, version 1.
-- Binary columns: the text collations of MySQL and MariaDB fold case, accents or trailing spaces.
-- Times are UTC.
CREATE TABLE IF NOT EXISTS {table} (
    scope        VARBINARY(255) NOT NULL,
    message_id   VARBINARY(255) NOT NULL,
    fingerprint  BINARY(32)     NOT NULL,
    processed_at DATETIME(6)    NOT NULL,
    token        BIGINT,                     -- the last lease's fencing token
    leased_until DATETIME(6),                -- NULL: completed
    PRIMARY KEY (scope, message_id),
    KEY {index} (processed_at)
) ENGINE = InnoDB;
