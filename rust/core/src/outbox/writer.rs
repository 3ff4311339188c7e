//! The one thread that writes: what many associations ask for becomes one transaction.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{params, Connection, OptionalExtension as _};

use super::fresh::FreshRow;
use super::{lock, now_micros, NewRow, OutboxError, Place, Shared, Topic, ALL_PENDING};
use crate::failpoint;
use crate::store::path_hash;

const BATCH: usize = 512;
/// So many rows do not wait for company.
const CROWD: usize = 2048;
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
    Insert(Arc<NewRow>, Place),
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

/// Lazy ones on their way. They do not wake the writer where it looks by itself soon, which is so while anything is not in the
/// database, unless they are many.
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
        let wake = !std::mem::replace(&mut self.is_looking, true);
        if self.waiting.len() == CROWD {
            return Some(Duration::ZERO);
        }
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
    AnswerRetry {
        id: i64,
        outcome: String,
        reply: Reply<()>,
    },
    /// What was decided about undecided rows of a path: one is publishable, the others go.
    Settled {
        keep: Option<i64>,
        drop: Vec<i64>,
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
    /// Rows that were undecided and are not any more.
    undecided: u64,
    next_ready: i64,
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) shared: Arc<Shared>,
    /// What topics acknowledged, for the next transaction: rows that are in the database, or none.
    pub(super) acknowledged: Vec<(Topic, Vec<i64>)>,
    pub(super) next_ready: i64,
    pub(super) next_id: i64,
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
                due = self.commit(batch, stop).map(|delay| Instant::now() + delay);
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

    /// Takes in what was lazy until now, and commits a batch with what is due. Returns when to look again, where somebody counts
    /// on it.
    fn commit(&mut self, batch: Vec<Op>, is_last: bool) -> Option<Duration> {
        let waiting = {
            let mut queue = lock(&self.shared.lazy);
            let is_idle = queue.waiting.is_empty() && batch.is_empty() && self.acknowledged.is_empty();
            queue.is_looking = !(is_idle && lock(&self.shared.fresh).is_empty());
            if !queue.is_looking {
                return None;
            }
            std::mem::take(&mut queue.waiting)
        };
        let is_busy = waiting.len() > FEW;
        self.take_in(waiting);
        let rows = self.due(is_last || !batch.is_empty());
        if !batch.is_empty() || !rows.is_empty() || !self.acknowledged.is_empty() {
            match self.transact(&batch, &rows) {
                Ok((answers, delta)) => self.committed(batch, rows.len(), answers, &delta),
                Err(error) => {
                    let _ = self.connection.execute_batch("ROLLBACK");
                    for op in batch {
                        op.reply(Err(error.clone()));
                    }
                    // What is left waits again and is not spun on.
                    return Some(RETRY_DELAY);
                }
            }
        }
        Some(if is_busy { BUSY_DELAY } else { ROW_DELAY })
    }

    /// Lets the publisher see new rows, and notes what topics acknowledged.
    fn take_in(&mut self, waiting: Vec<Lazy>) {
        let shared = Arc::clone(&self.shared);
        let mut fresh = lock(&shared.fresh);
        let first = self.next_ready;
        for lazy in waiting {
            match lazy {
                Lazy::Insert(row, place) => {
                    fresh.push(FreshRow::new(self.next_id, self.next_ready, row, place));
                    self.next_id += 1;
                    self.next_ready += 1;
                }
                Lazy::Done { topic, mut ids } => {
                    let (rows, bytes) = fresh.acknowledge(topic, &mut ids);
                    shared.count(-rows, -bytes);
                    self.acknowledged.push((topic, ids));
                }
            }
        }
        drop(fresh);
        if self.next_ready != first {
            self.show();
        }
    }

    /// Tells the publisher of rows.
    fn show(&self) {
        *lock(&self.shared.last_ready) = self.next_ready - 1;
        self.shared.changed.notify_all();
    }

    /// The rows for the next transaction: all of them also where the journal needs its room.
    fn due(&self, all: bool) -> Vec<FreshRow> {
        let all = all || self.shared.journal.is_tight();
        let fresh = lock(&self.shared.fresh);
        fresh.first(if all {
            usize::MAX
        } else {
            fresh.due(Instant::now())
        })
    }

    /// Tells the others of a transaction.
    fn committed(&mut self, batch: Vec<Op>, rows: usize, answers: Vec<i64>, delta: &Delta) {
        let shared = &self.shared;
        let places = lock(&shared.fresh).drop_first(rows);
        shared.journal.settle(places);
        self.acknowledged.clear();
        shared.count(delta.pending, delta.bytes);
        shared.dead.fetch_add(delta.dead, Ordering::Relaxed);
        shared.undecided.fetch_sub(delta.undecided, Ordering::Release);
        if delta.next_ready != self.next_ready {
            self.next_ready = delta.next_ready;
            self.show();
        }
        for (op, answer) in batch.into_iter().zip(answers) {
            op.reply(Ok(answer));
        }
    }

    fn transact(&self, batch: &[Op], rows: &[FreshRow]) -> Result<(Vec<i64>, Delta), OutboxError> {
        let mut delta = Delta {
            pending: 0,
            dead: 0,
            bytes: 0,
            undecided: 0,
            next_ready: self.next_ready,
        };
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for row in rows {
            insert(
                &self.connection,
                &row.row,
                Some(row.id),
                Some(row.ready),
                row.pending,
            )?;
        }
        for (topic, ids) in &self.acknowledged {
            self.done(*topic, ids, &mut delta)?;
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

    fn settled(&self, keep: Option<i64>, drop: &[i64], delta: &mut Delta) -> Result<(), OutboxError> {
        if let Some(id) = keep {
            let kept = self
                .connection
                .prepare_cached("UPDATE instance SET ready = ?1 WHERE id = ?2 AND ready IS NULL")?
                .execute([delta.next_ready, id])?;
            delta.next_ready += 1;
            delta.undecided += kept as u64;
        }
        for id in drop {
            let bytes: Option<i64> = self
                .connection
                .prepare_cached(
                    "DELETE FROM instance WHERE id = ?1 AND ready IS NULL RETURNING length(CAST(payload AS BLOB))",
                )?
                .query_row([id], |row| row.get(0))
                .optional()?;
            if let Some(bytes) = bytes {
                delta.undecided += 1;
                delta.pending -= 1;
                delta.bytes -= bytes;
            }
        }
        Ok(())
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
            Op::Settled { keep, drop, .. } => self.settled(*keep, drop, delta).map(|()| 0),
            Op::Republish { id, record, .. } => self.republish(*id, record.as_ref(), delta).map(|()| 0),
            Op::ForgetWishes { ids, .. } => {
                for id in ids {
                    self.connection
                        .prepare_cached("DELETE FROM republish WHERE id = ?1")?
                        .execute([id])?;
                }
                Ok(0)
            }
            Op::AnswerRetry { id, outcome, .. } => {
                self.connection
                    .prepare_cached("UPDATE quarantine_retry SET outcome = ?1 WHERE id = ?2")?
                    .execute(params![outcome, id])?;
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

/// Puts a row in, with the topics that still want it; without an `id`, it gets the next one, and without `ready` it is undecided.
pub(super) fn insert(
    connection: &Connection,
    row: &NewRow,
    id: Option<i64>,
    ready: Option<i64>,
    pending: i64,
) -> Result<(), OutboxError> {
    let delivered = (pending == 0).then(now_micros);
    connection
        .prepare_cached(
            "INSERT INTO instance (id, ready, trace_id, key, payload, path, path_hash, temporary, size, digest, pending, created, delivered)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, '', ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            id, ready, row.trace_id, row.key, row.payload, row.path, path_hash(&row.path),
            i64::try_from(row.size).unwrap_or(i64::MAX), row.digest, pending, row.created, delivered
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
            | Self::AnswerRetry { reply, .. }
            | Self::Settled { reply, .. }
            | Self::Flush(reply) => reply.send(answer.map(|_| ())).is_ok(),
            Self::AdoptRetries(reply) | Self::Prune { reply, .. } => reply
                .send(answer.map(|count| u64::try_from(count).unwrap_or(0)))
                .is_ok(),
            Self::Look(_) | Self::Stop => true,
        };
    }
}
