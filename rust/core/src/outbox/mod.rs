//! The durable queue of records (`SQLite`).
//!
//! A row is in the [`journal`] before its file gets its name, and goes into the database after; [`Outbox::open`] settles
//! those in between from what lies on disk. One thread owns the only writing connection and puts what many associations
//! bring into one transaction. Each topic goes through the rows by itself, in their order.

pub mod health;
pub mod journal;
mod rows;
mod schema;
mod settle;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use crate::failpoint;
use crate::store::path_hash;
use journal::{Journal, Place, Syncing};
pub use rows::{Backlog, ClaimedRow, Disk, Lag, NewRow, Newest, Settled};
pub use schema::MIGRATIONS;
use writer::{Lazy, LazyQueue, Op, Reply, Writer};

const ALL_PENDING: i64 = 0b11;
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

/// One of the two topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// `topic_main`: bit 0 of `pending`.
    Main,
    /// `topic_dicom_receive`: bit 1 of `pending`.
    Log,
}

impl Topic {
    fn number(self) -> i64 {
        match self {
            Self::Main => 0,
            Self::Log => 1,
        }
    }

    fn bit(self) -> i64 {
        1 << self.number()
    }

    /// The terms repeat those of the partial indexes, which is how `SQLite` recognises them.
    fn claim_query(self) -> &'static str {
        match self {
            Self::Main => {
                "SELECT id, ready, trace_id, key, payload FROM instance
                 WHERE pending & 1 AND ready IS NOT NULL AND ready > ?1 ORDER BY ready LIMIT ?2"
            }
            Self::Log => {
                "SELECT id, ready, trace_id, key, payload FROM instance
                 WHERE pending & 2 AND ready IS NOT NULL AND ready > ?1 ORDER BY ready LIMIT ?2"
            }
        }
    }
}

#[derive(Debug)]
struct Shared {
    journal: Journal,
    /// As in [`Backlog`].
    pending: AtomicI64,
    dead: AtomicI64,
    bytes: AtomicI64,
    lazy: Mutex<LazyQueue>,
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
    row: Option<Box<NewRow>>,
    place: Place,
    syncing: Syncing,
    shared: Arc<Shared>,
}

impl Entry {
    /// Waits until the row is as durable as configured.
    ///
    /// # Errors
    /// [`OutboxError`]: it is not.
    pub fn wait(&mut self) -> Result<(), OutboxError> {
        match self.syncing.take() {
            Some(syncing) => syncing.recv().map_err(|_| stopped())?,
            None => Ok(()),
        }
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
    OutboxError("the outbox is closed".to_owned())
}

impl Outbox {
    /// Opens the queue and settles what an interrupted predecessor left in the journal. Whoever calls makes the names in the folder durable.
    ///
    /// # Errors
    /// [`OutboxError`] when the database or the journal cannot be opened, or a file cannot be examined.
    pub fn open(
        path: &Path,
        synchronous: bool,
        disk: &impl Disk,
    ) -> Result<(Self, Settled), OutboxError> {
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
        let journal = Journal::create(folder, synchronous)
            .map_err(|error| OutboxError(format!("the journal: {error}")))?;
        begin_log(&mut connection)?;
        let (pending, dead, bytes): (i64, i64, i64) = connection.query_row(
            "SELECT coalesce(sum(pending <> 0), 0), coalesce(sum(pending = 0), 0),
                 coalesce(sum(length(CAST(payload AS BLOB))), 0)
             FROM instance WHERE pending <> 0 OR dead <> 0",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let next_ready = next_ready(&connection)?;
        let shared = Arc::new(Shared {
            journal,
            pending: AtomicI64::new(pending),
            dead: AtomicI64::new(dead),
            bytes: AtomicI64::new(bytes),
            lazy: Mutex::default(),
            last_ready: Mutex::new(next_ready - 1),
            is_over: AtomicBool::new(false),
            changed: Condvar::new(),
        });
        let reader = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        reader.busy_timeout(Duration::from_secs(5))?;
        let (ops, inbox) = sync_channel(QUEUE);
        let mut writer = Writer {
            connection,
            shared: Arc::clone(&shared),
            lazy: Vec::new(),
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
            row: Some(Box::new(row)),
            place,
            syncing,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Lets the publisher see a row: its file has its name, durably. It is in the database within a moment.
    ///
    /// # Errors
    /// [`OutboxError`] when the queue is closed; start-up settles the row then.
    pub fn publishable(&self, mut entry: Entry) -> Result<(), OutboxError> {
        match entry.row.take() {
            Some(row) => self.send_lazily(Lazy::Insert(row, entry.place)),
            None => Ok(()),
        }
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

    /// The newest row of a path, if there is any.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn newest(&self, path: &str) -> Result<Option<Newest>, OutboxError> {
        self.flush_rows()?;
        let reader = lock(&self.reader);
        let found = reader
            .prepare_cached(
                "SELECT id, trace_id, created, pending <> 0 OR dead <> 0, payload <> '' FROM instance
                 WHERE path_hash = ?1 AND path = ?2 ORDER BY id DESC LIMIT 1",
            )?
            .query_row((path_hash(path), path), |row| {
                Ok(Newest {
                    id: row.get(0)?,
                    trace_id: row.get(1)?,
                    created: row.get(2)?,
                    waits: row.get(3)?,
                    has_payload: row.get(4)?,
                })
            })
            .optional()?;
        Ok(found)
    }

    /// Paths of the rows that were received since a time (microseconds since 1970), and whose files have their names.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn paths_since(&self, since: i64) -> Result<Vec<String>, OutboxError> {
        self.flush_rows()?;
        let reader = lock(&self.reader);
        let mut statement = reader
            .prepare_cached("SELECT created, path, ready IS NOT NULL FROM instance ORDER BY id DESC")?;
        let mut rows = statement.query([])?;
        let mut paths = Vec::new();
        // Ids grow with time, so the first one that is too old is the end.
        while let Some(row) = rows.next()? {
            if row.get::<_, i64>(0)? < since {
                break;
            }
            if row.get(2)? {
                paths.push(row.get(1)?);
            }
        }
        Ok(paths)
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

    /// Removes wishes that were taken up.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn forget_wishes(&self, ids: Vec<i64>) -> Result<(), OutboxError> {
        self.ask(|reply| Op::ForgetWishes { ids, reply })
    }

    /// Waits until a row later than `after` is publishable. Returns the order of the last one there was.
    #[must_use]
    pub fn wait(&self, after: i64, timeout: Duration) -> i64 {
        let guard = lock(&self.shared.last_ready);
        let (last_ready, _) = self
            .shared
            .changed
            .wait_timeout_while(guard, timeout, |last_ready| {
                *last_ready <= after && !self.shared.is_over.load(Ordering::Acquire)
            })
            .unwrap_or_else(PoisonError::into_inner);
        *last_ready
    }

    /// Ends every [`Outbox::wait`], now and from now on: the publisher is to stop.
    pub fn stop_waiting(&self) {
        self.shared.is_over.store(true, Ordering::Release);
        // Under the lock: nobody is between looking and falling asleep.
        let _last_ready = lock(&self.shared.last_ready);
        self.shared.changed.notify_all();
    }

    /// The first publishable rows later than `after` that the topic has not acknowledged, in the order of their
    /// acknowledgement to the sender.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn claim(&self, topic: Topic, after: i64, most: u32) -> Result<Vec<ClaimedRow>, OutboxError> {
        let reader = lock(&self.reader);
        let mut statement = reader.prepare_cached(topic.claim_query())?;
        let rows = statement.query_map((after, most), |row| {
            Ok(ClaimedRow {
                id: row.get(0)?,
                ready: row.get(1)?,
                trace_id: row.get(2)?,
                key: row.get(3)?,
                payload: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Records that a topic acknowledged rows. Committed with the next transaction: a crash before it means that the
    /// rows are published again.
    ///
    /// # Errors
    /// [`OutboxError`] when the queue is closed.
    pub fn done(&self, topic: Topic, ids: Vec<i64>) -> Result<(), OutboxError> {
        failpoint::hit("delivered");
        self.send_lazily(Lazy::Done { topic, ids })
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

    /// Records that publication to a topic failed, and why. Everything recorded before is committed then.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn fail(&self, topic: Topic, reason: &str) -> Result<(), OutboxError> {
        self.ask(|reply| Op::Fail {
            topic,
            reason: reason.to_owned(),
            reply,
        })
    }

    /// Sets aside rows that a topic refused, each with the reason.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn reject(&self, topic: Topic, rows: Vec<(i64, String)>) -> Result<(), OutboxError> {
        self.ask(|reply| Op::Reject { topic, rows, reply })
    }

    /// Takes up the operators' wishes: rows set aside become pending again, behind all others. Returns how many.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn adopt_retries(&self) -> Result<u64, OutboxError> {
        if self.exists("SELECT EXISTS (SELECT 1 FROM retry)", [])? {
            self.ask(Op::AdoptRetries)
        } else {
            Ok(0)
        }
    }

    /// Takes the payload of at most `most` rows that were delivered before a time (microseconds since 1970); path,
    /// trace id, size and digest stay. Returns how many.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn prune(&self, before: i64, most: u32) -> Result<u64, OutboxError> {
        let query = "SELECT EXISTS (SELECT 1 FROM instance
             WHERE delivered IS NOT NULL AND payload <> '' AND delivered < ?1)";
        if self.exists(query, [before])? {
            self.ask(|reply| Op::Prune { before, most, reply })
        } else {
            Ok(0)
        }
    }

    /// How far a topic is behind. Goes through all of its rows: for people and scrapes, not for every instance.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn lag(&self, topic: Topic) -> Result<Lag, OutboxError> {
        let reader = lock(&self.reader);
        // Both from the index alone: with a long queue, a look into each row would hold up publication.
        let (count, first) = match topic {
            Topic::Main => (
                "SELECT count(*) FROM instance WHERE pending & 1 AND ready IS NOT NULL",
                "SELECT created FROM instance WHERE pending & 1 AND ready IS NOT NULL ORDER BY ready LIMIT 1",
            ),
            Topic::Log => (
                "SELECT count(*) FROM instance WHERE pending & 2 AND ready IS NOT NULL",
                "SELECT created FROM instance WHERE pending & 2 AND ready IS NOT NULL ORDER BY ready LIMIT 1",
            ),
        };
        let pending = reader.prepare_cached(count)?.query_row([], |row| row.get(0))?;
        let oldest = reader
            .prepare_cached(first)?
            .query_row([], |row| row.get(0))
            .optional()?;
        let dead = reader
            .prepare_cached("SELECT count(*) FROM instance WHERE dead <> 0 AND dead & ?1")?
            .query_row([topic.bit()], |row| row.get(0))?;
        Ok(Lag {
            pending,
            oldest,
            dead,
        })
    }

    /// What the topics have not taken yet.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        let get = |counter: &AtomicI64| u64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(0);
        Backlog {
            pending: get(&self.shared.pending),
            dead: get(&self.shared.dead),
            bytes: get(&self.shared.bytes),
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

#[cfg(test)]
mod tests;
