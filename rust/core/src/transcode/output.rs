//! Where the result goes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use flate2::write::DeflateEncoder;
use flate2::Compression;

use crate::os;

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

    /// Says that at least so many bytes follow, before they are worked out.
    ///
    /// # Errors
    /// `StorageFull` where they do not fit.
    fn expect(&mut self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    /// Appends so many bytes of memory that is there already, to be written over. None where there is none: what attributes
    /// promise is not yet a reason to take memory.
    fn memory(&mut self, _bytes: u64) -> Option<&mut [u8]> {
        None
    }

    /// Leaves room for the next `bytes`, to be written by several threads; none where they have to come in order.
    ///
    /// # Errors
    /// What the file system says.
    fn room(&mut self, bytes: u64) -> io::Result<Option<Room<'_>>>;
}

/// Reserved at a time: it makes writing faster, but attributes that promise more than there is must not fill the disk.
const RESERVED_BYTES: u64 = 16 << 20;

/// Linux takes what is written into pieces of its cache that are as large as the place and the length of the write allow. Between
/// multiples of this they are large ones; a frame by itself would begin and end with a dozen small ones, which take an eighth of
/// the time of the write.
pub(super) const CUT_BYTES: u64 = 1 << 19;

/// What is copied from a place in memory to one like it, by this, in the cache of files is copied a quarter faster than from another.
const ALIGNMENT: usize = 64;

/// A part of a file that is written in any order.
#[derive(Debug)]
pub struct Room<'f> {
    file: &'f File,
    start: u64,
    bytes: u64,
}

impl Room<'_> {
    /// Bytes that follow each other, from an offset on.
    #[must_use]
    pub fn run(&self, offset: u64) -> Run<'_> {
        Run {
            room: self,
            at: offset,
            bytes: 0,
            reserved: offset,
            frames: VecDeque::new(),
            written_of_first: 0,
        }
    }
}

/// Memory for a frame.
#[derive(Debug)]
pub struct Frame {
    memory: Vec<u8>,
    place: Range<usize>,
}

impl Frame {
    /// In new memory, or in that of another frame of this size.
    fn new(bytes: usize, position: u64, unused: Option<Vec<u8>>) -> Self {
        let needed = bytes + ALIGNMENT;
        let memory = unused
            .filter(|memory| memory.len() == needed)
            .unwrap_or_else(|| vec![0; needed]);
        let wanted = usize::try_from(position % ALIGNMENT as u64).unwrap_or(0);
        let start = (ALIGNMENT + wanted - memory.as_ptr().addr() % ALIGNMENT) % ALIGNMENT;
        Self {
            memory,
            place: start..start + bytes,
        }
    }

    /// Its bytes, which may be those of another one at first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.place.clone()).unwrap_or_default()
    }

    fn bytes(&self) -> &[u8] {
        self.memory.get(self.place.clone()).unwrap_or_default()
    }
}

/// Frames that follow each other in a room. Those that others write before and behind them are not waited for.
#[derive(Debug)]
pub struct Run<'r> {
    room: &'r Room<'r>,
    /// Where what is held goes, from the start of the room, and how much it is.
    at: u64,
    bytes: u64,
    /// Up to here the file has room for them.
    reserved: u64,
    frames: VecDeque<Frame>,
    written_of_first: usize,
}

impl Run<'_> {
    /// Memory for the next frame, which is that of a frame that is written where there is one.
    #[must_use]
    pub fn next_frame(&self, bytes: usize, unused: &mut Vec<Vec<u8>>) -> Frame {
        Frame::new(bytes, self.room.start + self.at + self.bytes, unused.pop())
    }

    /// Appends that frame.
    pub fn push(&mut self, frame: Frame) {
        self.bytes += frame.place.len() as u64;
        self.frames.push_back(frame);
    }

    /// How many frames are held, one that is written in part among them.
    #[must_use]
    pub fn held(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing is written before more comes.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.due() == 0
    }

    /// Writes what is held: all of it, or up to a place in the file where the next write begins well. `unused` gets the memory of
    /// frames that are written.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&mut self, all: bool, unused: &mut Vec<Vec<u8>>) -> io::Result<()> {
        let due = if all { self.bytes } else { self.due() };
        self.reserve(self.at + due)?;
        let mut skipped = self.written_of_first;
        let mut left = usize::try_from(due).map_err(io::Error::other)?;
        let mut parts = Vec::with_capacity(self.frames.len());
        for frame in &self.frames {
            let part = frame.bytes().get(skipped..).unwrap_or_default();
            let part = part.get(..left).unwrap_or(part);
            parts.push(IoSlice::new(part));
            left -= part.len();
            skipped = 0;
        }
        let start = self.room.start + self.at;
        os::write_all(&mut parts, |parts, so_far| {
            Ok(rustix::io::pwritev(self.room.file, parts, start + so_far)?)
        })?;
        self.at += due;
        self.bytes -= due;
        self.written_of_first += usize::try_from(due).map_err(io::Error::other)?;
        while let Some(frame) = self.frames.pop_front() {
            let bytes = frame.place.len();
            if bytes > self.written_of_first {
                self.frames.push_front(frame);
                break;
            }
            self.written_of_first -= bytes;
            unused.push(frame.memory);
        }
        Ok(())
    }

    fn reserve(&mut self, end: u64) -> io::Result<()> {
        if end > self.reserved {
            let more = (end - self.reserved)
                .max(RESERVED_BYTES)
                .min(self.room.bytes.saturating_sub(self.reserved));
            os::preallocate(self.room.file, self.room.start + self.reserved, more)?;
            self.reserved += more;
        }
        Ok(())
    }

    /// The bytes up to the last place that is a multiple of [`CUT_BYTES`].
    fn due(&self) -> u64 {
        let start = self.room.start + self.at;
        let end = start + self.bytes;
        (end - end % CUT_BYTES).saturating_sub(start)
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

/// Memory of a fixed size.
#[derive(Debug)]
pub struct MemoryOutput<'m> {
    memory: &'m mut [u8],
    position: usize,
}

impl<'m> MemoryOutput<'m> {
    /// Writes to `memory` from its beginning.
    #[must_use]
    pub fn new(memory: &'m mut [u8]) -> Self {
        Self { memory, position: 0 }
    }
}

impl Output for MemoryOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.position.saturating_add(bytes.len());
        let room = self
            .memory
            .get_mut(self.position..end)
            .ok_or(io::ErrorKind::StorageFull)?;
        room.copy_from_slice(bytes);
        self.position = end;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position as u64
    }

    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(at)
            .ok()
            .and_then(|at| self.memory.get_mut(at..at.checked_add(bytes.len())?))
            .ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(bytes);
        Ok(())
    }

    fn expect(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > (self.memory.len() - self.position) as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn memory(&mut self, bytes: u64) -> Option<&mut [u8]> {
        let begin = self.position;
        let end = begin.checked_add(usize::try_from(bytes).ok()?)?;
        let room = self.memory.get_mut(begin..end)?;
        self.position = end;
        Some(room)
    }

    fn room(&mut self, _bytes: u64) -> io::Result<Option<Room<'_>>> {
        Ok(None)
    }
}

/// A file, from an offset on.
#[derive(Debug)]
pub struct FileOutput<'f> {
    file: &'f File,
    offset: u64,
    flushed: u64,
    buffer: Vec<u8>,
}

impl<'f> FileOutput<'f> {
    /// Writes to `file` behind its first `offset` bytes.
    #[must_use]
    pub fn new(file: &'f File, offset: u64) -> Self {
        Self {
            file,
            offset,
            flushed: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        }
    }

    /// Hands the last bytes to the file system.
    ///
    /// # Errors
    /// What it says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.offset + self.flushed)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Output for FileOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.file.write_all_at(bytes, self.offset + self.flushed)?;
            self.flushed += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.file.write_all_at(bytes, self.offset + at)
    }

    fn room(&mut self, bytes: u64) -> io::Result<Option<Room<'_>>> {
        self.flush()?;
        let start = self.offset + self.flushed;
        self.flushed += bytes;
        Ok(Some(Room {
            file: self.file,
            start,
            bytes,
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

    fn expect(&mut self, bytes: u64) -> io::Result<()> {
        self.encoder.get_mut().0.expect(bytes)
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
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn what_is_promised_takes_no_room_before_it_is_there() {
        let file = tempfile::tempfile().unwrap();
        let mut out = FileOutput::new(&file, 100);
        let promised = 1 << 30;
        let room = out.room(promised).unwrap().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        let write_at = |offset: u64, bytes: usize| {
            let mut run = room.run(offset);
            let mut frame = run.next_frame(bytes, &mut Vec::new());
            frame.bytes_mut().fill(7);
            run.push(frame);
            run.write(true, &mut Vec::new()).unwrap();
        };
        write_at(1000, 10);
        let metadata = file.metadata().unwrap();
        assert!(metadata.len() <= 1100 + RESERVED_BYTES && metadata.blocks() * 512 <= 2 * RESERVED_BYTES);
        // In the end nothing lies behind it, whatever was reserved.
        write_at(promised - 1, 1);
        assert_eq!(file.metadata().unwrap().len(), 100 + promised);
        assert!(Vec::new().memory(promised).is_none());
    }

    #[test]
    fn a_frame_lies_in_memory_as_in_the_file_and_memory_is_used_again() {
        let file = tempfile::tempfile().unwrap();
        let mut unused = Vec::new();
        for start in [0, 1, 34, 64, 1378] {
            let mut out = FileOutput::new(&file, start);
            let room = out.room(3000).unwrap().unwrap();
            let mut run = room.run(500);
            for position in [start + 500, start + 1500] {
                let memory = unused.last().map(|memory: &Vec<u8>| memory.as_ptr());
                let mut frame = run.next_frame(1000, &mut unused);
                assert_eq!(frame.bytes_mut().len(), 1000);
                let place = frame.bytes().as_ptr().addr();
                assert_eq!(place % ALIGNMENT, usize::try_from(position).unwrap() % ALIGNMENT);
                assert!(memory.is_none_or(|memory| memory == frame.memory.as_ptr()));
                run.push(frame);
            }
            run.write(true, &mut unused).unwrap();
            assert_eq!(unused.len(), 2);
        }
        // Of another size it is of no use.
        assert_eq!(Frame::new(7, 0, unused.pop()).bytes_mut().len(), 7);
    }
}
