//! What operators want of the service: damaged data sets that are in quarantine are stored as if they came now, and stored
//! instances are transcoded ([`crate::stored`]).

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

use crate::config::Malformed;
use crate::digest::{Digest, Digester};
use crate::engine::Engine;
use crate::exchange::contain;
use crate::file_meta;
use crate::ingest::{Announced, Note, Reception, Scratch, Source, TenantFrom};
use crate::layout::TenantId;
use crate::outbox::{OutboxError, RetryWish};
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

/// What became of something that an operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Whether it is a stored instance that is transcoded.
    pub is_stored: bool,
    /// The entry of the quarantine, or the path of the stored file.
    pub name: String,
    /// Why it stays as it is; `None`: it does not.
    pub stays: Option<String>,
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
        self.store_again(&note, tenancy, &file)?;
        let bytes = damaged::weight(note.size, text.len() as u64);
        store.damaged().remove(name, bytes).map_err(Stays::NotRemoved)
    }

    /// Takes up at most `most` wishes of operators; what became of each.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn retry_wished(&self, most: u32) -> Result<Vec<Granted>, OutboxError> {
        let mut outcomes = Vec::new();
        for wish in self.outbox().retry_wishes(most)? {
            if self.is_recovery_stopped() {
                break;
            }
            let stays = self.grant(&wish);
            if stays.is_some() && self.is_recovery_stopped() {
                // The end of the service may be why. Whoever asked, or the next start, tries again.
                break;
            }
            self.outbox()
                .answer_retry(wish.id, stays.clone().unwrap_or_default())?;
            outcomes.push(Granted {
                is_stored: wish.is_stored,
                name: wish.name,
                stays,
            });
        }
        if outcomes.iter().any(|one| !one.is_stored && one.stays.is_none()) {
            // When the oldest came is known from the names alone. Where they cannot be read, the next sweep says so.
            for store in self.tenants().stores() {
                let _ = store.damaged().recount();
            }
        }
        Ok(outcomes)
    }

    /// Why it is not granted.
    fn grant(&self, wish: &RetryWish) -> Option<String> {
        let root = Path::new(&wish.root);
        if wish.is_stored {
            let outcome = self.transcode_stored(root, &wish.name);
            return outcome.err().map(|unchanged| unchanged.to_string());
        }
        let tenant = wish
            .tenant
            .as_deref()
            .and_then(|tenant| TenantId::parse(tenant).ok());
        let tenancy = tenant.map(|tenant| Tenancy {
            tenant,
            by_rule: wish.by_rule,
        });
        self.retry(root, &wish.name, tenancy)
            .err()
            .map(|stays| stays.to_string())
    }

    pub(crate) fn store_of_root(&self, root: &Path) -> Option<&Store> {
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

    fn store_again(&self, note: &Note, tenancy: Option<Tenancy>, file: &File) -> Result<(), Stays> {
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
            match feed(&mut reception, file) {
                Ok((size, digest)) if (size, hexadecimal(digest)) == (note.size, note.digest.clone()) => {}
                Ok(_) | Err(NotFed::NoHeader) => failed = Some(Stays::Changed),
                Err(NotFed::Refused(refusal)) => return Err(refusal),
                Err(NotFed::Unreadable(error)) => failed = Some(Stays::Unreadable(error)),
            }
            if failed.is_some() {
                return Ok(());
            }
            let finished = reception.finish()?;
            self.note_stored(&finished.index, finished.attempt);
            finished.rest.finish();
            Ok(())
        });
        taken?;
        failed.map_or(Ok(()), Err)
    }

    /// Counts what a reception would tell an association.
    pub(crate) fn note_stored(
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

/// Why a file cannot be given to a reception.
pub(crate) enum NotFed {
    /// It does not begin as the files do that we write.
    NoHeader,
    /// It cannot be read.
    Unreadable(io::Error),
    /// What the reception says.
    Refused(Refusal),
}

/// Gives the data set of a file to a reception; size and digest of the file.
pub(crate) fn feed(reception: &mut Reception<'_>, mut file: &File) -> Result<(u64, Digest), NotFed> {
    let mut head = Vec::new();
    let mut digest = Digester::default();
    file.rewind()
        .and_then(|()| file.take(HEADER_BYTES).read_to_end(&mut head))
        .map_err(NotFed::Unreadable)?;
    let dataset_at = file_meta::decode(&head).ok_or(NotFed::NoHeader)?.dataset_at;
    digest.update(&head);
    let mut size = head.len() as u64;
    let rest = head.get(dataset_at..).unwrap_or_default();
    reception.append(rest).map_err(NotFed::Refused)?;
    let mut block = vec![0; READ_BYTES];
    loop {
        let count = match file.read(&mut block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count.map_err(NotFed::Unreadable)?,
        };
        let bytes = block.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok((size, digest.digest()));
        }
        size += count as u64;
        digest.update(bytes);
        reception.append(bytes).map_err(NotFed::Refused)?;
    }
}

fn hexadecimal(digest: Digest) -> String {
    format!("{:032x}", u128::from_be_bytes(digest))
}
