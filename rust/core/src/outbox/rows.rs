//! What goes into the queue, and what it tells.

use std::io;

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
    /// Size of the file.
    pub size: u64,
    /// Digest of the file.
    pub digest: [u8; 16],
    /// When it was received, microseconds since 1970: what the record says.
    pub created: i64,
    /// Nothing was at the path before, and the file is synced before it is acknowledged: what is there after an interruption,
    /// and is not this file, is a part of it that nobody was promised.
    pub place_was_empty: bool,
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

/// The newest row of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Row id.
    pub id: i64,
    /// Trace id.
    pub trace_id: String,
    /// When it was received, microseconds since 1970.
    pub created: i64,
    /// Whether a topic has not got it, or refused it.
    pub waits: bool,
    /// Whether its record is still there.
    pub has_payload: bool,
}

/// What start-up found between insertion and publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Rows whose file is there: kept.
    pub kept: u64,
    /// Rows whose file is not: never acknowledged, dropped.
    pub dropped: u64,
    /// Parts of files that were found in their place: removed.
    pub parts: usize,
}

/// What start-up asks of the storage.
pub trait Disk {
    /// Whether the file at a path has this size and digest; it is durable then.
    ///
    /// # Errors
    /// What the file system says.
    fn holds(&self, path: &str, size: u64, digest: &[u8]) -> io::Result<bool>;

    /// Removes a part of a file of `size` bytes, which was never acknowledged. Returns whether there was one.
    ///
    /// # Errors
    /// What the file system says.
    fn discard(&self, path: &str, size: u64) -> io::Result<bool>;
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

impl NewRow {
    pub(super) fn payload_bytes(&self) -> i64 {
        i64::try_from(self.payload.len()).unwrap_or(0)
    }
}
