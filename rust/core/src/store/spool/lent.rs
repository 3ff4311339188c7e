//! What another process makes of a data set, behind the header: copied out of its reach, or taken over from a file that nobody
//! can change any more.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::AtFlags;
use storescp_codecs::writers;

use super::{read_from, Spool};
use crate::digest::Digester;
use crate::os;
use crate::transcode::pool::Sink;

impl Sink for Spool<'_> {
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)> {
        let header_bytes = self.header_bytes;
        self.lent_header = if self.is_spilled() {
            let mut header = Vec::new();
            let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
            read_from(file, 0, header_bytes, |block| header.write_all(block))?;
            header
        } else {
            self.waiting().collect::<Vec<_>>().concat()
        };
        Ok((self.made_file()?.as_fd(), header_bytes))
    }

    fn meanwhile(&mut self) -> io::Result<()> {
        if self.store.durability.syncs_data() {
            self.made_file()?;
        } else {
            self.write_out()?;
        }
        // In its place: the next instance finds it, and need not wait for it behind the answer to this one.
        self.store.prepare();
        Ok(())
    }

    fn take(&mut self, result: &[u8]) -> io::Result<()> {
        if self.store.durability.syncs_data() {
            // It is written all at once, while its row is synced.
            return self.append(result);
        }
        // While it is in the cache.
        self.write_out()?;
        self.expect(result.len() as u64);
        self.digest.update(result);
        self.size += result.len() as u64;
        self.reserve()?;
        let mut file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(result)?;
        self.written = self.size;
        Ok(())
    }

    fn take_over(&mut self, bytes: u64) -> io::Result<()> {
        let header = std::mem::take(&mut self.lent_header);
        let whole = self
            .header_bytes
            .checked_add(bytes)
            .ok_or(io::ErrorKind::InvalidData)?;
        if header.len() as u64 != self.header_bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.write_out()?;
        // With our own right to write given up, another one can be told.
        let file = os::read_only(self.file.take().ok_or(io::ErrorKind::NotFound)?)?;
        if !writers::has_none(&file) {
            return self.copy(&file, &header, whole);
        }
        let mut found = vec![0; header.len()];
        file.read_exact_at(&mut found, 0)?;
        if found != header || file.metadata()?.len() != whole {
            return Err(io::ErrorKind::InvalidData.into());
        }
        read_from(&file, self.header_bytes, bytes, |block| {
            self.digest.update(block);
            self.size += block.len() as u64;
            Ok(())
        })?;
        self.written = self.size;
        self.file = Some(file);
        Ok(())
    }
}

impl Spool<'_> {
    /// Begins anew with what is behind the header in a file that somebody may still change, or of which nobody can tell.
    fn copy(&mut self, file: &File, header: &[u8], whole: u64) -> io::Result<()> {
        if file.metadata()?.len() != whole {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if std::mem::take(&mut self.is_named) {
            rustix::fs::unlinkat(self.store.incoming(), self.name.as_str(), AtFlags::empty())?;
        }
        (self.size, self.written, self.written_back, self.reserved) = (0, 0, 0, 0);
        self.digest = Digester::default();
        self.append(header)?;
        read_from(file, self.header_bytes, whole - self.header_bytes, |block| {
            self.append(block)
        })
    }
}
