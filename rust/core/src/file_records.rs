//! The record of a stored instance, from its file alone.
//!
//! Who sent it is its Source Application Entity Title; the address is lost, and so is what it was before it was stored.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::config::{CreatedTime, RecordSettings};
use crate::dataset::index::{Captures, IndexPlan, InstanceIndex};
use crate::dataset::json::UnknownAttribute;
use crate::dataset::scan::{ScanError, ScanLimits};
use crate::dataset::stream::DatasetScan;
use crate::file_meta::{self, FileMeta};
use crate::layout::{InstancePath, TenantId};
use crate::record::{Facts, TransferStatus};
use crate::recovery::NotOurs;
use crate::status::Refusal;
use crate::IMPLEMENTATION_CLASS_UID;

const READ_BYTES: usize = 64 * 1024;
/// A value of which so much is left is passed over without reading it.
const SEEK_BYTES: u64 = 1 << 20;
/// What the configuration allows at most.
const LIMITS: ScanLimits = ScanLimits {
    nesting: 256,
    elements: 1 << 24,
    value_bytes: 10_240,
};

/// Makes records of files. Their structure is read to the last byte, but not what is large in them.
#[derive(Debug)]
pub struct FileRecords {
    plan: IndexPlan,
    settings: RecordSettings,
}

impl FileRecords {
    /// Records that have attributes of these keywords, of files on a node.
    ///
    /// # Errors
    /// [`UnknownAttribute`].
    pub fn new(attributes: Vec<String>, node_id: String) -> Result<Self, UnknownAttribute> {
        Ok(Self {
            plan: IndexPlan::new(Captures::new(std::iter::empty(), None, &attributes)?, &[])?,
            settings: RecordSettings {
                attributes,
                node_id,
                created_time: CreatedTime::Utc,
                missing_study_date: None,
            },
        })
    }

    /// The record of a file at a path relative to its storage root, as JSON. It has no trace id (RFC 9562 5.9), and says that it
    /// was received when the file was last changed.
    ///
    /// # Errors
    /// [`NotOurs`].
    pub fn record(&self, path: &Path, relative: &str) -> Result<String, NotOurs> {
        let mut file = File::open(path)?;
        let facts = file.metadata()?;
        let mut head = Vec::with_capacity(READ_BYTES);
        file.by_ref().take(READ_BYTES as u64).read_to_end(&mut head)?;
        let meta = file_meta::decode(&head).ok_or(NotOurs::NoHeader)?;
        let mut scan = DatasetScan::new(&meta.transfer_syntax, self.plan.tags(), LIMITS, u64::MAX);
        scan.feed(head.get(meta.dataset_at..).unwrap_or_default())?;
        read_on(&mut file, &mut scan, facts.len(), &mut head)?;
        scan.finish()?;
        let mut index = self
            .plan
            .read(scan.captured(), scan.encoding())
            .map_err(NotOurs::Index)?;
        index.anomalies = index.anomalies.and(scan.anomalies());
        let (tenant, _) = place(&meta, &index, relative)?;
        let name = path.to_str().ok_or(NotOurs::Misplaced)?;
        let created = DateTime::<Utc>::from(facts.modified()?);
        let record = Facts {
            created,
            ..facts_of_file(&self.settings, &tenant, &meta, &index, (name, facts.len()))
        };
        record.to_json().map_err(|_| NotOurs::Index(Refusal::Bug))
    }
}

/// Feeds the rest of a file of `size` bytes.
fn read_on(file: &mut File, scan: &mut DatasetScan, size: u64, buffer: &mut Vec<u8>) -> Result<(), NotOurs> {
    let mut position = buffer.len() as u64;
    buffer.resize(READ_BYTES, 0);
    loop {
        let skipping = scan.skipping();
        if skipping >= SEEK_BYTES {
            position += skipping;
            if position > size {
                return Err(ScanError::Truncated.into());
            }
            file.seek(SeekFrom::Start(position))?;
            scan.pass_over(skipping);
        }
        let count = match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        if count == 0 {
            return Ok(());
        }
        position += count as u64;
        scan.feed(buffer.get(..count).unwrap_or_default())?;
    }
}

/// The tenant and the place of a file that we wrote, whose path says what it is.
pub(crate) fn place(
    meta: &FileMeta,
    index: &InstanceIndex,
    relative: &str,
) -> Result<(TenantId, InstancePath), NotOurs> {
    if meta.implementation_class_uid != IMPLEMENTATION_CLASS_UID {
        return Err(NotOurs::Foreign);
    }
    let tenant = relative.split('/').next().unwrap_or_default();
    let tenant = TenantId::parse(tenant).map_err(|_| NotOurs::Misplaced)?;
    let path = InstancePath::new(
        &tenant,
        index.study_date,
        &index.study_instance_uid,
        &index.series_instance_uid,
        &index.sop_instance_uid,
    );
    if path.relative() == relative {
        Ok((tenant, path))
    } else {
        Err(NotOurs::Misplaced)
    }
}

/// What a file of this absolute path and size tells, without trace id, and of 1970.
pub(crate) fn facts_of_file<'a>(
    settings: &'a RecordSettings,
    tenant: &'a TenantId,
    meta: &'a FileMeta,
    index: &'a InstanceIndex,
    file: (&'a str, u64),
) -> Facts<'a> {
    Facts {
        trace_id: Uuid::nil(),
        settings,
        tenant,
        index,
        file,
        transfer_syntaxes: (&meta.transfer_syntax, &meta.transfer_syntax),
        transfer_status: TransferStatus::NoNeedTransfer,
        created: DateTime::UNIX_EPOCH,
        sender: ("", &meta.source_ae_title, ""),
    }
}
