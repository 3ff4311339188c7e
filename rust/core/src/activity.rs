//! What happens now, for a status page: the associations that run, and the last instances. Costs nothing while nobody looks.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use crate::dataset::anomaly::Anomalies;
use crate::ingest::{Finished, Source};
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

/// What is known of an instance that was stored; of one that was refused nothing.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Modality (0008,0060), empty where it is absent.
    pub modality: String,
    /// Patient ID (0010,0020).
    pub patient_id: String,
    /// Number of Frames (0028,0008).
    pub frames: u32,
    /// Transfer syntax as stored, where it is another than was received.
    pub transcoded_to: Option<String>,
    /// Why it was not transcoded although it should have been.
    pub transcode_failure: Option<String>,
    /// What was odd about it.
    pub anomalies: Anomalies,
    /// The file.
    pub file: Option<PathBuf>,
}

impl Shown {
    pub(crate) fn of(finished: &Finished<'_>) -> Self {
        let attempt = finished.attempt.as_ref();
        let failure = attempt.and_then(|attempt| attempt.error.as_ref());
        Self {
            modality: finished.index.modality.clone(),
            patient_id: finished.index.patient_id.clone(),
            frames: finished.index.number_of_frames,
            transcoded_to: attempt
                .filter(|_| failure.is_none())
                .map(|attempt| attempt.target.clone()),
            transcode_failure: failure.map(ToString::to_string),
            anomalies: finished.index.anomalies,
            file: finished.file.clone(),
        }
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
    /// The tenant that it asked for and nobody knows, as it is shown.
    pub tenant_value: Option<String>,
    /// SOP Class UID of the command.
    pub sop_class_uid: String,
    /// Bytes of the data set as received.
    pub bytes: u64,
    /// Transfer syntax as received.
    pub received_as: String,
    /// From the last byte received to the decision, in seconds.
    pub commit_seconds: f64,
    /// What is known of those that were stored.
    pub shown: Shown,
}

impl RecentInstance {
    /// Whether somebody should look at it: it was refused, or could not be transcoded.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.status != SUCCESS || self.shown.transcode_failure.is_some()
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
            tenant_value: None,
            sop_class_uid: String::new(),
            bytes,
            received_as: String::new(),
            commit_seconds: 0.0,
            shown: Shown::default(),
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
