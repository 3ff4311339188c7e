-- Files whose records operators want to be published again, or for the first time.
CREATE TABLE republish (              -- the service takes these up
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    path       TEXT    NOT NULL       -- as in instance
) STRICT;
PRAGMA user_version = 3;
