//! Files on their way to the disk before anybody waits for it.

use std::fs::File;
use std::io;

/// Has the kernel begin to write a part of a file back. Nothing is durable by it, and a fault is told by the sync at the
/// latest, but the sync finds less to do.
///
/// # Errors
/// What `sync_file_range` says.
#[cfg(target_os = "linux")]
pub fn begin(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    // Where it cannot be asked for, the sync does all of it.
    sync_file_range(file, offset, bytes, libc::SYNC_FILE_RANGE_WRITE).map(drop)
}

/// Waits until all that was written to a file is on its disk. It is durable with the next sync of its names and sizes.
///
/// # Errors
/// What `sync_file_range` says.
#[cfg(target_os = "linux")]
pub fn finish(file: &File) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // No bytes: to its end.
    if sync_file_range(file, 0, 0, flags)? {
        return Ok(());
    }
    file.sync_data()
}

/// Returns whether this file and this kernel have it.
#[cfg(target_os = "linux")]
fn sync_file_range(file: &File, offset: u64, bytes: u64, flags: libc::c_uint) -> io::Result<bool> {
    use std::os::fd::AsRawFd as _;

    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = i64::try_from(offset).map_err(too_large)?;
    let bytes = i64::try_from(bytes).map_err(too_large)?;
    // SAFETY: the descriptor is open as long as `file` is borrowed, and no memory is passed.
    let code = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, flags) };
    if code == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Not a file of a disk, or a kernel without it.
        Some(libc::ESPIPE | libc::ENOSYS | libc::EINVAL) => Ok(false),
        _ => Err(error),
    }
}

/// There is nothing like it.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn begin(_file: &File, _offset: u64, _bytes: u64) -> io::Result<()> {
    Ok(())
}

/// Waits until all that was written to a file is on its disk.
///
/// # Errors
/// What `fsync` says.
#[cfg(not(target_os = "linux"))]
pub fn finish(file: &File) -> io::Result<()> {
    file.sync_data()
}
