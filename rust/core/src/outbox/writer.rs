//! The one thread that writes: what many associations ask for becomes one transaction.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{params, Connection, OptionalExtension as _};

use super::{lock, now_micros, NewRow, OutboxError, Shared, ALL_PENDING};
use crate::store::path_hash;

const BATCH: usize = 512;
/// How long a mark may wait for the next commit to carry it.
const MARK_DELAY: Duration = Duration::from_millis(5);

pub(super) type Reply<T> = SyncSender<Result<T, OutboxError>>;

/// What the writer is asked for.
pub(super) enum Op {
    Insert(Box<NewRow>, Reply<i64>),
    Publishable(i64),
    Remove(i64),
    Exists {
        path: String,
        size: u64,
        digest: [u8; 16],
        reply: Reply<bool>,
    },
    Done {
        topic: usize,
        ids: Vec<i64>,
        reply: Reply<()>,
    },
    Fail {
        ids: Vec<i64>,
        code: String,
        reply: Reply<()>,
    },
    Stop,
}

/// What a committed transaction changed, told to the others afterwards.
#[derive(Default)]
struct Delta {
    rows: i64,
    bytes: i64,
    claimable: i64,
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) shared: Arc<Shared>,
    /// Rows to be marked with the next transaction, in the order of acknowledgement.
    pub(super) marks: Vec<i64>,
    pub(super) next_ready: i64,
}

impl Writer {
    pub(super) fn run(&mut self, inbox: &Receiver<Op>) {
        let mut oldest_mark = None;
        loop {
            let first = match oldest_mark {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(since) => inbox.recv_timeout(MARK_DELAY.saturating_sub(Instant::elapsed(&since))),
            };
            let mut batch = Vec::new();
            let mut stop = false;
            match first {
                Ok(op) => stop |= self.gather(op, &mut batch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => stop = true,
            }
            while !stop && batch.len() < BATCH {
                match inbox.try_recv() {
                    Ok(op) => stop |= self.gather(op, &mut batch),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => stop = true,
                }
            }
            if !batch.is_empty()
                || stop
                || oldest_mark.is_some_and(|since| Instant::elapsed(&since) >= MARK_DELAY)
            {
                self.commit(batch);
            }
            oldest_mark = match (self.marks.is_empty(), oldest_mark) {
                (true, _) => None,

                (false, Some(since)) if Instant::elapsed(&since) < MARK_DELAY => Some(since),
                // New marks; or a failed commit, whose marks wait again and are not spun on.
                (false, _) => Some(Instant::now()),
            };
            if stop {
                return;
            }
        }
    }

    /// Marks wait for company; everything else makes a transaction. Returns whether to stop.
    fn gather(&mut self, op: Op, batch: &mut Vec<Op>) -> bool {
        match op {
            Op::Stop => return true,
            Op::Publishable(id) => self.marks.push(id),
            other => batch.push(other),
        }
        false
    }

    fn commit(&mut self, batch: Vec<Op>) {
        let marks = std::mem::take(&mut self.marks);
        let outcome = self.transact(&marks, &batch);
        match outcome {
            Ok((answers, delta)) => {
                self.next_ready += i64::try_from(marks.len()).unwrap_or(0);
                self.shared.rows.fetch_add(delta.rows, Ordering::Relaxed);
                self.shared.bytes.fetch_add(delta.bytes, Ordering::Relaxed);
                if delta.claimable != 0 {
                    *lock(&self.shared.claimable) += delta.claimable;
                    self.shared.changed.notify_all();
                }
                for (op, answer) in batch.into_iter().zip(answers) {
                    op.reply(Ok(answer));
                }
            }
            Err(error) => {
                let _ = self.connection.execute_batch("ROLLBACK");
                self.marks = marks;
                for op in batch {
                    op.reply(Err(error.clone()));
                }
            }
        }
    }

    fn transact(&self, marks: &[i64], batch: &[Op]) -> Result<(Vec<i64>, Delta), OutboxError> {
        let mut delta = Delta::default();
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for (ready, id) in (self.next_ready..).zip(marks) {
            let changed = self
                .connection
                .prepare_cached("UPDATE instance SET ready = ?1 WHERE id = ?2")?
                .execute([ready, *id])?;
            delta.claimable += i64::try_from(changed).unwrap_or(0);
        }
        let answers = batch
            .iter()
            .map(|op| self.apply(op, &mut delta))
            .collect::<Result<_, _>>()?;
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok((answers, delta))
    }

    fn apply(&self, op: &Op, delta: &mut Delta) -> Result<i64, OutboxError> {
        match op {
            Op::Insert(row, _) => {
                self.connection
                    .prepare_cached(
                        "INSERT INTO instance (trace_id, key, payload, path, path_hash, temporary, size, digest, pending, created)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                    )?
                    .execute(params![
                        row.trace_id, row.key, row.payload, row.path, path_hash(&row.path), row.temporary,
                        i64::try_from(row.size).unwrap_or(i64::MAX), row.digest, ALL_PENDING, now_micros()
                    ])?;
                delta.rows += 1;
                delta.bytes += i64::try_from(row.payload.len()).unwrap_or(0);
                Ok(self.connection.last_insert_rowid())
            }
            Op::Remove(id) => {
                let bytes: Option<i64> = self
                    .connection
                    .prepare_cached(
                        "DELETE FROM instance WHERE id = ?1 AND ready IS NULL RETURNING length(payload)",
                    )?
                    .query_row([id], |row| row.get(0))
                    .optional()?;
                if let Some(bytes) = bytes {
                    delta.rows -= 1;
                    delta.bytes -= bytes;
                }
                Ok(0)
            }
            Op::Exists {
                path, size, digest, ..
            } => {
                let found: bool = self
                    .connection
                    .prepare_cached("SELECT EXISTS (SELECT 1 FROM instance WHERE path_hash = ?1 AND path = ?2 AND size = ?3 AND digest = ?4)")?
                    .query_row(params![path_hash(path), path, i64::try_from(*size).unwrap_or(i64::MAX), digest], |row| row.get(0))?;
                Ok(i64::from(found))
            }
            Op::Done { topic, ids, .. } => {
                for id in ids {
                    let left: Option<(i64, i64)> = self
                        .connection
                        .prepare_cached(
                            "UPDATE instance SET pending = pending & ~(1 << ?1),
                                 delivered = CASE WHEN pending & ~(1 << ?1) = 0 THEN ?3 END
                             WHERE id = ?2 AND pending & (1 << ?1) RETURNING pending, length(payload)",
                        )?
                        .query_row(
                            params![i64::try_from(*topic).unwrap_or(0), id, now_micros()],
                            |row| Ok((row.get(0)?, row.get(1)?)),
                        )
                        .optional()?;
                    if let Some((0, bytes)) = left {
                        delta.rows -= 1;
                        delta.bytes -= bytes;
                        delta.claimable -= 1;
                    }
                }
                Ok(0)
            }
            Op::Fail { ids, code, .. } => {
                for id in ids {
                    self.connection
                        .prepare_cached(
                            "UPDATE instance SET attempts = attempts + 1, last_error = ?1 WHERE id = ?2",
                        )?
                        .execute(params![code, id])?;
                }
                Ok(0)
            }
            Op::Publishable(_) | Op::Stop => Ok(0),
        }
    }
}

impl Op {
    /// Tells whoever waits; nobody waiting any more is not an error.
    fn reply(self, answer: Result<i64, OutboxError>) {
        let _ = match self {
            Self::Insert(_, reply) => reply.send(answer).is_ok(),
            Self::Exists { reply, .. } => reply.send(answer.map(|found| found != 0)).is_ok(),
            Self::Done { reply, .. } | Self::Fail { reply, .. } => reply.send(answer.map(|_| ())).is_ok(),
            Self::Publishable(_) | Self::Remove(_) | Self::Stop => true,
        };
    }
}
