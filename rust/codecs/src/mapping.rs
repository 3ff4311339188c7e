//! Memory by the page: data sets as slices of files, without reading them, and memory that a disk reads.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};

use memmap2::{Mmap, MmapMut, MmapOptions};

/// The pages of a file, read as they are touched; they are not memory of the process.
#[derive(Debug)]
pub struct Mapping(Mmap);

impl Mapping {
    /// Maps a whole file, and leaves its cursor at its end. The file must not be cut while it is mapped: it is a temporary file or a memory file of
    /// ours that nobody else has open.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn of(file: &File) -> io::Result<Self> {
        let bytes = length(file)?;
        // SAFETY: the file is ours alone (see above), so that its bytes neither change nor go away beneath the slice.
        let map = unsafe { MmapOptions::new().len(bytes).map(file) }?;
        // Only advice: a kernel that does not take it reads ahead as it likes.
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(Self(map))
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A memory file, for the one who writes it. Pages that were touched stay, so that the next data set finds them: a page that
/// is touched for the first time costs more than copying into it.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    map: MmapMut,
}

impl SharedMemory {
    /// Takes a memory file that can grow and cannot shrink (sealed so: who else has it must not cut it beneath us).
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn new(file: File) -> io::Result<Self> {
        let map = Self::map(&file)?;
        Ok(Self { file, map })
    }

    /// Makes room for so many bytes. The file grows as it must.
    ///
    /// # Errors
    /// What the file system says.
    pub fn reserve(&mut self, bytes: usize) -> io::Result<()> {
        if self.map.len() < bytes {
            self.file.set_len(bytes.next_power_of_two() as u64)?;
            self.map = Self::map(&self.file)?;
        }
        Ok(())
    }

    /// Puts bytes at the beginning, one part behind the other.
    ///
    /// # Errors
    /// `OutOfMemory` where there is no room for them.
    pub fn put(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut at = 0;
        for part in parts {
            self.map
                .get_mut(at..at + part.len())
                .ok_or(io::ErrorKind::OutOfMemory)?
                .copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    }

    /// Copies its first bytes, each of which is read once: who else has the file may change them meanwhile, and afterwards.
    ///
    /// # Errors
    /// `InvalidData` where it has fewer.
    pub fn copy_to(&self, copy: &mut [u8]) -> io::Result<()> {
        let bytes = self.map.get(..copy.len()).ok_or(io::ErrorKind::InvalidData)?;
        copy.copy_from_slice(bytes);
        // Whoever looks at the copy shall not be given what it was copied from.
        std::hint::black_box(copy);
        Ok(())
    }

    /// All bytes that the file had when it was mapped.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// The file, to hand it over.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    fn map(file: &File) -> io::Result<MmapMut> {
        let bytes = length(file)?;
        // SAFETY: the file is a memory file of ours that cannot shrink; who reads it does so when we do not write.
        unsafe { MmapOptions::new().len(bytes).map_mut(file) }
    }
}

/// Bytes of a file. A process that is locked down may not ask for more than the end of it.
fn length(mut file: &File) -> io::Result<usize> {
    let end = file.seek(SeekFrom::End(0))?;
    usize::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// Bytes of a [`LargePage`].
pub const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Memory of our own that begins at a multiple of its size, so that it can be one page where the system has pages of that
/// size: a disk that reads it is told of one place in memory instead of one for every 4 KiB. Only what is touched is taken.
#[derive(Debug)]
pub struct LargePage {
    map: MmapMut,
    start: usize,
}

impl LargePage {
    /// Zeros.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn new() -> io::Result<Self> {
        let map = MmapMut::map_anon(2 * LARGE_PAGE_BYTES)?;
        let start = map.as_ptr().align_offset(LARGE_PAGE_BYTES);
        // Only advice: small pages do as well.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, start, LARGE_PAGE_BYTES);
        Ok(Self { map, start })
    }

    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + LARGE_PAGE_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_page_begins_at_a_multiple_of_its_size() {
        let mut pages = [LargePage::new().unwrap(), LargePage::new().unwrap()];
        for page in &mut pages {
            let bytes = page.bytes();
            assert_eq!(bytes.as_ptr().align_offset(LARGE_PAGE_BYTES), 0);
            assert!(bytes.len() == LARGE_PAGE_BYTES && bytes.iter().all(|&byte| byte == 0));
            bytes.fill(7);
        }
    }

    #[test]
    fn what_is_put_is_seen_through_the_file_however_long_it_is() {
        let mut memory = SharedMemory::new(tempfile::tempfile().unwrap()).unwrap();
        for length in [0, 1, 5000, 100, 70_000] {
            let bytes: Vec<u8> = (0..length).map(|at: u32| at.to_le_bytes()[0]).collect();
            let (first, second) = bytes.split_at(bytes.len() / 3);
            memory.reserve(bytes.len()).unwrap();
            memory.put(&[first, second]).unwrap();
            let seen = Mapping::of(memory.file()).unwrap();
            assert_eq!(seen.as_ref().get(..bytes.len()), Some(bytes.as_slice()));
            let mut copy = vec![0; bytes.len()];
            memory.copy_to(&mut copy).unwrap();
            assert_eq!(copy, bytes);
            assert!(memory.copy_to(&mut vec![0; 1 << 20]).is_err());
        }
    }
}
