//! Files that another instance took the place of: kept for a while, within a bound.
//!
//! `.replaced/YYYYMMDD/HHMMSSffffff_TENANT_SOPInstanceUID.dcm`, by the moment (UTC) at which the file was replaced. Names sort
//! by age, so the oldest are found without a look at every file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::folders::SeriesFolder;
use crate::config::Durability;
use crate::layout::{InstancePath, REPLACED};
use crate::os;

/// Where nothing else is configured, a tenth of the disk.
const PART_OF_DISK: u64 = 10;
/// No file is removed to make room for another one while it is younger.
const LEAST_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Names of a folder that are kept in memory.
const MOST_LISTED: usize = 4096;
const DAY_FORMAT: &str = "%Y%m%d";
const TIME_FORMAT: &str = "%H%M%S%6f";
const STAMP_FORMAT: &str = "%Y%m%d%H%M%S%6f";
const DAY_CHARACTERS: usize = 8;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How long and how much is kept.
#[derive(Clone, Copy, Debug)]
pub struct ReplacedLimits {
    /// How long a file is kept; zero: replaced files are not kept.
    pub retention: Duration,
    /// Bytes that are kept; `None`: a tenth of the disk.
    pub max_bytes: Option<u64>,
}

/// The replaced files of a storage root.
#[derive(Debug)]
pub struct Replaced {
    root: OwnedFd,
    retention: Duration,
    max_bytes: u64,
    syncs: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    usage: Usage,
    /// Files of the oldest day, the oldest first, as last listed.
    oldest: VecDeque<(String, String)>,
    /// The day whose folder is durable.
    durable_day: String,
}

/// What a sweep came upon.
#[derive(Debug, Default)]
struct Swept {
    removed: u64,
    files: u64,
    bytes: u64,
    unreadable: Vec<(String, String)>,
}

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that may be kept.
    pub max_bytes: u64,
    /// Files that were replaced since the start.
    pub replaced: u64,
}

/// Why a file cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ReplacedError {
    /// The file system says no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What is kept is too young to make room.
    #[error("replaced files have reached their bound")]
    Full,
}

impl From<Errno> for ReplacedError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// A file that has a second name among the replaced ones, and still its own. Dropped before [`Aside::keep`], the second name goes.
#[derive(Debug)]
pub struct Aside<'r> {
    replaced: &'r Replaced,
    /// Its folder and name; none where replaced files are not kept.
    name: Option<(String, String)>,
    bytes: u64,
}

impl Aside<'_> {
    /// The file has lost its own name.
    pub fn keep(mut self) {
        self.name = None;
        self.replaced.lock().usage.replaced += 1;
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Some((day, name)) = self.name.take() {
            // Best effort: a second name that stays goes with its age.
            if self.replaced.remove(&day, &name).is_ok() {
                self.replaced.lock().usage.less(self.bytes);
            }
        }
    }
}

impl Usage {
    fn less(&mut self, bytes: u64) {
        self.files = self.files.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Replaced {
    pub(super) fn open(root: &OwnedFd, limits: ReplacedLimits, durability: Durability) -> io::Result<Self> {
        let disk = rustix::fs::fstatvfs(root)?;
        let tenth = disk.f_blocks.saturating_mul(disk.f_frsize) / PART_OF_DISK;
        let max_bytes = limits.max_bytes.unwrap_or(tenth);
        let usage = Usage {
            max_bytes,
            ..Usage::default()
        };
        Ok(Self {
            root: root.try_clone()?,
            retention: limits.retention,
            max_bytes,
            syncs: durability.syncs_directories(),
            state: Mutex::new(State {
                usage,
                ..State::default()
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept, as far as is known: this asks no disk.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.lock().usage
    }

    /// Gives the file at a path a second name here, as durable as configured, before another one takes its place.
    ///
    /// # Errors
    /// [`ReplacedError`]: nothing was changed.
    pub(crate) fn put_aside(
        &self,
        folder: &SeriesFolder,
        path: &InstancePath,
        bytes: u64,
    ) -> Result<Aside<'_>, ReplacedError> {
        let mut aside = Aside {
            replaced: self,
            name: None,
            bytes,
        };
        if self.retention.is_zero() {
            return Ok(aside);
        }
        self.make_room(bytes, Utc::now())?;
        let tenant = path.relative().split('/').next().unwrap_or_default();
        let ending = format!("_{tenant}_{}", path.file_name());
        let mut at = Utc::now();
        let (day, here, name) = loop {
            let day = at.format(DAY_FORMAT).to_string();
            let name = format!("{}{ending}", at.format(TIME_FORMAT));
            let here = self.day_folder(&day)?;
            match second_name(folder, path.file_name(), &here, &name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => at += Duration::from_micros(1),
                named => {
                    named?;
                    break (day, here, name);
                }
            }
        };
        {
            let mut state = self.lock();
            state.usage.files += 1;
            state.usage.bytes += bytes;
        }
        // From here on it goes again where anything fails.
        aside.name = Some((day, name));
        if self.syncs {
            os::sync_folder(&here)?;
        }
        Ok(aside)
    }

    /// The folder of a day, made where it is missing.
    fn day_folder(&self, day: &str) -> io::Result<OwnedFd> {
        let all = open_or_make(&self.root, REPLACED)?;
        let folder = open_or_make(&all, day)?;
        let is_durable = self.lock().durable_day == day;
        if self.syncs && !is_durable {
            os::sync_folder(&all)?;
            os::sync_folder(&self.root)?;
            day.clone_into(&mut self.lock().durable_day);
        }
        Ok(folder)
    }

    /// Removes the oldest files until so many bytes fit. Nobody waits for the disk under the lock.
    fn make_room(&self, bytes: u64, now: DateTime<Utc>) -> Result<(), ReplacedError> {
        loop {
            let oldest = {
                let mut state = self.lock();
                if state.usage.bytes.saturating_add(bytes) <= self.max_bytes {
                    return Ok(());
                }
                state.oldest.pop_front()
            };
            let Some((day, name)) = oldest else {
                let listed = self.list_oldest()?;
                if !listed.front().is_some_and(|(day, name)| is_old(day, name, now)) {
                    return Err(ReplacedError::Full);
                }
                self.lock().oldest = listed;
                continue;
            };
            if !is_old(&day, &name, now) {
                self.lock().oldest.push_front((day, name));
                return Err(ReplacedError::Full);
            }
            self.remove_counted(&day, &name)?;
        }
    }

    /// Removes the files whose time is over, and counts the others anew: operators remove some. Returns how many went, and what
    /// could not be read or removed, and why.
    #[must_use]
    pub fn sweep(&self, now: DateTime<Utc>) -> (u64, Vec<(String, String)>) {
        let before = self.usage();
        let mut swept = Swept::default();
        match self.days() {
            Ok(days) => {
                for day in days {
                    if let Err(error) = self.sweep_day(&day, now, &mut swept) {
                        swept
                            .unreadable
                            .push((format!("{REPLACED}/{day}"), error.to_string()));
                    }
                }
            }
            Err(error) => swept.unreadable.push((REPLACED.to_owned(), error.to_string())),
        }
        let mut state = self.lock();
        state.oldest.clear();
        // What came meanwhile may be counted twice until the next time; it is never left out.
        let came = state.usage.replaced - before.replaced;
        let came_bytes = state.usage.bytes.saturating_sub(before.bytes);
        state.usage.files = swept.files + came;
        state.usage.bytes = swept.bytes + came_bytes;
        (swept.removed, swept.unreadable)
    }

    fn sweep_day(&self, day: &str, now: DateTime<Utc>, swept: &mut Swept) -> io::Result<()> {
        let Some(folder) = self.open_day(day)? else {
            return Ok(());
        };
        each_name(&folder, |name| {
            let Some(age) = age(day, name, now) else {
                return Ok(());
            };
            if age >= self.retention {
                match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
                    Ok(()) => swept.removed += 1,
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            } else if let Some(size) = size_of(&folder, name)? {
                swept.files += 1;
                swept.bytes += size;
            }
            Ok(())
        })?;
        self.remove_empty_day(day, now);
        Ok(())
    }

    fn remove_counted(&self, day: &str, name: &str) -> io::Result<()> {
        let Some(folder) = self.open_day(day)? else {
            return Ok(());
        };
        let Some(size) = size_of(&folder, name)? else {
            return Ok(());
        };
        drop(folder);
        self.remove(day, name)?;
        self.lock().usage.less(size);
        Ok(())
    }

    fn remove(&self, day: &str, name: &str) -> io::Result<()> {
        if let Some(folder) = self.open_day(day)? {
            rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
            self.remove_empty_day(day, Utc::now());
        }
        Ok(())
    }

    /// Best effort: one that is not empty stays, and that of today is needed in a moment.
    fn remove_empty_day(&self, day: &str, now: DateTime<Utc>) {
        if now.format(DAY_FORMAT).to_string() != day {
            let _ = rustix::fs::unlinkat(&self.root, format!("{REPLACED}/{day}"), AtFlags::REMOVEDIR);
        }
    }

    /// The first files of the oldest day that has any. A day that cannot be read is passed over: the sweep names it.
    fn list_oldest(&self) -> io::Result<VecDeque<(String, String)>> {
        let now = Utc::now();
        for day in self.days()? {
            let listed = self.open_day(&day).and_then(|folder| match folder {
                Some(folder) => first_names(&folder, |name| age(&day, name, now).is_some()),
                None => Ok(Vec::new()),
            });
            if let Some(names) = listed.ok().filter(|names| !names.is_empty()) {
                return Ok(names.into_iter().map(|name| (day.clone(), name)).collect());
            }
        }
        Ok(VecDeque::new())
    }

    /// The folders of days, the oldest first.
    fn days(&self) -> io::Result<Vec<String>> {
        match rustix::fs::openat(&self.root, REPLACED, DIRECTORY, Mode::empty()) {
            Ok(all) => first_names(&all, |name| {
                name.len() == DAY_CHARACTERS && name.bytes().all(|byte| byte.is_ascii_digit())
            }),
            Err(Errno::NOENT) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn open_day(&self, day: &str) -> io::Result<Option<OwnedFd>> {
        match rustix::fs::openat(&self.root, format!("{REPLACED}/{day}"), DIRECTORY, Mode::empty()) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// How old a file is by its day and name; `None` where it is not named like one of ours.
fn age(day: &str, name: &str, now: DateTime<Utc>) -> Option<Duration> {
    let (time, _) = name.split_once('_')?;
    let at = NaiveDateTime::parse_from_str(&format!("{day}{time}"), STAMP_FORMAT).ok()?;
    // One of the future, after the clock went back, is young.
    Some((now - at.and_utc()).to_std().unwrap_or(Duration::ZERO))
}

fn is_old(day: &str, name: &str, now: DateTime<Utc>) -> bool {
    age(day, name, now).is_some_and(|age| age >= LEAST_AGE)
}

/// A hard link; a copy where the file system has none.
fn second_name(folder: &SeriesFolder, file: &str, here: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::linkat(folder.series(), file, here, name, AtFlags::empty()) {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {}
        linked => return Ok(linked?),
    }
    let mut source = folder.open_file(file)?.ok_or(io::ErrorKind::NotFound)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut copy = File::from(rustix::fs::openat(here, name, flags, Mode::from_raw_mode(0o644))?);
    let copied = io::copy(&mut source, &mut copy).and_then(|_| copy.sync_all());
    if copied.is_err() {
        // Best effort: a part goes with its age.
        let _ = rustix::fs::unlinkat(here, name, AtFlags::empty());
    }
    copied
}

fn open_or_make(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => Ok(rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?),
        Err(error) => Err(error.into()),
    }
}

fn each_name(folder: &OwnedFd, mut each: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    for entry in Dir::read_from(folder.as_fd())? {
        if let Ok(name) = entry?.file_name().to_str() {
            each(name)?;
        }
    }
    Ok(())
}

/// The first names in a folder that are wanted, in their order.
fn first_names(folder: &OwnedFd, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    each_name(folder, |name| {
        if wanted(name) {
            names.push(name.to_owned());
            if names.len() >= 2 * MOST_LISTED {
                names.sort_unstable();
                names.truncate(MOST_LISTED);
            }
        }
        Ok(())
    })?;
    names.sort_unstable();
    names.truncate(MOST_LISTED);
    Ok(names)
}

fn size_of(folder: &OwnedFd, name: &str) -> io::Result<Option<u64>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(facts) => Ok(Some(u64::try_from(facts.st_size).unwrap_or(0))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
