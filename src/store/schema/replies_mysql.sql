-- lapin-idempotent, replies, MySQL and MariaDB, version 1.
-- A row is what a request was answered with; it goes after the identity of the request.
-- Binary columns: what was put in is read byte by byte. Times are UTC.
CREATE TABLE IF NOT EXISTS {table} (
    scope      VARBINARY(255) NOT NULL,
    message_id VARBINARY(255) NOT NULL,
    properties LONGBLOB,                 -- JSON; NULL: persistent, and nothing else set
    body       LONGBLOB       NOT NULL,
    replied_at DATETIME(6)    NOT NULL,
    PRIMARY KEY (scope, message_id),
    KEY {index} (replied_at)
) ENGINE = InnoDB;
