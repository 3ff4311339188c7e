//! What goes into the queue, and what it tells.

use std::io;

use crate::store::quarantine::Evidence;

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
    /// When the row was made, microseconds since 1970: when its file was received, but where that is transcoded later. Rows grow
    /// with it, and the lag of a topic is counted from it.
    pub created: i64,
    /// The file takes the place of another one, and is synced before it does: what lies there is whole, whichever of both it is.
    pub replaces: bool,
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
    /// Whether its file is known to have its name.
    pub is_committed: bool,
    /// Size of the file.
    pub size: u64,
    /// Digest of the file.
    pub digest: [u8; 16],
}

/// A damaged data set in quarantine that an operator wants to be stored, or a stored instance to be transcoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryWish {
    /// Row id.
    pub id: i64,
    /// Storage root.
    pub root: String,
    /// Name of the entry, or path of the stored file relative to its storage root.
    pub name: String,
    /// Tenant, for an entry whose note names none.
    pub tenant: Option<String>,
    /// Whether a rule names that tenant.
    pub by_rule: bool,
    /// Whether it is a stored instance.
    pub is_stored: bool,
}

/// What was decided about rows that an interruption left undecided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Rows whose file is there: kept.
    pub kept: u64,
    /// Rows of which another row is the newer one, or whose file is not there: dropped.
    pub dropped: u64,
    /// Paths of files that were something else: they are in quarantine, without a record.
    pub quarantined: Found<String>,
    /// Paths without a file where, at a durability below full, a power cut may have taken the name of an acknowledged one.
    pub missing: Found<String>,
    /// Paths that could not be looked at, and why: their rows stay undecided.
    pub undecided: Found<(String, String)>,
}

/// How many there are, and the first of them: for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// How many.
    pub count: u64,
    /// The first hundred.
    pub first: Vec<T>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self {
            count: 0,
            first: Vec::new(),
        }
    }
}

impl<T> Found<T> {
    const MOST: usize = 100;

    /// Counts one more.
    pub fn push(&mut self, one: T) {
        self.count += 1;
        if self.first.len() < Self::MOST {
            self.first.push(one);
        }
    }
}

impl<T> Extend<T> for Found<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, others: I) {
        others.into_iter().for_each(|one| self.push(one));
    }
}

/// What start-up asks of the storage.
pub trait Disk {
    /// Size and digest of the file at a path, which is durable then; `None` where there is none.
    ///
    /// # Errors
    /// What the file system says: nothing is known of the file.
    fn look_at(&self, path: &str) -> io::Result<Option<(u64, [u8; 16])>>;

    /// Puts a file aside that is not what its record says.
    ///
    /// # Errors
    /// What the file system says: the file is where it was.
    fn quarantine(&self, evidence: &Evidence<'_>) -> io::Result<()>;

    /// Whether the file of a record is in quarantine already: a start that was interrupted put it there.
    ///
    /// # Errors
    /// What the file system says.
    fn is_quarantined(&self, path: &str, trace_id: &str) -> io::Result<bool>;

    /// Whether the name of a file is durable before it is acknowledged: then one that is not there never was.
    fn acknowledges_durable_names(&self) -> bool;
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
