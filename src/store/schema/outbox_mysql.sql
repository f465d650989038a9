-- lapin-idempotent, outbox, MySQL and MariaDB, version 1.
-- A row is a message to be published, and is deleted when it was. Lane: 0 to 15, by the order key; -1 - lane: parked.
-- Binary columns: what was put in is read byte by byte. Times are UTC.
CREATE TABLE IF NOT EXISTS {table} (
    lane        SMALLINT       NOT NULL,
    seq         BIGINT         NOT NULL AUTO_INCREMENT,
    message_id  VARBINARY(255) NOT NULL,
    exchange    VARBINARY(255) NOT NULL,
    routing_key VARBINARY(255) NOT NULL,
    order_key   VARBINARY(255),
    properties  LONGBLOB,                     -- JSON; NULL: persistent, and nothing else set
    body        LONGBLOB       NOT NULL,
    enqueued_at DATETIME(6)    NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
    attempts    INT            NOT NULL DEFAULT 0,
    retry_at    DATETIME(6),
    error       VARBINARY(1000),
    parked_at   DATETIME(6),
    PRIMARY KEY (lane, seq),
    KEY seq (seq)                             -- AUTO_INCREMENT demands it
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS {lanes} (
    lane  SMALLINT PRIMARY KEY,
    relay VARBINARY(36),
    term  BIGINT NOT NULL DEFAULT 0
) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS {relays} (
    relay   VARBINARY(36) PRIMARY KEY,
    name    VARBINARY(255) NOT NULL,
    beat_at DATETIME(6)    NOT NULL
) ENGINE = InnoDB;
INSERT IGNORE INTO {lanes} (lane) VALUES {every_lane};
