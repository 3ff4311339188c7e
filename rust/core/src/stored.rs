//! Transcoding stored instances that were stored as received, in place and under the rules of duplicates.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::config::{Duplicates, Malformed};
use crate::dataset::anomaly::{Anomalies, Anomaly};
use crate::digest::Digest;
use crate::engine::Engine;
use crate::exchange::contain;
use crate::file_meta::{self, FileMeta};
pub use crate::ingest::Unchanged;
use crate::ingest::{Announced, Finished, Original, Reception, Scratch, Source};
use crate::layout::TenantId;
use crate::retry::{feed, NotFed};
use crate::transcode::plan::{plan, Plan};
use crate::uid::Uid;
use crate::IMPLEMENTATION_CLASS_UID;

/// What holds each header that we write.
const HEADER_BYTES: u64 = 4096;

/// What the record of a stored instance says of its sender.
#[derive(Debug, Default, Deserialize)]
struct Recorded {
    created_time: String,
    /// Not in records of version 1, whose `created_time` has a zone.
    received_at: Option<String>,
    source_ip: String,
    source_ae: String,
    called_ae: String,
    anomalies: Vec<String>,
}

/// What is known of a stored instance.
struct Known {
    recorded: Recorded,
    received_at: Option<DateTime<Utc>>,
    /// As its record says; none where it has no record.
    content: Option<(u64, Digest)>,
}

impl Engine {
    /// Transcodes the stored instance at a path relative to its storage root, as if it came now from its sender, and has the
    /// result take its place with a new record. An instance that viewers can read is left alone, with success.
    ///
    /// # Errors
    /// [`Unchanged`]: the instance and its record stay as they are.
    pub fn transcode_stored(&self, root: &Path, relative: &str) -> Result<(), Unchanged> {
        let (tenant, uid) = parts_of(relative).ok_or(Unchanged::Absent)?;
        let store = self.store_of_root(root).ok_or(Unchanged::Absent)?;
        if !std::ptr::eq(store, self.tenants().store_of_path(relative)) {
            return Err(Unchanged::Absent);
        }
        let (_, file) = store
            .folders()
            .open_relative(relative)?
            .ok_or(Unchanged::Absent)?;
        let meta = header_of(&file)?;
        if self.is_readable(&meta.transfer_syntax)? {
            return Ok(());
        }
        if self.config().duplicates != Duplicates::Replace {
            return Err(Unchanged::NotReplaced);
        }
        let known = self.known_of(relative, &meta)?;
        let original = Original {
            path: relative,
            file: &file,
            received_at: known.received_at,
            anomalies: Anomalies::of_codes(known.recorded.anomalies.iter().map(String::as_str))
                .without(Anomaly::TranscodingBusy),
        };
        let source = Source {
            calling_ae_title: known.recorded.source_ae,
            called_ae_title: known.recorded.called_ae,
            address: known.recorded.source_ip,
            tenant: Some(tenant),
            // Its place says whose it is.
            tenant_by_rule: true,
        };
        let class = Uid::parse(meta.sop_class_uid.as_bytes()).map_err(|_| Unchanged::Foreign)?;
        let announced = Announced {
            command_tenant: None,
            sop_class_uid: class,
            sop_instance_uid: uid,
            message_id: None,
            transfer_syntax: &meta.transfer_syntax,
            malformed: Malformed::Refuse,
        };
        let finished = self.transcode_again(&source, announced, &original, known.content)?;
        self.note_stored(&finished.index, finished.attempt);
        finished.rest.finish();
        Ok(())
    }

    /// Whether viewers read it as it is.
    fn is_readable(&self, transfer_syntax: &str) -> Result<bool, Unchanged> {
        let config = self.config();
        let (viewers, target) = (&config.viewer_transfer_syntaxes, &config.transcoding.target);
        if viewers.contains(transfer_syntax) || transfer_syntax == target {
            return Ok(true);
        }
        match plan(transfer_syntax, true, viewers, target) {
            Plan::AsReceived(reason) => Err(Unchanged::AsReceived(reason.text())),
            Plan::Impossible => Err(Unchanged::AsReceived("there is no codec for it")),
            Plan::Transcode(_) => Ok(false),
        }
    }

    /// From the record of a stored instance as far as it is kept, else from the header of its file.
    fn known_of(&self, relative: &str, meta: &FileMeta) -> Result<Known, Unchanged> {
        let row = self.outbox().newest(relative)?.filter(|row| row.is_committed);
        let Some(row) = row else {
            return Ok(Known {
                recorded: said_by_file(meta),
                received_at: None,
                content: None,
            });
        };
        let recorded = serde_json::from_str::<Recorded>(&self.outbox().payload(row.id)?).ok();
        let received_at = match &recorded {
            // Its row may be younger: the instance was transcoded once before.
            Some(recorded) => {
                DateTime::parse_from_rfc3339(recorded.received_at.as_ref().unwrap_or(&recorded.created_time))
                    .ok()
                    .map(|at| at.with_timezone(&Utc))
            }
            None => DateTime::from_timestamp_micros(row.created),
        };
        Ok(Known {
            recorded: recorded.unwrap_or_else(|| said_by_file(meta)),
            received_at,
            content: Some((row.size, row.digest)),
        })
    }

    fn transcode_again<'e>(
        &'e self,
        source: &'e Source,
        announced: Announced<'e>,
        original: &Original<'e>,
        content: Option<(u64, Digest)>,
    ) -> Result<Finished<'e>, Unchanged> {
        let mut unchanged = None;
        let finished = contain(|| {
            let mut reception = Reception::begin(self, source, announced, Scratch::default())?;
            let ended = match feed(&mut reception, original.file) {
                Ok(found) if content.is_none_or(|content| content == found) => {
                    reception.finish_in_place(original)
                }
                Ok(_) | Err(NotFed::NoHeader) => Err(Unchanged::Damaged),
                Err(NotFed::Unreadable(error)) => Err(error.into()),
                Err(NotFed::Refused(refusal)) => Err(refusal.into()),
            };
            Ok(ended.map_err(|why| unchanged = Some(why)).ok())
        })?;
        finished.ok_or_else(|| unchanged.unwrap_or(Unchanged::Absent))
    }
}

/// Tenant and SOP Instance UID of `tenant/date/study/series/instance.dcm`.
fn parts_of(relative: &str) -> Option<(TenantId, Uid)> {
    let uid = |text: &str| Uid::parse(text.as_bytes()).ok();
    let mut parts = relative.split('/');
    let tenant = TenantId::parse(parts.next()?).ok()?;
    for _ in ["date", "study", "series"] {
        uid(parts.next()?)?;
    }
    let instance = uid(parts.next()?.strip_suffix(".dcm")?)?;
    parts.next().is_none().then_some((tenant, instance))
}

fn header_of(mut file: &File) -> Result<FileMeta, Unchanged> {
    let mut head = Vec::new();
    file.rewind()?;
    file.take(HEADER_BYTES).read_to_end(&mut head)?;
    let meta = file_meta::decode(&head).ok_or(Unchanged::Foreign)?;
    if meta.implementation_class_uid == IMPLEMENTATION_CLASS_UID {
        Ok(meta)
    } else {
        Err(Unchanged::Foreign)
    }
}

/// The address and the called AE title are lost, and so is when it came where it has no record.
fn said_by_file(meta: &FileMeta) -> Recorded {
    Recorded {
        source_ae: meta.source_ae_title.clone(),
        ..Recorded::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_of_ours_names_an_instance() {
        let (tenant, uid) = parts_of("t/20260102/1.2/1.2.3/1.2.3.4.dcm").unwrap();
        assert_eq!((tenant.as_str(), uid.as_str()), ("t", "1.2.3.4"));
        for other in [
            "",
            "t/20260102/1.2/1.2.3/1.2.3.4",
            "t/20260102/1.2/1.2.3/.dcm",
            "t/1.2/1.2.3/1.2.3.4.dcm",
            "t/t/20260102/1.2/1.2.3/1.2.3.4.dcm",
            "t/../1.2/1.2.3/1.2.3.4.dcm",
            ".outbox/20260102/1.2/1.2.3/1.2.3.4.dcm",
            "/20260102/1.2/1.2.3/1.2.3.4.dcm",
        ] {
            assert!(parts_of(other).is_none(), "{other}");
        }
    }
}
