//! The records of stored files: for duplicates, for start-up, for operators.

use rusqlite::OptionalExtension as _;

use super::writer::Op;
use super::{lock, Newest, Outbox, OutboxError, RetryWish};
use crate::store::path_hash;

/// Rows that are read at a time: the publisher waits for the reader meanwhile.
const PAGE: u32 = 10_000;

impl Outbox {
    /// Whether a row describes the file with this path, size and digest.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn describes(&self, path: &str, size: u64, digest: [u8; 16]) -> Result<bool, OutboxError> {
        self.ask(|reply| Op::Exists {
            path: path.to_owned(),
            size,
            digest,
            reply,
        })
    }

    /// The newest row of a path, if there is any.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn newest(&self, path: &str) -> Result<Option<Newest>, OutboxError> {
        self.flush_rows()?;
        let reader = lock(&self.reader);
        let found = reader
            .prepare_cached(
                "SELECT id, trace_id, created, pending <> 0 OR dead <> 0, payload <> '', ready IS NOT NULL, size, digest
                 FROM instance
                 WHERE path_hash = ?1 AND path = ?2 ORDER BY id DESC LIMIT 1",
            )?
            .query_row((path_hash(path), path), |row| {
                Ok(Newest {
                    id: row.get(0)?,
                    trace_id: row.get(1)?,
                    created: row.get(2)?,
                    waits: row.get(3)?,
                    has_payload: row.get(4)?,
                    is_committed: row.get(5)?,
                    size: u64::try_from(row.get::<_, i64>(6)?).unwrap_or(0),
                    digest: row.get(7)?,
                })
            })
            .optional()?;
        Ok(found)
    }

    /// The record of a row, JSON; empty where it is forgotten.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn payload(&self, id: i64) -> Result<String, OutboxError> {
        let reader = lock(&self.reader);
        let found = reader
            .prepare_cached("SELECT payload FROM instance WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    /// Paths of the rows that were received between two moments (microseconds since 1970), and whose files have their names: a page
    /// of them, the newest first, and what to ask for the next one by, where there may be one.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn paths_between(
        &self,
        since: i64,
        until: i64,
        before: Option<i64>,
    ) -> Result<(Vec<String>, Option<i64>), OutboxError> {
        let reader = lock(&self.reader);
        let mut statement = reader.prepare_cached(
            "SELECT id, created, path, ready IS NOT NULL FROM instance WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
        )?;
        let mut rows = statement.query((before.unwrap_or(i64::MAX), PAGE))?;
        let (mut paths, mut last, mut count) = (Vec::new(), None, 0);
        while let Some(row) = rows.next()? {
            let created: i64 = row.get(1)?;
            // Ids grow with time, so the first one that is too old is the end.
            if created < since {
                return Ok((paths, None));
            }
            if created <= until && row.get(3)? {
                paths.push(row.get(2)?);
            }
            last = Some(row.get(0)?);
            count += 1;
        }
        Ok((paths, last.filter(|_| count == PAGE)))
    }

    /// Makes a delivered row pending again, behind all others; `record` is its key and payload where they are no longer there.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn republish(&self, id: i64, record: Option<(String, String)>) -> Result<(), OutboxError> {
        self.ask(|reply| Op::Republish { id, record, reply })
    }

    /// Files whose records operators want to be published: id of the wish, path.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn republish_wishes(&self, most: u32) -> Result<Vec<(i64, String)>, OutboxError> {
        let reader = lock(&self.reader);
        let mut statement = reader.prepare_cached("SELECT id, path FROM republish ORDER BY id LIMIT ?1")?;
        let wishes = statement.query_map([most], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(wishes.collect::<Result<_, _>>()?)
    }

    /// Entries of the quarantine that operators want to be stored, and stored instances that they want to be transcoded, which
    /// were not tried yet.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn retry_wishes(&self, most: u32) -> Result<Vec<RetryWish>, OutboxError> {
        let reader = lock(&self.reader);
        let mut statement = reader.prepare_cached(
            "SELECT id, root, name, tenant, by_rule, is_stored FROM quarantine_retry WHERE outcome IS NULL
             ORDER BY id LIMIT ?1",
        )?;
        let wishes = statement.query_map([most], |row| {
            Ok(RetryWish {
                id: row.get(0)?,
                root: row.get(1)?,
                name: row.get(2)?,
                tenant: row.get(3)?,
                by_rule: row.get(4)?,
                is_stored: row.get(5)?,
            })
        })?;
        Ok(wishes.collect::<Result<_, _>>()?)
    }

    /// Tells whoever asked what became of an entry: an empty text where it is stored, else why not.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn answer_retry(&self, id: i64, outcome: String) -> Result<(), OutboxError> {
        self.ask(|reply| Op::AnswerRetry { id, outcome, reply })
    }

    /// Removes wishes that were taken up.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn forget_wishes(&self, ids: Vec<i64>) -> Result<(), OutboxError> {
        self.ask(|reply| Op::ForgetWishes { ids, reply })
    }
}
