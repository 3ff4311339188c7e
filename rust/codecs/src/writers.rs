//! Whether a file can still be changed by whoever has it open.

use std::fs::File;

/// fcntl.h: the same number on every machine; not in `libc` for all of them.
#[cfg(target_os = "linux")]
const F_SETSIG: libc::c_int = 10;

/// Magic numbers (statfs(2)) of the file systems that count a mapping as a writer: ext2 to ext4, XFS, Btrfs and tmpfs. Overlayfs does
/// not: its mappings belong to the file beneath, which is another one.
#[cfg(target_os = "linux")]
const COUNT_MAPPINGS: [u32; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994];

/// Whether the file system of a file counts a mapping as a writer.
#[cfg(target_os = "linux")]
fn counts_mappings(file: &File) -> bool {
    use std::os::fd::AsRawFd as _;

    let mut facts = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the kernel fills in what is passed.
    if unsafe { libc::fstatfs(file.as_raw_fd(), facts.as_mut_ptr()) } == -1 {
        return false;
    }
    // SAFETY: it was zeroed, which is a value of this structure of numbers, and filled in.
    let kind = unsafe { facts.assume_init() }.f_type;
    COUNT_MAPPINGS
        .iter()
        .any(|&magic| i128::from(magic) == i128::from(kind))
}

/// Whether nobody has a file open for writing, this process included: no descriptor, no mapping and none on its way over a
/// socket. `file` is open for reading. Where neither the kernel nor the file system can tell, the answer is no.
///
/// It asks for a read lease (fcntl(2), `F_SETLEASE`), which nobody gets for a file that is open for writing, and gives it back.
#[cfg(target_os = "linux")]
#[must_use]
pub fn has_none(file: &File) -> bool {
    use std::os::fd::AsRawFd as _;

    if !counts_mappings(file) {
        return false;
    }
    let descriptor = file.as_raw_fd();
    // Whoever opened the file for writing at this very moment would have us told: by a signal that is ignored by default, and
    // not by one that ends the process.
    // SAFETY: the descriptor is open as long as `file` is borrowed, and no memory is passed.
    let told = unsafe { libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) };
    // SAFETY: as above.
    if told == -1 || unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK) } == -1 {
        return false;
    }
    // SAFETY: as above.
    unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) != -1 }
}

/// There is nothing like it.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn has_none(_file: &File) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use memmap2::MmapMut;

    use super::*;

    #[test]
    fn of_a_file_system_that_is_not_known_nobody_can_tell() {
        assert!(!has_none(&File::open("/proc/self/status").unwrap()));
    }

    #[test]
    fn a_descriptor_and_a_mapping_are_writers_until_they_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let writer = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        writer.set_len(4096).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!has_none(&reader) && !has_none(&writer));
        let copy = writer.try_clone().unwrap();
        // SAFETY: nobody else has the file.
        let map = unsafe { MmapMut::map_mut(&writer) }.unwrap();
        drop(writer);
        assert!(!has_none(&reader));
        drop(copy);
        assert!(!has_none(&reader));
        drop(map);
        assert!(has_none(&reader));
        // It is given back: another may write, and nobody waits for anybody.
        drop(File::options().write(true).open(&path).unwrap());
        assert!(has_none(&reader));
    }
}
