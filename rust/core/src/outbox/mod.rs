//! The durable queue of records (`SQLite`).
//!
//! One thread owns the only writing connection and commits what many associations ask for in one transaction.
//! A row is inserted before the file gets its name and becomes publishable after; [`Outbox::open`] settles the
//! rows in between from what lies on disk. Each topic goes through the rows by itself, in their order.

mod schema;
mod writer;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

pub use schema::MIGRATIONS;
use writer::{Lazy, Op, Reply, Writer};

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
    /// Order of acknowledgement to the sender.
    pub ready: i64,
    /// Trace id.
    pub trace_id: String,
    /// Key.
    pub key: String,
    /// The record, JSON.
    pub payload: String,
}

/// What the topics have not taken yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Rows that a topic has not acknowledged.
    pub pending: u64,
    /// Rows that wait for nothing but an operator: a topic refused them.
    pub dead: u64,
    /// Payload bytes of both.
    pub bytes: u64,
}

/// What start-up found between insertion and publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Rows whose file is there: kept.
    pub kept: u64,
    /// Rows whose file is not: never acknowledged, dropped.
    pub dropped: u64,
}

/// How far a topic is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Rows that it has not acknowledged.
    pub pending: u32,
    /// When the oldest of them was received, microseconds since 1970.
    pub oldest: Option<i64>,
    /// Rows that it refused.
    pub dead: u32,
}

#[derive(Debug, Default)]
struct Shared {
    /// As in [`Backlog`].
    pending: AtomicI64,
    dead: AtomicI64,
    bytes: AtomicI64,
    /// `ready` of the last row that became publishable.
    last_ready: Mutex<i64>,
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
        schema::migrate(&mut connection)?;
        let settled = settle(&mut connection, on_disk)?;
        let shared = Arc::new(Shared::default());
        let (pending, dead, bytes): (i64, i64, i64) = connection.query_row(
            "SELECT coalesce(sum(pending <> 0), 0), coalesce(sum(pending = 0), 0),
                 coalesce(sum(length(CAST(payload AS BLOB))), 0)
             FROM instance WHERE pending <> 0 OR dead <> 0",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        shared.pending.store(pending, Ordering::Relaxed);
        shared.dead.store(dead, Ordering::Relaxed);
        shared.bytes.store(bytes, Ordering::Relaxed);
        let next_ready = next_ready(&connection)?;
        *lock(&shared.last_ready) = next_ready - 1;
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
        self.send(Op::Lazy(Lazy::Publishable(id)))
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

    /// Waits until a row later than `after` is publishable. Returns whether there is.
    #[must_use]
    pub fn wait(&self, after: i64, timeout: Duration) -> bool {
        let guard = lock(&self.shared.last_ready);
        let (last_ready, _) = self
            .shared
            .changed
            .wait_timeout_while(guard, timeout, |last_ready| *last_ready <= after)
            .unwrap_or_else(PoisonError::into_inner);
        *last_ready > after
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
        self.send(Op::Lazy(Lazy::Done { topic, ids }))
    }

    /// Commits everything recorded before.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn flush(&self) -> Result<(), OutboxError> {
        self.ask(Op::Flush)
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
        let query = match topic {
            Topic::Main => {
                "SELECT count(*), min(created) FROM instance WHERE pending & 1 AND ready IS NOT NULL"
            }
            Topic::Log => {
                "SELECT count(*), min(created) FROM instance WHERE pending & 2 AND ready IS NOT NULL"
            }
        };
        let (pending, oldest) = reader
            .prepare_cached(query)?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
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
    let last: i64 = connection.query_row(
        "SELECT max(coalesce((SELECT max(ready) FROM instance WHERE pending & 1 AND ready IS NOT NULL), 0),
             coalesce((SELECT max(ready) FROM instance WHERE pending & 2 AND ready IS NOT NULL), 0))",
        [],
        |row| row.get(0),
    )?;
    Ok(now_micros().max(last + 1))
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

    fn stored(outbox: &Outbox, numbers: std::ops::Range<u32>) -> Vec<i64> {
        let ids: Vec<i64> = numbers
            .map(|number| {
                let id = outbox.insert(row(number)).unwrap().wait().unwrap();
                outbox.publishable(id).unwrap();
                id
            })
            .collect();
        outbox.flush().unwrap();
        ids
    }

    fn claimed(outbox: &Outbox, topic: Topic) -> Vec<i64> {
        let rows = outbox.claim(topic, 0, 1000).unwrap();
        assert!(rows.windows(2).all(|pair| pair[0].ready < pair[1].ready));
        rows.into_iter().map(|row| row.id).collect()
    }

    #[test]
    fn rows_are_claimed_in_the_order_of_acknowledgement_and_only_once_publishable() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
        let ids: Vec<i64> = (0..3)
            .map(|n| outbox.insert(row(n)).unwrap().wait().unwrap())
            .collect();
        let start = outbox.claim(Topic::Main, 0, 10).unwrap();
        assert!(start.is_empty());
        let before = now_micros();
        assert!(!outbox.wait(before, Duration::from_millis(20)));
        outbox.publishable(ids[2]).unwrap();
        outbox.publishable(ids[0]).unwrap();
        outbox.flush().unwrap();
        assert!(outbox.wait(0, Duration::ZERO));
        let rows = outbox.claim(Topic::Main, 0, 10).unwrap();
        assert_eq!([rows[0].id, rows[1].id], [ids[2], ids[0]]);
        assert_eq!(outbox.claim(Topic::Main, rows[0].ready, 10).unwrap().len(), 1);
        assert!(outbox.wait(rows[0].ready, Duration::ZERO));
        assert!(!outbox.wait(rows[1].ready, Duration::ZERO));
        assert_eq!(outbox.backlog().pending, 3);
    }

    #[test]
    fn each_topic_has_its_own_way_through_the_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
        let ids = stored(&outbox, 0..3);
        outbox.done(Topic::Main, ids.clone()).unwrap();
        outbox.done(Topic::Log, vec![ids[1]]).unwrap();
        outbox.flush().unwrap();
        assert!(claimed(&outbox, Topic::Main).is_empty());
        assert_eq!(claimed(&outbox, Topic::Log), [ids[0], ids[2]]);
        assert_eq!(outbox.backlog().pending, 2);
        outbox.fail(Topic::Log, "a reason").unwrap();
        outbox.fail(Topic::Main, "another").unwrap();
        outbox.done(Topic::Log, ids).unwrap();
        outbox.flush().unwrap();
        assert_eq!(outbox.backlog(), Backlog::default());
        let state: Vec<(i64, String)> = lock(&outbox.reader)
            .prepare("SELECT failures, last_error FROM topic ORDER BY number")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(state, [(1, "another".to_owned()), (0, "a reason".to_owned())]);
    }

    #[test]
    fn a_done_row_is_committed_without_anything_else_to_carry_it() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
        let ids = stored(&outbox, 0..1);
        outbox.done(Topic::Main, ids.clone()).unwrap();
        outbox.done(Topic::Log, ids).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while outbox.backlog().pending > 0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn refused_rows_are_set_aside_until_an_operator_wants_them_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.sqlite");
        let (outbox, _) = open(&path);
        let ids = stored(&outbox, 0..4);
        let reason = "too large".to_owned();
        outbox
            .reject(Topic::Main, vec![(ids[0], reason.clone()), (ids[2], reason)])
            .unwrap();
        outbox.done(Topic::Main, vec![ids[1], ids[3]]).unwrap();
        outbox.done(Topic::Log, ids.clone()).unwrap();
        outbox.flush().unwrap();
        let bytes = outbox.backlog().bytes;
        assert_eq!((outbox.backlog().pending, outbox.backlog().dead), (0, 2));
        assert!(bytes > 0);
        assert_eq!(outbox.adopt_retries().unwrap(), 0);
        let other = Connection::open(&path).unwrap();
        other
            .execute("INSERT INTO retry (trace_id) VALUES ('trace-2')", [])
            .unwrap();
        assert_eq!(outbox.adopt_retries().unwrap(), 1);
        assert_eq!((outbox.backlog().pending, outbox.backlog().dead), (1, 1));
        assert_eq!(claimed(&outbox, Topic::Main), [ids[2]]);
        assert!(claimed(&outbox, Topic::Log).is_empty());
        let later = stored(&outbox, 4..5);
        other
            .execute("INSERT INTO retry (trace_id) VALUES (NULL)", [])
            .unwrap();
        drop(outbox);
        let (outbox, _) = open(&path);
        assert_eq!((outbox.backlog().pending, outbox.backlog().dead), (2, 1));
        assert_eq!(outbox.adopt_retries().unwrap(), 1);
        assert_eq!(claimed(&outbox, Topic::Main), [ids[2], later[0], ids[0]]);
        outbox.done(Topic::Main, vec![ids[0], ids[2], later[0]]).unwrap();
        outbox.done(Topic::Log, later).unwrap();
        outbox.flush().unwrap();
        assert_eq!(outbox.backlog(), Backlog::default());
    }

    #[test]
    fn delivered_rows_lose_their_payload_and_stay_known() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
        let ids = stored(&outbox, 1..4);
        outbox.done(Topic::Main, ids.clone()).unwrap();
        outbox.done(Topic::Log, ids[..2].to_vec()).unwrap();
        outbox.flush().unwrap();
        assert_eq!(outbox.prune(0, 10).unwrap(), 0);
        let soon = now_micros() + 1;
        assert_eq!(outbox.prune(soon, 1).unwrap(), 1);
        assert_eq!(outbox.prune(soon, 10).unwrap(), 1);
        assert_eq!(outbox.prune(soon, 10).unwrap(), 0);
        assert!(outbox.describes("t/d/s/s/1.dcm", 1, [7; 16]).unwrap());
        assert_eq!(outbox.claim(Topic::Log, 0, 10).unwrap()[0].payload, r#"{"n":3}"#);
    }

    #[test]
    fn a_database_of_the_first_version_is_brought_up_to_date_and_one_of_the_future_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.sqlite");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute(
            "INSERT INTO instance (ready, trace_id, key, payload, path, path_hash, temporary, size, digest, pending, created)
             VALUES (5, 'trace', 'k', '{}', 'p', 1, 't', 2, x'00', 2, 5)",
            [],
        )
        .unwrap();
        drop(old);
        let (outbox, _) = open(&path);
        assert!(claimed(&outbox, Topic::Main).is_empty());
        assert_eq!(outbox.claim(Topic::Log, 0, 10).unwrap()[0].trace_id, "trace");
        drop(outbox);
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        let error = Outbox::open(&path, true, |_, _, _| Ok(true)).unwrap_err();
        assert!(error.to_string().contains("newer program"), "{error}");
    }

    #[test]
    fn multi_byte_payloads_are_counted_in_bytes_on_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let (outbox, _) = open(&folder.path().join("outbox.sqlite"));
        let mut new = row(1);
        new.payload = "\"グレイ\"".to_owned();
        let id = outbox.insert(new).unwrap().wait().unwrap();
        assert_eq!(outbox.backlog().bytes, 11);
        outbox.publishable(id).unwrap();
        outbox.done(Topic::Main, vec![id]).unwrap();
        outbox.done(Topic::Log, vec![id]).unwrap();
        outbox.flush().unwrap();
        assert_eq!(outbox.backlog(), Backlog::default());
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
            .claim(Topic::Main, 0, 10)
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
        outbox.flush().unwrap();
        assert_eq!(claimed(&outbox, Topic::Main).len(), 400);
    }
}
