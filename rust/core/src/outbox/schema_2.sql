-- Each topic goes on by itself; what a broker refuses is set aside; delivered rows lose their payload in time.
ALTER TABLE instance ADD COLUMN dead INTEGER NOT NULL DEFAULT 0;  -- bits as in pending: refused by the broker, set aside;
                                                                  -- attempts and last_error say how often and why
DROP INDEX instance_pending;
CREATE INDEX instance_main ON instance (ready) WHERE pending & 1 AND ready IS NOT NULL;
CREATE INDEX instance_log ON instance (ready) WHERE pending & 2 AND ready IS NOT NULL;
CREATE INDEX instance_dead ON instance (id) WHERE dead <> 0;
CREATE INDEX instance_with_payload ON instance (delivered) WHERE delivered IS NOT NULL AND payload <> '';
CREATE INDEX instance_trace ON instance (trace_id) WHERE dead <> 0;
CREATE TABLE topic (                  -- how publication to each topic goes
    number     INTEGER PRIMARY KEY,   -- as the bits in pending
    failures   INTEGER NOT NULL DEFAULT 0,  -- since the last success
    last_error TEXT,
    failed     INTEGER,               -- microseconds since 1970, UTC
    succeeded  INTEGER
) STRICT;
INSERT INTO topic (number) VALUES (0), (1);
CREATE TABLE retry (                  -- rows set aside that an operator wants to be tried again; the service takes these up
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id   TEXT                   -- NULL: all of them
) STRICT;
PRAGMA user_version = 2;
