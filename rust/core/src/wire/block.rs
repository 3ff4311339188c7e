//! Memory that is received into. What counts of it stays where it is until it is written: framing is left out, not moved away.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Of one block: many PDUs are taken with one system call, and a CT slice (512 x 512, 16 bits) with two.
pub const BLOCK_BYTES: usize = 288 * 1024;
/// Blocks that wait to be used again: pages that are touched for the first time are dear.
const MOST_FREE: usize = 32;

/// Where blocks come from, and where they go when they are dropped.
#[derive(Debug, Default)]
pub struct Blocks(Mutex<Vec<Free>>);

/// The memory of a block, and that of its list of parts.
type Free = (Vec<u8>, Vec<Range<usize>>);

impl Blocks {
    /// A block of which nothing counts yet. Its bytes are whatever was in it before.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Block {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (memory, parts) = free.unwrap_or_else(|| (vec![0; BLOCK_BYTES], Vec::new()));
        Block {
            memory,
            parts,
            kept_bytes: 0,
            home: Arc::clone(self),
        }
    }
}

/// A block, and which parts of it count.
#[derive(Debug)]
pub struct Block {
    memory: Vec<u8>,
    parts: Vec<Range<usize>>,
    kept_bytes: usize,
    home: Arc<Blocks>,
}

impl Block {
    /// All of its memory.
    pub(super) fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// What lies between two places.
    pub(super) fn between(&self, range: Range<usize>) -> &[u8] {
        self.memory.get(range).unwrap_or_default()
    }

    /// Makes a range count, which lies behind all that do.
    pub(super) fn keep(&mut self, range: Range<usize>) {
        self.kept_bytes += range.len();
        match self.parts.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.parts.push(range),
        }
    }

    /// Makes nothing count.
    pub(super) fn forget(&mut self) {
        self.parts.clear();
        self.kept_bytes = 0;
    }

    /// Bytes that count.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// How many parts they are in.
    pub(super) fn part_count(&self) -> usize {
        self.parts.len()
    }

    /// The bytes that count, in their order.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| self.between(part.clone()))
    }
}

#[cfg(test)]
impl Block {
    /// Puts bytes into it, in parts with something between them.
    pub(crate) fn fill_for_test(&mut self, bytes: &[u8], part_bytes: usize) {
        let mut at = 12;
        for part in bytes.chunks(part_bytes) {
            self.memory[at..at + part.len()].copy_from_slice(part);
            self.keep(at..at + part.len());
            at += part.len() + 12;
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.forget();
        let mut free = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < MOST_FREE {
            free.push((std::mem::take(&mut self.memory), std::mem::take(&mut self.parts)));
        }
    }
}

/// Takes what counts of what a [`super::reader::DeadlineReader`] received.
pub trait Keeper {
    /// A block, which can be kept until it is written.
    fn take(&mut self, block: Block);

    /// Bytes that must be copied.
    fn copy(&mut self, bytes: &[u8]);
}
