//! The journal in front of the database: one small write makes a row durable, and the database takes rows by the hundred.
//!
//! A row is written here before its file gets its name, and goes into the database, ready to be published, after. What an
//! interruption leaves only here, start-up takes from here ([`read`]). Two files take turns: one is written over when
//! everything in it is in the database, or was taken back. A sync is shared by all who wait when it begins, and done by one of
//! them, or by a thread beside them; one that fails takes all entries back that it was for, because the kernel may have
//! thrown away their pages.

mod entry;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;

use super::{lock, stopped, NewRow, OutboxError};
use crate::{failpoint, os};

const NAMES: [&str; 2] = ["journal-0", "journal-1"];
/// Of one file; an entry has about a kibibyte.
const FILE_BYTES: u64 = 8 << 20;
/// How many zeros a new file is filled with at a time.
const BLANK_BYTES: usize = 256 * 1024;
/// How long an instance may wait for a file that can be written over, before it is refused.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

type Answer = Result<(), OutboxError>;

/// The rows of an interrupted predecessor, in the order in which they were written.
///
/// # Errors
/// What the file system says; what is damaged is no error, and ends the file where it is.
pub fn read(folder: &Path) -> io::Result<Vec<NewRow>> {
    let mut rows = Vec::new();
    for path in paths(folder) {
        match std::fs::read(path) {
            Ok(bytes) => rows.extend(entry::decode_all(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    rows.sort_by_key(|(number, _)| *number);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Removes the files, once all of their rows are in the database.
///
/// # Errors
/// What the file system says.
pub fn remove(folder: &Path) -> io::Result<()> {
    for path in paths(folder) {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether there is one: there is none after an orderly end.
pub(super) fn exists(folder: &Path) -> bool {
    paths(folder).iter().any(|path| path.exists())
}

fn paths(folder: &Path) -> [PathBuf; 2] {
    NAMES.map(|name| folder.join(name))
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Journal {
    inner: Arc<Inner>,
    syncer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    files: [File; 2],
    state: Mutex<State>,
    /// Something waits to be synced.
    asked: Condvar,
    /// A file may have become free to be written over.
    freed: Condvar,
    synchronous: bool,
}

#[derive(Debug)]
struct State {
    current: usize,
    /// Where the next entry goes in the current file, and up to where it is synced.
    end: u64,
    synced: u64,
    next_number: u64,
    /// Entries by file that are neither in the database nor taken back.
    open: [u64; 2],
    waiting: Vec<SyncSender<Answer>>,
    is_syncing: bool,
    is_stopped: bool,
}

impl State {
    /// The other file can be written over when it holds nothing that is needed, and nothing of this one waits for a sync.
    fn may_switch(&self, synchronous: bool) -> bool {
        let is_synced = !synchronous || (self.synced == self.end && !self.is_syncing);
        is_synced && self.open.get(1 - self.current) == Some(&0)
    }

    fn count(&mut self, place: Place, change: i64) {
        if let Some(open) = self.open.get_mut(place.0) {
            *open = open.saturating_add_signed(change);
        }
    }
}

/// An entry: the file it is in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place(usize);

/// A sync that was asked for; `None` where nothing is synced.
pub(super) type Syncing = Option<Receiver<Answer>>;

impl Journal {
    /// Makes new files; whoever calls makes their names durable.
    pub(super) fn create(folder: &Path, synchronous: bool) -> io::Result<Self> {
        remove(folder)?;
        let [first, second] = paths(folder);
        let inner = Arc::new(Inner {
            files: [create(&first, synchronous)?, create(&second, synchronous)?],
            state: Mutex::new(State {
                current: 0,
                end: 0,
                synced: 0,
                next_number: 1,
                open: [0; 2],
                waiting: Vec::new(),
                is_syncing: false,
                is_stopped: false,
            }),
            asked: Condvar::new(),
            freed: Condvar::new(),
            synchronous,
        });
        let syncer = synchronous
            .then(|| {
                let inner = Arc::clone(&inner);
                std::thread::Builder::new()
                    .name("storescp-journal".to_owned())
                    .spawn(move || inner.run())
            })
            .transpose()?;
        Ok(Self { inner, syncer })
    }

    /// Writes an entry, which [`Journal::wait`] makes durable.
    pub(super) fn append(&self, row: &NewRow) -> Result<(Place, Syncing), OutboxError> {
        let inner = &*self.inner;
        let mut state = inner.wait_for_room(entry::length(row) as u64)?;
        let entry = entry::encode(state.next_number, row);
        let place = Place(state.current);
        let [first, second] = &inner.files;
        let file = if place.0 == 0 { first } else { second };
        file.write_all_at(&entry, state.end)?;
        state.next_number += 1;
        state.end += entry.len() as u64;
        state.count(place, 1);
        failpoint::hit("row_written");
        if !inner.synchronous {
            return Ok((place, None));
        }
        let (answer, syncing) = sync_channel(1);
        state.waiting.push(answer);
        Ok((place, Some(syncing)))
    }

    /// Begins to sync what was appended, beside whatever the caller does until it waits.
    pub(super) fn begin_sync(&self) {
        self.inner.asked.notify_one();
    }

    /// Waits for a sync. Where nobody syncs, it does so itself, for all who wait: nobody has to be woken for it.
    pub(super) fn wait(&self, syncing: &Syncing) -> Answer {
        let Some(syncing) = syncing else {
            return Ok(());
        };
        let state = lock(&self.inner.state);
        if let Ok(answer) = syncing.try_recv() {
            return answer;
        }
        if state.is_syncing {
            drop(state);
        } else {
            let state = self.inner.sync(state);
            if !state.waiting.is_empty() {
                self.inner.asked.notify_one();
            }
        }
        syncing.recv().map_err(|_| stopped())?
    }

    /// Entries that are in the database now, or were taken back.
    pub(super) fn settle(&self, places: impl IntoIterator<Item = Place>) {
        let mut state = lock(&self.inner.state);
        for place in places {
            state.count(place, -1);
        }
        self.inner.freed.notify_all();
    }

    /// Whether new entries will soon wait for the file that is not being written.
    pub(super) fn is_tight(&self) -> bool {
        let state = lock(&self.inner.state);
        state.end > FILE_BYTES / 2 && state.open.get(1 - state.current) != Some(&0)
    }

    /// Whether nothing in it is needed any more.
    pub(super) fn is_settled(&self) -> bool {
        lock(&self.inner.state).open == [0; 2]
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        lock(&self.inner.state).is_stopped = true;
        self.inner.asked.notify_all();
        if let Some(syncer) = self.syncer.take() {
            let _ = syncer.join();
        }
    }
}

impl Inner {
    fn wait_for_room(&self, bytes: u64) -> Result<MutexGuard<'_, State>, OutboxError> {
        if bytes > FILE_BYTES {
            return Err(OutboxError::new("a record longer than the journal"));
        }
        let full = |state: &mut State| {
            let is_full = state.end + bytes > FILE_BYTES && !state.may_switch(self.synchronous);
            if is_full {
                // What is not synced may be of somebody who never waits for it.
                self.asked.notify_one();
            }
            is_full
        };
        let (mut state, waited) = self
            .freed
            .wait_timeout_while(lock(&self.state), LONGEST_WAIT, full)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(OutboxError::new(
                "the database does not take what is in the journal",
            ));
        }
        if state.end + bytes > FILE_BYTES {
            (state.current, state.end, state.synced) = (1 - state.current, 0, 0);
        }
        Ok(state)
    }

    /// Syncs beside those who wait.
    fn run(&self) {
        let mut state = lock(&self.state);
        loop {
            if state.is_syncing || state.waiting.is_empty() {
                if state.is_stopped {
                    return;
                }
                state = self.asked.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                state = self.sync(state);
            }
        }
    }

    /// Syncs once, for all who wait now.
    fn sync<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let waiting = std::mem::take(&mut state.waiting);
        let (current, end) = (state.current, state.end);
        state.is_syncing = true;
        drop(state);
        let [first, second] = &self.files;
        let file = if current == 0 { first } else { second };
        // A bug in here must not leave the others waiting.
        let outcome = std::panic::catch_unwind(|| {
            failpoint::hit("journal_written");
            let outcome = file.sync_data();
            failpoint::hit("journal_synced");
            outcome
        })
        .unwrap_or_else(|_| Err(io::Error::other("interrupted")));
        state = lock(&self.state);
        state.is_syncing = false;
        let answer = match outcome {
            Ok(()) => {
                state.synced = end;
                Ok(())
            }
            Err(error) => {
                state.end = state.synced;
                Err(error.into())
            }
        };
        let failed_too = match &answer {
            Ok(()) => Vec::new(),
            Err(_) => std::mem::take(&mut state.waiting),
        };
        for waiting in waiting.into_iter().chain(failed_too) {
            // Who gave up is not waiting any more.
            let _ = waiting.send(answer.clone());
        }
        self.freed.notify_all();
        state
    }
}

fn create(path: &Path, synchronous: bool) -> io::Result<File> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    if synchronous {
        fill(&file)?;
    } else {
        os::preallocate(&file, 0, FILE_BYTES)?;
    }
    Ok(file)
}

/// Writes all of it, and does not only reserve it: a sync of bytes that take the place of others is one write. Where reserved
/// room is written for the first time, the file system must bring its own records up to date, and syncs them too.
fn fill(file: &File) -> io::Result<()> {
    let blank = vec![0; BLANK_BYTES];
    for at in (0..FILE_BYTES).step_by(BLANK_BYTES) {
        match file.write_all_at(&blank, at) {
            // Whoever needs the room finds out.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOSPC | Errno::DQUOT)) => break,
            written => written?,
        }
    }
    file.sync_all()
}
