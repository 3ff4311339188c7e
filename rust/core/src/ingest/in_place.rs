//! A stored instance, transcoded, takes the place of itself.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use chrono::{DateTime, Utc};

use super::{path_of, Finished, Reception, Stored};
use crate::dataset::anomaly::Anomalies;
use crate::dataset::index::InstanceIndex;
use crate::layout::{InstancePath, TenantId};
use crate::status::Refusal;
use crate::store::replaced::MakesRoom;
use crate::transcode::TranscodeError;

/// The stored instance, and what is known of it beside its data set.
pub(crate) struct Original<'o> {
    /// Path relative to the storage root.
    pub(crate) path: &'o str,
    /// Its file. It stays open, so that no other file can have its inode.
    pub(crate) file: &'o File,
    /// When it was received, where that is known.
    pub(crate) received_at: Option<DateTime<Utc>>,
    /// What was odd about it when it was received.
    pub(crate) anomalies: Anomalies,
}

/// Why a stored instance stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum Unchanged {
    /// There is no file.
    #[error("it is not stored")]
    Absent,
    /// Another program wrote the file.
    #[error("another program wrote it")]
    Foreign,
    /// Its path belongs to another instance.
    #[error("it is another instance than its path says")]
    Misplaced,
    /// The file has changed since it was stored.
    #[error("the file is not what its record says")]
    Damaged,
    /// `storage.duplicates` leaves each stored instance as it is.
    #[error("storage.duplicates is not \"replace\": no stored file is replaced")]
    NotReplaced,
    /// It needs no transcoding.
    #[error("{0}")]
    AsReceived(&'static str),
    /// It cannot be transcoded.
    #[error("{0}")]
    NotTranscoded(TranscodeError),
    /// Another instance took its place while it was transcoded.
    #[error("another instance took its place meanwhile")]
    Overtaken,
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    /// The outbox failed.
    #[error("outbox: {0}")]
    Outbox(#[from] crate::outbox::OutboxError),
    /// It is refused as it would be if it came now.
    #[error("{:04X} {}", .0.status(), .0.comment())]
    Refused(#[from] Refusal),
}

impl<'e> Reception<'e> {
    /// Ends the data set, which is that of a stored instance: transcodes it, and puts the result into the place of the
    /// original, with a new record. Where that cannot be, nothing changes.
    ///
    /// # Errors
    /// [`Unchanged`].
    pub(crate) fn finish_in_place(mut self, original: &Original<'e>) -> Result<Finished<'e>, Unchanged> {
        self.received_at = original.received_at;
        self.stop = Some(self.engine.recovery_stop());
        self.makes_room = MakesRoom::Never;
        let (mut index, tenant) = self.identified()?;
        self.settle_tenant(&tenant)?;
        let path = path_of(&tenant, &index);
        if path.relative() != original.path {
            return Err(Unchanged::Misplaced);
        }
        let Some(mut attempt) = self.transcode(index.anomalies)? else {
            return Err(Unchanged::AsReceived("it has no pixel data"));
        };
        if let Some(error) = attempt.error.take() {
            return Err(Unchanged::NotTranscoded(error));
        }
        index.anomalies = index.anomalies.and(original.anomalies);
        let stored = self.commit_in_place(&tenant, &index, &path, original.file)?;
        Ok(self.finished(stored, Some(attempt), tenant, index, &path))
    }

    fn commit_in_place(
        &mut self,
        tenant: &TenantId,
        index: &InstanceIndex,
        path: &InstancePath,
        original: &File,
    ) -> Result<Stored, Unchanged> {
        let store = self.store;
        let _one_writer = store.lock(path.relative());
        self.decide(path)?;
        let folder = store.folders().open(path)?;
        let found = match &folder {
            Some(folder) => folder.open_file(path.file_name())?,
            None => None,
        };
        let original = original.metadata()?;
        let found = found.map(|file| file.metadata()).transpose()?;
        // Files are never changed, so the same inode is the same content: a newer instance has one of its own.
        let Some(found) =
            found.filter(|found| (found.dev(), found.ino()) == (original.dev(), original.ino()))
        else {
            return Err(Unchanged::Overtaken);
        };
        Ok(self.replace(tenant, index, path, folder, found.len())?)
    }
}
