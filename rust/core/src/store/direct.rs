//! Writing past the page cache (`O_DIRECT`): what is synced at once anyway goes from our memory to the disk.
//!
//! A buffered write is copied into pages that the kernel must find, mark, write back and give up again. An instance that is
//! synced before it is answered would pay for that, and wait for the disk all the same.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};
use storescp_codecs::mapping::{LargePage, LARGE_PAGE_BYTES};

use crate::os;

/// Of place in the file and count of bytes: no disk asks for more. That of memory is larger.
const ALIGNMENT: usize = 4096;
/// What goes to the disk at a time. In one page the disk reads it from one place.
const CHUNK_BYTES: usize = LARGE_PAGE_BYTES;
/// Less is left to the page cache: its copy costs less than the way round it.
pub(super) const LEAST_BYTES: usize = 64 * 1024;
/// Buffers that wait to be used again, by whatever store: pages that are touched for the first time are dear.
static FREE: Mutex<Vec<LargePage>> = Mutex::new(Vec::new());
const MOST_FREE: usize = 8;
/// Made and removed when a store is opened, to find out whether its file system can do it.
const PROBE: &str = "direct.part";

/// Writes so, where the file system can. The default never does.
#[derive(Debug, Default)]
pub(super) struct Direct {
    is_supported: bool,
}

impl Direct {
    /// Finds out whether files in this folder can be written so.
    pub(super) fn probe(folder: impl AsFd) -> Self {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&folder, PROBE, flags, Mode::from_raw_mode(0o600)) else {
            return Self::default();
        };
        let written = Self::write(&file.into(), &[IoSlice::new(&[0; ALIGNMENT])]);
        let removed = rustix::fs::unlinkat(&folder, PROBE, AtFlags::empty());
        Self {
            is_supported: written.is_ok() && removed.is_ok(),
        }
    }

    /// Whether a file of so many bytes is to be written so.
    pub(super) fn is_for(&self, bytes: usize) -> bool {
        self.is_supported && bytes >= LEAST_BYTES
    }

    /// Writes an empty file. Returns how many bytes are on the disk: the others, less than a block, are in the page cache.
    pub(super) fn write(mut file: &File, parts: &[IoSlice<'_>]) -> io::Result<u64> {
        let free = free_buffers().pop();
        let mut memory = free.map_or_else(LargePage::new, Ok)?;
        let chunk = memory.bytes();
        os::pass_cache(file, true)?;
        let (mut on_disk, mut filled) = (0, 0);
        for part in parts {
            let mut part = &**part;
            while !part.is_empty() {
                let mut room = chunk.get_mut(filled..).unwrap_or_default();
                let copied = room.write(part)?;
                filled += copied;
                part = part.get(copied..).unwrap_or_default();
                if filled == CHUNK_BYTES {
                    file.write_all(chunk)?;
                    on_disk += CHUNK_BYTES;
                    filled = 0;
                }
            }
        }
        let (blocks, rest) = chunk.split_at(filled - filled % ALIGNMENT);
        file.write_all(blocks)?;
        on_disk += blocks.len();
        os::pass_cache(file, false)?;
        file.write_all(rest.get(..filled % ALIGNMENT).unwrap_or_default())?;
        let mut free = free_buffers();
        if free.len() < MOST_FREE {
            free.push(memory);
        }
        Ok(on_disk as u64)
    }
}

fn free_buffers() -> MutexGuard<'static, Vec<LargePage>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}
