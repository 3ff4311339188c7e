-- Stored instances that operators want to be transcoded wait in the same table.
ALTER TABLE quarantine_retry ADD COLUMN is_stored INTEGER NOT NULL DEFAULT 0;  -- 1: name is the path of a stored file,
                                                                               -- relative to its storage root
PRAGMA user_version = 5;
