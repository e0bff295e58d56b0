//! Lets the kernel send parts of files, without their bytes passing through this process.
//!
//! Hyper takes bodies as bytes in memory. So a body that wants a part of a file to be sent gives hyper a *stand-in* of
//! the same length, and leaves the part with the connection. Over HTTP/1 without TLS, hyper hands the frames of a body
//! to the transport untouched and in order; the transport knows a stand-in by its address, and has the kernel send what
//! it stands for. That costs a fifth of reading and writing the bytes.
//!
//! Nowhere else may a stand-in be used: TLS would encrypt it, HTTP/2 would frame it. [`Peer::file_sender`] therefore
//! exists only where all of the above holds. Should hyper ever copy frames here too, no client gets a stand-in's bytes:
//! they are a mark drawn at each start of the process, which the transport finds and refuses to write
//! ([`FileSender::refuse_copies`]), as it refuses a stand-in that does not fit what was left.
//!
//! [`Peer::file_sender`]: super::Peer::file_sender

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use bytes::Bytes;

use crate::storage::FilePart;

/// The longest part that can be sent in one piece.
pub(crate) const PART_MAX_BYTES: usize = 512 * 1024;

/// The mark again and again. Made once and kept, since its place in memory is what is asked for.
static STAND_IN: LazyLock<&'static [u8]> = LazyLock::new(|| {
    let mark: [u8; MARK_BYTES] = rand::random();
    Vec::leak(mark.repeat(PART_MAX_BYTES / MARK_BYTES))
});

/// Long enough never to be met by chance.
const MARK_BYTES: usize = 32;

/// The parts that wait to be sent on one connection, in the order of their stand-ins.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileSender {
    waiting: Arc<Mutex<VecDeque<FilePart>>>,
}

impl FileSender {
    /// Leaves a part of [`PART_MAX_BYTES`] at most to be sent, and gives the frame that stands for it.
    pub(crate) fn stand_in(&self, part: FilePart) -> Bytes {
        let frame = Bytes::from_static(&STAND_IN[..part.size_bytes]);
        self.lock().push_back(part);
        frame
    }

    /// What a frame at the head of the output stands for; `None` when it is just bytes.
    pub(super) fn part_for(&self, frame: &[u8]) -> io::Result<Option<FilePart>> {
        if !is_stand_in(frame) {
            return Ok(None);
        }
        match self.lock().front() {
            Some(part) if part.size_bytes == frame.len() => Ok(Some(part.clone())),
            _ => Err(io::Error::other("the output stands for a part of a file that was not left to be sent")),
        }
    }

    /// Checks, while parts wait, that bytes about to be written are not a copy of a stand-in. Only heads of answers and
    /// what had to be read from a device are written meanwhile, so this costs next to nothing.
    pub(super) fn refuse_copies(&self, bytes: &[u8]) -> io::Result<()> {
        if self.lock().is_empty() {
            return Ok(());
        }
        // Any piece of a stand-in that is twice as long as the mark has the whole mark in it.
        if bytes.windows(MARK_BYTES).any(|window| window == &STAND_IN[..MARK_BYTES]) {
            return Err(io::Error::other("a stand-in for a part of a file was copied on its way to the connection"));
        }
        Ok(())
    }

    /// Notes that so much of the part at the head was sent.
    pub(super) fn sent(&self, bytes: usize) {
        let mut waiting = self.lock();
        if let Some(part) = waiting.front_mut() {
            part.offset += bytes as u64;
            part.size_bytes -= bytes;
            if part.size_bytes == 0 {
                waiting.pop_front();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<FilePart>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether bytes about to be written are a stand-in, which only their place in memory tells.
pub(super) fn is_stand_in(frame: &[u8]) -> bool {
    !frame.is_empty() && STAND_IN.as_ptr_range().contains(&frame.as_ptr())
}

/// Has the kernel send as much of a part as the socket takes without waiting.
///
/// # Errors
/// Those of the socket and the file; [`io::ErrorKind::UnexpectedEof`] when the file has become shorter.
#[cfg(target_os = "linux")]
pub(super) fn send(socket: &impl std::os::fd::AsRawFd, part: &FilePart) -> io::Result<usize> {
    use std::os::fd::AsRawFd as _;
    let mut offset = libc::off_t::try_from(part.offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: both descriptors are open as long as their owners, which are borrowed here; the kernel writes to `offset`.
    let sent = unsafe { libc::sendfile(socket.as_raw_fd(), part.file.as_raw_fd(), &mut offset, part.size_bytes) };
    match usize::try_from(sent) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(sent) => Ok(sent),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(size_bytes: usize) -> FilePart {
        FilePart { file: Arc::new(tempfile::tempfile().unwrap()), offset: 7, size_bytes }
    }

    #[test]
    fn stand_ins_are_known_by_their_place_and_parts_come_in_order() {
        let sender = FileSender::default();
        let (first, second) = (sender.stand_in(part(10)), sender.stand_in(part(20)));
        assert!(is_stand_in(&first) && is_stand_in(&first[9..]));
        assert!(!is_stand_in(&[0; 10]) && !is_stand_in(b""));
        assert!(sender.part_for(b"bytes").unwrap().is_none());
        sender.sent(4);
        let rest = sender.part_for(&first[4..]).unwrap().unwrap();
        assert_eq!((rest.offset, rest.size_bytes), (11, 6));
        sender.sent(6);
        assert_eq!(sender.part_for(&second).unwrap().unwrap().size_bytes, 20);
    }

    #[test]
    fn a_copy_of_a_stand_in_is_never_written() {
        let sender = FileSender::default();
        let copy = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &STAND_IN[5..100]].concat();
        assert!(sender.refuse_copies(&copy).is_ok(), "nothing waits");
        let _frame = sender.stand_in(part(100));
        assert!(sender.refuse_copies(&copy).is_err());
        assert!(sender.refuse_copies(&copy[..30]).is_ok());
    }

    #[test]
    fn a_stand_in_that_fits_nothing_is_an_error_and_not_its_bytes() {
        let sender = FileSender::default();
        assert!(sender.part_for(&STAND_IN[..10]).is_err());
        let frame = sender.stand_in(part(10));
        assert!(sender.part_for(&frame[..5]).is_err());
    }
}
