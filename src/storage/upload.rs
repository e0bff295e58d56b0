//! Bytes on their way in: written and hashed while they arrive, then made a blob.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use keppel_federation::vocabulary::{AccountName, Algorithm, Digest, StorageKey, UploadId};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::driver::{StagedBytes, StoredBytes};
use super::hash::{BlobHasher, BlobHashes, DigestHasher};
use super::work::{self, Workers};
use super::{AppendError, FinishError, PIECE_BYTES, StorageError};

/// A blob that is durably stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlob {
    /// What it is stored under.
    pub key: StorageKey,
    /// Its digest, in the algorithm that was asked for.
    pub digest: Digest,
    /// Its size.
    pub size_bytes: u64,
    /// The root of its BLAKE3 tree.
    pub blake3: [u8; 32],
}

/// An upload that is being written to: the only handle there is for it.
///
/// Dropping the handle keeps the bytes: [`resume_upload`](super::Storage::resume_upload) makes another one.
pub struct Upload {
    id: UploadId,
    writer: Arc<Mutex<Writer>>,
    size_bytes: Arc<AtomicU64>,
    /// A write under way. It is waited for before anything else happens, also when the call that began it was dropped.
    writing: Option<JoinHandle<Result<(), StorageError>>>,
    workers: Workers,
}

impl Upload {
    pub(super) fn new(id: &UploadId, writer: Writer) -> Self {
        let (size_bytes, workers) = (writer.size_bytes.clone(), writer.workers.clone());
        Self { id: id.clone(), writer: Arc::new(Mutex::new(writer)), size_bytes, writing: None, workers }
    }

    /// Its name.
    pub fn id(&self) -> &UploadId {
        &self.id
    }

    /// How many bytes are written. After a call of [`Self::append`] that was dropped before it ended, this may still
    /// grow until the next call of any other method returns.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// A way to read what is written, beside the writing and after it.
    ///
    /// # Errors
    /// [`StorageError::Io`], or [`StorageError::UploadInterrupted`] after a panic.
    pub fn reader(&self) -> Result<UploadReader, StorageError> {
        let source = lock(&self.writer)?.bytes.open_beside()?;
        Ok(UploadReader { source: source.into(), workers: self.workers.clone() })
    }

    /// Adds a body at the end and gives the number of bytes it had. At most `limit_bytes` of it are taken.
    ///
    /// The bytes are written and hashed on blocking threads in batches of 256 KiB, one batch being gathered while the
    /// one before is worked on; so a slow client costs memory for what it has sent since, and no thread. What has
    /// arrived when the body breaks off is kept. After an error [`Self::size_bytes`] is exact, and the upload can go on.
    ///
    /// Cancel safety: what was handed to a thread when the call is dropped gets written; what was not is lost.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn append<S, E>(&mut self, body: S, limit_bytes: u64) -> Result<u64, AppendError<E>>
    where
        S: Stream<Item = Result<Bytes, E>>,
    {
        self.settle().await?;
        let mut body = pin!(body);
        let mut batch = Batch::default();
        let mut taken_bytes = 0;
        let mut end = None;
        loop {
            if self.writing.is_none() && !batch.pieces.is_empty() && (batch.is_full() || end.is_some()) {
                self.begin_writing(std::mem::take(&mut batch).pieces).await?;
            }
            let receiving = end.is_none() && !batch.is_full();
            tokio::select! {
                // Branches are cancel-safe: both futures live on outside.
                written = work::joined(&mut self.writing), if self.writing.is_some() => {
                    self.writing = None;
                    written?;
                }
                frame = body.next(), if receiving => match frame {
                    Some(Ok(mut piece)) => {
                        if piece.len() as u64 > limit_bytes - taken_bytes {
                            piece.truncate((limit_bytes - taken_bytes) as usize);
                            end = Some(Err(AppendError::TooLarge { limit_bytes }));
                        }
                        taken_bytes += piece.len() as u64;
                        batch.push(piece);
                    }
                    Some(Err(error)) => end = Some(Err(AppendError::Body(error))),
                    None => end = Some(Ok(taken_bytes)),
                },
                else => break,
            }
        }
        end.unwrap_or(Ok(taken_bytes))
    }

    /// Returns when everything appended so far survives a crash. Where the disk fails at that, the upload is gone.
    ///
    /// # Errors
    /// [`StorageError::Full`], [`StorageError::Io`], or what became of an append whose call was dropped.
    pub async fn sync(&mut self) -> Result<(), StorageError> {
        self.settle().await?;
        let writer = self.writer.clone();
        self.writing = Some(self.workers.spawn(move || lock(&writer)?.bytes.sync()).await?);
        self.settle().await
    }

    /// Makes the upload a blob under `key`, if it has the digest `expected`; durable on return.
    ///
    /// When `expected` is of another algorithm than the upload was begun with, its bytes are read and hashed once more.
    /// After an error the upload is gone and its room given back, unless there was no thread to begin with
    /// ([`StorageError::Overloaded`], [`StorageError::Stopped`]): then it can be resumed.
    ///
    /// Cancel safety: a call dropped before its end may store the blob all the same. Nobody learns of it then; the
    /// storage sweep has to remove it.
    ///
    /// # Errors
    /// [`FinishError`].
    pub async fn finish(self, key: StorageKey, expected: &Digest) -> Result<StoredBlob, FinishError> {
        let expected = *expected;
        self.end(move |writer| writer.check(&expected)?.publish(key)).await
    }

    /// Ends the upload, if it has the digest `expected`, without making anything durable: for bytes that may turn out
    /// to be needless. Errors and costs are those of [`Self::finish`].
    ///
    /// Cancel safety: a call dropped before its end leaves the upload's bytes to the storage sweep.
    ///
    /// # Errors
    /// [`FinishError`].
    pub async fn check(self, expected: &Digest) -> Result<CheckedUpload, FinishError> {
        let (workers, expected) = (self.workers.clone(), *expected);
        let checked = self.end(move |writer| writer.check(&expected)).await?;
        Ok(CheckedUpload { checked, workers })
    }

    async fn end<T: Send + 'static>(
        mut self,
        end: impl FnOnce(Writer) -> Result<T, FinishError> + Send + 'static,
    ) -> Result<T, FinishError> {
        let settled = self.settle().await;
        let writer = self.writer;
        let job = move || {
            let writer = Writer::take(writer)?;
            match settled {
                Ok(()) => end(writer),
                Err(error) => {
                    // The first error is the one to tell; what cannot be removed now is left to the sweep.
                    let _ = writer.bytes.discard();
                    Err(error.into())
                }
            }
        };
        self.workers.spawn(job).await.map(work::ended)?.await
    }

    /// Removes the upload and gives its room back.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub async fn discard(mut self) -> Result<(), StorageError> {
        let _ = self.settle().await;
        let writer = self.writer;
        self.workers.run(move || Writer::take(writer)?.bytes.discard()).await
    }

    /// Waits for a write that a dropped call left under way.
    async fn settle(&mut self) -> Result<(), StorageError> {
        if self.writing.is_some() {
            let written = work::joined(&mut self.writing).await;
            self.writing = None;
            written?;
        }
        Ok(())
    }

    async fn begin_writing(&mut self, pieces: Vec<Bytes>) -> Result<(), StorageError> {
        let writer = self.writer.clone();
        self.writing = Some(self.workers.spawn(move || lock(&writer)?.append(&pieces)).await?);
        Ok(())
    }
}

/// Reads bytes of an upload that are written already. It goes on when the upload becomes a blob.
#[derive(Clone)]
pub struct UploadReader {
    source: Arc<dyn StoredBytes>,
    workers: Workers,
}

impl UploadReader {
    /// Reads from `offset`: at least one byte of those that are written, and at most `size_bytes`.
    ///
    /// # Errors
    /// [`StorageError::Io`]; [`StorageError::UploadMissing`] where the upload was discarded.
    pub async fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
        // What was just written is still in memory, unless the reader is far behind.
        if let Some(bytes) = self.source.read_at_once(offset, size_bytes)? {
            return Ok(bytes);
        }
        let source = self.source.clone();
        self.workers.run(move || source.read(offset, size_bytes)).await
    }
}

/// What is gathered for one write.
#[derive(Default)]
struct Batch {
    pieces: Vec<Bytes>,
    size_bytes: usize,
}

impl Batch {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.size_bytes += piece.len();
            self.pieces.push(piece);
        }
    }

    fn is_full(&self) -> bool {
        self.size_bytes >= PIECE_BYTES
    }
}

/// The bytes of an upload and their hashes; both always cover the same bytes. Used on blocking threads only.
pub(super) struct Writer {
    bytes: Box<dyn StagedBytes>,
    hasher: BlobHasher,
    algorithm: Algorithm,
    size_bytes: Arc<AtomicU64>,
    place: OpenUpload,
    workers: Workers,
}

impl Writer {
    /// Continues with what is there already, which is read and hashed for that.
    pub(super) fn open(
        bytes: Box<dyn StagedBytes>,
        algorithm: Algorithm,
        place: OpenUpload,
        workers: Workers,
    ) -> Result<Self, StorageError> {
        let mut hasher = BlobHasher::new(algorithm);
        for_each_piece(&*bytes, |piece| hasher.update(piece), &place.id)?;
        let size_bytes = Arc::new(AtomicU64::new(bytes.size_bytes()));
        Ok(Self { bytes, hasher, algorithm, size_bytes, place, workers })
    }

    fn append(&mut self, pieces: &[Bytes]) -> Result<(), StorageError> {
        self.bytes.append(pieces)?;
        if let Some(job) = self.bytes.early_sync() {
            self.workers.begin_if_free(job);
        }
        for piece in pieces {
            self.hasher.update(piece);
        }
        let written_bytes = self.bytes.size_bytes() - self.size_bytes.swap(self.bytes.size_bytes(), Ordering::AcqRel);
        metrics::counter!("keppel_storage_written_bytes_total").increment(written_bytes);
        Ok(())
    }

    fn check(self, expected: &Digest) -> Result<Checked, FinishError> {
        let BlobHashes { digest, blake3, outboard } = self.hasher.finish();
        let digest = match expected.algorithm() == self.algorithm {
            true => Ok(digest),
            false => digest_of(&*self.bytes, expected.algorithm(), &self.place.id),
        };
        match digest {
            Ok(digest) if digest == *expected => {
                Ok(Checked { bytes: self.bytes, digest, blake3, outboard, _place: self.place })
            }
            refused => {
                let discarded = self.bytes.discard();
                let actual = Box::new(refused?);
                discarded?;
                Err(FinishError::DigestMismatch { expected: Box::new(*expected), actual })
            }
        }
    }

    /// The writer, of which no thread makes use any more.
    fn take(shared: Arc<Mutex<Self>>) -> Result<Self, StorageError> {
        let id = lock(&shared)?.place.id.clone();
        let writer = Arc::into_inner(shared).ok_or(StorageError::UploadBusy(id))?;
        Ok(writer.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An upload that is complete and has the digest it should have. Dropping it leaves its bytes to the storage sweep.
pub struct CheckedUpload {
    checked: Checked,
    workers: Workers,
}

impl CheckedUpload {
    /// Makes it a blob under `key`; durable on return. After an error it is gone.
    ///
    /// Cancel safety: that of [`Upload::finish`].
    ///
    /// # Errors
    /// [`FinishError::Storage`].
    pub async fn publish(self, key: StorageKey) -> Result<StoredBlob, FinishError> {
        let checked = self.checked;
        self.workers.spawn(move || checked.publish(key)).await.map(work::ended)?.await
    }

    /// Removes its bytes.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub async fn discard(self) -> Result<(), StorageError> {
        let checked = self.checked;
        self.workers.run(move || checked.bytes.discard()).await
    }
}

/// The bytes of an upload that has ended, and their hashes.
struct Checked {
    bytes: Box<dyn StagedBytes>,
    digest: Digest,
    blake3: [u8; 32],
    outboard: Vec<u8>,
    _place: OpenUpload,
}

impl Checked {
    fn publish(self, key: StorageKey) -> Result<StoredBlob, FinishError> {
        let size_bytes = self.bytes.size_bytes();
        self.bytes.publish(&key, &self.outboard)?;
        Ok(StoredBlob { key, digest: self.digest, size_bytes, blake3: self.blake3 })
    }
}

fn digest_of(bytes: &dyn StagedBytes, algorithm: Algorithm, id: &UploadId) -> Result<Digest, StorageError> {
    let mut hasher = DigestHasher::new(algorithm);
    for_each_piece(bytes, |piece| hasher.update(piece), id)?;
    Ok(hasher.finish())
}

fn for_each_piece(bytes: &dyn StagedBytes, mut each: impl FnMut(&[u8]), id: &UploadId) -> Result<(), StorageError> {
    let mut offset = 0;
    while offset < bytes.size_bytes() {
        let left = usize::try_from(bytes.size_bytes() - offset).unwrap_or(usize::MAX);
        let piece = bytes.read(offset, left.min(PIECE_BYTES))?;
        if piece.is_empty() {
            return Err(StorageError::UploadInterrupted(id.clone()));
        }
        each(&piece);
        offset += piece.len() as u64;
    }
    Ok(())
}

/// A panic in the midst of an append may have parted bytes and hashes, so nothing is done with the upload after one.
fn lock(writer: &Mutex<Writer>) -> Result<MutexGuard<'_, Writer>, StorageError> {
    writer.lock().map_err(|poisoned| StorageError::UploadInterrupted(poisoned.into_inner().place.id.clone()))
}

/// The uploads that have a handle, so that there is never a second one.
#[derive(Clone, Default)]
pub(super) struct OpenUploads {
    shared: Arc<Open>,
}

#[derive(Default)]
struct Open {
    uploads: Mutex<HashSet<(AccountName, UploadId)>>,
    closed: Notify,
}

/// The right to have the handle of an upload, until it is dropped.
pub(super) struct OpenUpload {
    account: AccountName,
    id: UploadId,
    open: Arc<Open>,
}

impl OpenUploads {
    /// Waits until the upload has no handle any more, at most `patience`.
    pub(super) async fn enter(
        &self,
        account: &AccountName,
        id: &UploadId,
        patience: Duration,
    ) -> Result<OpenUpload, StorageError> {
        let free = async {
            loop {
                let mut closed = pin!(self.shared.closed.notified());
                closed.as_mut().enable();
                if self.shared.insert(account, id) {
                    return;
                }
                closed.await;
            }
        };
        tokio::time::timeout(patience, free).await.map_err(|_| StorageError::UploadBusy(id.clone()))?;
        Ok(OpenUpload { account: account.clone(), id: id.clone(), open: self.shared.clone() })
    }
}

impl Open {
    fn insert(&self, account: &AccountName, id: &UploadId) -> bool {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.insert((account.clone(), id.clone()))
    }
}

impl Drop for OpenUpload {
    fn drop(&mut self) {
        let name = (self.account.clone(), self.id.clone());
        self.open.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        self.open.closed.notify_waiters();
    }
}
