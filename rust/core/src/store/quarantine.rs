//! Files put aside at start-up: what lies at the place of an instance that may have been acknowledged, and is not what its
//! record says. Nothing is deleted; an operator decides (`storescpd quarantine`).
//!
//! An entry is two files named by the trace id of the record: `.dcm`, moved here as it was found, and `.json`, which says why.
//! Damaged data sets lie in the same folder: [`super::damaged`].

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::damaged;
use super::folders::Folders;
use crate::digest::Digest;
use crate::layout::QUARANTINE;
use crate::os;

/// The quarantine of a storage root.
#[derive(Debug)]
pub struct Quarantine {
    root: PathBuf,
    files: AtomicU64,
}

/// What is known of a file that goes to quarantine.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Trace id of the record that will not be published.
    pub trace_id: &'a str,
    /// Path of the file relative to the storage root.
    pub path: &'a str,
    /// Size and digest that were to be recorded.
    pub recorded: (u64, Digest),
    /// Size and digest of the file.
    pub found: (u64, Digest),
    /// The record, JSON.
    pub record: &'a str,
    /// Why, for people.
    pub reason: &'a str,
}

#[derive(Serialize)]
struct Note<'a> {
    path: &'a str,
    reason: &'a str,
    quarantined_at: String,
    recorded_size: u64,
    recorded_digest: String,
    found_size: u64,
    found_digest: String,
    record: serde_json::Value,
}

impl Quarantine {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            files: AtomicU64::new(0),
        }
    }

    fn folder(&self) -> PathBuf {
        self.root.join(QUARANTINE)
    }

    /// Files that lie in it, as far as is known: this asks no disk.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    /// Counts the files anew: operators remove some.
    ///
    /// # Errors
    /// What the file system says.
    pub fn recount(&self) -> io::Result<()> {
        let mut files = 0;
        match fs::read_dir(self.folder()) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry?.file_name();
                    let is_file = Path::new(&name).extension().is_some_and(|ending| ending == "dcm");
                    let is_damaged = name.as_encoded_bytes().starts_with(damaged::PREFIX.as_bytes());
                    files += u64::from(is_file && !is_damaged);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.files.store(files, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it has the file of a record.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn holds(&self, trace_id: &str) -> io::Result<bool> {
        match Uuid::parse_str(trace_id) {
            Ok(id) => self.folder().join(format!("{id}.dcm")).try_exists(),
            Err(_) => Ok(false),
        }
    }

    /// Moves a file here. Its note is durable before it moves; both are durable afterwards.
    ///
    /// # Errors
    /// What the file system says: the file is where it was.
    pub(crate) fn take(&self, folders: &Folders, evidence: &Evidence<'_>) -> io::Result<()> {
        let found = folders.open_relative(evidence.path)?;
        let (Some((series, _)), Some((_, name))) = (found, evidence.path.rsplit_once('/')) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let path = self.folder();
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => File::open(&self.root)?.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let here = File::open(&path)?;
        let (note, file) = self.names_for(evidence.trace_id)?;
        let text = serde_json::to_string(&Note::of(evidence))?;
        fs::write(path.join(&note), text)?;
        File::open(path.join(&note))?.sync_all()?;
        os::sync_folder(&here)?;
        rustix::fs::renameat(series.series(), name, &here, file)?;
        os::sync_folder(&here)?;
        os::sync_folder(series.series())?;
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Names of a note and its file. Those of the trace id, unless a file has them already: nothing here is written over.
    fn names_for(&self, trace_id: &str) -> io::Result<(String, String)> {
        let id = Uuid::parse_str(trace_id).unwrap_or_else(|_| Uuid::now_v7());
        let names = |id: Uuid| (format!("{id}.json"), format!("{id}.dcm"));
        let (note, file) = names(id);
        if self.folder().join(&file).try_exists()? {
            return Ok(names(Uuid::now_v7()));
        }
        Ok((note, file))
    }
}

impl<'a> Note<'a> {
    fn of(evidence: &Evidence<'a>) -> Self {
        let hex = |digest: Digest| format!("{:032x}", u128::from_be_bytes(digest));
        Self {
            path: evidence.path,
            reason: evidence.reason,
            quarantined_at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            recorded_size: evidence.recorded.0,
            recorded_digest: hex(evidence.recorded.1),
            found_size: evidence.found.0,
            found_digest: hex(evidence.found.1),
            record: serde_json::from_str(evidence.record)
                .unwrap_or_else(|_| serde_json::Value::String(evidence.record.to_owned())),
        }
    }
}
