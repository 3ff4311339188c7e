//! What the publisher asks of the queue, and tells it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::PoisonError;
use std::time::Duration;

use rusqlite::{params, OptionalExtension as _};

use super::fresh::{FreshRow, Look};
use super::writer::{Lazy, Op};
use super::{lock, Backlog, ClaimedRow, Lag, Outbox, OutboxError, Topic};
use crate::failpoint;

impl Outbox {
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
        self.check_alive()?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        // Memory first: what leaves it meanwhile is found in the database, and what comes is later.
        let fresh = lock(&self.shared.fresh).look(topic, after, most);
        self.claim_beside(&fresh, topic, after, most)
    }

    /// Rows of the database, and behind them those that were in memory a moment ago.
    pub(super) fn claim_beside(
        &self,
        fresh: &Look,
        topic: Topic,
        after: i64,
        most: usize,
    ) -> Result<Vec<ClaimedRow>, OutboxError> {
        let mut rows = Vec::new();
        if after < fresh.first_ready.saturating_sub(1) {
            rows = self.claim_in_database(topic, after, most)?;
            rows.retain(|row| row.ready < fresh.first_ready);
        }
        let missing = most - rows.len();
        rows.extend(fresh.rows.iter().take(missing).map(FreshRow::claimed));
        Ok(rows)
    }

    fn claim_in_database(
        &self,
        topic: Topic,
        after: i64,
        most: usize,
    ) -> Result<Vec<ClaimedRow>, OutboxError> {
        let reader = lock(&self.reader);
        let mut statement = reader.prepare_cached(topic.claim_query())?;
        let rows = statement.query_map(params![after, i64::try_from(most).unwrap_or(i64::MAX)], |row| {
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
        let (fresh, oldest_fresh) = {
            let fresh = lock(&self.shared.fresh);
            let mut wanted = fresh.wanted(topic, i64::MIN).peekable();
            let oldest = wanted.peek().map(|row| row.row.created);
            (u32::try_from(wanted.count()).unwrap_or(u32::MAX), oldest)
        };
        let reader = lock(&self.reader);
        let (count, first) = topic.lag_queries();
        let waiting: u32 = reader.prepare_cached(count)?.query_row([], |row| row.get(0))?;
        let oldest = reader
            .prepare_cached(first)?
            .query_row([], |row| row.get(0))
            .optional()?;
        let dead = reader
            .prepare_cached("SELECT count(*) FROM instance WHERE dead <> 0 AND dead & ?1")?
            .query_row([topic.bit()], |row| row.get(0))?;
        Ok(Lag {
            pending: waiting.saturating_add(fresh),
            oldest: oldest.or(oldest_fresh),
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
}
