//! What Linux has and macOS does differently. The service is made for Linux; on macOS it is for development.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType};

/// Room on the disk is not worth being reserved for less.
pub(crate) const LEAST_RESERVED_BYTES: u64 = 64 * 1024;

/// Whether what is wrong may pass by itself, without a change of the configuration: a disk that is full, broken, or not mounted.
#[must_use]
pub(crate) fn may_pass(error: &io::Error) -> bool {
    !matches!(
        Errno::from_io_error(error),
        Some(
            Errno::ACCESS
                | Errno::PERM
                | Errno::NOTDIR
                | Errno::ISDIR
                | Errno::LOOP
                | Errno::NAMETOOLONG
                | Errno::INVAL
                | Errno::OPNOTSUPP
                | Errno::NOSYS
        )
    )
}

/// Reserves a part of a file, where that can be done. Where it cannot, or the disk is full, the write finds out.
///
/// # Errors
/// What else the file system says.
pub(crate) fn preallocate(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    reserved(file, FallocateFlags::empty(), offset, bytes)
}

/// The same, and the file is no longer than what is written to it. Nothing where a reservation sets the length.
pub(crate) fn reserve(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    imp::LENGTH_STAYS.map_or(Ok(()), |flags| reserved(file, flags, offset, bytes))
}

fn reserved(file: &File, flags: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, flags, offset, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOSPC | Errno::DQUOT | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes all parts; `write` writes some of those it gets, and learns how many bytes were written before.
///
/// # Errors
/// What `write` says.
pub(crate) fn write_all(
    mut parts: &mut [IoSlice<'_>],
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut so_far = 0;
    IoSlice::advance_slices(&mut parts, 0); // empty ones at the beginning
    while !parts.is_empty() {
        match write(parts, so_far) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                so_far += count as u64;
                IoSlice::advance_slices(&mut parts, count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
mod imp {
    use super::{
        io, AsFd, Errno, FallocateFlags, File, OFlags, OwnedFd, RecvFlags, SendFlags, SocketAddrAny,
        SocketFlags, SocketType, TcpStream,
    };
    use std::os::fd::AsRawFd as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{AtFlags, MemfdFlags, Mode, ResolveFlags, SealFlags, CWD};
    use rustix::thread::{sched_getaffinity, sched_setaffinity};

    /// Acknowledges what comes next at once. DCMTK and Orthanc answer in two writes, and hold the second one back until the
    /// first is acknowledged: 40 ms later without this, which makes 22 instances a second (`storescpd send` to DCMTK's storescp).
    pub(crate) fn acknowledge_at_once(socket: &TcpStream) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_tcp_quickack(socket, true)?)
    }

    pub(crate) const MESSAGES: SocketType = SocketType::SEQPACKET;
    pub(crate) const SOCKET: SocketFlags = SocketFlags::CLOEXEC;
    pub(crate) const SEND: SendFlags = SendFlags::NOSIGNAL;
    pub(crate) const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;
    pub(super) const LENGTH_STAYS: Option<FallocateFlags> = Some(FallocateFlags::KEEP_SIZE);
    /// What `O_NOFOLLOW` does for the last name of a path, for all of them.
    const NO_LINKS: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
    /// Of ext2, ext3 and ext4, and of XFS (statfs(2)). Without a journal they do not: start-up removes what is left then.
    const ORDERED: [u64; 2] = [EXT, 0x5846_5342];
    const EXT: u64 = 0xEF53;

    pub(crate) fn open_beneath(
        root: impl AsFd,
        relative: &str,
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(root, relative, flags, Mode::empty(), NO_LINKS)
    }

    pub(crate) fn sync_folder(folder: impl AsFd) -> rustix::io::Result<()> {
        rustix::fs::fsync(folder)
    }

    pub(crate) fn nameless_file(folder: impl AsFd) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        rustix::fs::openat(folder, ".", flags, Mode::from_raw_mode(0o644))
    }

    pub(crate) fn this_processor() -> usize {
        rustix::thread::sched_getcpu()
    }

    /// Moves this thread from that processor to another that it may use, if there is one; it may come back.
    pub(crate) fn leave_processor(processor: usize) -> rustix::io::Result<()> {
        let allowed = sched_getaffinity(None)?;
        let mut others = allowed;
        others.unset(processor);
        if others.count() > 0 {
            sched_setaffinity(None, &others)?;
            sched_setaffinity(None, &allowed)?;
        }
        Ok(())
    }

    /// Before Linux 6.10 it takes a privilege to name a file by its descriptor alone, and without it there is "no such file",
    /// as where the folder is gone.
    static NEEDS_PROC: AtomicBool = AtomicBool::new(false);

    pub(crate) fn give_name(file: impl AsFd, folder: impl AsFd, name: &str) -> rustix::io::Result<()> {
        if !NEEDS_PROC.load(Ordering::Relaxed) {
            match rustix::fs::linkat(&file, c"", &folder, name, AtFlags::EMPTY_PATH) {
                Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {}
                named => return named,
            }
        }
        give_name_by_path(file, folder, name)?;
        NEEDS_PROC.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn give_name_by_path(
        file: impl AsFd,
        folder: impl AsFd,
        name: &str,
    ) -> rustix::io::Result<()> {
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        rustix::fs::linkat(CWD, path, folder, name, AtFlags::SYMLINK_FOLLOW)
    }

    pub(crate) fn pass_cache(file: impl AsFd, wanted: bool) -> rustix::io::Result<()> {
        let mut flags = rustix::fs::fcntl_getfl(&file)?;
        flags.set(OFlags::DIRECT, wanted);
        rustix::fs::fcntl_setfl(file, flags)
    }

    fn kind(folder: impl AsFd) -> Option<u64> {
        u64::try_from(rustix::fs::fstatfs(folder).ok()?.f_type).ok()
    }

    pub(crate) fn keeps_order(folder: impl AsFd) -> bool {
        kind(folder).is_some_and(|kind| ORDERED.contains(&kind))
    }

    pub(crate) fn rewards_reserving(folder: impl AsFd) -> bool {
        kind(folder) == Some(EXT)
    }

    pub(crate) fn accept(listener: impl AsFd) -> rustix::io::Result<(OwnedFd, Option<SocketAddrAny>)> {
        rustix::net::acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
    }

    /// The link in /proc leads to the file itself, whether or not it has a name.
    pub(crate) fn read_only(file: impl AsFd) -> std::io::Result<File> {
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        File::open(path)
    }

    pub(crate) fn memory_file(bytes: u64, can_grow: bool) -> std::io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("storescp", flags)?;
        rustix::fs::ftruncate(&file, bytes)?;
        let mut seals = SealFlags::SHRINK | SealFlags::SEAL;
        if !can_grow {
            seals |= SealFlags::GROW;
        }
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(file.into())
    }
}

#[cfg(not(target_os = "linux"))]
#[allow(clippy::unnecessary_wraps)] // the same signatures as on Linux, where these can fail
mod imp {
    use super::{
        io, AsFd, Errno, FallocateFlags, File, OFlags, OwnedFd, RecvFlags, SendFlags, SocketAddrAny,
        SocketFlags, SocketType, TcpStream,
    };
    use rustix::io::{fcntl_setfd, ioctl_fionbio, FdFlags};

    /// There is no such setting there.
    pub(crate) fn acknowledge_at_once(_socket: &TcpStream) -> io::Result<()> {
        Ok(())
    }

    pub(crate) const MESSAGES: SocketType = SocketType::DGRAM;
    pub(crate) const SOCKET: SocketFlags = SocketFlags::empty();
    pub(crate) const SEND: SendFlags = SendFlags::empty();
    pub(crate) const RECEIVE: RecvFlags = RecvFlags::empty();
    /// `F_PREALLOCATE` of fcntl(2) reserves behind the end, and what rustix makes of it moves the end.
    pub(super) const LENGTH_STAYS: Option<FallocateFlags> = None;

    /// Nobody there says which.
    pub(crate) fn this_processor() -> usize {
        0
    }

    pub(crate) fn leave_processor(_processor: usize) -> rustix::io::Result<()> {
        Ok(())
    }

    pub(crate) fn open_beneath(
        _root: impl AsFd,
        _relative: &str,
        _flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        Err(Errno::NOSYS)
    }

    pub(crate) fn sync_folder(folder: impl AsFd) -> rustix::io::Result<()> {
        // fsync(2) leaves it in the cache of the drive there.
        rustix::fs::fcntl_fullfsync(folder)
    }

    pub(crate) fn nameless_file(_folder: impl AsFd) -> rustix::io::Result<OwnedFd> {
        Err(Errno::NOSYS)
    }

    pub(crate) fn give_name(_file: impl AsFd, _folder: impl AsFd, _name: &str) -> rustix::io::Result<()> {
        Err(Errno::NOSYS)
    }

    pub(crate) fn pass_cache(_file: impl AsFd, _wanted: bool) -> rustix::io::Result<()> {
        Err(Errno::NOSYS)
    }

    pub(crate) fn keeps_order(_folder: impl AsFd) -> bool {
        false
    }

    pub(crate) fn rewards_reserving(_folder: impl AsFd) -> bool {
        false
    }

    pub(crate) fn accept(listener: impl AsFd) -> rustix::io::Result<(OwnedFd, Option<SocketAddrAny>)> {
        let (socket, peer) = rustix::net::acceptfrom(listener)?;
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        ioctl_fionbio(&socket, true)?;
        Ok((socket, peer))
    }

    /// It cannot be had there.
    pub(crate) fn read_only(file: impl AsFd) -> std::io::Result<File> {
        Ok(file.as_fd().try_clone_to_owned()?.into())
    }

    pub(crate) fn memory_file(bytes: u64, _can_grow: bool) -> std::io::Result<File> {
        let path = std::env::temp_dir().join(format!("storescp-{}", uuid::Uuid::now_v7()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        std::fs::remove_file(path)?;
        file.set_len(bytes)?;
        Ok(file)
    }
}

/// `MESSAGES`, `SOCKET`, `SEND`, `RECEIVE`: sockets between processes that keep messages apart, and their flags.
/// `open_beneath` opens a folder without following any link; `NOSYS` or `PERM` where that cannot be asked for at once.
/// `sync_folder` makes the names in a folder durable. `accept` takes a connection that waits; it does not block.
/// `nameless_file` makes a file in a folder that has no name there until `give_name` gives it one, which replaces nothing.
/// `pass_cache` sets whether what is written goes past the page cache. `keeps_order` tells whether a file system makes a name
/// durable only with or behind what was written to the file before it was named. `rewards_reserving` tells whether one
/// takes bytes into its cache for less where their place on the disk is settled.
/// `memory_file` is one that another process can map, and on Linux not cut, nor let grow where it must not. `read_only` opens a file that is open once more, on
/// Linux for reading alone: with a cursor of its own, and the right to write is none that it could hand on.
pub(crate) use imp::{
    accept, acknowledge_at_once, give_name, keeps_order, leave_processor, memory_file, nameless_file,
    open_beneath, pass_cache, read_only, rewards_reserving, sync_folder, this_processor, MESSAGES, RECEIVE,
    SEND, SOCKET,
};

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_its_name_on_old_and_new_kernels_and_takes_no_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let handle = File::open(folder.path()).unwrap();
        let make = || nameless_file(&handle).unwrap();
        give_name(make(), &handle, "new").unwrap();
        imp::give_name_by_path(make(), &handle, "old").unwrap();
        assert!(["new", "old"]
            .iter()
            .all(|name| folder.path().join(name).exists()));
        assert_eq!(give_name(make(), &handle, "old"), Err(Errno::EXIST));
        assert_eq!(imp::give_name_by_path(make(), &handle, "new"), Err(Errno::EXIST));
        drop(folder);
        assert_eq!(give_name(make_in_parent(), &handle, "x"), Err(Errno::NOENT));
    }

    #[test]
    fn who_leaves_a_processor_may_come_back() {
        let before = rustix::thread::sched_getaffinity(None).unwrap();
        leave_processor(this_processor()).unwrap();
        assert_eq!(rustix::thread::sched_getaffinity(None).unwrap(), before);
    }

    fn make_in_parent() -> OwnedFd {
        nameless_file(File::open(std::env::temp_dir()).unwrap()).unwrap()
    }
}
