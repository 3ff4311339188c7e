//! A data set as a slice without reading it into memory.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// The pages of a file, read as they are touched; they are not memory of the process.
#[derive(Debug)]
pub struct Mapping(Mmap);

impl Mapping {
    /// Maps a whole file. The file must not be cut while it is mapped: it is a temporary file or a memory file of
    /// ours that nobody else has open.
    ///
    /// # Errors
    /// What `mmap` says.
    pub fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the file is ours alone (see above), so that its bytes neither change nor go away beneath the slice.
        let map = unsafe { Mmap::map(file) }?;
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
