//! Why an instance is refused, and the DIMSE status that says so (PS3.4 B.2.3, PS3.7 Annex C).

use crate::dataset::scan::ScanError;
use crate::layout::TenantId;
use crate::store::replaced::ReplacedError;

/// Success. Answered by one line of the project, after file and record are durable.
pub const SUCCESS: u16 = 0x0000;

/// Warning: Data Set Does Not Match SOP Class (PS3.4 B.2.3). Senders take it for stored.
pub const QUARANTINED: u16 = 0xB007;

/// A C-STORE that did not succeed. The text becomes the Error Comment: at most 64 characters, no patient data.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The storage failed: no space, no permission, an I/O error.
    #[error("storage: {0}")]
    Storage(#[from] std::io::Error),
    /// Free space is below the watermark `storage.min_free_bytes`.
    #[error("storage: less free space than configured")]
    LowSpace,
    /// The queue of records failed.
    #[error("outbox: {0}")]
    Outbox(#[from] crate::outbox::OutboxError),
    /// More unpublished records than `outbox.max_rows` or `outbox.max_bytes`.
    #[error("outbox limit reached")]
    OutboxFull,
    /// The tenant's `quota_bytes` are used up.
    #[error("tenant quota reached")]
    TenantQuota(Option<Box<TenantId>>),
    /// The tenant's `max_in_flight` instances are on their way.
    #[error("too many instances of this tenant at once")]
    TenantBusy(Option<Box<TenantId>>),
    /// Files that were replaced have reached `storage.replaced_max_bytes`, and are too young to make room.
    #[error("storage: replaced files have reached their bound")]
    ReplacedFull,
    /// No worker was free to transcode it, and another form of the instance is stored, perhaps the transcoded one.
    #[error("transcoding is busy, and an instance with this UID is stored")]
    Busy,
    /// Whether what lies at its place was acknowledged cannot be told, because it cannot be looked at.
    #[error("storage: the file in its place cannot be looked at")]
    Undecided,
    /// Another instance is stored and stays (`keep`), and it has no record and can get none.
    #[error("storage: the stored file has no record and can get none")]
    Unrecorded,
    /// The instance exceeds `limits.max_instance_bytes`.
    #[error("instance exceeds the size limit of {0} bytes")]
    TooLarge(u64),
    /// A UID of the data set differs from the one in the command set.
    #[error("{0} of the data set differs from the command")]
    IdentityMismatch(&'static str),
    /// A required attribute is absent or empty.
    #[error("{0} is absent or empty")]
    AttributeMissing(String),
    /// A required attribute has an invalid value.
    #[error("{0} is invalid")]
    AttributeInvalid(String),
    /// Another instance is stored under the same UID, and the policy is `reject`.
    #[error("a different instance with this UID is stored")]
    DuplicateRejected,
    /// The data set cannot be parsed, is cut short or exceeds a limit.
    #[error("{0}")]
    Malformed(#[from] ScanError),
    /// A UID of the data set breaks the grammar.
    #[error("{0} breaks the UID grammar")]
    DatasetUid(&'static str),
    /// One of the two above, and `dicom_store_scp.malformed` has the data set kept as received: it is in quarantine, durably, under
    /// this name.
    #[error("in quarantine: {reason}")]
    Quarantined {
        /// Name of the entry.
        name: String,
        /// Why it would be refused.
        reason: Box<Refusal>,
    },
    /// The same, but the quarantine has reached `storage.quarantine_max_bytes`.
    #[error("quarantine is full: {0}")]
    QuarantineFull(Box<Refusal>),
    /// Affected SOP Instance UID of the command breaks the grammar.
    #[error("AffectedSOPInstanceUID breaks the UID grammar")]
    CommandInstanceUid,
    /// Affected SOP Class UID is not the abstract syntax of the presentation context.
    #[error("AffectedSOPClassUID differs from the context")]
    ClassMismatch,
    /// No tenant for this instance; the value of the private element that names an unknown one, as it is shown.
    #[error("tenant not authorised")]
    TenantNotAuthorised(Option<String>),
    /// A caught panic: a bug of ours.
    #[error("internal error")]
    Bug,
    /// The command field names no operation that we provide.
    #[error("unrecognised operation")]
    Unrecognised,
    /// A C-STORE without data set, or a C-ECHO with one.
    #[error("data set missing or unexpected")]
    Mistyped,
}

impl From<ReplacedError> for Refusal {
    fn from(error: ReplacedError) -> Self {
        match error {
            ReplacedError::Io(error) => Self::Storage(error),
            ReplacedError::Full => Self::ReplacedFull,
        }
    }
}

impl Refusal {
    /// The DIMSE status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Storage(_)
            | Self::LowSpace
            | Self::Outbox(_)
            | Self::OutboxFull
            | Self::TenantQuota(_)
            | Self::TenantBusy(_)
            | Self::ReplacedFull
            | Self::Busy
            | Self::Undecided
            | Self::Unrecorded
            | Self::TooLarge(_) => 0xA700,
            Self::IdentityMismatch(_)
            | Self::AttributeMissing(_)
            | Self::AttributeInvalid(_)
            | Self::DuplicateRejected => 0xA900,
            Self::Malformed(_) | Self::DatasetUid(_) | Self::QuarantineFull(_) => 0xC000,
            Self::Quarantined { .. } => QUARANTINED,
            Self::CommandInstanceUid => 0x0117,
            Self::ClassMismatch => 0x0122,
            Self::TenantNotAuthorised(_) => 0x0124,
            Self::Bug => 0x0110,
            Self::Unrecognised => 0x0211,
            Self::Mistyped => 0x0212,
        }
    }

    /// The tenant that nobody knows, for the log. It is not in the Error Comment: it may be long.
    #[must_use]
    pub fn tenant_value(&self) -> Option<&str> {
        match self {
            Self::TenantNotAuthorised(value) => value.as_deref(),
            _ => None,
        }
    }

    /// The tenant whose limit is reached, for the log: a sender need not know it.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::TenantQuota(tenant) | Self::TenantBusy(tenant) => tenant.as_deref(),
            _ => None,
        }
    }

    /// Whether what is refused is damaged, so that it may be kept instead.
    #[must_use]
    pub fn is_of_damage(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::DatasetUid(_))
    }

    /// One of each kind, for tables of what there is.
    #[must_use]
    pub fn kinds() -> Vec<Self> {
        let keyword = || "PatientID".to_owned();
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        vec![
            Self::Storage(std::io::ErrorKind::StorageFull.into()),
            Self::Storage(std::io::ErrorKind::PermissionDenied.into()),
            Self::LowSpace,
            Self::Outbox(rusqlite::Error::SqliteFailure(full, None).into()),
            Self::OutboxFull,
            Self::TenantQuota(None),
            Self::TenantBusy(None),
            Self::ReplacedFull,
            Self::Busy,
            Self::Undecided,
            Self::Unrecorded,
            Self::TooLarge(8 << 30),
            Self::IdentityMismatch("SOPInstanceUID"),
            Self::AttributeMissing(keyword()),
            Self::AttributeInvalid(keyword()),
            Self::DuplicateRejected,
            Self::Malformed(ScanError::Truncated),
            Self::DatasetUid("StudyInstanceUID"),
            Self::Quarantined {
                name: String::new(),
                reason: Box::new(Self::Malformed(ScanError::Truncated)),
            },
            Self::QuarantineFull(Box::new(Self::Malformed(ScanError::Truncated))),
            Self::CommandInstanceUid,
            Self::ClassMismatch,
            Self::TenantNotAuthorised(None),
            Self::Bug,
            Self::Unrecognised,
            Self::Mistyped,
        ]
    }

    /// The Error Comment (0000,0902): LO, at most 64 characters of the default repertoire.
    #[must_use]
    pub fn comment(&self) -> String {
        let text = match self {
            // The text of the operating system, not the path: os_error says what an administrator needs.
            Self::Storage(error) => format!("storage: {}", error.kind()),
            other => other.to_string(),
        };
        text.chars()
            .map(|c| {
                if c == '\\' || !(' '..='~').contains(&c) {
                    '?'
                } else {
                    c
                }
            })
            .take(64)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_fit_an_lo_value() {
        let strange = [
            Refusal::AttributeMissing("X".repeat(100)),
            Refusal::TooLarge(u64::MAX),
            Refusal::Storage(std::io::Error::other("back\\slash é")),
        ];
        for refusal in Refusal::kinds().into_iter().chain(strange) {
            let comment = refusal.comment();
            assert!(
                comment.chars().count() <= 64 && comment.is_ascii() && !comment.contains('\\'),
                "{comment}"
            );
        }
    }
}
