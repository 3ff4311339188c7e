//! What happened, for the log: a bounded ring that never blocks the data path.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Facts kept while nobody reads them.
const CAPACITY: usize = 4096;

/// One C-STORE, without patient data.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceFact {
    /// Association it came by.
    pub association: u64,
    /// Message ID of the request (0000,0110).
    pub message_id: u16,
    /// Status answered.
    pub status: u16,
    /// Error Comment, empty for success.
    pub comment: String,
    /// SOP Instance UID of the command, where it is one.
    pub sop_instance_uid: String,
    /// Bytes of the data set.
    pub bytes: u64,
    /// From the last byte received to the decision, in seconds.
    pub commit_seconds: f64,
}

/// The ring.
#[derive(Debug, Default)]
pub struct EventRing {
    inner: Mutex<Inner>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    facts: VecDeque<InstanceFact>,
    dropped: u64,
    enabled: bool,
}

impl EventRing {
    /// Turns the ring on or off; while off nothing is kept or counted.
    pub fn enable(&self, enabled: bool) {
        self.lock().enabled = enabled;
    }

    /// Adds a fact, dropping the oldest when nobody reads.
    pub fn push(&self, fact: impl FnOnce() -> InstanceFact) {
        let mut inner = self.lock();
        if !inner.enabled {
            return;
        }
        if inner.facts.len() >= CAPACITY {
            inner.facts.pop_front();
            inner.dropped += 1;
        }
        inner.facts.push_back(fact());
        self.filled.notify_one();
    }

    /// Takes all facts, waiting for the first; also how many were dropped since the last call.
    #[must_use]
    pub fn drain(&self, timeout: Duration) -> (Vec<InstanceFact>, u64) {
        let guard = self.lock();
        let (mut inner, _) = self
            .filled
            .wait_timeout_while(guard, timeout, |inner| inner.facts.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let dropped = std::mem::take(&mut inner.dropped);
        (inner.facts.drain(..).collect(), dropped)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
