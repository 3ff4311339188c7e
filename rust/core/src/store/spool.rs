//! An instance on its way: memory up to a threshold, then a temporary file in the target file system.

mod lent;

use std::fs::File;
use std::io::{self, IoSlice, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use storescp_codecs::write_back;

use super::direct::Direct;
use super::folders::SeriesFolder;
use super::Store;
use crate::digest::{Digest, Digester};
use crate::os;
use crate::transcode::pool::Input;
use crate::wire::block::{Block, BLOCK_BYTES};

/// What a spilled instance gathers before one write.
const WRITE_BYTES: usize = 256 * 1024;
/// How much of a large file goes on its way to the disk at a time, where it will be synced: while the next part comes in.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// For what a peer only says is to come, as much as came already is reserved, within these.
const LEAST_AHEAD_BYTES: u64 = 1 << 20;
const MOST_AHEAD_BYTES: u64 = 16 << 20;
/// What is read back at a time: it stays in the cache, and malloc has it at hand.
const READ_BYTES: usize = 64 * 1024;

/// A whole file in the making, header included. Dropped before [`Spool::publish`], it leaves nothing behind.
pub struct Spool<'s> {
    store: &'s Store,
    name: String,
    transfer_syntax: &'s str,
    memory_bytes: usize,
    /// All bytes so far, or those behind what is in the file; those in `blocks` come behind those in `buffer`.
    buffer: Vec<u8>,
    blocks: Vec<Block>,
    file: Option<File>,
    /// The header of a file that another process can write to, who may write over it.
    lent_header: Vec<u8>,
    /// The file has a name in `.incoming`.
    is_named: bool,
    published: bool,
    /// Bytes in the file, and those that are on their way to the disk.
    written: u64,
    written_back: u64,
    /// Room in the file, and what it will need at least.
    reserved: u64,
    expected: u64,
    size: u64,
    header_bytes: u64,
    digest: Digester,
}

impl<'s> Spool<'s> {
    /// Begins a file with its PS3.10 header. `scratch` lends its capacity and comes back from [`Spool::into_scratch`].
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(
        store: &'s Store,
        name: String,
        transfer_syntax: &'s str,
        header: &[u8],
        memory_bytes: usize,
        mut scratch: Vec<u8>,
    ) -> io::Result<Self> {
        scratch.clear();
        let mut spool = Self {
            store,
            name,
            transfer_syntax,
            memory_bytes,
            buffer: scratch,
            blocks: Vec::new(),
            file: None,
            lent_header: Vec::new(),
            is_named: false,
            published: false,
            written: 0,
            written_back: 0,
            reserved: 0,
            expected: 0,
            size: 0,
            header_bytes: header.len() as u64,
            digest: Digester::default(),
        };
        spool.append(header)?;
        Ok(spool)
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// What the file system says; the instance is lost then.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.blocks.is_empty() {
            self.write_out()?;
        }
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        self.write_what_is_much()
    }

    /// Learns how many bytes the data set will have at least.
    pub fn expect(&mut self, dataset_bytes: u64) {
        self.expected = self.header_bytes + dataset_bytes;
    }

    /// Takes the next bytes where they were received.
    ///
    /// # Errors
    /// What the file system says; the instance is lost then.
    pub fn take_block(&mut self, block: Block) -> io::Result<()> {
        for part in block.parts() {
            self.digest.update(part);
        }
        self.size += block.kept_bytes() as u64;
        self.blocks.push(block);
        self.write_what_is_much()
    }

    fn write_what_is_much(&mut self) -> io::Result<()> {
        let most = if self.is_spilled() {
            WRITE_BYTES
        } else {
            self.memory_bytes
        };
        if self.buffer.len() + self.blocks.len() * BLOCK_BYTES >= most.max(1) {
            self.write_out()?;
        }
        Ok(())
    }

    /// Whether no block waits for another one.
    #[must_use]
    pub fn writes_each_block(&self) -> bool {
        self.memory_bytes <= BLOCK_BYTES
    }

    /// What is not in the file.
    fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.buffer.as_slice()).chain(self.blocks.iter().flat_map(Block::parts))
    }

    /// Writes all bytes to the temporary file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_out(&mut self) -> io::Result<()> {
        self.made_file()?;
        self.reserve()?;
        let mut file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut parts: Vec<_> = self.waiting().map(IoSlice::new).collect();
        let count: usize = parts.iter().map(|part| part.len()).sum();
        let written = if self.written == 0 && self.store.direct.is_for(count) {
            Direct::write(file, &parts)
        } else {
            os::write_all(&mut parts, |parts, _| file.write_vectored(parts)).map(|()| 0)
        };
        self.written_back += written?;
        self.written += count as u64;
        self.buffer.clear();
        self.blocks.clear();
        // It will be synced in the end, so it may as well go to the disk while the rest comes.
        if self.store.durability.syncs_data() && self.written - self.written_back >= WRITE_BACK_BYTES {
            self.begin_write_back()?;
        }
        Ok(())
    }

    /// Settles where on the disk what is written next will be, once for many blocks instead of for each.
    fn reserve(&mut self) -> io::Result<()> {
        let ahead = self.size.clamp(LEAST_AHEAD_BYTES, MOST_AHEAD_BYTES);
        let until = self.expected.min(self.size + ahead).max(self.size);
        let from = self.reserved.max(self.written);
        if self.store.reserves && self.size > from && until - from >= os::LEAST_RESERVED_BYTES {
            if let Some(file) = &self.file {
                os::reserve(file, from, until - from)?;
            }
            self.reserved = until;
        }
        Ok(())
    }

    /// Gives back what is reserved behind the end: more bytes were announced than came.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn give_reserved_back(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| self.reserved > self.size) {
            file.set_len(self.size)?;
            self.reserved = self.size;
        }
        Ok(())
    }

    /// The temporary file, which is made if there is none yet.
    fn made_file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let (file, is_named) = create(self.store, &self.name)?;
            self.is_named = is_named;
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether a part of it is in the file, or on its way there.
    fn is_spilled(&self) -> bool {
        self.written > 0
    }

    /// Has the disk take what is written; nobody waits for it.
    ///
    /// # Errors
    /// What `sync_file_range` says; the instance is lost then.
    pub fn begin_write_back(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| self.written > self.written_back) {
            write_back::begin(file, self.written_back, self.written - self.written_back)?;
            self.written_back = self.written;
        }
        Ok(())
    }

    /// Waits until the disk has what is written. It is durable with the next sync.
    ///
    /// # Errors
    /// What `sync_file_range` says; the instance is lost then.
    pub fn finish_write_back(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), write_back::finish)
    }

    /// Syncs what is written, before it gets its name: it has one in `.incoming` then, because not each file system keeps the
    /// sync of a file that has none.
    ///
    /// # Errors
    /// What `fdatasync` says; the instance is lost then, because the kernel may have thrown away its pages.
    pub fn sync(&mut self) -> io::Result<()> {
        self.name_temporarily()?;
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    /// Syncs all of a file that has its name.
    ///
    /// # Errors
    /// What `fsync` says; the instance is lost then.
    pub fn sync_named(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_all)
    }

    /// Gives the complete file its name, replacing what is there atomically.
    ///
    /// # Errors
    /// What the file system says; the temporary file is gone then.
    pub fn publish(&mut self, folder: &SeriesFolder, file_name: &str) -> io::Result<()> {
        self.publish_in(folder.series(), file_name)
    }

    /// The same in a folder that is none of a series.
    ///
    /// # Errors
    /// As [`Spool::publish`].
    pub(crate) fn publish_in(&mut self, folder: BorrowedFd<'_>, file_name: &str) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| !self.is_named) {
            match os::give_name(file, folder, file_name) {
                Err(Errno::EXIST) => self.name_temporarily()?,
                named => {
                    named?;
                    self.published = true;
                    return Ok(());
                }
            }
        }
        rustix::fs::renameat(self.store.incoming(), self.name.as_str(), folder, file_name)?;
        self.published = true;
        Ok(())
    }

    fn name_temporarily(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| !self.is_named) {
            os::give_name(file, self.store.incoming(), &self.name)?;
            self.is_named = true;
        }
        Ok(())
    }

    /// Goes on in another store, maybe of another file system.
    ///
    /// # Errors
    /// What the file system says.
    pub fn move_to(&mut self, store: &'s Store) -> io::Result<()> {
        if std::ptr::eq(self.store, store) {
            return Ok(());
        }
        let Some(old) = &mut self.file else {
            self.store = store;
            return Ok(());
        };
        let (mut new, is_named) = create(store, &self.name)?;
        let copied = old.rewind().and_then(|()| io::copy(old, &mut new));
        // From here on the new file is the one that goes when this is dropped.
        self.file = Some(new);
        self.reserved = 0;
        let from = std::mem::replace(&mut self.store, store);
        if std::mem::replace(&mut self.is_named, is_named) {
            rustix::fs::unlinkat(from.incoming(), self.name.as_str(), AtFlags::empty())?;
        }
        copied?;
        Ok(())
    }

    /// Whether the file has its name.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.published
    }

    /// The data set for another process.
    ///
    /// # Errors
    /// What the file system says.
    pub fn as_input(&mut self) -> io::Result<Input<'_>> {
        if self.is_spilled() {
            self.write_out()?;
            let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
            return Ok(Input::File(file.as_fd(), self.header_bytes));
        }
        Ok(Input::Memory(self.dataset_in_memory().collect()))
    }

    fn dataset_in_memory(&self) -> impl Iterator<Item = &[u8]> {
        let mut header = usize::try_from(self.header_bytes).unwrap_or(usize::MAX);
        // The header is in the first part.
        self.waiting()
            .map(move |part| part.get(std::mem::take(&mut header)..).unwrap_or_default())
    }

    /// Appends the data set from its byte `from` on to another file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn copy_dataset(&mut self, from: u64, to: &mut Spool<'_>) -> io::Result<()> {
        if !self.is_spilled() {
            let mut before = usize::try_from(from).unwrap_or(usize::MAX);
            for part in self.dataset_in_memory() {
                let skipped = before.min(part.len());
                before -= skipped;
                to.append(part.get(skipped..).unwrap_or_default())?;
            }
            return Ok(());
        }
        self.write_out()?;
        let ours = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let at = self.header_bytes + from;
        read_from(ours, at, self.size.saturating_sub(at), |block| to.append(block))
    }

    /// Whether the data set bytes equal those of `file` from `offset` on.
    ///
    /// # Errors
    /// What the file system says.
    pub fn same_dataset(&mut self, file: &File, offset: u64) -> io::Result<bool> {
        if file.metadata()?.len() != offset + self.dataset_bytes() {
            return Ok(false);
        }
        if !self.is_spilled() {
            return same_as(self.dataset_in_memory(), file, offset);
        }
        self.write_out()?;
        let ours = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut block = vec![0; READ_BYTES];
        let mut at = 0;
        while at < self.dataset_bytes() {
            let count = (self.dataset_bytes() - at).min(READ_BYTES as u64);
            let block = block
                .get_mut(..usize::try_from(count).unwrap_or(READ_BYTES))
                .unwrap_or_default();
            ours.read_exact_at(block, self.header_bytes + at)?;
            if !same_as([&*block].into_iter(), file, offset + at)? {
                return Ok(false);
            }
            at += count;
        }
        Ok(true)
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the data set.
    #[must_use]
    pub fn dataset_bytes(&self) -> u64 {
        self.size - self.header_bytes
    }

    /// Digest of the whole file.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest.digest()
    }

    /// Transfer syntax of the data set.
    #[must_use]
    pub fn transfer_syntax(&self) -> &'s str {
        self.transfer_syntax
    }

    /// Gives the memory back for the next instance, and the file, where there is one, to be closed in a moment.
    #[must_use]
    pub fn into_scratch(mut self) -> (Vec<u8>, Option<File>) {
        // One without a name is removed when this is dropped.
        let file = if self.published { self.file.take() } else { None };
        (std::mem::take(&mut self.buffer), file)
    }
}

/// Reads so many bytes of a file from `at` on, a block at a time.
fn read_from(
    file: &File,
    mut at: u64,
    bytes: u64,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let end = at + bytes;
    let mut block = vec![0; READ_BYTES];
    while at < end {
        let count = usize::try_from((end - at).min(READ_BYTES as u64)).unwrap_or(READ_BYTES);
        let block = block.get_mut(..count).unwrap_or_default();
        file.read_exact_at(block, at)?;
        take(block)?;
        at += count as u64;
    }
    Ok(())
}

/// Whether parts, one behind the other, equal what is in a file from `at` on.
fn same_as<'p>(parts: impl Iterator<Item = &'p [u8]>, file: &File, mut at: u64) -> io::Result<bool> {
    let mut theirs = vec![0; READ_BYTES];
    for ours in parts.flat_map(|part| part.chunks(READ_BYTES)) {
        let theirs = theirs.get_mut(..ours.len()).unwrap_or_default();
        file.read_exact_at(theirs, at)?;
        if ours != theirs {
            return Ok(false);
        }
        at += ours.len() as u64;
    }
    Ok(true)
}

/// A temporary file, and whether it has its name in `.incoming`.
fn create(store: &Store, name: &str) -> io::Result<(File, bool)> {
    if let Some(file) = store.nameless.take(&store.incoming)? {
        return Ok((file, false));
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(store.incoming(), name, flags, Mode::from_raw_mode(0o644))?;
    Ok((file.into(), true))
}

impl Drop for Spool<'_> {
    fn drop(&mut self) {
        if self.is_named && !self.published {
            // Best effort: what stays is removed at start-up, and is not visible beneath a tenant.
            let _ = rustix::fs::unlinkat(self.store.incoming(), self.name.as_str(), AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests;
