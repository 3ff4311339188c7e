//! Files that have no name until they are complete (`O_TMPFILE`): whatever happens before, nothing is left of them.
//!
//! They are for what is not synced, or is synced after it has its name: not each file system keeps the sync of a file
//! without a name.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::AtFlags;

use crate::os;

/// Files that wait to be used. Few, because descriptors may be scarce; who finds none makes one.
pub(super) const MOST_READY: usize = 4;
/// Made and removed when a store is opened, to find out whether there are such files.
const PROBE: &str = "probe.part";

/// Makes such files, if this file system has them, and keeps some ready. The default has none, ever.
#[derive(Debug, Default)]
pub(super) struct Nameless {
    is_supported: bool,
    ready: Mutex<Vec<File>>,
}

impl Nameless {
    /// Finds out whether such a file can be made in this folder, and be given a name.
    pub(super) fn probe(folder: impl AsFd) -> Self {
        let named = os::nameless_file(&folder).and_then(|file| os::give_name(&file, &folder, PROBE));
        Self {
            is_supported: named.is_ok() && rustix::fs::unlinkat(&folder, PROBE, AtFlags::empty()).is_ok(),
            ..Self::default()
        }
    }

    /// An empty file; `None` where there are no such files.
    pub(super) fn take(&self, folder: impl AsFd) -> io::Result<Option<File>> {
        if !self.is_supported {
            return Ok(None);
        }
        let ready = self.ready().pop();
        match ready {
            Some(file) => Ok(Some(file)),
            None => Ok(Some(os::nameless_file(folder)?.into())),
        }
    }

    /// Makes one for the next instance. Where that fails, the next instance tries again, and reports it.
    pub(super) fn prepare(&self, folder: impl AsFd) {
        if !self.is_supported || self.ready().len() >= MOST_READY {
            return;
        }
        if let Ok(file) = os::nameless_file(folder) {
            self.ready().push(file.into());
        }
    }

    pub(super) fn ready(&self) -> MutexGuard<'_, Vec<File>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
