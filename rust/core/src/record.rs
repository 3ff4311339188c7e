//! The record of a stored instance: one JSON object for both topics, whose last field is `dicom`.

use std::fmt;

use chrono::{DateTime, Local, NaiveDate, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::config::{CreatedTime, RecordSettings};
use crate::dataset::anomaly::Anomalies;
use crate::dataset::index::InstanceIndex;
use crate::layout::TenantId;
use crate::uid::Uid;

/// Version of the record's schema.
pub const SCHEMA_VERSION: u32 = 2;
/// What a record has room for at first: few are longer.
const RECORD_BYTES: usize = 2560;

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

/// One instance, as consumers see it, without `dicom`. Field names and order are wado-storescp's, ours at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Record<'a> {
    /// UUID version 7, the same on every delivery.
    pub trace_id: Uuid,
    /// Name of the node that stored it.
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
    pub study_date: Option<NaiveDate>,
    /// What became of the pixel data.
    pub transfer_status: TransferStatus,
    /// Number of Frames.
    pub number_of_frames: u32,
    /// When it was received: ISO 8601 without a zone, microseconds.
    pub created_time: &'a str,
    /// `SeaHash` of the Series Instance UID, decimal, padded to 20 digits.
    pub series_uid_hash: UidHash,
    /// `SeaHash` of the Study Instance UID, decimal, padded to 20 digits.
    pub study_uid_hash: UidHash,
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
    /// Codes of what was odd and stored as received all the same.
    pub anomalies: Anomalies,
    /// When it was received: RFC 3339, UTC, microseconds.
    pub received_at: &'a str,
    /// Where it is in object storage.
    pub file_url: Option<&'a str>,
    /// Keywords of attributes that the data set has and `dicom` has not.
    pub dicom_omitted: &'a [String],
}

/// What a record is made from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// See [`Record::trace_id`].
    pub trace_id: Uuid,
    /// What the configuration says of records.
    pub settings: &'a RecordSettings,
    /// Whose it is.
    pub tenant: &'a TenantId,
    /// What it is.
    pub index: &'a InstanceIndex,
    /// Absolute path and size in bytes of the file.
    pub file: (&'a str, u64),
    /// Transfer syntaxes as received and as stored.
    pub transfer_syntaxes: (&'a str, &'a str),
    /// What became of the pixel data.
    pub transfer_status: TransferStatus,
    /// When it was received.
    pub created: DateTime<Utc>,
    /// Address, calling and called AE title; empty where they are not known.
    pub sender: (&'a str, &'a str, &'a str),
}

impl Facts<'_> {
    /// The record as JSON.
    ///
    /// # Errors
    /// What the serialiser says; it has no reason to.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let (index, settings) = (self.index, self.settings);
        let mut json = Vec::with_capacity(RECORD_BYTES);
        let received_at = timestamp(self.created);
        let local = match settings.created_time {
            CreatedTime::Utc => None,
            CreatedTime::Local => Some(without_zone(self.created.with_timezone(&Local))),
        };
        let record = Record {
            trace_id: self.trace_id,
            worker_node_id: &settings.node_id,
            tenant_id: self.tenant.as_str(),
            patient_id: &index.patient_id,
            study_uid: index.study_instance_uid.as_str(),
            series_uid: index.series_instance_uid.as_str(),
            sop_uid: index.sop_instance_uid.as_str(),
            file_path: self.file.0,
            file_size: self.file.1,
            transfer_syntax_uid: self.transfer_syntaxes.0,
            target_ts: self.transfer_syntaxes.1,
            study_date: index.study_date.or(settings.missing_study_date),
            transfer_status: self.transfer_status,
            number_of_frames: index.number_of_frames,
            created_time: local.as_deref().unwrap_or(received_at.trim_end_matches('Z')),
            series_uid_hash: UidHash::of(&index.series_instance_uid),
            study_uid_hash: UidHash::of(&index.study_instance_uid),
            accession_number: index.accession_number.as_deref(),
            source_ip: self.sender.0,
            source_ae: self.sender.1,
            schema_version: SCHEMA_VERSION,
            sop_class_uid: index.sop_class_uid.as_str(),
            called_ae: self.sender.2,
            anomalies: index.anomalies,
            received_at: &received_at,
            file_url: None,
            dicom_omitted: &index.described.omitted,
        };
        serde_json::to_writer(&mut json, &record)?;
        // The attributes are JSON already.
        json.pop();
        json.extend_from_slice(b",\"dicom\":");
        json.extend_from_slice(index.described.text.as_bytes());
        json.push(b'}');
        String::from_utf8(json).map_err(serde::ser::Error::custom)
    }

    /// The key of both topics: records of a study stay in order.
    #[must_use]
    pub fn key(&self) -> String {
        [self.tenant.as_str(), self.index.study_instance_uid.as_str()].join("/")
    }
}

/// wado-storescp's `hash_uid`: `SeaHash`, decimal, zero-padded to 20.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidHash(u64);

impl UidHash {
    /// Of a UID.
    #[must_use]
    pub fn of(uid: &Uid) -> Self {
        Self(seahash::hash(uid.as_str().as_bytes()))
    }
}

impl fmt::Display for UidHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:020}", self.0)
    }
}

impl Serialize for UidHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `received_at`: RFC 3339, UTC, microseconds and `Z`.
#[must_use]
pub fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// `created_time`: ISO 8601, microseconds, no zone: what chrono's `NaiveDateTime` reads.
fn without_zone(at: DateTime<Local>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.6f").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_have_twenty_digits() {
        let hash = |uid: &[u8]| UidHash::of(&Uid::parse(uid).unwrap()).to_string();
        assert_eq!(hash(b"1.2.3").len(), 20);
        assert_ne!(hash(b"1.2.3"), hash(b"1.2.4"));
        assert_eq!(UidHash(7).to_string(), "00000000000000000007");
    }

    #[test]
    fn timestamps_have_microseconds_and_z() {
        let at = DateTime::from_timestamp(1_700_000_000, 123_456_000).unwrap();
        assert_eq!(timestamp(at), "2023-11-14T22:13:20.123456Z");
    }
}
