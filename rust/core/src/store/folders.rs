//! Folders beneath the root, opened without following a link.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::layout::InstancePath;
use crate::os;

/// Series folders remembered as durable; beyond this the set starts anew, which costs syncs and nothing else.
const REMEMBERED: usize = 65_536;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The folders of a storage root.
#[derive(Debug)]
pub struct Folders {
    root: OwnedFd,
    /// Series folders whose names, and those of all their parents, were synced since start-up.
    durable: Mutex<HashSet<String>>,
    /// Whether there is `openat2` (Linux 5.6), and no filter of system calls forbids it.
    has_openat2: AtomicBool,
}

/// An open series folder.
#[derive(Debug)]
pub struct SeriesFolder(OwnedFd);

/// The folders that were made for an instance. Dropped before [`Made::keep`], those that are empty go again.
#[derive(Debug)]
pub struct Made<'f> {
    folders: &'f Folders,
    series: &'f str,
    /// How many levels of the path were there before; all of them where nothing was made.
    first_new: Option<usize>,
}

impl Made<'_> {
    /// They are used now.
    pub fn keep(mut self) {
        self.first_new = None;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Some(first_new) = self.first_new {
            self.folders.remove_empty(self.series, first_new);
        }
    }
}

impl Folders {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            durable: Mutex::new(HashSet::new()),
            has_openat2: AtomicBool::new(true),
        }
    }

    /// Opens the series folder of an instance; `None` when a level does not exist.
    ///
    /// # Errors
    /// What the file system says; a link or plain file in place of a folder is an error.
    pub fn open(&self, path: &InstancePath) -> io::Result<Option<SeriesFolder>> {
        Ok(self.open_folder(path.folders())?.map(SeriesFolder))
    }

    /// Opens the series folder of an instance, making what is missing. What was made goes again with [`Made`], and where this fails.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create<'f>(&'f self, path: &'f InstancePath) -> io::Result<(SeriesFolder, Made<'f>)> {
        match self.try_create(path) {
            // Another instance that failed has removed one of them, which was empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.try_create(path),
            created => created,
        }
    }

    fn try_create<'f>(&'f self, path: &'f InstancePath) -> io::Result<(SeriesFolder, Made<'f>)> {
        let mut made = Made {
            folders: self,
            series: path.folders(),
            first_new: None,
        };
        let mut level: Option<OwnedFd> = None;
        for (depth, name) in path.folders().split('/').enumerate() {
            let parent = level.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let (next, is_new) = self.open_or_make(parent, name, path)?;
            if is_new && made.first_new.is_none() {
                made.first_new = Some(depth);
            }
            level = Some(next);
        }
        let series = level.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok((SeriesFolder(series), made))
    }

    fn open_or_make(
        &self,
        parent: rustix::fd::BorrowedFd<'_>,
        name: &str,
        path: &InstancePath,
    ) -> io::Result<(OwnedFd, bool)> {
        match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => {}
            opened => return Ok((opened?, false)),
        }
        // Before the folder exists: nobody may take it for durable on the word of its predecessor.
        self.durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(path.folders());
        let made = match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
            Ok(folder) => Ok((folder, made)),
            Err(error) => {
                if made {
                    // Best effort: it is empty, or somebody else uses it already.
                    let _ = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
                }
                Err(error.into())
            }
        }
    }

    /// Best effort: a folder that another instance already uses is not empty and stays.
    fn remove_empty(&self, series: &str, first_new: usize) {
        let levels = series.split('/').count();
        let mut relative = series;
        for _ in first_new..levels {
            let (parent, name) = relative.rsplit_once('/').unwrap_or(("", relative));
            let removed = if parent.is_empty() {
                rustix::fs::unlinkat(&self.root, name, AtFlags::REMOVEDIR)
            } else {
                match self.open_folder(parent) {
                    Ok(Some(parent)) => rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR),
                    Ok(None) => Err(Errno::NOENT),
                    Err(_) => return,
                }
            };
            // One that could not be made is not there either.
            if !matches!(removed, Ok(()) | Err(Errno::NOENT)) {
                return;
            }
            relative = parent;
        }
    }

    /// Makes the names in a series folder durable, and on first use those of all its parents.
    ///
    /// Another association may have made the folder and not yet synced it, so its existence proves nothing.
    ///
    /// # Errors
    /// What `fsync` says.
    pub fn sync(&self, folder: &SeriesFolder, path: &InstancePath) -> io::Result<()> {
        let key = path.folders();
        let known = self
            .durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(key);
        if known {
            os::sync_folder(folder.series())?;
            return Ok(());
        }
        self.sync_all(folder, key)?;
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable.len() >= REMEMBERED {
            durable.clear();
        }
        durable.insert(key.to_owned());
        Ok(())
    }

    /// Opens `tenant/date/study/series/file` and its folder; `None` when it is not there.
    pub(crate) fn open_relative(&self, relative: &str) -> io::Result<Option<(SeriesFolder, File)>> {
        let Some((folders, name)) = relative.rsplit_once('/') else {
            return Ok(None);
        };
        let Some(folder) = self.open_folder(folders)?.map(SeriesFolder) else {
            return Ok(None);
        };
        Ok(folder.open_file(name)?.map(|file| (folder, file)))
    }

    fn open_folder(&self, relative: &str) -> io::Result<Option<OwnedFd>> {
        if self.has_openat2.load(Ordering::Relaxed) {
            match os::open_beneath(&self.root, relative, DIRECTORY) {
                Ok(folder) => return Ok(Some(folder)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOSYS | Errno::PERM) => self.has_openat2.store(false, Ordering::Relaxed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.open_levels(relative)?.pop())
    }

    /// Every folder on the way, or none where one is missing.
    fn open_levels(&self, relative: &str) -> io::Result<Vec<OwnedFd>> {
        let mut levels: Vec<OwnedFd> = Vec::with_capacity(4);
        for name in relative.split('/') {
            let parent = levels.last().map_or(self.root.as_fd(), AsFd::as_fd);
            match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
                Ok(level) => levels.push(level),
                Err(Errno::NOENT) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(levels)
    }

    /// Syncs a series folder and all its parents up to the root, the deepest first.
    pub(super) fn sync_all(&self, folder: &SeriesFolder, relative: &str) -> io::Result<()> {
        os::sync_folder(&folder.0)?;
        let (parents, _) = relative.rsplit_once('/').ok_or(io::ErrorKind::NotFound)?;
        let parents = self.open_levels(parents)?;
        if parents.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        for parent in parents.iter().rev() {
            os::sync_folder(parent)?;
        }
        os::sync_folder(&self.root)?;
        Ok(())
    }
}

impl SeriesFolder {
    /// The series folder itself.
    #[must_use]
    pub fn series(&self) -> rustix::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens a regular file in the folder for reading; `None` when there is none.
    ///
    /// # Errors
    /// What the file system says; anything but a regular file is an error.
    pub fn open_file(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(self.series(), name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let facts = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(Some(File::from(file)))
    }

    /// Removes a file of the folder.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.series(), name, AtFlags::empty())?)
    }
}
