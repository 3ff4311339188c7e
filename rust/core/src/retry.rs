//! Trying again to store damaged data sets that are in quarantine, as if they came now.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::config::Malformed;
use crate::digest::Digester;
use crate::engine::Engine;
use crate::exchange::contain;
use crate::file_meta;
use crate::ingest::{Announced, Note, Reception, Scratch, Source, TenantFrom};
use crate::layout::TenantId;
use crate::outbox::OutboxError;
use crate::status::Refusal;
use crate::store::damaged;
use crate::store::Store;
use crate::transcode::TranscodeError;
use crate::uid::Uid;

const READ_BYTES: usize = 256 * 1024;
/// What holds each header that we write.
const HEADER_BYTES: u64 = 4096;

/// Why an entry of the quarantine stays there.
#[derive(Debug, thiserror::Error)]
pub enum Stays {
    /// It is not there.
    #[error("it is not in quarantine")]
    Absent,
    /// The note does not say what must be known.
    #[error("its note cannot be read")]
    Note,
    /// The file has changed since it came.
    #[error("the file is not what its note says")]
    Changed,
    /// The quarantine cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    /// It is refused as it would be if it came now.
    #[error("{:04X} {}", .0.status(), .0.comment())]
    Refused(#[from] Refusal),
    /// It is stored and recorded, but cannot be removed from quarantine.
    #[error("it is stored, but cannot be removed from quarantine: {0}")]
    NotRemoved(io::Error),
}

/// Whose an instance is where its note does not say it, and whether a rule says so.
#[derive(Clone, Copy, Debug)]
pub struct Tenancy {
    /// The tenant.
    pub tenant: TenantId,
    /// Whether a rule says so, so that the data set is not asked.
    pub by_rule: bool,
}

impl Engine {
    /// Stores an entry of the quarantine of a storage root. It leaves the quarantine when it is durable and recorded.
    ///
    /// # Errors
    /// [`Stays`].
    pub fn retry(&self, root: &Path, name: &str, tenancy: Option<Tenancy>) -> Result<(), Stays> {
        let store = self.store_of_root(root).ok_or(Stays::Absent)?;
        let opened = store.damaged().open(name).map_err(Stays::Unreadable)?;
        let (text, file) = opened.ok_or(Stays::Absent)?;
        let note: Note = serde_json::from_slice(&text).map_err(|_| Stays::Note)?;
        self.store_again(&note, tenancy, file)?;
        let bytes = damaged::weight(note.size, text.len() as u64);
        store.damaged().remove(name, bytes).map_err(Stays::NotRemoved)
    }

    /// Takes up at most `most` wishes of operators; what became of each, by name.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn retry_wished(&self, most: u32) -> Result<Vec<(String, Result<(), Stays>)>, OutboxError> {
        let mut outcomes = Vec::new();
        for wish in self.outbox().retry_wishes(most)? {
            if self.is_recovery_stopped() {
                break;
            }
            let tenant = wish.tenant.and_then(|tenant| TenantId::parse(&tenant).ok());
            let tenancy = tenant.map(|tenant| Tenancy {
                tenant,
                by_rule: wish.by_rule,
            });
            let outcome = self.retry(Path::new(&wish.root), &wish.name, tenancy);
            let told = outcome.as_ref().err().map(ToString::to_string);
            self.outbox().answer_retry(wish.id, told.unwrap_or_default())?;
            outcomes.push((wish.name, outcome));
        }
        if outcomes.iter().any(|(_, outcome)| outcome.is_ok()) {
            // When the oldest came is known from the names alone. Where they cannot be read, the next sweep says so.
            for store in self.tenants().stores() {
                let _ = store.damaged().recount();
            }
        }
        Ok(outcomes)
    }

    fn store_of_root(&self, root: &Path) -> Option<&Store> {
        let same = |store: &&Store| {
            let ours = store.root_path();
            ours == root
                || ours
                    .canonicalize()
                    .ok()
                    .is_some_and(|ours| root.canonicalize().is_ok_and(|root| root == ours))
        };
        self.tenants().stores().find(same)
    }

    fn store_again(&self, note: &Note, tenancy: Option<Tenancy>, file: File) -> Result<(), Stays> {
        let uid = |text: &str| Uid::parse(text.as_bytes()).map_err(|_| Stays::Note);
        let noted = note.tenant.as_deref().map(TenantId::parse).transpose();
        let noted = noted.map_err(|_| Stays::Note)?;
        let by_association = match note.tenant_from {
            Some(TenantFrom::Rule) => noted.map(|tenant| Tenancy {
                tenant,
                by_rule: true,
            }),
            Some(TenantFrom::Default) => noted.map(|tenant| Tenancy {
                tenant,
                by_rule: false,
            }),
            Some(TenantFrom::CommandSet | TenantFrom::DataSet) => None,
            None => tenancy,
        };
        let source = Source {
            calling_ae_title: note.calling_ae_title.clone(),
            called_ae_title: note.called_ae_title.clone(),
            address: note.address.clone(),
            tenant: by_association.map(|one| one.tenant),
            tenant_by_rule: by_association.is_some_and(|one| one.by_rule),
        };
        let announced = Announced {
            command_tenant: noted.filter(|_| note.tenant_from == Some(TenantFrom::CommandSet)),
            sop_class_uid: uid(&note.affected_sop_class_uid)?,
            sop_instance_uid: uid(&note.affected_sop_instance_uid)?,
            message_id: note.message_id,
            transfer_syntax: &note.transfer_syntax_uid,
            // It is in quarantine already.
            malformed: Malformed::Refuse,
        };
        let mut failed = None;
        let taken = contain(|| {
            let mut reception = Reception::begin(self, &source, announced, Scratch::default())?;
            match feed(&mut reception, note, file) {
                Ok(()) => {}
                Err(Stays::Refused(refusal)) => return Err(refusal),
                Err(other) => {
                    failed = Some(other);
                    return Ok(());
                }
            }
            let finished = reception.finish()?;
            self.note_stored(&finished.index, finished.attempt);
            finished.rest.finish();
            Ok(())
        });
        taken?;
        failed.map_or(Ok(()), Err)
    }

    fn note_stored(
        &self,
        index: &crate::dataset::index::InstanceIndex,
        attempt: Option<crate::ingest::Attempt>,
    ) {
        for code in index.anomalies.codes() {
            self.count_anomaly(code);
        }
        if let Some(attempt) = attempt {
            let outcome = attempt.error.as_ref().map_or("Success", TranscodeError::code);
            self.count_transcode((attempt.source, attempt.target, outcome.to_owned()));
        }
    }
}

/// Gives the data set of a file to a reception, and compares the file with its note.
fn feed(reception: &mut Reception<'_>, note: &Note, mut file: File) -> Result<(), Stays> {
    let mut head = Vec::new();
    let mut digest = Digester::default();
    (&mut file)
        .take(HEADER_BYTES)
        .read_to_end(&mut head)
        .map_err(Stays::Unreadable)?;
    let dataset_at = file_meta::decode(&head).ok_or(Stays::Changed)?.dataset_at;
    digest.update(&head);
    let mut size = head.len() as u64;
    reception.append(head.get(dataset_at..).unwrap_or_default())?;
    let mut block = vec![0; READ_BYTES];
    loop {
        let count = file.read(&mut block).map_err(Stays::Unreadable)?;
        let bytes = block.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        size += count as u64;
        digest.update(bytes);
        reception.append(bytes)?;
    }
    let found = format!("{:032x}", u128::from_be_bytes(digest.digest()));
    if (size, &found) == (note.size, &note.digest) {
        Ok(())
    } else {
        Err(Stays::Changed)
    }
}
