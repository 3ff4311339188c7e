//! Stored files against their records: what a file says of itself, and a record for a file that has none.
//!
//! After a stop that was not in order, rows may be missing that were acknowledged, if the database or its log was damaged. Which
//! files may be concerned is noted in `.outbox/recover` before anything else happens, so that the walk begins again where
//! it is interrupted; it runs beside reception. A visible file always has its row, so what has none has lost it.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::dataset::index::{IndexPlan, InstanceIndex};
use crate::dataset::scan::{ScanError, ScanLimits};
use crate::dataset::stream::DatasetScan;
use crate::digest::{Digest, Digester};
use crate::engine::{Engine, Findings};
use crate::file_meta::{self, FileMeta};
use crate::file_records::{facts_of_file, place};
use crate::layout::{InstancePath, TenantId, OUTBOX};
use crate::outbox::{Found, NewRow, OutboxError};
use crate::record::Facts;
use crate::status::Refusal;
use crate::store::Store;
use crate::uid::Uid;

const HEAD_BYTES: usize = 4096;
const READ_BYTES: usize = 256 * 1024;
/// File systems and clocks are not exact: a file that changed so long before the moment in question is looked at too.
const MARGIN: Duration = Duration::from_secs(600);
/// Bytes are compared with records of files that changed so long before it: a disk has what is older.
const COMPARED: Duration = Duration::from_secs(60);
const NOTE: &str = "recover";

/// A stored file as it is.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Bytes of the file.
    pub size: u64,
    /// Digest of the file.
    pub digest: Digest,
    /// Its header.
    pub meta: FileMeta,
    /// What its data set is.
    pub index: InstanceIndex,
}

/// Why a file is not one of ours, or cannot be told to be.
#[derive(Debug, thiserror::Error)]
pub enum NotOurs {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It does not begin as a PS3.10 file.
    #[error("not a PS3.10 file")]
    NoHeader,
    /// Its data set is damaged.
    #[error("the data set: {0}")]
    Dataset(#[from] ScanError),
    /// Its data set does not say what it is.
    #[error("the data set: {}", .0.comment())]
    Index(Refusal),
    /// It lies elsewhere than it belongs.
    #[error("it is another instance than its path says")]
    Misplaced,
    /// Another program wrote it.
    #[error("another program wrote it")]
    Foreign,
    /// The outbox.
    #[error("outbox: {0}")]
    Outbox(#[from] OutboxError),
    /// The service stops.
    #[error("interrupted")]
    Interrupted,
}

/// Reads a whole file: size, digest, header, and what `plan` says. `stop` ends it early.
///
/// # Errors
/// [`NotOurs`].
pub fn examine(
    mut file: &File,
    plan: &IndexPlan,
    limits: ScanLimits,
    max_decoded_bytes: u64,
    stop: &AtomicBool,
) -> Result<Examined, NotOurs> {
    file.rewind()?;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let meta = file_meta::decode(&head).ok_or(NotOurs::NoHeader)?;
    let mut scan = DatasetScan::new(&meta.transfer_syntax, plan.tags(), limits, max_decoded_bytes);
    let mut hasher = Digester::default();
    hasher.update(&head);
    scan.feed(head.get(meta.dataset_at..).unwrap_or_default())?;
    let mut size = head.len() as u64;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if stop.load(Ordering::Acquire) {
            return Err(NotOurs::Interrupted);
        }
        let count = match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        if count == 0 {
            break;
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        hasher.update(bytes);
        scan.feed(bytes)?;
        size += count as u64;
    }
    scan.finish()?;
    let mut index = plan
        .read(scan.captured(), scan.encoding())
        .map_err(NotOurs::Index)?;
    index.anomalies = index.anomalies.and(scan.anomalies());
    Ok(Examined {
        size,
        digest: hasher.digest(),
        meta,
        index,
    })
}

/// Which files to look at, as noted by the start-up that found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Concerned {
    /// All.
    All,
    /// Those that changed since.
    Since(SystemTime),
}

/// Notes it durably; an earlier note that concerns more stays.
pub(crate) fn note(root: &Path, concerned: Concerned) -> io::Result<()> {
    let file = root.join(OUTBOX).join(NOTE);
    let since = |concerned| match concerned {
        Concerned::All => 0,
        Concerned::Since(moment) => DateTime::<Utc>::from(moment).timestamp().max(0),
    };
    let noted = noted(root)?.map_or(i64::MAX, since);
    fs::write(&file, noted.min(since(concerned)).to_string())?;
    File::open(&file)?.sync_all()?;
    File::open(root.join(OUTBOX))?.sync_all()
}

/// What was noted. A note that cannot be understood concerns everything.
pub(crate) fn noted(root: &Path) -> io::Result<Option<Concerned>> {
    let file = root.join(OUTBOX).join(NOTE);
    let text = match fs::read(&file) {
        // A power cut may leave anything in a file that was not synced yet.
        Ok(content) => String::from_utf8_lossy(&content).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(io::Error::new(
                error.kind(),
                format!("{}: {error}", file.display()),
            ))
        }
    };
    Ok(Some(match text.trim().parse::<u64>() {
        Ok(seconds) if seconds > 0 => Concerned::Since(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        _ => Concerned::All,
    }))
}

/// What the walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Files looked at.
    pub files: u64,
    /// Files without a record that have one now.
    pub recorded: u64,
    /// Files without a record that are not ours, or damaged: they stay without.
    pub left: u64,
    /// Records since the moment in question whose file is not there.
    pub missing: Found<String>,
    /// Files that are not what their record says: they stay where they are, and their records are published.
    pub changed: Found<String>,
    /// Files and folders that cannot be read, and why: the next walk looks at them again.
    pub unreadable: Found<(String, String)>,
}

/// Which files a walk looks at.
#[derive(Clone, Copy, Debug)]
struct Walk {
    /// Files that changed since; none: all.
    since: Option<SystemTime>,
    /// Of files that changed since then and have a record, the bytes are compared with it.
    compared_since: Option<SystemTime>,
}

/// What came of a wish for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Republished {
    /// The file had no record and has one now.
    Recorded,
    /// Its record is delivered again, with the same trace id.
    Again,
    /// Its record waits for delivery anyway.
    Waiting,
}

impl Engine {
    /// Goes through the files that an interrupted predecessor may have left without a record, and records them. `None` where
    /// there is nothing to do. What cannot be read is named, and the next call looks again.
    ///
    /// # Errors
    /// The outbox or the storage root failed, or the service stops: the next call, or the next start, begins again.
    pub fn recover(&self) -> Result<Option<Recovered>, NotOurs> {
        let root = &self.config().root;
        let Some(concerned) = noted(root)? else {
            return Ok(None);
        };
        let before =
            |moment: SystemTime, margin| moment.checked_sub(margin).unwrap_or(SystemTime::UNIX_EPOCH);
        let walk = match concerned {
            Concerned::All => Walk {
                since: None,
                compared_since: None,
            },
            Concerned::Since(moment) => Walk {
                since: Some(before(moment, MARGIN)),
                // Once: what could not be read is looked at again, not everything.
                compared_since: self.findings().compares_now().then(|| before(moment, COMPARED)),
            },
        };
        let mut recovered = Recovered::default();
        let compares = walk.compared_since.is_some();
        for store in self.tenants().stores() {
            let is_tenant = |name: &str| TenantId::parse(name).is_ok();
            for tenant in names(store.root_path(), is_tenant, &mut recovered) {
                if std::ptr::eq(self.tenants().store_of_path(&format!("{tenant}/")), store) {
                    self.recover_tenant(store, &tenant, walk, &mut recovered)?;
                }
            }
        }
        if let Some(since) = walk.since {
            self.missing_since(since, &mut recovered)?;
        }
        self.findings().note(&recovered, compares);
        if recovered.unreadable.count == 0 {
            fs::remove_file(root.join(OUTBOX).join(NOTE))?;
        }
        Ok(Some(recovered))
    }

    fn recover_tenant(
        &self,
        store: &Store,
        tenant: &str,
        walk: Walk,
        recovered: &mut Recovered,
    ) -> Result<(), NotOurs> {
        let is_uid = |name: &str| Uid::parse(name.as_bytes()).is_ok();
        let is_file = |name: &str| name.strip_suffix(".dcm").is_some_and(is_uid);
        let tenant_folder = store.root_path().join(tenant);
        for date in names(&tenant_folder, |name| name.len() == 8 && is_uid(name), recovered) {
            let date_folder = tenant_folder.join(&date);
            for study in names(&date_folder, is_uid, recovered) {
                let study_folder = date_folder.join(&study);
                for series in names(&study_folder, is_uid, recovered) {
                    let folder = study_folder.join(&series);
                    if !has_changed(&folder, walk.since, recovered) {
                        continue;
                    }
                    for file in names(&folder, is_file, recovered) {
                        if self.is_recovery_stopped() {
                            return Err(NotOurs::Interrupted);
                        }
                        let path = folder.join(&file);
                        if !has_changed(&path, walk.since, recovered) {
                            continue;
                        }
                        recovered.files += 1;
                        let is_compared = walk.compared_since.is_some()
                            && has_changed(&path, walk.compared_since, recovered);
                        let relative = format!("{tenant}/{date}/{study}/{series}/{file}");
                        self.recover_file(&relative, is_compared, recovered)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn recover_file(
        &self,
        relative: &str,
        is_compared: bool,
        recovered: &mut Recovered,
    ) -> Result<(), NotOurs> {
        let outcome = match self.outbox().newest(relative)? {
            Some(_) if !is_compared => return Ok(()),
            Some(_) => self.is_changed(relative).map(|changed| {
                if changed {
                    recovered.changed.push(relative.to_owned());
                }
            }),
            None => self.record_file(relative).map(|()| recovered.recorded += 1),
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(error @ (NotOurs::Interrupted | NotOurs::Outbox(_))) => Err(error),
            // Gone meanwhile.
            Err(NotOurs::Io(error)) if is_gone(&error) => Ok(()),
            Err(NotOurs::Io(error)) => {
                recovered
                    .unreadable
                    .push((relative.to_owned(), error.to_string()));
                Ok(())
            }
            // It is not ours to judge: `verify` shows it.
            Err(_) => {
                recovered.left += 1;
                Ok(())
            }
        }
    }

    /// Whether a file is not what its newest record says.
    fn is_changed(&self, relative: &str) -> Result<bool, NotOurs> {
        let store = self.tenants().store_of_path(relative);
        let differs = || -> Result<bool, NotOurs> {
            let Some(row) = self.outbox().newest(relative)?.filter(|row| row.is_committed) else {
                return Ok(false);
            };
            let found = store.measured(relative)?;
            Ok(found.is_some_and(|found| found != (row.size, row.digest)))
        };
        // It may have been replaced while it was read: only then is it worth to hold up who wants to write.
        Ok(differs()? && {
            let _one_writer = store.lock(relative);
            differs()?
        })
    }

    /// Records since a moment whose files are not there: at a durability below full, a power cut may have taken their names.
    fn missing_since(&self, since: SystemTime, recovered: &mut Recovered) -> Result<(), NotOurs> {
        // What this process has recorded has its file.
        let [since, until] =
            [since, self.opened()].map(|moment| DateTime::<Utc>::from(moment).timestamp_micros());
        self.outbox().flush_rows()?;
        let mut before = None;
        loop {
            let (paths, next) = self.outbox().paths_between(since, until, before)?;
            for path in paths {
                if self.is_recovery_stopped() {
                    return Err(NotOurs::Interrupted);
                }
                let file = self.tenants().store_of_path(&path).root_path().join(&path);
                match file.try_exists() {
                    Ok(true) => {}
                    Ok(false) => recovered.missing.push(path),
                    Err(error) => recovered.unreadable.push((path, error.to_string())),
                }
            }
            match next {
                Some(_) => before = next,
                None => return Ok(()),
            }
        }
    }

    /// Makes sure that a stored file has a record. The caller has the lock of its path.
    ///
    /// # Errors
    /// A700, also where the file is not one of ours, so that it cannot have one.
    pub(crate) fn ensure_recorded(&self, relative: &str) -> Result<(), Refusal> {
        if self.outbox().newest(relative)?.is_some() {
            return Ok(());
        }
        let (row, _) =
            self.row_of_file(relative, Uuid::now_v7(), Utc::now())
                .map_err(|error| match error {
                    NotOurs::Io(error) => Refusal::Storage(error),
                    NotOurs::Outbox(error) => Refusal::Outbox(error),
                    _ => Refusal::Unrecorded,
                })?;
        Ok(self.record(row)?)
    }

    fn record(&self, row: NewRow) -> Result<(), OutboxError> {
        let mut entry = self.outbox().insert(row)?;
        entry.wait()?;
        self.outbox().publishable(entry)
    }

    /// Has the record of a stored file delivered, again or for the first time. The path is relative to the storage root.
    ///
    /// # Errors
    /// [`NotOurs`].
    pub fn republish(&self, relative: &str) -> Result<Republished, NotOurs> {
        match self.outbox().newest(relative)? {
            None => self.record_file(relative).map(|()| Republished::Recorded),
            Some(row) if row.waits => Ok(Republished::Waiting),
            Some(row) => {
                let trace_id = Uuid::parse_str(&row.trace_id).unwrap_or_else(|_| Uuid::now_v7());
                let created = DateTime::from_timestamp_micros(row.created).unwrap_or_else(Utc::now);
                let record = if row.has_payload {
                    None
                } else {
                    let (new, _) = self.row_of_file(relative, trace_id, created)?;
                    Some((new.key, new.payload))
                };
                self.outbox().republish(row.id, record)?;
                Ok(Republished::Again)
            }
        }
    }

    /// Takes up at most `most` wishes of operators; what became of each, by path.
    ///
    /// # Errors
    /// [`NotOurs::Outbox`], [`NotOurs::Interrupted`].
    pub fn republish_wished(
        &self,
        most: u32,
    ) -> Result<Vec<(String, Result<Republished, NotOurs>)>, NotOurs> {
        let wishes = self.outbox().republish_wishes(most)?;
        let mut outcomes = Vec::with_capacity(wishes.len());
        let mut taken = Vec::with_capacity(wishes.len());
        for (id, path) in wishes {
            let outcome = self.republish(&path);
            if let Err(error @ (NotOurs::Interrupted | NotOurs::Outbox(_))) = outcome {
                return Err(error);
            }
            taken.push(id);
            outcomes.push((path, outcome));
        }
        if !taken.is_empty() {
            self.outbox().forget_wishes(taken)?;
        }
        Ok(outcomes)
    }

    /// A new record for a stored file.
    fn record_file(&self, relative: &str) -> Result<(), NotOurs> {
        let (row, _) = self.row_of_file(relative, Uuid::now_v7(), Utc::now())?;
        let store = self.tenants().store_of_path(relative);
        let _one_writer = store.lock(relative);
        // What was read may have been replaced meanwhile; then it has a row.
        if self.outbox().newest(relative)?.is_some() {
            return Ok(());
        }
        Ok(self.record(row)?)
    }

    /// What is known from the file alone: who sent it is its Source Application Entity Title, the address is lost, and what it
    /// was before it was stored, too.
    fn row_of_file(
        &self,
        relative: &str,
        trace_id: Uuid,
        created: DateTime<Utc>,
    ) -> Result<(NewRow, InstancePath), NotOurs> {
        let store = self.tenants().store_of_path(relative);
        let (_, file) = store
            .folders()
            .open_relative(relative)?
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let limits = ScanLimits {
            nesting: self.config().limits.nesting,
            elements: self.config().limits.max_elements,
            ..ScanLimits::default()
        };
        let found = examine(
            &file,
            self.tenants().stored_plan(),
            limits,
            self.config().limits.max_decoded_bytes,
            self.recovery_stop(),
        )?;
        let (tenant, path) = place(&found.meta, &found.index, relative)?;
        let file_path = store.absolute(&path);
        let facts = Facts {
            trace_id,
            created,
            ..facts_of_file(
                &self.config().record,
                &tenant,
                &found.meta,
                &found.index,
                (&file_path, found.size),
            )
        };
        let row = NewRow {
            trace_id: trace_id.to_string(),
            key: facts.key(),
            payload: facts.to_json().map_err(|_| NotOurs::Index(Refusal::Bug))?,
            path: relative.to_owned(),
            size: found.size,
            digest: found.digest,
            created: created.timestamp_micros(),
            replaces: false,
        };
        Ok((row, path))
    }
}

/// The names in a folder that are wanted, links left out. A folder that is gone has none; of one that cannot be read, the names
/// that could be.
fn names(folder: &Path, wanted: impl Fn(&str) -> bool, recovered: &mut Recovered) -> Vec<String> {
    let mut names = Vec::new();
    let read = fs::read_dir(folder).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str().filter(|name| wanted(name)) {
                if !entry.file_type()?.is_symlink() {
                    names.push(name.to_owned());
                }
            }
        }
        Ok(())
    });
    recovered.note_unreadable(folder, read);
    names
}

/// By the time of the last change of the inode, which a rename sets as well and nobody can set back.
fn has_changed(path: &Path, since: Option<SystemTime>, recovered: &mut Recovered) -> bool {
    let Some(since) = since else { return true };
    match fs::symlink_metadata(path) {
        Ok(facts) => {
            let changed = u64::try_from(facts.ctime()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(changed) >= since
        }
        Err(error) => {
            recovered.note_unreadable(path, Err(error));
            false
        }
    }
}

impl Recovered {
    fn note_unreadable(&mut self, path: &Path, read: io::Result<()>) {
        if let Err(error) = read {
            if !is_gone(&error) {
                self.unreadable
                    .push((path.display().to_string(), error.to_string()));
            }
        }
    }
}

impl Findings {
    /// Whether no walk has compared files with their records yet.
    fn compares_now(&self) -> bool {
        !self.compared.load(Ordering::Relaxed)
    }

    /// What the last walk found takes the place of what the one before it did.
    fn note(&self, recovered: &Recovered, compared: bool) {
        if compared {
            self.changed.store(recovered.changed.count, Ordering::Relaxed);
            self.compared.store(true, Ordering::Relaxed);
        }
        self.unreadable
            .store(recovered.unreadable.count, Ordering::Relaxed);
        self.missing.store(recovered.missing.count, Ordering::Relaxed);
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_never_concerns_less_than_the_one_before() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(OUTBOX)).unwrap();
        let at = |seconds| Concerned::Since(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(noted(root.path()).unwrap(), None);
        for (said, expected) in [
            (at(2000), at(2000)),
            (at(3000), at(2000)),
            (at(1000), at(1000)),
            (Concerned::All, Concerned::All),
            (at(1000), Concerned::All),
        ] {
            note(root.path(), said).unwrap();
            assert_eq!(noted(root.path()).unwrap(), Some(expected));
        }
        for torn in [&b""[..], b"?", &[0xFF, 0, 0x80]] {
            fs::write(root.path().join(OUTBOX).join(NOTE), torn).unwrap();
            assert_eq!(noted(root.path()).unwrap(), Some(Concerned::All));
        }
    }

    #[test]
    fn what_is_no_dicom_file_is_told_apart() {
        let file = tempfile::tempfile().unwrap();
        let go = AtomicBool::new(false);
        let plan = IndexPlan::requiring(&[]).unwrap();
        let examined = examine(&file, &plan, ScanLimits::default(), 1 << 20, &go);
        assert!(matches!(examined, Err(NotOurs::NoHeader)));
    }
}
