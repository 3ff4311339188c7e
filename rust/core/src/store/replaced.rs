//! Files that another instance took the place of: kept for a while, within a bound.
//!
//! `.replaced/YYYYMMDD/HHMMSSffffff_TENANT_SOPInstanceUID.dcm`, by the moment (UTC) at which the file was replaced. Names sort
//! by age, so the oldest are found without a look at every file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDateTime, Utc};
use rustix::fs::{Access, AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::folders::SeriesFolder;
use crate::config::Durability;
use crate::layout::{InstancePath, REPLACED};
use crate::os;
use crate::outbox::Found;

/// Where nothing else is configured, a tenth of the disk.
const PART_OF_DISK: u64 = 10;
/// No file is removed to make room for another one while it is younger.
const LEAST_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Names of a folder that are kept in memory.
const MOST_LISTED: usize = 4096;
/// So long it is believed that no other file may make room.
const LISTED_FOR: Duration = Duration::from_secs(60);
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
    /// Files and bytes that came since the last sweep began.
    came: (u64, u64),
    /// Files that may make room, the oldest first, as last listed.
    oldest: VecDeque<Old>,
    /// When they were listed, where there were no others.
    all_listed: Option<Instant>,
    /// The day whose folder is durable.
    durable_day: String,
}

impl State {
    /// One more file.
    fn count(&mut self, bytes: u64) {
        self.usage.files += 1;
        self.usage.bytes += bytes;
        self.came = (self.came.0 + 1, self.came.1 + bytes);
    }
}

/// A file that may make room.
#[derive(Debug)]
struct Old {
    day: String,
    name: String,
    bytes: u64,
}

/// What a sweep came upon.
#[derive(Debug, Default)]
struct Swept {
    removed: u64,
    files: u64,
    bytes: u64,
    unreadable: Found<(String, String)>,
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

/// How a replaced file gets its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MakesRoom {
    /// The oldest files go: a sender waits for the answer.
    ByRemovingOldest,
    /// None goes, and half of the room stays free: what is done without a sender must cost senders nothing.
    Never,
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

/// Room for a file, and its second name once it has one. Dropped before [`Aside::keep`], both go.
#[derive(Debug)]
pub struct Aside<'r> {
    replaced: &'r Replaced,
    /// Its folder and name, once it has them.
    name: Option<(String, String)>,
    /// What was counted for it; none where replaced files are not kept.
    counted: Option<u64>,
}

impl Aside<'_> {
    /// The file has lost its own name.
    pub fn keep(mut self) {
        if self.counted.take().is_some() {
            self.replaced.lock().usage.replaced += 1;
        }
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Some(bytes) = self.counted {
            // Best effort: a second name that stays goes with its age, and the next sweep counts it.
            let _ = self
                .name
                .take()
                .map(|(day, name)| self.replaced.remove(&day, &name));
            let mut state = self.replaced.lock();
            state.usage.less(bytes);
            state.came = (state.came.0.saturating_sub(1), state.came.1.saturating_sub(bytes));
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
        makes_room: MakesRoom,
    ) -> Result<Aside<'_>, ReplacedError> {
        let mut aside = Aside {
            replaced: self,
            name: None,
            counted: None,
        };
        if self.retention.is_zero() {
            return Ok(aside);
        }
        match makes_room {
            MakesRoom::ByRemovingOldest => self.make_room(bytes, Utc::now())?,
            MakesRoom::Never => self.take_half(bytes)?,
        }
        aside.counted = Some(bytes);
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

    /// Counts a file of so many bytes where it fits into the first half.
    fn take_half(&self, bytes: u64) -> Result<(), ReplacedError> {
        let mut state = self.lock();
        if state.usage.bytes.saturating_add(bytes) > self.max_bytes / 2 {
            return Err(ReplacedError::Full);
        }
        state.count(bytes);
        Ok(())
    }

    /// Counts a file of so many bytes, and removes the oldest ones where it would not fit; none where that is not enough. Nobody
    /// waits for the disk under the lock.
    fn make_room(&self, bytes: u64, now: DateTime<Utc>) -> Result<(), ReplacedError> {
        if bytes > self.max_bytes {
            return Err(ReplacedError::Full);
        }
        let mut is_counted_anew = false;
        loop {
            let Some(going) = self.take_oldest(bytes) else {
                return Ok(());
            };
            for old in &going {
                self.remove_counted(old)?;
            }
            if !going.is_empty() {
                continue;
            }
            let is_current = |listed: Instant| listed.elapsed() < LISTED_FOR;
            if self.lock().all_listed.is_some_and(is_current) {
                return Err(ReplacedError::Full);
            }
            let oldest = self.list_oldest(now)?;
            if oldest.is_empty() && !is_counted_anew {
                // Maybe an operator has removed them.
                is_counted_anew = true;
                let _ = self.sweep(now, &AtomicBool::new(false));
                continue;
            }
            let mut state = self.lock();
            state.all_listed = (oldest.len() < MOST_LISTED).then(Instant::now);
            state.oldest = oldest;
        }
    }

    /// Counts a file where it fits: then there is nothing to do. Else the oldest files that make enough room for it, or that are all
    /// of those listed while there are others; none where all are listed and are not enough.
    fn take_oldest(&self, bytes: u64) -> Option<Vec<Old>> {
        let mut state = self.lock();
        let excess = state
            .usage
            .bytes
            .saturating_add(bytes)
            .saturating_sub(self.max_bytes);
        if excess == 0 {
            state.count(bytes);
            return None;
        }
        let (mut count, mut freed) = (0, 0);
        for old in &state.oldest {
            if freed >= excess {
                break;
            }
            count += 1;
            freed += old.bytes;
        }
        if freed < excess && state.all_listed.is_some() {
            return Some(Vec::new());
        }
        Some(state.oldest.drain(..count).collect())
    }

    /// Removes the files whose time is over, and counts the others anew: operators remove some. Returns how many went, and what
    /// could not be read or removed, and why. `stop` ends it early; then nothing is counted.
    #[must_use]
    pub fn sweep(&self, now: DateTime<Utc>, stop: &AtomicBool) -> (u64, Found<(String, String)>) {
        self.lock().came = (0, 0);
        let mut swept = Swept::default();
        match self.days() {
            Ok(days) => {
                for day in days {
                    if let Err(error) = self.sweep_day(&day, now, stop, &mut swept) {
                        swept
                            .unreadable
                            .push((format!("{REPLACED}/{day}"), error.to_string()));
                    }
                }
            }
            Err(error) => swept.unreadable.push((REPLACED.to_owned(), error.to_string())),
        }
        if !stop.load(Ordering::Acquire) {
            let mut state = self.lock();
            state.oldest.clear();
            state.all_listed = None;
            // What came meanwhile may be counted twice until the next time; it is never left out.
            state.usage.files = swept.files + state.came.0;
            state.usage.bytes = swept.bytes + state.came.1;
        }
        (swept.removed, swept.unreadable)
    }

    fn sweep_day(
        &self,
        day: &str,
        now: DateTime<Utc>,
        stop: &AtomicBool,
        swept: &mut Swept,
    ) -> io::Result<()> {
        let Some(folder) = self.open_day(day)? else {
            return Ok(());
        };
        each_name(&folder, |name| {
            let Some(age) = age(day, name, now).filter(|_| !stop.load(Ordering::Acquire)) else {
                return;
            };
            let looked_at = if age >= self.retention {
                rustix::fs::unlinkat(&folder, name, AtFlags::empty()).map(|()| swept.removed += 1)
            } else {
                size_of(&folder, name).map(|size| {
                    swept.files += 1;
                    swept.bytes += size;
                })
            };
            match looked_at {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => swept
                    .unreadable
                    .push((format!("{REPLACED}/{day}/{name}"), error.to_string())),
            }
        })?;
        self.remove_empty_day(day, now);
        Ok(())
    }

    /// One that an operator has removed is not counted any more either.
    fn remove_counted(&self, old: &Old) -> io::Result<()> {
        self.remove(&old.day, &old.name)?;
        self.lock().usage.less(old.bytes);
        Ok(())
    }

    fn remove(&self, day: &str, name: &str) -> io::Result<()> {
        if let Some(folder) = self.open_day(day)? {
            match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => self.remove_empty_day(day, Utc::now()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Best effort: one that is not empty stays, and that of today is needed in a moment.
    fn remove_empty_day(&self, day: &str, now: DateTime<Utc>) {
        if now.format(DAY_FORMAT).to_string() != day {
            let _ = rustix::fs::unlinkat(&self.root, format!("{REPLACED}/{day}"), AtFlags::REMOVEDIR);
        }
    }

    /// The oldest files that are old enough to make room. A day that cannot be read is passed over: the sweep names it.
    fn list_oldest(&self, now: DateTime<Utc>) -> io::Result<VecDeque<Old>> {
        let mut oldest = VecDeque::new();
        for day in self.days()? {
            let Ok(Some(folder)) = self.open_day(&day) else {
                continue;
            };
            let is_old = |name: &str| age(&day, name, now).is_some_and(|age| age >= LEAST_AGE);
            for name in first_names(&folder, is_old).unwrap_or_default() {
                if oldest.len() == MOST_LISTED {
                    return Ok(oldest);
                }
                if let Ok(bytes) = size_of(&folder, &name) {
                    let day = day.clone();
                    oldest.push_back(Old { day, name, bytes });
                }
            }
        }
        Ok(oldest)
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

/// A hard link; a copy where the file system has none.
fn second_name(folder: &SeriesFolder, file: &str, here: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::linkat(folder.series(), file, here, name, AtFlags::empty()) {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {}
        linked => return Ok(linked?),
    }
    if rustix::fs::accessat(here, name, Access::EXISTS, AtFlags::empty()).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut source = folder.open_file(file)?.ok_or(io::ErrorKind::NotFound)?;
    // A part of a copy never has the name of a whole one; what is left of it goes with its age.
    let part = format!("{name}.part");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut copy = File::from(rustix::fs::openat(
        here,
        &part,
        flags,
        Mode::from_raw_mode(0o644),
    )?);
    let copied = io::copy(&mut source, &mut copy)
        .and_then(|_| copy.sync_all())
        .and_then(|()| Ok(rustix::fs::renameat(here, &part, here, name)?));
    if copied.is_err() {
        let _ = rustix::fs::unlinkat(here, &part, AtFlags::empty());
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

fn each_name(folder: &OwnedFd, mut each: impl FnMut(&str)) -> io::Result<()> {
    for entry in Dir::read_from(folder.as_fd())? {
        if let Ok(name) = entry?.file_name().to_str() {
            each(name);
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
    })?;
    names.sort_unstable();
    names.truncate(MOST_LISTED);
    Ok(names)
}

fn size_of(folder: &OwnedFd, name: &str) -> rustix::io::Result<u64> {
    let facts = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(u64::try_from(facts.st_size).unwrap_or(0))
}

#[cfg(test)]
mod tests;
