-- The outbox: one row per stored instance. Both engines use these files; each brings the one before it up to date.
CREATE TABLE instance (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    ready      INTEGER,               -- order of acknowledgement to the sender (grows, starts at the time in microseconds);
                                      -- NULL: the file may have no name yet
    trace_id   TEXT    NOT NULL,      -- the same on every delivery
    key        TEXT    NOT NULL,      -- tenant_id/study_uid
    payload    TEXT    NOT NULL,      -- the record, JSON
    path       TEXT    NOT NULL,      -- relative to the storage root
    path_hash  INTEGER NOT NULL,      -- XXH3-64 of path, signed
    temporary  TEXT    NOT NULL,      -- name in .incoming while ready is NULL
    size       INTEGER NOT NULL,      -- bytes of the file
    digest     BLOB    NOT NULL,      -- XXH3-128 of the file, big endian
    pending    INTEGER NOT NULL,      -- bit 0: topic_main, bit 1: topic_dicom_receive
    attempts   INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    created    INTEGER NOT NULL,      -- microseconds since 1970, UTC
    delivered  INTEGER                -- when both topics had acknowledged
) STRICT;
CREATE INDEX instance_path ON instance (path_hash);
CREATE INDEX instance_pending ON instance (ready) WHERE pending <> 0;
CREATE INDEX instance_unsettled ON instance (id) WHERE ready IS NULL;
PRAGMA user_version = 1;
