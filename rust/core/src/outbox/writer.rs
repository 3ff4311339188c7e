//! The one thread that writes: what many associations ask for becomes one transaction.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{params, Connection, OptionalExtension as _};

use super::{lock, now_micros, NewRow, OutboxError, Place, Shared, Topic, ALL_PENDING};
use crate::failpoint;
use crate::store::path_hash;

const BATCH: usize = 512;
/// How long the first row after a pause may wait for company: it is durable in the journal, and only the publisher waits.
const ROW_DELAY: Duration = Duration::from_millis(25);
/// The same for an acknowledgement of a topic: losing it costs a second delivery and no more.
const DONE_DELAY: Duration = Duration::from_millis(100);
/// After a transaction of more than a few: each delays the instance that is received meanwhile, where cores are few.
const BUSY_DELAY: Duration = Duration::from_millis(100);
const FEW: usize = 8;
/// After a commit that failed.
const RETRY_DELAY: Duration = Duration::from_millis(100);

pub(super) type Reply<T> = SyncSender<Result<T, OutboxError>>;

/// What nobody waits for; it goes with the next transaction.
#[derive(Debug)]
pub(super) enum Lazy {
    Insert(Box<NewRow>, Place),
    Done { topic: Topic, ids: Vec<i64> },
}

impl Lazy {
    /// How long it may wait for company.
    fn delay(&self) -> Duration {
        match self {
            Self::Insert(..) => ROW_DELAY,
            Self::Done { .. } => DONE_DELAY,
        }
    }
}

/// Lazy ones on their way. They do not wake the writer where it looks by itself soon, which is so after every commit.
#[derive(Debug, Default)]
pub(super) struct LazyQueue {
    waiting: Vec<Lazy>,
    is_looking: bool,
}

impl LazyQueue {
    /// Puts one in; how long the writer may wait, where it must be woken.
    pub(super) fn push(&mut self, lazy: Lazy) -> Option<Duration> {
        let delay = lazy.delay();
        self.waiting.push(lazy);
        let wake = !self.is_looking;
        self.is_looking = true;
        wake.then_some(delay)
    }

    /// Whether there may be something that is not yet committed.
    pub(super) fn is_looking(&self) -> bool {
        self.is_looking
    }
}

/// What the writer is asked for.
pub(super) enum Op {
    /// Something lies in the queue of lazy ones; it may wait so long.
    Look(Duration),
    Exists {
        path: String,
        size: u64,
        digest: [u8; 16],
        reply: Reply<bool>,
    },
    Fail {
        topic: Topic,
        reason: String,
        reply: Reply<()>,
    },
    Reject {
        topic: Topic,
        rows: Vec<(i64, String)>,
        reply: Reply<()>,
    },
    Republish {
        id: i64,
        record: Option<(String, String)>,
        reply: Reply<()>,
    },
    ForgetWishes {
        ids: Vec<i64>,
        reply: Reply<()>,
    },
    AdoptRetries(Reply<u64>),
    Flush(Reply<()>),
    Prune {
        before: i64,
        most: u32,
        reply: Reply<u64>,
    },
    Stop,
}

/// What a transaction changes, told to the others once it is committed.
struct Delta {
    pending: i64,
    dead: i64,
    bytes: i64,
    next_ready: i64,
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) shared: Arc<Shared>,
    /// For the next transaction, in the order of arrival.
    pub(super) lazy: Vec<Lazy>,
    pub(super) next_ready: i64,
}

impl Writer {
    pub(super) fn run(&mut self, inbox: &Receiver<Op>) {
        let mut due: Option<Instant> = None;
        loop {
            let first = match due {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            let mut batch = Vec::new();
            let mut stop = false;
            match first {
                Ok(op) => stop |= Self::gather(op, &mut batch, &mut due),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => stop = true,
            }
            while !stop && batch.len() < BATCH {
                match inbox.try_recv() {
                    Ok(op) => stop |= Self::gather(op, &mut batch, &mut due),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => stop = true,
                }
            }
            if !batch.is_empty() || stop || due.is_some_and(|due| due <= Instant::now()) {
                due = self.commit(batch).map(|delay| Instant::now() + delay);
            }
            if stop {
                // An empty log tells the next start that there was an orderly end. Where that fails, it looks through the files.
                let _ = self
                    .connection
                    .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
                return;
            }
        }
    }

    /// Everything but a look makes a transaction. Returns whether to stop.
    fn gather(op: Op, batch: &mut Vec<Op>, due: &mut Option<Instant>) -> bool {
        match op {
            Op::Stop => return true,
            Op::Look(delay) => {
                let wanted = Instant::now() + delay;
                *due = Some(due.map_or(wanted, |due| due.min(wanted)));
            }
            other => batch.push(other),
        }
        false
    }

    /// Commits a batch and what was lazy until now. Returns when to look again, where somebody counts on it.
    fn commit(&mut self, batch: Vec<Op>) -> Option<Duration> {
        {
            let mut queue = lock(&self.shared.lazy);
            self.lazy.append(&mut queue.waiting);
            queue.is_looking = !batch.is_empty() || !self.lazy.is_empty();
            if !queue.is_looking {
                return None;
            }
        }
        match self.transact(&batch) {
            Ok((answers, delta)) => {
                let is_busy = self.lazy.len() > FEW;
                let shared = &self.shared;
                shared
                    .journal
                    .settle(self.lazy.drain(..).filter_map(|lazy| match lazy {
                        Lazy::Insert(_, place) => Some(place),
                        Lazy::Done { .. } => None,
                    }));
                shared.pending.fetch_add(delta.pending, Ordering::Relaxed);
                shared.dead.fetch_add(delta.dead, Ordering::Relaxed);
                shared.bytes.fetch_add(delta.bytes, Ordering::Relaxed);
                if delta.next_ready != self.next_ready {
                    self.next_ready = delta.next_ready;
                    *lock(&shared.last_ready) = delta.next_ready - 1;
                    shared.changed.notify_all();
                }
                for (op, answer) in batch.into_iter().zip(answers) {
                    op.reply(Ok(answer));
                }
                Some(if is_busy { BUSY_DELAY } else { ROW_DELAY })
            }
            Err(error) => {
                let _ = self.connection.execute_batch("ROLLBACK");
                for op in batch {
                    op.reply(Err(error.clone()));
                }
                // What is left waits again and is not spun on.
                Some(RETRY_DELAY)
            }
        }
    }

    fn transact(&self, batch: &[Op]) -> Result<(Vec<i64>, Delta), OutboxError> {
        let mut delta = Delta {
            pending: 0,
            dead: 0,
            bytes: 0,
            next_ready: self.next_ready,
        };
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for lazy in &self.lazy {
            match lazy {
                Lazy::Insert(row, _) => {
                    insert(&self.connection, row, delta.next_ready)?;
                    delta.next_ready += 1;
                }
                Lazy::Done { topic, ids } => self.done(*topic, ids, &mut delta)?,
            }
        }
        let answers = batch
            .iter()
            .map(|op| self.apply(op, &mut delta))
            .collect::<Result<_, _>>()?;
        failpoint::hit("commit_begun");
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        failpoint::hit("commit_done");
        Ok((answers, delta))
    }

    fn done(&self, topic: Topic, ids: &[i64], delta: &mut Delta) -> Result<(), OutboxError> {
        let now = now_micros();
        for id in ids {
            // Not with RETURNING, which makes a table for each answer.
            let before: Option<(i64, i64, i64)> = self
                .connection
                .prepare_cached(
                    "SELECT pending, dead, octet_length(payload) FROM instance WHERE id = ?1 AND pending & ?2",
                )?
                .query_row([*id, topic.bit()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()?;
            let Some((pending, dead, bytes)) = before else {
                continue;
            };
            let left = pending & !topic.bit();
            self.connection
                .prepare_cached("UPDATE instance SET pending = ?1, delivered = ?2 WHERE id = ?3")?
                .execute(params![left, (left == 0 && dead == 0).then_some(now), id])?;
            if left == 0 {
                delta.pending -= 1;
                if dead == 0 {
                    delta.bytes -= bytes;
                } else {
                    delta.dead += 1;
                }
            }
        }
        self.connection
            .prepare_cached("UPDATE topic SET failures = 0, succeeded = ?1 WHERE number = ?2")?
            .execute([now, topic.number()])?;
        Ok(())
    }

    fn reject(&self, topic: Topic, rows: &[(i64, String)], delta: &mut Delta) -> Result<(), OutboxError> {
        for (id, reason) in rows {
            let left: Option<i64> = self
                .connection
                .prepare_cached(
                    "UPDATE instance SET pending = pending & ~?1, dead = dead | ?1, attempts = attempts + 1,
                         last_error = ?3
                     WHERE id = ?2 AND pending & ?1 RETURNING pending",
                )?
                .query_row(params![topic.bit(), id, reason], |row| row.get(0))
                .optional()?;
            if left == Some(0) {
                delta.pending -= 1;
                delta.dead += 1;
            }
        }
        Ok(())
    }

    fn adopt_retries(&self, delta: &mut Delta) -> Result<i64, OutboxError> {
        let wanted: Vec<(i64, i64)> = self
            .connection
            .prepare_cached(
                "SELECT id, pending FROM instance WHERE dead <> 0
                     AND (EXISTS (SELECT 1 FROM retry WHERE trace_id IS NULL)
                          OR trace_id IN (SELECT trace_id FROM retry))
                 ORDER BY id",
            )?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        for (id, pending) in &wanted {
            self.connection
                .prepare_cached(
                    "UPDATE instance SET pending = pending | dead, dead = 0, ready = ?1 WHERE id = ?2",
                )?
                .execute([delta.next_ready, *id])?;
            delta.next_ready += 1;
            if *pending == 0 {
                delta.pending += 1;
                delta.dead -= 1;
            }
        }
        self.connection.prepare_cached("DELETE FROM retry")?.execute([])?;
        Ok(i64::try_from(wanted.len()).unwrap_or(0))
    }

    fn republish(
        &self,
        id: i64,
        record: Option<&(String, String)>,
        delta: &mut Delta,
    ) -> Result<(), OutboxError> {
        let bytes: Option<i64> = self
            .connection
            .prepare_cached(
                "UPDATE instance SET pending = ?1, delivered = NULL, ready = ?2, key = coalesce(?3, key),
                     payload = coalesce(?4, payload)
                 WHERE id = ?5 AND pending = 0 AND dead = 0 RETURNING length(CAST(payload AS BLOB))",
            )?
            .query_row(
                params![
                    ALL_PENDING,
                    delta.next_ready,
                    record.map(|(key, _)| key),
                    record.map(|(_, payload)| payload),
                    id
                ],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(bytes) = bytes {
            delta.pending += 1;
            delta.bytes += bytes;
            delta.next_ready += 1;
        }
        Ok(())
    }

    fn apply(&self, op: &Op, delta: &mut Delta) -> Result<i64, OutboxError> {
        match op {
            Op::Exists {
                path, size, digest, ..
            } => {
                let found: bool = self
                    .connection
                    .prepare_cached("SELECT EXISTS (SELECT 1 FROM instance WHERE path_hash = ?1 AND path = ?2 AND size = ?3 AND digest = ?4)")?
                    .query_row(params![path_hash(path), path, i64::try_from(*size).unwrap_or(i64::MAX), digest], |row| row.get(0))?;
                Ok(i64::from(found))
            }
            Op::Fail { topic, reason, .. } => {
                self.connection
                    .prepare_cached(
                        "UPDATE topic SET failures = failures + 1, last_error = ?1, failed = ?2 WHERE number = ?3",
                    )?
                    .execute(params![reason, now_micros(), topic.number()])?;
                Ok(0)
            }
            Op::Reject { topic, rows, .. } => self.reject(*topic, rows, delta).map(|()| 0),
            Op::AdoptRetries(_) => self.adopt_retries(delta),
            Op::Republish { id, record, .. } => self.republish(*id, record.as_ref(), delta).map(|()| 0),
            Op::ForgetWishes { ids, .. } => {
                for id in ids {
                    self.connection
                        .prepare_cached("DELETE FROM republish WHERE id = ?1")?
                        .execute([id])?;
                }
                Ok(0)
            }
            Op::Prune { before, most, .. } => {
                let pruned = self
                    .connection
                    .prepare_cached(
                        "UPDATE instance SET payload = '', key = '', temporary = '' WHERE id IN
                             (SELECT id FROM instance WHERE delivered IS NOT NULL AND payload <> '' AND delivered < ?1
                              ORDER BY delivered LIMIT ?2)",
                    )?
                    .execute(params![before, most])?;
                Ok(i64::try_from(pruned).unwrap_or(0))
            }
            Op::Flush(_) | Op::Look(_) | Op::Stop => Ok(0),
        }
    }
}

/// Puts a row in whose file has its name.
pub(super) fn insert(connection: &Connection, row: &NewRow, ready: i64) -> Result<(), OutboxError> {
    connection
        .prepare_cached(
            "INSERT INTO instance (ready, trace_id, key, payload, path, path_hash, temporary, size, digest, pending, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, '', ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            ready, row.trace_id, row.key, row.payload, row.path, path_hash(&row.path),
            i64::try_from(row.size).unwrap_or(i64::MAX), row.digest, ALL_PENDING, row.created
        ])?;
    Ok(())
}

impl Op {
    /// Tells whoever waits; nobody waiting any more is not an error.
    fn reply(self, answer: Result<i64, OutboxError>) {
        let _ = match self {
            Self::Exists { reply, .. } => reply.send(answer.map(|found| found != 0)).is_ok(),
            Self::Fail { reply, .. }
            | Self::Reject { reply, .. }
            | Self::Republish { reply, .. }
            | Self::ForgetWishes { reply, .. }
            | Self::Flush(reply) => reply.send(answer.map(|_| ())).is_ok(),
            Self::AdoptRetries(reply) | Self::Prune { reply, .. } => reply
                .send(answer.map(|count| u64::try_from(count).unwrap_or(0)))
                .is_ok(),
            Self::Look(_) | Self::Stop => true,
        };
    }
}
