//! Where the result goes.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use flate2::write::DeflateEncoder;
use flate2::Compression;
use xxhash_rust::xxh3::Xxh3Default;

use crate::store::Digest;

const BUFFER_BYTES: usize = 1 << 18;

/// Takes bytes in order; some can be changed afterwards.
pub trait Output {
    /// Appends bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Bytes so far.
    fn position(&self) -> u64;

    /// Writes over bytes that are there already.
    ///
    /// # Errors
    /// What the file system says; `Unsupported` where it cannot be done.
    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Leaves room for the next `bytes`, to be written by several threads; none where they have to come in order.
    ///
    /// # Errors
    /// What the file system says.
    fn room(&mut self, bytes: u64) -> io::Result<Option<Room<'_>>>;
}

/// A part of a file that is written in any order.
#[derive(Debug)]
pub struct Room<'f> {
    file: &'f File,
    start: u64,
}

impl Room<'_> {
    /// Writes bytes at an offset from the start of the room.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.start + offset)
    }
}

impl Output for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn position(&self) -> u64 {
        self.len() as u64
    }

    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(at)
            .ok()
            .and_then(|at| self.get_mut(at..at.checked_add(bytes.len())?))
            .ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(bytes);
        Ok(())
    }

    fn room(&mut self, _bytes: u64) -> io::Result<Option<Room<'_>>> {
        Ok(None)
    }
}

/// A file, from an offset on.
pub struct FileOutput<'f> {
    file: &'f File,
    offset: u64,
    flushed: u64,
    buffer: Vec<u8>,
    /// Of the file up to `flushed`; none once bytes were written out of order.
    digest: Option<Xxh3Default>,
}

impl<'f> FileOutput<'f> {
    /// Writes to `file` behind its first `offset` bytes, which are few.
    ///
    /// # Errors
    /// When those bytes are not there to be read.
    pub fn new(file: &'f File, offset: u64) -> io::Result<Self> {
        let mut before = vec![0; usize::try_from(offset).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut before, 0)?;
        let mut digest = Xxh3Default::new();
        digest.update(&before);
        Ok(Self {
            file,
            offset,
            flushed: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            digest: Some(digest),
        })
    }

    /// Digest of the file from its beginning to what was flushed; none where bytes were written out of order.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
            .as_ref()
            .map(|digest| digest.digest128().to_be_bytes())
    }

    /// Hands the last bytes to the file system.
    ///
    /// # Errors
    /// What it says.
    pub fn flush(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.append(&buffer)?;
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        self.file.write_all_at(bytes, self.offset + self.flushed)?;
        self.flushed += bytes.len() as u64;
        Ok(())
    }
}

impl Output for FileOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.append(bytes)
        } else {
            self.buffer.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.digest = None;
        self.file.write_all_at(bytes, self.offset + at)
    }

    fn room(&mut self, bytes: u64) -> io::Result<Option<Room<'_>>> {
        self.flush()?;
        self.digest = None;
        let start = self.offset + self.flushed;
        self.flushed += bytes;
        Ok(Some(Room {
            file: self.file,
            start,
        }))
    }
}

/// Deflates on the way (PS3.5 A.5).
pub(crate) struct Deflated<'o> {
    encoder: DeflateEncoder<Adapter<'o>>,
    taken: u64,
}

struct Adapter<'o>(&'o mut dyn Output);

impl io::Write for Adapter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'o> Deflated<'o> {
    pub(crate) fn new(out: &'o mut dyn Output) -> Self {
        Self {
            encoder: DeflateEncoder::new(Adapter(out), Compression::default()),
            taken: 0,
        }
    }

    /// PS3.5 A.5: padded to an even length.
    pub(crate) fn finish(self) -> io::Result<()> {
        let out = self.encoder.finish()?.0;
        if out.position() % 2 == 1 {
            out.write(&[0])?;
        }
        Ok(())
    }
}

impl Output for Deflated<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.taken += bytes.len() as u64;
        self.encoder.write_all(bytes)
    }

    fn position(&self) -> u64 {
        self.taken
    }

    fn patch(&mut self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn room(&mut self, _bytes: u64) -> io::Result<Option<Room<'_>>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_128;

    use super::*;

    #[test]
    fn a_file_has_a_digest_as_long_as_it_is_written_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"header").unwrap();
        let mut out = FileOutput::new(&file, 6).unwrap();
        for size in [1, BUFFER_BYTES - 2, BUFFER_BYTES + 1, 7, 2 * BUFFER_BYTES] {
            out.write(&vec![size.to_le_bytes()[0]; size]).unwrap();
        }
        out.flush().unwrap();
        let mut whole = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut whole, 0).unwrap();
        assert_eq!(whole.len() as u64, 6 + out.position());
        assert_eq!(out.digest(), Some(xxh3_128(&whole).to_be_bytes()));
        out.patch(3, b"x").unwrap();
        assert_eq!(out.digest(), None);
        let mut other = FileOutput::new(&file, 6).unwrap();
        assert!(other.room(10).unwrap().is_some());
        assert_eq!(other.digest(), None);
        assert!(FileOutput::new(&file, 1 << 30).is_err());
    }
}
