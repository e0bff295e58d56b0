//! The system calls that the standard library lacks. All `unsafe` of the room is here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Fills the spare room of `buffer`, up to `size_bytes`, from `offset` on. Stops early at the end of the file only.
pub(super) fn read_at(file: &File, buffer: &mut Vec<u8>, offset: u64, size_bytes: usize) -> io::Result<()> {
    let mut left = size_bytes;
    while left > 0 {
        let at = to_offset(offset + (size_bytes - left) as u64)?;
        buffer.reserve(left);
        let spare = &mut buffer.spare_capacity_mut()[..left];
        // SAFETY: the pointer and length are those of memory that is ours alone; the kernel only writes to it.
        let read = unsafe { libc::pread(file.as_raw_fd(), spare.as_mut_ptr().cast(), spare.len(), at) };
        match usize::try_from(read) {
            Ok(0) => break,
            // SAFETY: the kernel has filled as many bytes of the spare room.
            Ok(read) => unsafe {
                buffer.set_len(buffer.len() + read);
                left -= read;
            },
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Like one step of [`read_at`], but only with what is in memory: `false` when it would have to wait for the disk, or
/// when the system cannot tell.
#[cfg(target_os = "linux")]
pub(super) fn read_cached_at(file: &File, buffer: &mut Vec<u8>, offset: u64, size_bytes: usize) -> io::Result<bool> {
    buffer.reserve(size_bytes);
    let spare = &mut buffer.spare_capacity_mut()[..size_bytes];
    let parts = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
    // SAFETY: one part, which is memory that is ours alone; the kernel only writes to it.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &parts, 1, to_offset(offset)?, libc::RWF_NOWAIT) };
    match usize::try_from(read) {
        Ok(read) => {
            // SAFETY: the kernel has filled as many bytes of the spare room.
            unsafe { buffer.set_len(buffer.len() + read) };
            Ok(true)
        }
        Err(_) => match io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EPERM) => {
                Ok(false)
            }
            _ => Err(io::Error::last_os_error()),
        },
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read_cached_at(_: &File, _: &mut Vec<u8>, _: u64, _: usize) -> io::Result<bool> {
    Ok(false)
}

fn to_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Asks the kernel to begin writing a range to the disk, so that a later fsync finds less to do. A hint: where it
/// fails or does not exist, the fsync does it all.
pub(super) fn begin_write_back(file: &File, offset: u64, size_bytes: u64) {
    #[cfg(target_os = "linux")]
    if let (Ok(offset), Ok(size_bytes)) = (to_offset(offset), to_offset(size_bytes)) {
        // SAFETY: takes no memory.
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, size_bytes, libc::SYNC_FILE_RANGE_WRITE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, size_bytes);
}

/// Tells the kernel that the file will be read from front to back, which doubles its read-ahead. A hint.
pub(super) fn expect_sequential_reads(file: &File) {
    #[cfg(target_os = "linux")]
    // SAFETY: takes no memory.
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_SEQUENTIAL);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}
