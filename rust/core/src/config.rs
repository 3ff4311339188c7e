//! What the core is told once, at start. Read from JSON that the configuration layer makes.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use chrono::NaiveDate;
use dicom_core::Tag;
use serde::Deserialize;

use crate::layout::TenantId;
use crate::status::Refusal;
use crate::transcode::pool::PoolConfig;

/// Of a value that is shown.
const SHOWN_CHARACTERS: usize = 64;

/// When an instance counts as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Data, outbox and directories are synced: survives power loss.
    Full,
    /// Directories are not: a power cut may lose the name.
    Data,
    /// Nothing is synced: survives the end of the process.
    None,
}

impl Durability {
    /// Whether file data and the outbox are synced.
    #[must_use]
    pub fn syncs_data(self) -> bool {
        self != Self::None
    }

    /// Whether directories are synced.
    #[must_use]
    pub fn syncs_directories(self) -> bool {
        self == Self::Full
    }
}

/// What happens when another instance with the same path and other bytes is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duplicates {
    /// The new instance replaces it.
    Replace,
    /// The first instance stays; the sender is told success.
    Keep,
    /// The first instance stays; the sender is told A900.
    Reject,
}

/// What becomes of a data set that would be answered with C000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Malformed {
    /// It is refused.
    Refuse,
    /// It is kept as received, without a record, and answered with B007.
    Quarantine,
}

/// Bounds on everything a peer controls. Times in seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one data set as received.
    pub max_instance_bytes: u64,
    /// Bytes a deflated data set may inflate to.
    pub max_decoded_bytes: u64,
    /// Sequences within sequences.
    pub nesting: usize,
    /// Elements, items and fragments of one data set.
    pub max_elements: u64,
    /// Connections in all.
    pub max_connections: usize,
    /// Connections of one address.
    pub max_connections_per_address: usize,
    /// Until the A-ASSOCIATE-RQ is complete.
    pub request_timeout: f64,
    /// Between PDUs of an association.
    pub idle_timeout: f64,
    /// Bytes a second that a PDU must keep up with.
    pub min_rate: u32,
    /// Length of a P-DATA-TF that is tolerated beyond the negotiated maximum, and of an A-ASSOCIATE-RQ.
    pub max_pdu_tolerated: u32,
}

/// The private element that names the tenant.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivateTenant {
    /// Group of the element.
    pub group: u16,
    /// Element number.
    pub element: u16,
    /// The tenants that it may name.
    pub known: HashSet<String>,
}

impl PrivateTenant {
    /// The tag to look for.
    #[must_use]
    pub fn tag(&self) -> Tag {
        Tag(self.group, self.element)
    }

    /// The tenant named by a value, if it is known.
    ///
    /// # Errors
    /// [`Refusal::TenantNotAuthorised`] with the value.
    pub fn resolve(&self, value: &[u8]) -> Result<TenantId, Refusal> {
        let value = crate::uid::trim_padding(value);
        let known = std::str::from_utf8(value)
            .ok()
            .filter(|text| self.known.contains(*text));
        known
            .and_then(|text| TenantId::parse(text).ok())
            .ok_or_else(|| Refusal::TenantNotAuthorised(Some(shown(value))))
    }
}

/// A value of a peer's, to be read by people: at most 64 characters, and escapes for what is not printable ASCII.
fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let mut shown = String::new();
    for one in text.chars().take(SHOWN_CHARACTERS) {
        if (' '..='~').contains(&one) && one != '\\' {
            shown.push(one);
        } else {
            shown.extend(one.escape_unicode());
        }
    }
    if text.chars().nth(SHOWN_CHARACTERS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// When no more records are taken.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboxLimits {
    /// Unpublished records.
    pub max_rows: u64,
    /// Bytes of unpublished records.
    pub max_bytes: u64,
}

/// What viewers cannot read is transcoded.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcoding {
    /// To this transfer syntax.
    pub target: String,
    /// By these processes.
    pub pool: PoolConfig,
}

/// What a tenant has of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantSettings {
    /// Bytes of stored files.
    pub quota_bytes: Option<u64>,
    /// Instances on their way at once.
    pub max_in_flight: Option<u64>,
    /// A storage root of its own, absolute.
    pub storage_root: Option<PathBuf>,
    /// Keywords required instead of the common ones.
    pub required_attributes: Option<Vec<String>>,
}

/// In which zone `created_time` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CreatedTime {
    /// Coordinated Universal Time.
    Utc,
    /// That of this machine, as wado-storescp does.
    Local,
}

/// What records say besides the facts of an instance.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordSettings {
    /// Keywords of the attributes that describe an instance.
    pub attributes: Vec<String>,
    /// Name of this node.
    pub node_id: String,
    /// See [`CreatedTime`].
    pub created_time: CreatedTime,
    /// The Study Date of those that have none; none: null.
    pub missing_study_date: Option<NaiveDate>,
}

/// Everything the engine needs to know.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// Storage root, absolute.
    pub root: PathBuf,
    /// When an instance counts as stored.
    pub durability: Durability,
    /// Same path, other bytes.
    pub duplicates: Duplicates,
    /// Whether a storage root that is not there is made.
    pub create: bool,
    /// Seconds that a replaced file is kept; 0: it is not.
    pub replaced_retention: f64,
    /// Bytes of replaced files that are kept; none: a tenth of the disk.
    pub replaced_max_bytes: Option<u64>,
    /// Bytes of damaged data sets that are kept in quarantine.
    pub quarantine_max_bytes: u64,
    /// Free bytes of the file system below which nothing is taken.
    pub min_free_bytes: u64,
    /// Transfer syntaxes that viewers read.
    pub viewer_transfer_syntaxes: HashSet<String>,
    /// Keywords required besides the four UIDs.
    pub required_attributes: Vec<String>,
    /// See [`RecordSettings`].
    pub record: RecordSettings,
    /// What becomes of damaged data sets.
    pub malformed: Malformed,
    /// Maximum PDU length that we announce.
    pub max_pdu_length: u32,
    /// Abort on a longer P-DATA-TF.
    pub strict: bool,
    /// Bytes of an instance kept in memory before it goes to a temporary file.
    pub spool_memory_bytes: usize,
    /// See [`Limits`].
    pub limits: Limits,
    /// See [`OutboxLimits`].
    pub outbox: OutboxLimits,
    /// The private element that names the tenant, where it is turned on.
    pub private_tenant: Option<PrivateTenant>,
    /// Whether associations tell which studies they brought.
    pub audit: bool,
    /// By tenant id.
    pub tenants: HashMap<String, TenantSettings>,
    /// See [`Transcoding`].
    pub transcoding: Transcoding,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_tenant_is_shown_bounded_and_escaped() {
        let private = PrivateTenant {
            group: 0x1211,
            element: 0x1217,
            known: HashSet::from(["a".to_owned()]),
        };
        assert_eq!(private.resolve(b"a ").unwrap().as_str(), "a");
        let long = "x".repeat(65);
        let cut = format!("{}...", "x".repeat(64));
        for (value, expected) in [
            (&b"HOSP \0"[..], "HOSP"),
            (b"two\nlines\x1b[31m", "two\\u{a}lines\\u{1b}[31m"),
            (b"back\\slash", "back\\u{5c}slash"),
            ("Klinik Süd".as_bytes(), "Klinik S\\u{fc}d"),
            (b"\xff", "\\u{fffd}"),
            (b"", ""),
            (long.as_bytes(), &cut),
        ] {
            let refusal = private.resolve(value).unwrap_err();
            assert_eq!(refusal.tenant_value(), Some(expected));
            assert_eq!(
                (refusal.status(), refusal.comment().as_str()),
                (0x0124, "tenant not authorised")
            );
        }
    }
}
