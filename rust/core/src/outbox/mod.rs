//! The durable queue of records (`SQLite`).
//!
//! A row is in the [`journal`] before its file gets its name. Then the publisher may have it ([`fresh`]), and it goes into the
//! database, at the latest when it was not published within a moment; [`Outbox::open`] settles those in between from what lies
//! on disk. One thread owns the only writing connection and puts what many associations bring into one transaction. Each topic
//! goes through the rows by itself, in their order.

mod fresh;
pub mod health;
pub mod journal;
mod publication;
mod records;
mod rows;
mod schema;
mod settle;
mod topic;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use fresh::Fresh;
use journal::{Journal, Place, Syncing};
pub use rows::{Backlog, ClaimedRow, Disk, Found, Lag, NewRow, Newest, RetryWish, Settled};
pub use schema::MIGRATIONS;
pub use topic::Topic;
use writer::{Lazy, LazyQueue, Op, Reply, Writer};

const ALL_PENDING: i64 = 0b11;
const QUEUE: usize = 4096;

/// The queue failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct OutboxError {
    text: String,
    may_pass: bool,
}

impl OutboxError {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            may_pass: false,
        }
    }

    /// Whether it may pass by itself: no space, an I/O error, another process that is busy with it.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.may_pass
    }
}

impl From<rusqlite::Error> for OutboxError {
    fn from(error: rusqlite::Error) -> Self {
        let may_pass = error.sqlite_error_code().is_some_and(|code| {
            matches!(
                code,
                ErrorCode::CannotOpen
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::DiskFull
                    | ErrorCode::OutOfMemory
                    | ErrorCode::ReadOnly
                    | ErrorCode::SystemIoFailure
            )
        });
        Self {
            text: error.to_string(),
            may_pass,
        }
    }
}

impl From<io::Error> for OutboxError {
    fn from(error: io::Error) -> Self {
        Self::of_disk(&error, &error)
    }
}

#[derive(Debug)]
struct Shared {
    journal: Journal,
    /// As in [`Backlog`].
    pending: AtomicI64,
    dead: AtomicI64,
    bytes: AtomicI64,
    /// Rows of which it is not known whether their file has its name.
    undecided: AtomicU64,
    lazy: Mutex<LazyQueue>,
    /// Changed by the writer alone.
    fresh: Mutex<Fresh>,
    /// `ready` of the last row that became publishable.
    last_ready: Mutex<i64>,
    is_over: AtomicBool,
    changed: Condvar,
}

/// The queue. Dropping it commits what is waiting and ends its threads.
#[derive(Debug)]
pub struct Outbox {
    ops: SyncSender<Op>,
    reader: Mutex<Connection>,
    shared: Arc<Shared>,
    folder: PathBuf,
    writer: Option<JoinHandle<()>>,
}

/// A row in the journal whose file has no name yet. Dropped before [`Outbox::publishable`], it is taken back.
#[derive(Debug)]
pub struct Entry {
    row: Option<Arc<NewRow>>,
    place: Place,
    syncing: Syncing,
    shared: Arc<Shared>,
}

impl Entry {
    /// Begins to make it durable, beside whatever the caller does until it waits.
    pub fn begin_sync(&self) {
        self.shared.journal.begin_sync();
    }

    /// Waits until the row is as durable as configured.
    ///
    /// # Errors
    /// [`OutboxError`]: it is not.
    pub fn wait(&mut self) -> Result<(), OutboxError> {
        self.shared.journal.wait(&self.syncing.take())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(row) = self.row.take() {
            self.shared.count(-1, -row.payload_bytes());
            self.shared.journal.settle([self.place]);
        }
    }
}

impl Shared {
    fn count(&self, rows: i64, bytes: i64) {
        self.pending.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Version of the bundled `SQLite`.
#[must_use]
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

fn stopped() -> OutboxError {
    OutboxError::new("the outbox is closed")
}

impl Outbox {
    /// Opens the queue and settles what an interrupted predecessor left in the journal. Whoever calls makes the names in the folder durable.
    ///
    /// # Errors
    /// [`OutboxError`] when the database or the journal cannot be opened, or a file cannot be examined.
    pub fn open(path: &Path, synchronous: bool, disk: &impl Disk) -> Result<(Self, Settled), OutboxError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // What the journal holds may have been promised at a higher durability than is configured now.
        connection.pragma_update(None, "synchronous", "FULL")?;
        schema::migrate(&mut connection)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let settled = settle::settle(&mut connection, folder, disk)?;
        if !synchronous {
            connection.pragma_update(None, "synchronous", "OFF")?;
        }
        // Nobody waits for these answers any more.
        connection.execute("DELETE FROM quarantine_retry WHERE outcome IS NOT NULL", [])?;
        let journal = Journal::create(folder, synchronous)
            .map_err(|error| OutboxError::of_disk(format_args!("the journal: {error}"), &error))?;
        begin_log(&mut connection)?;
        let undecided: u32 =
            connection.query_row("SELECT count(*) FROM instance WHERE ready IS NULL", [], |row| {
                row.get(0)
            })?;
        let (pending, dead, bytes): (i64, i64, i64) = connection.query_row(
            "SELECT coalesce(sum(pending <> 0), 0), coalesce(sum(pending = 0), 0),
                 coalesce(sum(length(CAST(payload AS BLOB))), 0)
             FROM instance WHERE pending <> 0 OR dead <> 0",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let (next_ready, next_id) = (next_ready(&connection)?, next_id(&connection)?);
        let shared = Arc::new(Shared {
            journal,
            pending: AtomicI64::new(pending),
            dead: AtomicI64::new(dead),
            bytes: AtomicI64::new(bytes),
            undecided: AtomicU64::new(undecided.into()),
            lazy: Mutex::default(),
            fresh: Mutex::default(),
            last_ready: Mutex::new(next_ready - 1),
            is_over: AtomicBool::new(false),
            changed: Condvar::new(),
        });
        let reader = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        reader.busy_timeout(Duration::from_secs(5))?;
        // It opens the log with its first look: now, and not when descriptors may have become scarce.
        reader.query_row("SELECT count(*) FROM topic", [], |_| Ok(()))?;
        let (ops, inbox) = sync_channel(QUEUE);
        let mut writer = Writer {
            connection,
            shared: Arc::clone(&shared),
            acknowledged: Vec::new(),
            next_ready,
            next_id,
        };
        let writer = std::thread::Builder::new()
            .name("storescp-outbox".to_owned())
            .spawn(move || writer.run(&inbox))?;
        Ok((
            Self {
                ops,
                reader: Mutex::new(reader),
                shared,
                folder: folder.to_owned(),
                writer: Some(writer),
            },
            settled,
        ))
    }

    /// Puts a row into the journal; [`Entry::wait`] tells when it is durable.
    ///
    /// # Errors
    /// [`OutboxError`]: it cannot be written, or the database is far behind.
    pub fn insert(&self, row: NewRow) -> Result<Entry, OutboxError> {
        let (place, syncing) = self.shared.journal.append(&row)?;
        self.shared.count(1, row.payload_bytes());
        Ok(Entry {
            row: Some(Arc::new(row)),
            place,
            syncing,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Lets the publisher see a row: its file has its name, durably. It is in the database within a second.
    ///
    /// # Errors
    /// [`OutboxError`] when the queue is closed; start-up settles the row then.
    pub fn publishable(&self, mut entry: Entry) -> Result<(), OutboxError> {
        match entry.row.take() {
            Some(row) => self.send_lazily(Lazy::Insert(row, entry.place)),
            None => Ok(()),
        }
    }

    /// Rows of which it is not known whether their file has its name.
    #[must_use]
    pub fn undecided(&self) -> u64 {
        self.shared.undecided.load(Ordering::Acquire)
    }

    /// Whether its thread lives. Where it does not, nothing is recorded or published any more.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| !writer.is_finished())
    }

    /// Fails where its thread does not live.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn check_alive(&self) -> Result<(), OutboxError> {
        if self.is_alive() {
            Ok(())
        } else {
            Err(stopped())
        }
    }

    /// Commits everything recorded before.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn flush(&self) -> Result<(), OutboxError> {
        self.ask(Op::Flush)
    }

    /// Brings rows that are publishable into the database, where there are any that are not.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn flush_rows(&self) -> Result<(), OutboxError> {
        if lock(&self.shared.lazy).is_looking() {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn exists(&self, query: &str, parameters: impl rusqlite::Params) -> Result<bool, OutboxError> {
        let reader = lock(&self.reader);
        let found = reader
            .prepare_cached(query)?
            .query_row(parameters, |row| row.get(0))?;
        Ok(found)
    }

    fn send_lazily(&self, lazy: Lazy) -> Result<(), OutboxError> {
        let wake = lock(&self.shared.lazy).push(lazy);
        wake.map_or(Ok(()), |delay| self.send(Op::Look(delay)))
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
        if self.shared.journal.is_settled() {
            // Its absence tells the next start that there was an orderly end. Where that fails, it looks through the files.
            let _ = journal::remove(&self.folder);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_micros() -> i64 {
    chrono::Utc::now().timestamp_micros()
}

/// From now on `SQLite`'s log is not empty, which tells the next start of an end that was not orderly, also where the journal
/// was lost before the first row came out of it.
fn begin_log(connection: &mut Connection) -> Result<(), OutboxError> {
    let transaction = connection.transaction()?;
    for change in [1, -1] {
        transaction.execute(
            "UPDATE topic SET failures = failures + ?1 WHERE number = 0",
            [change],
        )?;
    }
    Ok(transaction.commit()?)
}

/// Larger than the order of every pending row, also when the clock went back.
fn next_ready(connection: &Connection) -> Result<i64, OutboxError> {
    let last: i64 = connection.query_row(
        "SELECT max(coalesce((SELECT max(ready) FROM instance WHERE pending & 1 AND ready IS NOT NULL), 0),
             coalesce((SELECT max(ready) FROM instance WHERE pending & 2 AND ready IS NOT NULL), 0))",
        [],
        |row| row.get(0),
    )?;
    Ok(now_micros().max(last + 1))
}

/// No row ever had it.
fn next_id(connection: &Connection) -> Result<i64, OutboxError> {
    let last: i64 = connection.query_row(
        "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'instance'), 0),
             coalesce((SELECT max(id) FROM instance), 0))",
        [],
        |row| row.get(0),
    )?;
    Ok(last + 1)
}

#[cfg(test)]
mod tests;
