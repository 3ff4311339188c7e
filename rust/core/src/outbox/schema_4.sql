-- Damaged data sets in quarantine that operators want to be stored.
CREATE TABLE quarantine_retry (       -- the service takes these up, and whoever asked removes them
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    root       TEXT    NOT NULL,      -- the storage root, absolute
    name       TEXT    NOT NULL,      -- of the entry
    tenant     TEXT,                  -- for an entry whose note names none
    by_rule    INTEGER NOT NULL,      -- 1: a rule names the tenant, so that the data set is not asked
    outcome    TEXT                   -- NULL: not tried yet; '': it is stored; else why not
) STRICT;
PRAGMA user_version = 4;
