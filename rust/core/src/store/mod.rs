//! Durable files beneath one storage root.
//!
//! [`spool`] takes the bytes as they arrive, [`folders`] finds or makes the place without following a link,
//! and [`Store`] owns what both share. The order of the commit is in [`crate::ingest`].

pub mod damaged;
mod direct;
pub mod folders;
mod identity;
mod nameless;
mod path_locks;
pub mod quarantine;
pub mod replaced;
pub mod spool;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::config::Durability;
use crate::digest::{self, Digest, Digester};
use crate::file_meta;
use crate::layout::{InstancePath, INCOMING, OUTBOX};
use damaged::DamagedDataSets;
use direct::Direct;
use folders::{Folders, SeriesFolder};
use nameless::Nameless;
use path_locks::{PathLock, PathLocks};
use quarantine::Quarantine;
use replaced::{Replaced, ReplacedLimits};
use spool::Spool;

/// How often free space is asked for, in milliseconds.
const FREE_SPACE_INTERVAL_MS: u64 = 250;
const COPY_BYTES: usize = 256 * 1024;

/// The storage root and what is shared by all who write beneath it.
#[derive(Debug)]
pub struct Store {
    root_path: PathBuf,
    /// As records have it.
    root_text: String,
    incoming: OwnedFd,
    durability: Durability,
    keeps_order: bool,
    reserves: bool,
    nameless: Nameless,
    direct: Direct,
    folders: Folders,
    locks: PathLocks,
    free: FreeSpace,
    quarantine: Quarantine,
    damaged: DamagedDataSets,
    replaced: Replaced,
    _exclusive: File,
}

/// How a storage root is opened.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// What is synced.
    pub durability: Durability,
    /// Whether a root that is not there is made. If not, it must be there with its identity file: an unmounted disk is never
    /// taken for a new, empty root.
    pub create: bool,
    /// How long and how much is kept of files that were replaced.
    pub replaced: ReplacedLimits,
    /// Bytes of damaged data sets that are kept.
    pub quarantine_max_bytes: u64,
}

#[derive(Debug)]
struct FreeSpace {
    started: Instant,
    checked_ms: AtomicU64,
    bytes: AtomicU64,
}

/// A stored file beside an incoming instance of the same path.
#[derive(Debug, PartialEq, Eq)]
pub enum Existing {
    /// There is none.
    Absent,
    /// Same transfer syntax and same data set bytes.
    Identical {
        /// Size of the file.
        size: u64,
        /// Digest of the file.
        digest: Digest,
    },
    /// Other bytes.
    Different {
        /// Size of the file.
        size: u64,
    },
}

impl Store {
    /// Opens a storage root, and makes `.incoming` and `.outbox` where they are missing.
    ///
    /// # Errors
    /// What the file system says; `WouldBlock` when another process serves the same root; `NotFound` where the root or its
    /// identity file is absent and must not be made.
    pub fn open(root: &Path, options: StoreOptions) -> io::Result<Self> {
        let durability = options.durability;
        if options.create {
            std::fs::create_dir_all(root)?;
        } else {
            identity::expect(root)?;
        }
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root_fd = rustix::fs::open(root, directory, Mode::empty())?;
        for name in [INCOMING, OUTBOX] {
            match rustix::fs::mkdirat(&root_fd, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let incoming = rustix::fs::openat(&root_fd, INCOMING, directory | OFlags::NOFOLLOW, Mode::empty())?;
        let exclusive = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join(OUTBOX).join("lock"))?;
        rustix::fs::flock(&exclusive, FlockOperation::NonBlockingLockExclusive)?;
        identity::ensure(root)?;
        sync_ancestors(root, &root_fd)?;
        let free = FreeSpace {
            started: Instant::now(),
            checked_ms: AtomicU64::new(u64::MAX),
            bytes: AtomicU64::new(0),
        };
        let keeps_order = crate::os::keeps_order(&incoming);
        let reserves = crate::os::rewards_reserving(&incoming);
        let nameless = if keeps_order || !durability.syncs_data() {
            Nameless::probe(&incoming)
        } else {
            Nameless::default()
        };
        let direct = if durability.syncs_data() {
            Direct::probe(&incoming)
        } else {
            Direct::default()
        };
        Ok(Self {
            quarantine: Quarantine::new(root),
            damaged: DamagedDataSets::new(root, durability, options.quarantine_max_bytes),
            replaced: Replaced::open(&root_fd, options.replaced, durability)?,
            root_path: root.to_owned(),
            root_text: root.display().to_string(),
            incoming,
            durability,
            keeps_order,
            reserves,
            nameless,
            direct,
            folders: Folders::new(root_fd),
            locks: PathLocks::default(),
            free,
            _exclusive: exclusive,
        })
    }

    /// The storage root.
    #[must_use]
    pub fn root_path(&self) -> &Path {
        &self.root_path
    }

    /// The folders beneath the root.
    #[must_use]
    pub fn folders(&self) -> &Folders {
        &self.folders
    }

    /// The absolute path of an instance, as text.
    #[must_use]
    pub fn absolute(&self, path: &InstancePath) -> String {
        [&self.root_text, path.relative()].join("/")
    }

    /// Makes the names in `.outbox` durable, once the database is there.
    ///
    /// # Errors
    /// What `fsync` says.
    pub fn sync_outbox_folder(&self) -> io::Result<()> {
        File::open(self.root_path.join(OUTBOX))?.sync_all()
    }

    /// Removes what an interrupted process left in `.incoming`. What cannot be removed is named and stays.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn clear_incoming(&self) -> io::Result<Cleared> {
        let mut cleared = Cleared::default();
        for entry in rustix::fs::Dir::read_from(&self.incoming)? {
            let entry = entry?;
            if entry.file_name().to_bytes().ends_with(b".part") {
                match rustix::fs::unlinkat(&self.incoming, entry.file_name(), rustix::fs::AtFlags::empty()) {
                    Ok(()) => cleared.removed += 1,
                    Err(error) => {
                        let file = self
                            .root_path
                            .join(INCOMING)
                            .join(OsStr::from_bytes(entry.file_name().to_bytes()));
                        cleared.left.push((file.display().to_string(), error.to_string()));
                    }
                }
            }
        }
        Ok(cleared)
    }

    /// One writer at a time for a path relative to the root: duplicates are decided and committed under this lock.
    pub fn lock(&self, relative: &str) -> PathLock<'_> {
        self.locks.lock(relative)
    }

    /// Free bytes for us in the file system of the root, at most a quarter of a second old.
    ///
    /// # Errors
    /// What `fstatvfs` says.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let now = u64::try_from(self.free.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let checked = self.free.checked_ms.load(Ordering::Acquire);
        if checked != u64::MAX && now.saturating_sub(checked) < FREE_SPACE_INTERVAL_MS {
            return Ok(self.free.bytes.load(Ordering::Relaxed));
        }
        let facts = rustix::fs::fstatvfs(&self.incoming)?;
        let bytes = facts.f_bavail.saturating_mul(facts.f_frsize);
        self.free.bytes.store(bytes, Ordering::Relaxed);
        self.free.checked_ms.store(now, Ordering::Release);
        Ok(bytes)
    }

    /// Compares a spooled instance with the file at its place; `folder` is `None` where it does not exist yet.
    ///
    /// # Errors
    /// What the file system says; a link or a folder in place of the file is an error.
    pub fn existing(
        &self,
        folder: Option<&SeriesFolder>,
        path: &InstancePath,
        spool: &mut Spool<'_>,
    ) -> io::Result<Existing> {
        let Some(folder) = folder else {
            return Ok(Existing::Absent);
        };
        let Some(mut file) = folder.open_file(path.file_name())? else {
            return Ok(Existing::Absent);
        };
        let different = Existing::Different {
            size: file.metadata()?.len(),
        };
        let mut head = vec![0; 4096];
        let count = read_up_to(&mut file, &mut head)?;
        head.truncate(count);
        let Some(meta) = file_meta::decode(&head) else {
            return Ok(different);
        };
        if meta.transfer_syntax != spool.transfer_syntax()
            || !spool.same_dataset(&file, meta.dataset_at as u64)?
        {
            return Ok(different);
        }
        let (size, digest) = digest_of(&file)?;
        Ok(Existing::Identical { size, digest })
    }

    /// Size and digest of the file at a path relative to the root, which is made durable; `None` where there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn look_at(&self, relative: &str) -> io::Result<Option<(u64, Digest)>> {
        let Some((folder, file)) = self.folders.open_relative(relative)? else {
            return Ok(None);
        };
        let found = digest_of(&file)?;
        file.sync_all()?;
        let folders = relative.rsplit_once('/').map_or("", |(folders, _)| folders);
        self.folders.sync_all(&folder, folders)?;
        Ok(Some(found))
    }

    /// Size and digest of the file at a path relative to the root; `None` where there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn measured(&self, relative: &str) -> io::Result<Option<(u64, Digest)>> {
        let found = self.folders.open_relative(relative)?;
        found.map(|(_, file)| digest_of(&file)).transpose()
    }

    /// Files that were put aside because they are not what was to be recorded.
    #[must_use]
    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// Damaged data sets that are kept.
    #[must_use]
    pub fn damaged(&self) -> &DamagedDataSets {
        &self.damaged
    }

    /// Files that were replaced.
    #[must_use]
    pub fn replaced(&self) -> &Replaced {
        &self.replaced
    }

    /// Whether an instance that is synced may have its name before: this file system keeps the order, so that the name is
    /// never durable without the bytes.
    #[must_use]
    pub fn names_first(&self) -> bool {
        self.keeps_order && self.durability.syncs_data()
    }

    /// What can be done for the next instance before it is there.
    pub(crate) fn prepare(&self) {
        self.nameless.prepare(&self.incoming);
    }

    pub(crate) fn incoming(&self) -> rustix::fd::BorrowedFd<'_> {
        self.incoming.as_fd()
    }
}

/// What became of the files in `.incoming`.
#[derive(Debug, Default)]
pub struct Cleared {
    /// How many were removed.
    pub removed: usize,
    /// Files that could not be removed, and why.
    pub left: Vec<(String, String)>,
}

/// The root may be new: its name, and those of the folders made for it, must be durable before anything beneath it is
/// acknowledged. Folders above that cannot be read, or that their file system cannot sync, existed before.
fn sync_ancestors(root: &Path, root_fd: &OwnedFd) -> io::Result<()> {
    crate::os::sync_folder(root_fd)?;
    for ancestor in root.ancestors().skip(1) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let synced = rustix::fs::open(ancestor, flags, Mode::empty())
            .and_then(|folder| crate::os::sync_folder(&folder));
        match synced {
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::ROFS) => {}
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A stable hash of a relative path, for the outbox's index.
#[must_use]
pub fn path_hash(relative: &str) -> i64 {
    i64::from_ne_bytes(digest::checksum(relative.as_bytes()).to_ne_bytes())
}

/// Size and digest of a whole file.
fn digest_of(mut file: &File) -> io::Result<(u64, Digest)> {
    use std::io::Seek as _;
    file.rewind()?;
    let mut hasher = Digester::default();
    let mut buffer = vec![0; COPY_BYTES];
    let mut size = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((size, hasher.digest()));
        }
        size += count as u64;
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read(room)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
