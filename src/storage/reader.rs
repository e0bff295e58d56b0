//! Bytes on their way out.

use std::fs::File;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use keppel_federation::vocabulary::StorageKey;

use super::driver::{Imprint, StoredBytes};
use super::verified_read::Checked;
use super::work::Workers;
use super::{GROUP_BYTES, StorageError, Verifier};

/// A range of a blob, as a stream of pieces of at most 256 KiB.
///
/// Every piece is checked against the blob's tree before it is handed out, unless that was done not long ago, nobody has
/// written to the file since, and the system still has it in memory. One that is wrong ends the stream with an error.
///
/// What the system holds in memory is taken at once. Where it has to wait for a disk, a blocking thread does, one piece
/// ahead of what is asked for; so a slow client costs two pieces of memory, and no thread. The blob stays readable when
/// it is deleted meanwhile. A blob that turns out to be shorter than the range ends in an error.
pub struct BlobReader {
    source: Arc<dyn StoredBytes>,
    key: StorageKey,
    /// Where the next piece to hand out begins.
    offset: u64,
    end: u64,
    ahead: Option<Ahead>,
    checked: Arc<Checked>,
    trust: Trust,
    workers: Workers,
}

/// What is known of the bytes that come next.
pub(super) enum Trust {
    /// They were right when the file looked like this, and are so while it does.
    Known(Imprint),
    /// Nothing; this checks them.
    Checking(Arc<Verifier>),
}

/// A part of a blob that a file holds, and the system has in memory.
#[derive(Debug, Clone)]
pub struct FilePart {
    /// The file.
    pub file: Arc<File>,
    /// Where in it the part begins.
    pub offset: u64,
    /// Its length.
    pub size_bytes: usize,
}

enum Ahead {
    Read(Result<Bytes, StorageError>),
    Reading(Pin<Box<dyn Future<Output = CheckedRead> + Send>>),
}

type CheckedRead = Result<(Bytes, Arc<Verifier>), StorageError>;

impl BlobReader {
    /// `first` is the beginning of the range, read and right already.
    pub(super) fn new(
        source: Box<dyn StoredBytes>,
        checked: Arc<Checked>,
        range: std::ops::Range<u64>,
        first: Bytes,
        trust: Trust,
        workers: Workers,
    ) -> Self {
        let ahead = (range.start < range.end).then_some(Ahead::Read(Ok(first)));
        let key = checked.key.clone();
        Self { source: source.into(), key, offset: range.start, end: range.end, ahead, checked, trust, workers }
    }

    /// How many bytes are still to come.
    pub fn left_bytes(&self) -> u64 {
        self.end - self.offset
    }

    /// Takes the next part, of `size_max_bytes` at most, out of the stream as a place in a file, for whoever can have
    /// the kernel send it. `None` where that is not possible at the moment: then poll the stream, and try again after.
    pub fn take_file_part(&mut self, size_max_bytes: usize) -> Option<FilePart> {
        let Trust::Known(imprint) = self.trust else { return None };
        if self.ahead.is_some() || self.left_bytes() == 0 {
            return None;
        }
        let size_bytes = usize::try_from(self.left_bytes()).map_or(size_max_bytes, |left| left.min(size_max_bytes));
        let (offset, end) = (self.offset, self.offset + size_bytes as u64);
        let file = self.source.cached_file(offset..end)?;
        if !self.is_still(&imprint) {
            return None;
        }
        self.offset = end;
        metrics::counter!("keppel_storage_read_bytes_total").increment(size_bytes as u64);
        Some(FilePart { file, offset, size_bytes })
    }

    /// Up to the end of the group.
    fn next_piece_bytes(&self) -> usize {
        (GROUP_BYTES - self.offset % GROUP_BYTES).min(self.left_bytes()) as usize
    }

    fn is_still(&self, imprint: &Imprint) -> bool {
        self.source.imprint().is_ok_and(|now| imprint.is_still(&now))
    }

    /// The next piece, if it is known to be right and can be had without waiting.
    fn read_at_once(&self) -> Option<Bytes> {
        let Trust::Known(imprint) = &self.trust else { return None };
        let read = self.source.read_at_once(self.offset, self.next_piece_bytes()).ok()??;
        // Whoever changes the file changes the imprint before the bytes: so these are still the right ones.
        (!read.is_empty() && self.is_still(imprint)).then_some(read)
    }

    /// Begins to read and check the next piece, now and not only when somebody asks.
    fn begin_reading(&mut self, context: &mut Context<'_>) {
        let (source, workers, checked) = (self.source.clone(), self.workers.clone(), self.checked.clone());
        let (offset, end) = (self.offset, self.offset + self.next_piece_bytes() as u64);
        let verifier = match &self.trust {
            Trust::Checking(verifier) => Some(verifier.clone()),
            Trust::Known(_) => {
                // It comes from the disk again, or was written to.
                self.checked.verified.forget(&self.key);
                None
            }
        };
        let job = move || checked.read(&*source, verifier, offset, end);
        let mut reading = Box::pin(async move { workers.run(job).await });
        self.ahead = Some(match reading.as_mut().poll(context) {
            Poll::Ready(read) => Ahead::Read(self.note(read)),
            Poll::Pending => Ahead::Reading(reading),
        });
    }

    fn note(&mut self, read: CheckedRead) -> Result<Bytes, StorageError> {
        let (bytes, verifier) = read?;
        self.trust = Trust::Checking(verifier);
        Ok(bytes)
    }

    fn hand_out(&mut self, read: Result<Bytes, StorageError>) -> Option<Result<Bytes, StorageError>> {
        let piece = read.and_then(|piece| match piece.is_empty() {
            true => Err(StorageError::BlobShort {
                key: self.key.clone(),
                expected_bytes: self.end,
                actual_bytes: self.offset,
            }),
            false => Ok(piece),
        });
        match &piece {
            Ok(piece) => {
                self.offset += piece.len() as u64;
                metrics::counter!("keppel_storage_read_bytes_total").increment(piece.len() as u64);
            }
            Err(_) => self.end = self.offset,
        }
        Some(piece)
    }
}

impl Stream for BlobReader {
    type Item = Result<Bytes, StorageError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.left_bytes() == 0 {
            return Poll::Ready(None);
        }
        if this.ahead.is_none() {
            match this.read_at_once() {
                Some(read) => return Poll::Ready(this.hand_out(Ok(read))),
                None => this.begin_reading(context),
            }
        }
        let read = match this.ahead.take() {
            Some(Ahead::Read(read)) => return Poll::Ready(this.hand_out(read)),
            Some(Ahead::Reading(mut reading)) => match reading.as_mut().poll(context) {
                Poll::Ready(read) => this.note(read),
                Poll::Pending => {
                    this.ahead = Some(Ahead::Reading(reading));
                    return Poll::Pending;
                }
            },
            None => unreachable!("reading has begun above"),
        };
        let piece = this.hand_out(read);
        if this.left_bytes() > 0 {
            this.begin_reading(context);
        }
        Poll::Ready(piece)
    }
}
