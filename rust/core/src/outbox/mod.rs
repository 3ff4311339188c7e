//! The durable queue of records (`SQLite`).
//!
//! One thread owns the only writing connection and commits what many associations ask for in one transaction.
//! A row is inserted before the file gets its name and becomes publishable after; [`Outbox::open`] settles the
//! rows in between from what lies on disk.

mod writer;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use writer::{Op, Reply, Writer};

/// The two topics, by their bit in the column `pending`.
pub const TOPICS: usize = 2;
const ALL_PENDING: i64 = (1 << TOPICS) - 1;
const SCHEMA: &str = include_str!("schema.sql");
const QUEUE: usize = 4096;

/// The queue failed; the text is `SQLite`'s.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct OutboxError(String);

impl From<rusqlite::Error> for OutboxError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error.to_string())
    }
}

/// A record on its way into the queue.
#[derive(Clone, Debug)]
pub struct NewRow {
    /// Trace id of the record.
    pub trace_id: String,
    /// `tenant_id/study_uid`: the key of both topics.
    pub key: String,
    /// The record, JSON.
    pub payload: String,
    /// Path of the file relative to the storage root.
    pub path: String,
    /// Name of the temporary file in `.incoming`.
    pub temporary: String,
    /// Size of the file.
    pub size: u64,
    /// Digest of the file.
    pub digest: [u8; 16],
}

/// A record to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedRow {
    /// Row id.
    pub id: i64,
    /// Trace id.
    pub trace_id: String,
    /// Key.
    pub key: String,
    /// The record, JSON.
    pub payload: String,
    /// Bit 0: `topic_main` has not acknowledged it; bit 1: `topic_dicom_receive`.
    pub pending: u8,
}

/// What start-up found between insertion and publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Rows whose file is there: kept.
    pub kept: u64,
    /// Rows whose file is not: never acknowledged, dropped.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// Rows and payload bytes not yet acknowledged by both topics.
    rows: AtomicI64,
    bytes: AtomicI64,
    /// Publishable ones among them.
    claimable: Mutex<i64>,
    changed: Condvar,
}

/// The queue. Dropping it commits what is waiting and ends its thread.
#[derive(Debug)]
pub struct Outbox {
    ops: SyncSender<Op>,
    reader: Mutex<Connection>,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// A commit that was asked for and not yet waited for.
#[derive(Debug)]
pub struct Ticket(Receiver<Result<i64, OutboxError>>);

impl Ticket {
    /// Waits until the row is committed.
    ///
    /// # Errors
    /// [`OutboxError`]: the row is not in the queue.
    pub fn wait(self) -> Result<i64, OutboxError> {
        self.0.recv().map_err(|_| stopped())?
    }
}

/// Version of the bundled `SQLite`.
#[must_use]
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

fn stopped() -> OutboxError {
    OutboxError("the outbox is closed".to_owned())
}

impl Outbox {
    /// Opens the queue and settles rows that were never marked publishable: `on_disk(path, size, digest)` tells
    /// whether the file is there.
    ///
    /// # Errors
    /// [`OutboxError`] when the database cannot be opened or a file cannot be examined.
    pub fn open(
        path: &Path,
        synchronous: bool,
        on_disk: impl Fn(&str, u64, &[u8]) -> io::Result<bool>,
    ) -> Result<(Self, Settled), OutboxError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", if synchronous { "FULL" } else { "OFF" })?;
        connection.execute_batch(SCHEMA)?;
        let settled = settle(&mut connection, on_disk)?;
        let shared = Arc::new(Shared::default());
        let (rows, bytes): (i64, i64) = connection.query_row(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM instance WHERE pending <> 0",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        shared.rows.store(rows, Ordering::Relaxed);
        shared.bytes.store(bytes, Ordering::Relaxed);
        *lock(&shared.claimable) = rows;
        let next_ready = next_ready(&connection)?;
        let reader = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        reader.busy_timeout(Duration::from_secs(5))?;
        let (ops, inbox) = sync_channel(QUEUE);
        let mut writer = Writer {
            connection,
            shared: Arc::clone(&shared),
            marks: Vec::new(),
            next_ready,
        };
        let writer = std::thread::Builder::new()
            .name("storescp-outbox".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(|error| OutboxError(error.to_string()))?;
        Ok((
            Self {
                ops,
                reader: Mutex::new(reader),
                shared,
                writer: Some(writer),
            },
            settled,
        ))
    }

    /// Asks for a row; it is durable when the ticket says so.
    ///
    /// # Errors
    /// [`OutboxError`] when the queue is closed.
    pub fn insert(&self, row: NewRow) -> Result<Ticket, OutboxError> {
        let (reply, answer) = sync_channel(1);
        self.send(Op::Insert(Box::new(row), reply))?;
        Ok(Ticket(answer))
    }

    /// Lets the publisher see a row: its file has its name, durably. Committed with the next transaction.
    ///
    /// # Errors
    /// [`OutboxError`] when the queue is closed; start-up settles the row then.
    pub fn publishable(&self, id: i64) -> Result<(), OutboxError> {
        self.send(Op::Publishable(id))
    }

    /// Takes back a row whose file never got its name.
    ///
    /// # Errors
    /// [`OutboxError`] when the queue is closed; start-up settles the row then.
    pub fn remove(&self, id: i64) -> Result<(), OutboxError> {
        self.send(Op::Remove(id))
    }

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

    /// Waits until there is something to publish. Returns whether there is.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let guard = lock(&self.shared.claimable);
        let (claimable, _) = self
            .shared
            .changed
            .wait_timeout_while(guard, timeout, |claimable| *claimable <= 0)
            .unwrap_or_else(PoisonError::into_inner);
        *claimable > 0
    }

    /// The oldest publishable rows, in the order of their acknowledgement to the sender.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn claim(&self, most: u32) -> Result<Vec<ClaimedRow>, OutboxError> {
        let reader = lock(&self.reader);
        let mut statement = reader.prepare_cached(
            "SELECT id, trace_id, key, payload, pending FROM instance
             WHERE pending <> 0 AND ready IS NOT NULL ORDER BY ready LIMIT ?1",
        )?;
        let rows = statement.query_map([most], |row| {
            Ok(ClaimedRow {
                id: row.get(0)?,
                trace_id: row.get(1)?,
                key: row.get(2)?,
                payload: row.get(3)?,
                pending: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Records that a topic acknowledged rows.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn done(&self, topic: usize, ids: Vec<i64>) -> Result<(), OutboxError> {
        self.ask(|reply| Op::Done { topic, ids, reply })
    }

    /// Records that rows could not be published, and why.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn fail(&self, ids: Vec<i64>, code: &str) -> Result<(), OutboxError> {
        self.ask(|reply| Op::Fail {
            ids,
            code: code.to_owned(),
            reply,
        })
    }

    /// Rows and payload bytes that both topics have not yet acknowledged.
    #[must_use]
    pub fn backlog(&self) -> (u64, u64) {
        let get = |counter: &AtomicI64| u64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(0);
        (get(&self.shared.rows), get(&self.shared.bytes))
    }

    fn send(&self, op: Op) -> Result<(), OutboxError> {
        self.ops.send(op).map_err(|_| stopped())
    }

    fn ask<T>(&self, op: impl FnOnce(Reply<T>) -> Op) -> Result<T, OutboxError> {
        let (reply, answer) = sync_channel(1);
        self.send(op(reply))?;
        answer.recv().map_err(|_| stopped())?
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let _ = self.ops.send(Op::Stop);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_micros() -> i64 {
    chrono::Utc::now().timestamp_micros()
}

/// Rows that were never marked publishable: their files decide.
fn settle(
    connection: &mut Connection,
    on_disk: impl Fn(&str, u64, &[u8]) -> io::Result<bool>,
) -> Result<Settled, OutboxError> {
    let transaction = connection.transaction()?;
    let mut settled = Settled::default();
    let mut ready = next_ready(&transaction)?;
    let open: Vec<(i64, String, i64, Vec<u8>)> = transaction
        .prepare("SELECT id, path, size, digest FROM instance WHERE ready IS NULL ORDER BY id")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for (id, path, size, digest) in open {
        if on_disk(&path, u64::try_from(size).unwrap_or(0), &digest)
            .map_err(|error| OutboxError(format!("{path}: {error}")))?
        {
            transaction.execute("UPDATE instance SET ready = ?1 WHERE id = ?2", [ready, id])?;
            ready += 1;
            settled.kept += 1;
        } else {
            transaction.execute("DELETE FROM instance WHERE id = ?1", [id])?;
            settled.dropped += 1;
        }
    }
    transaction.commit()?;
    Ok(settled)
}

/// Larger than the order of every pending row, also when the clock went back.
fn next_ready(connection: &Connection) -> Result<i64, OutboxError> {
    let last: Option<i64> =
        connection.query_row("SELECT max(ready) FROM instance WHERE pending <> 0", [], |row| {
            row.get(0)
        })?;
    Ok(now_micros().max(last.unwrap_or(0) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u32) -> NewRow {
        NewRow {
            trace_id: format!("trace-{number}"),
            key: "t/1".to_owned(),
            payload: format!("{{\"n\":{number}}}"),
            path: format!("t/d/s/s/{number}.dcm"),
            temporary: format!("{number}.part"),
            size: u64::from(number),
            digest: [7; 16],
        }
    }

    fn open(path: &Path) -> (Outbox, Settled) {
        Outbox::open(path, true, |_, size, _| Ok(size % 2 == 0)).unwrap()
    }

    #[test]
    fn rows_are_claimed_in_the_order_of_acknowledgement_and_only_once_publishable() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
        let ids: Vec<i64> = (0..3)
            .map(|n| outbox.insert(row(n)).unwrap().wait().unwrap())
            .collect();
        assert!(!outbox.wait(Duration::from_millis(20)));
        outbox.publishable(ids[2]).unwrap();
        outbox.publishable(ids[0]).unwrap();
        while outbox.claim(10).unwrap().len() < 2 {
            assert!(outbox.wait(Duration::from_secs(5)));
        }
        let claimed: Vec<i64> = outbox.claim(10).unwrap().iter().map(|row| row.id).collect();
        assert_eq!(claimed, [ids[2], ids[0]]);
        assert_eq!(outbox.backlog().0, 3);
        outbox.done(0, vec![ids[2]]).unwrap();
        assert_eq!(outbox.claim(1).unwrap()[0].pending, 0b10);
        outbox.done(1, vec![ids[2]]).unwrap();
        assert_eq!(outbox.claim(10).unwrap().len(), 1);
        assert_eq!(outbox.backlog().0, 2);
        outbox.fail(vec![ids[0]], "broker down").unwrap();
        let (attempts, error): (i64, String) = lock(&outbox.reader)
            .query_row(
                "SELECT attempts, last_error FROM instance WHERE id = ?1",
                [ids[0]],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!((attempts, error.as_str()), (1, "broker down"));
    }

    #[test]
    fn start_up_keeps_rows_whose_file_is_there_and_drops_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.sqlite");
        {
            let (outbox, _) = open(&path);
            for number in 0..4 {
                outbox.insert(row(number)).unwrap().wait().unwrap();
            }
        }
        let (outbox, settled) = open(&path);
        assert_eq!(settled, Settled { kept: 2, dropped: 2 });
        let claimed: Vec<String> = outbox
            .claim(10)
            .unwrap()
            .into_iter()
            .map(|row| row.trace_id)
            .collect();
        assert_eq!(claimed, ["trace-0", "trace-2"]);
        assert!(outbox.describes("t/d/s/s/2.dcm", 2, [7; 16]).unwrap());
        assert!(!outbox.describes("t/d/s/s/2.dcm", 3, [7; 16]).unwrap());
        assert!(!outbox.describes("t/d/s/s/1.dcm", 1, [7; 16]).unwrap());
    }

    #[test]
    fn a_removed_row_is_gone_and_a_published_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
        let first = outbox.insert(row(1)).unwrap().wait().unwrap();
        let second = outbox.insert(row(2)).unwrap().wait().unwrap();
        outbox.publishable(second).unwrap();
        outbox.remove(first).unwrap();
        assert!(!outbox.describes("t/d/s/s/1.dcm", 1, [7; 16]).unwrap());
        outbox.remove(second).unwrap();
        assert!(outbox.describes("t/d/s/s/2.dcm", 2, [7; 16]).unwrap());
    }

    #[test]
    fn many_writers_share_commits() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
        std::thread::scope(|scope| {
            for thread in 0..8u32 {
                let outbox = &outbox;
                scope.spawn(move || {
                    for number in 0..50 {
                        let id = outbox.insert(row(thread * 100 + number)).unwrap().wait().unwrap();
                        outbox.publishable(id).unwrap();
                    }
                });
            }
        });
        while outbox.claim(1000).unwrap().len() < 400 {
            assert!(outbox.wait(Duration::from_secs(5)));
        }
    }
}
