//! What happened, for the log: a bounded ring that never blocks the data path.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Facts kept while nobody reads them.
const CAPACITY: usize = 4096;
/// Refused instances of an association that are named.
pub const MOST_NAMED: u64 = 20;

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
    /// Whether it was refused, and is one of the first [`MOST_NAMED`] of its association.
    pub is_named: bool,
    /// Address of the peer.
    pub address: String,
    /// Its AE title.
    pub calling_ae_title: String,
    /// The tenant that it asked for and nobody knows, as it is shown.
    pub tenant_value: Option<String>,
    /// Whose it is, where that is known.
    pub tenant: Option<String>,
    /// How it was stored: `new`, `replaced`, `identical` or `kept`; empty where it was refused.
    pub outcome: &'static str,
}

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing, and nothing is counted.
    #[default]
    Nothing,
    /// Refused instances that are named.
    Named,
    /// Every instance.
    All,
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
    wanted: Wanted,
}

impl EventRing {
    /// Says what is kept from now on.
    pub fn want(&self, wanted: Wanted) {
        self.lock().wanted = wanted;
    }

    /// Adds a fact, dropping the oldest when nobody reads.
    pub fn push(&self, is_named: bool, fact: impl FnOnce() -> InstanceFact) {
        let mut inner = self.lock();
        match inner.wanted {
            Wanted::All => {}
            Wanted::Named if is_named => {}
            Wanted::Named | Wanted::Nothing => return,
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
