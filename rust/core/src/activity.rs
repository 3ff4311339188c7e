//! What happens now, for a status page: the associations that run, and the last instances. Costs nothing while nobody looks.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use crate::ingest::Source;
use crate::status::SUCCESS;

/// Instances that are kept.
const CAPACITY: usize = 30;

/// An association that runs.
#[derive(Debug)]
pub struct LiveAssociation {
    /// Number of the association in this process.
    pub id: u64,
    /// Who sends.
    pub source: Source,
    /// When it was let in.
    pub since: Instant,
    bytes: AtomicU64,
    stored: AtomicU64,
    refused: AtomicU64,
    pub(crate) socket: Arc<TcpStream>,
}

impl LiveAssociation {
    pub(crate) fn new(id: u64, source: &Source, socket: Arc<TcpStream>) -> Self {
        Self {
            id,
            source: source.clone(),
            since: Instant::now(),
            bytes: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            socket,
        }
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self, success: bool) {
        let counter = if success { &self.stored } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of data sets, C-STOREs answered with success, C-STOREs answered otherwise.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let [bytes, stored, refused] =
            [&self.bytes, &self.stored, &self.refused].map(|counter| counter.load(Ordering::Relaxed));
        (bytes, stored, refused)
    }
}

/// A C-STORE that was answered.
#[derive(Clone, Debug)]
pub struct RecentInstance {
    /// Grows by one from instance to instance.
    pub number: u64,
    /// When it was answered.
    pub at: SystemTime,
    /// Association it came by.
    pub association: u64,
    /// Its tenant, empty where that is not known.
    pub tenant: String,
    /// Status answered.
    pub status: u16,
    /// Error Comment, empty for success.
    pub comment: String,
    /// Modality (0008,0060), empty where it is absent or the instance was refused.
    pub modality: String,
    /// SOP Class UID of the command.
    pub sop_class_uid: String,
    /// Patient ID (0010,0020).
    pub patient_id: String,
    /// Bytes of the data set as received.
    pub bytes: u64,
    /// Number of Frames (0028,0008).
    pub frames: u32,
    /// Transfer syntax as received.
    pub received_as: String,
    /// Transfer syntax as stored, where it is another.
    pub transcoded_to: Option<String>,
    /// Why it was not transcoded although it should have been.
    pub transcode_failure: Option<String>,
    /// From the last byte received to the decision, in seconds.
    pub commit_seconds: f64,
    /// The file, where there is one.
    pub file: Option<PathBuf>,
}

impl RecentInstance {
    /// Whether somebody should look at it: it was refused, or could not be transcoded.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.status != SUCCESS || self.transcode_failure.is_some()
    }
}

/// The last instances, and the last of those that failed, which stay longer.
#[derive(Debug, Default)]
pub struct Recent {
    watched: AtomicBool,
    inner: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    number: u64,
    instances: VecDeque<RecentInstance>,
    failed: VecDeque<RecentInstance>,
}

impl Recent {
    /// Begins to keep instances.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::Release);
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// Keeps an instance, which gets its number here.
    pub(crate) fn push(&self, instance: RecentInstance) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.number += 1;
        let number = inner.number;
        let instance = RecentInstance { number, ..instance };
        if instance.has_failed() {
            keep(&mut inner.failed, instance.clone());
        }
        keep(&mut inner.instances, instance);
    }

    /// The last instances, the oldest first.
    #[must_use]
    pub fn instances(&self) -> Vec<RecentInstance> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.instances.iter().cloned().collect()
    }

    /// The last of those that failed, the oldest first.
    #[must_use]
    pub fn failed(&self) -> Vec<RecentInstance> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.failed.iter().cloned().collect()
    }
}

fn keep(instances: &mut VecDeque<RecentInstance>, instance: RecentInstance) {
    if instances.len() >= CAPACITY {
        instances.pop_front();
    }
    instances.push_back(instance);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(bytes: u64) -> RecentInstance {
        RecentInstance {
            number: 0,
            at: SystemTime::UNIX_EPOCH,
            association: 1,
            tenant: String::new(),
            status: 0,
            comment: String::new(),
            modality: "CT".to_owned(),
            sop_class_uid: String::new(),
            patient_id: String::new(),
            bytes,
            frames: 1,
            received_as: String::new(),
            transcoded_to: None,
            transcode_failure: None,
            commit_seconds: 0.0,
            file: None,
        }
    }

    #[test]
    fn the_last_instances_are_kept_and_numbered() {
        let recent = Recent::default();
        recent.push(RecentInstance {
            status: 0xA700,
            ..instance(0)
        });
        for bytes in 1..=60 {
            recent.push(instance(bytes));
        }
        let numbers: Vec<u64> = recent.instances().iter().map(|one| one.number).collect();
        assert_eq!(numbers, (32..=61).collect::<Vec<u64>>());
        assert_eq!(recent.instances().last().unwrap().bytes, 60);
        assert!(recent.failed().iter().map(|one| one.number).eq([1]));
    }
}
