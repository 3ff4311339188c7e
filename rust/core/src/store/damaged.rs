//! Damaged data sets that are kept instead of being refused (`dicom_store_scp.malformed`), within a bound. None is ever evicted.
//!
//! An entry of `.quarantine/` is two files: `damaged-UUID.dcm` is our PS3.10 header and the data set as received,
//! `damaged-UUID.json` the note. The UUID is of version 7, so that a name tells when its data set came. The note gets its name
//! first: one without its file was left by an interruption, and was never acknowledged.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::spool::Spool;
use crate::config::Durability;
use crate::failpoint;
use crate::layout::QUARANTINE;
use crate::os;

/// What the names of entries begin with. Files that were put aside at a start have none.
pub const PREFIX: &str = "damaged-";
const FILE: &str = ".dcm";
const NOTE: &str = ".json";
/// A file counts in whole blocks: the smallest ones must not use up the disk within the bound.
const BLOCK_BYTES: u64 = 4096;
/// Operators make room. Where there is none, the names are counted again so often at the most.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// Longer than every note.
const MOST_NOTE_BYTES: u64 = 1 << 20;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The damaged data sets of a storage root.
#[derive(Debug)]
pub struct DamagedDataSets {
    root: PathBuf,
    durability: Durability,
    max_bytes: u64,
    /// Never held while a disk is waited for.
    figures: Mutex<Figures>,
    /// Held while names are given, taken or counted; when they were counted last.
    names: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Figures {
    data_sets: u64,
    bytes: u64,
    since_ms: Option<u64>,
    reserved: u64,
}

/// What is kept, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DamagedUsage {
    /// Data sets.
    pub data_sets: u64,
    /// Bytes of their files and notes, in whole blocks.
    pub bytes: u64,
    /// Bytes that may be kept.
    pub max_bytes: u64,
    /// When the oldest came, milliseconds since 1970.
    pub since_ms: Option<u64>,
}

/// Room for an entry. Dropped, it is given back.
#[derive(Debug)]
pub struct Room<'d> {
    kept: &'d DamagedDataSets,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut figures = lock(&self.kept.figures);
        figures.reserved = figures.reserved.saturating_sub(self.bytes);
    }
}

/// What an entry of a file and a note of these sizes counts.
#[must_use]
pub fn weight(file_bytes: u64, note_bytes: u64) -> u64 {
    [file_bytes, note_bytes]
        .iter()
        .map(|bytes| bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES))
        .fold(0, u64::saturating_add)
}

impl DamagedDataSets {
    pub(super) fn new(root: &Path, durability: Durability, max_bytes: u64) -> Self {
        Self {
            root: root.to_owned(),
            durability,
            max_bytes,
            figures: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// What is kept, as far as is known: this asks no disk.
    #[must_use]
    pub fn usage(&self) -> DamagedUsage {
        let figures = lock(&self.figures);
        DamagedUsage {
            data_sets: figures.data_sets,
            bytes: figures.bytes,
            max_bytes: self.max_bytes,
            since_ms: figures.since_ms,
        }
    }

    /// Whether there is room for so many bytes more.
    ///
    /// # Errors
    /// What the file system says when the names are counted.
    pub(crate) fn has_room(&self, bytes: u64) -> io::Result<bool> {
        Ok(self.room(bytes)?.is_some())
    }

    /// Room for an entry, `None` at the bound.
    ///
    /// # Errors
    /// What the file system says when the names are counted.
    pub(crate) fn room(&self, bytes: u64) -> io::Result<Option<Room<'_>>> {
        if let Some(room) = self.reserve(bytes) {
            return Ok(Some(room));
        }
        let mut counted = lock(&self.names);
        if counted.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL) {
            self.count(&mut counted)?;
        }
        Ok(self.reserve(bytes))
    }

    fn reserve(&self, bytes: u64) -> Option<Room<'_>> {
        let mut figures = lock(&self.figures);
        let used = figures.bytes.saturating_add(figures.reserved);
        if used.saturating_add(bytes) > self.max_bytes {
            return None;
        }
        figures.reserved += bytes;
        Some(Room { kept: self, bytes })
    }

    /// Keeps a spooled file with its note; both are as durable as configured afterwards.
    ///
    /// # Errors
    /// What the file system says: nothing is left of it then.
    pub(crate) fn keep(
        &self,
        spool: &mut Spool<'_>,
        incoming: BorrowedFd<'_>,
        id: Uuid,
        note: &[u8],
        room: Room<'_>,
    ) -> io::Result<()> {
        let [file_name, note_name] = names_of(&name_of(id));
        let temporary = format!("{note_name}.part");
        spool.write_out()?;
        spool.give_reserved_back()?;
        if self.durability.syncs_data() {
            spool.sync()?;
        }
        failpoint::hit("damaged_written");
        let folder = self.folder()?;
        let kept = self.write_note(incoming, &temporary, note).and_then(|()| {
            let _no_other = lock(&self.names);
            rustix::fs::renameat(incoming, temporary.as_str(), &folder, note_name.as_str())?;
            self.sync(&folder)?;
            failpoint::hit("damaged_noted");
            spool.publish_in(folder.as_fd(), &file_name)?;
            failpoint::hit("damaged_named");
            self.sync(&folder)?;
            self.note_kept(id, room.bytes);
            Ok(())
        });
        drop(room);
        if kept.is_err() {
            // Best effort: it was not acknowledged, and a note without its file goes at the next start.
            for (of, name) in [
                (folder.as_fd(), &file_name),
                (folder.as_fd(), &note_name),
                (incoming, &temporary),
            ] {
                let _ = rustix::fs::unlinkat(of, name.as_str(), AtFlags::empty());
            }
        }
        kept
    }

    fn write_note(&self, incoming: BorrowedFd<'_>, name: &str, note: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file: File = rustix::fs::openat(incoming, name, flags, Mode::from_raw_mode(0o600))?.into();
        file.write_all(note)?;
        if self.durability.syncs_data() {
            file.sync_all()?;
        }
        Ok(())
    }

    fn note_kept(&self, id: Uuid, bytes: u64) {
        let mut figures = lock(&self.figures);
        figures.data_sets += 1;
        figures.bytes += bytes;
        figures.since_ms = figures.since_ms.into_iter().chain(moment_of(id)).min();
    }

    /// Counts the names anew: operators remove some.
    ///
    /// # Errors
    /// What the file system says.
    pub fn recount(&self) -> io::Result<()> {
        self.count(&mut lock(&self.names))
    }

    fn count(&self, counted: &mut Option<Instant>) -> io::Result<()> {
        let mut found = Figures::default();
        for entry in self.entries()? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((id, ending)) = name.to_str().and_then(parse) else {
                continue;
            };
            let bytes = match entry.metadata() {
                Ok(facts) => facts.len(),
                // An operator removed it in this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            found.bytes += weight(bytes, 0);
            if ending == FILE {
                found.data_sets += 1;
                found.since_ms = found.since_ms.into_iter().chain(moment_of(id)).min();
            }
        }
        let mut figures = lock(&self.figures);
        found.reserved = figures.reserved;
        *figures = found;
        *counted = Some(Instant::now());
        Ok(())
    }

    /// Removes notes whose files are not there: their data sets were never acknowledged. How many, and those that could not be removed.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn clear_unfinished(&self) -> io::Result<(usize, Vec<(String, String)>)> {
        let folder = self.root.join(QUARANTINE);
        let (mut removed, mut left) = (0, Vec::new());
        for entry in self.entries()? {
            let name = entry?.file_name();
            let Some((id, NOTE)) = name.to_str().and_then(parse) else {
                continue;
            };
            let [file_name, _] = names_of(&name_of(id));
            if folder.join(file_name).try_exists()? {
                continue;
            }
            match std::fs::remove_file(folder.join(&name)) {
                Ok(()) => removed += 1,
                Err(error) => left.push((folder.join(&name).display().to_string(), error.to_string())),
            }
        }
        Ok((removed, left))
    }

    fn entries(&self) -> io::Result<Box<dyn Iterator<Item = io::Result<std::fs::DirEntry>>>> {
        match std::fs::read_dir(self.root.join(QUARANTINE)) {
            Ok(entries) => Ok(Box::new(entries)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Box::new(std::iter::empty())),
            Err(error) => Err(error),
        }
    }

    /// Note and file of an entry; `None` where there is none of this name.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(&self, name: &str) -> io::Result<Option<(Vec<u8>, File)>> {
        let Some(id) = id_of(name) else { return Ok(None) };
        let [file_name, note_name] = names_of(&name_of(id));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = self.opened_folder().and_then(|folder| {
            let open = |name: &str| rustix::fs::openat(&folder, name, flags, Mode::empty());
            Ok((File::from(open(&note_name)?), File::from(open(&file_name)?)))
        });
        let (note, file) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut text = Vec::new();
        note.take(MOST_NOTE_BYTES).read_to_end(&mut text)?;
        Ok(Some((text, file)))
    }

    /// Removes an entry whose data set is stored by now. The file goes first: what is left of it then is removed at the next start.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn remove(&self, name: &str, bytes: u64) -> io::Result<()> {
        let Some(id) = id_of(name) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let _no_other = lock(&self.names);
        let folder = self.opened_folder()?;
        for name in names_of(&name_of(id)) {
            match rustix::fs::unlinkat(&folder, name.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.sync(&folder)?;
        let mut figures = lock(&self.figures);
        figures.data_sets = figures.data_sets.saturating_sub(1);
        figures.bytes = figures.bytes.saturating_sub(bytes);
        Ok(())
    }

    /// The folder, which is made where there is none; its own name is as durable as those in it.
    fn folder(&self) -> io::Result<OwnedFd> {
        let root = rustix::fs::open(
            &self.root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        match rustix::fs::mkdirat(&root, QUARANTINE, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.sync(&root)?;
        Ok(rustix::fs::openat(&root, QUARANTINE, DIRECTORY, Mode::empty())?)
    }

    fn opened_folder(&self) -> rustix::io::Result<OwnedFd> {
        rustix::fs::open(self.root.join(QUARANTINE), DIRECTORY, Mode::empty())
    }

    fn sync(&self, folder: &OwnedFd) -> rustix::io::Result<()> {
        if self.durability.syncs_directories() {
            os::sync_folder(folder)?;
        }
        Ok(())
    }
}

/// The name of an entry.
#[must_use]
pub(crate) fn name_of(id: Uuid) -> String {
    format!("{PREFIX}{id}")
}

/// File and note.
fn names_of(name: &str) -> [String; 2] {
    [FILE, NOTE].map(|ending| format!("{name}{ending}"))
}

fn id_of(name: &str) -> Option<Uuid> {
    Uuid::parse_str(name.strip_prefix(PREFIX)?).ok()
}

/// What the name of a file says: the id of its entry, and which of the two it is.
fn parse(file_name: &str) -> Option<(Uuid, &'static str)> {
    [FILE, NOTE]
        .into_iter()
        .find_map(|ending| Some((id_of(file_name.strip_suffix(ending)?)?, ending)))
}

/// Milliseconds since 1970.
fn moment_of(id: Uuid) -> Option<u64> {
    let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
    Some(seconds.saturating_mul(1000) + u64::from(nanoseconds) / 1_000_000)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
