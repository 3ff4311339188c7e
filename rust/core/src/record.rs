//! The record of a stored instance: one JSON object for both topics.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use uuid::Uuid;

/// The worker node id that wado-storescp's consumers expect.
pub const WORKER_NODE_ID: &str = "DICOM_STORE_SCP";
/// Version of the record's schema.
pub const SCHEMA_VERSION: u32 = 1;

/// What became of the pixel data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum TransferStatus {
    /// Stored as received: viewers read it, or there is nothing to decode.
    NoNeedTransfer,
    /// Transcoded.
    Success,
    /// Stored as received because it could not be transcoded.
    Failed,
}

/// One instance, as consumers see it. Field names and order are wado-storescp's, ours at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Record<'a> {
    /// UUID version 7, the same on every delivery.
    pub trace_id: Uuid,
    /// Always [`WORKER_NODE_ID`].
    pub worker_node_id: &'a str,
    /// Tenant.
    pub tenant_id: &'a str,
    /// Patient ID, at most 64 characters.
    pub patient_id: &'a str,
    /// Study Instance UID.
    pub study_uid: &'a str,
    /// Series Instance UID.
    pub series_uid: &'a str,
    /// SOP Instance UID.
    pub sop_uid: &'a str,
    /// Absolute path of the file.
    pub file_path: &'a str,
    /// Size of the file in bytes.
    pub file_size: u64,
    /// Transfer syntax as received.
    pub transfer_syntax_uid: &'a str,
    /// Transfer syntax as stored.
    pub target_ts: &'a str,
    /// Study Date, ISO 8601, or null.
    pub study_date: Option<String>,
    /// What became of the pixel data.
    pub transfer_status: TransferStatus,
    /// Number of Frames.
    pub number_of_frames: u32,
    /// RFC 3339, UTC, microseconds.
    pub created_time: String,
    /// `SeaHash` of the Series Instance UID, decimal, padded to 20 digits.
    pub series_uid_hash: String,
    /// `SeaHash` of the Study Instance UID, decimal, padded to 20 digits.
    pub study_uid_hash: String,
    /// Accession Number, at most 16 characters, or null.
    pub accession_number: Option<&'a str>,
    /// Address of the sender, without port.
    pub source_ip: &'a str,
    /// Calling AE title.
    pub source_ae: &'a str,
    /// Always [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// SOP Class UID.
    pub sop_class_uid: &'a str,
    /// Called AE title.
    pub called_ae: &'a str,
}

/// wado-storescp's `hash_uid`: `SeaHash`, decimal, zero-padded to 20.
#[must_use]
pub fn hash_uid(uid: &str) -> String {
    format!("{:020}", seahash::hash(uid.as_bytes()))
}

/// `created_time`: RFC 3339, UTC, microseconds and `Z`.
#[must_use]
pub fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_have_twenty_digits() {
        assert_eq!(hash_uid("1.2.3").len(), 20);
        assert_eq!(hash_uid("").len(), 20);
        assert_ne!(hash_uid("1.2.3"), hash_uid("1.2.4"));
    }

    #[test]
    fn timestamps_have_microseconds_and_z() {
        let at = DateTime::from_timestamp(1_700_000_000, 123_456_000).unwrap();
        assert_eq!(timestamp(at), "2023-11-14T22:13:20.123456Z");
    }
}
