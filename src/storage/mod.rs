//! Where the bytes of blobs are: one storage space per account, uploads becoming blobs, blobs being read.
//!
//! The façade [`Storage`] hashes, counts and keeps async threads free; a [`StorageDriver`] below it keeps the bytes, on
//! a local file system or in memory. Blobs have a [`StorageKey`] that is never used twice, so that deleting late cannot
//! hit bytes that were stored again. Which blob has which key, and who may see it, others know: nothing here is named by
//! digest, counted, or remembered beyond what the driver keeps. There is no cache: the operating system has one.
//!
//! Invariants:
//! - A blob is complete, of the digest asked for, and durable before [`Upload::finish`] returns; it never changes.
//! - A crash leaves an upload with what was synced at least, or a blob that nobody knows of. [`Storage::list`] finds both.
//! - An upload's hashes cover exactly its bytes, whatever happened to the bodies; nothing is read twice to get them.
//! - What is read of a blob was checked against its tree: at that read, or within the last hour and unchanged since.
//! - Memory is bounded: two pieces of [`PIECE_BYTES`] for each body on its way in or out, and 32 bytes for each such
//!   piece of a whole upload (its tree).
//! - What blocks runs on blocking threads, a bounded number at a time. No thread waits for a client.

mod beginning;
mod checking;
mod driver;
mod error;
mod filesystem;
mod hash;
mod listing;
mod memory;
mod reader;
#[cfg(test)]
mod tests;
mod tree;
mod upload;
mod verified;
mod verified_read;
mod verifier;
mod work;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Algorithm, StorageKey, UploadId};

pub use beginning::{BEGINNING_BYTES, prove_beginning};
pub use checking::{BlobCheck, CheckStep};
pub use driver::{Imprint, ObjectIterator, ObjectKind, StagedBytes, StorageDriver, StoredBytes, StoredObject};
pub use error::{AppendError, FinishError, StorageError};
pub use listing::ObjectListing;
pub use reader::{BlobReader, FilePart};
pub use tree::{GROUP_BYTES, outboard_size_bytes};
pub use upload::{CheckedUpload, StoredBlob, Upload, UploadReader};
pub use verifier::Verifier;

use hash::BlobHasher;
use reader::Trust;
use upload::{OpenUploads, Writer};
use verified::{SETTLED_AFTER, VerifiedBlobs};
use verified_read::{Checked, load_outboard};
use work::Workers;

/// The size in which bytes are written, read and handed on. Fits the cache of a core, which the next copy profits from.
pub const PIECE_BYTES: usize = 256 * 1024;

/// What a [`Storage`] may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageLimits {
    /// How many threads read at the same time; each holds one piece.
    pub concurrent_reads_max: usize,
    /// How many threads write, hash, fsync and delete at the same time.
    pub concurrent_writes_max: usize,
    /// How long to wait for one of these threads before giving up with [`StorageError::Overloaded`].
    pub worker_wait_timeout: Duration,
    /// How long to wait for an upload whose other handle is about to go away.
    pub upload_handover_timeout: Duration,
    /// How long bytes that were found to be right are trusted, if nobody has written to them and they stay in memory.
    pub verified_for: Duration,
}

impl Default for StorageLimits {
    fn default() -> Self {
        Self {
            concurrent_reads_max: 64,
            concurrent_writes_max: 64,
            worker_wait_timeout: Duration::from_secs(30),
            upload_handover_timeout: Duration::from_secs(5),
            verified_for: Duration::from_secs(3600),
        }
    }
}

/// How to keep bytes in a local file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesystemOptions {
    /// The directory that everything is kept under; nobody else may write there. It is made if it is not there.
    pub root: PathBuf,
    /// What may be used.
    pub limits: StorageLimits,
}

impl FilesystemOptions {
    /// Under `root`, with the usual limits.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), limits: StorageLimits::default() }
    }
}

/// How to keep bytes in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryOptions {
    /// How much may be kept; more is [`StorageError::Full`].
    pub capacity_bytes: u64,
    /// What may be used.
    pub limits: StorageLimits,
}

impl MemoryOptions {
    /// Up to `capacity_bytes`, with the usual limits.
    pub fn new(capacity_bytes: u64) -> Self {
        Self { capacity_bytes, limits: StorageLimits::default() }
    }
}

/// The tree hashes of a blob, checked against its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outboard {
    /// The size of the blob.
    pub blob_size_bytes: u64,
    /// The hash pairs above its groups of [`GROUP_BYTES`], in pre-order; empty for a blob of one group.
    pub pairs: Bytes,
}

/// The blobs and uploads of this node. Clones share everything.
///
/// Every method may also fail with [`StorageError::Overloaded`] or, during shutdown, [`StorageError::Stopped`]. A call
/// that is dropped before it ends may have had its effect or not.
#[derive(Clone)]
pub struct Storage {
    driver: Arc<dyn StorageDriver>,
    open_uploads: OpenUploads,
    readers: Workers,
    writers: Workers,
    verified: Arc<VerifiedBlobs>,
    upload_handover_timeout: Duration,
}

impl Storage {
    /// A storage in a local file system. Blocks for a moment.
    ///
    /// # Errors
    /// [`StorageError::Io`] when the directory cannot be made or found.
    pub fn filesystem(options: FilesystemOptions) -> Result<Self, StorageError> {
        Ok(Self::new(Arc::new(filesystem::FilesystemDriver::new(options.root)?), &options.limits))
    }

    /// A storage that is gone with the process.
    pub fn memory(options: MemoryOptions) -> Self {
        Self::new(Arc::new(memory::MemoryDriver::new(options.capacity_bytes)), &options.limits)
    }

    /// A storage on any driver.
    pub fn new(driver: Arc<dyn StorageDriver>, limits: &StorageLimits) -> Self {
        Self {
            driver,
            open_uploads: OpenUploads::default(),
            readers: Workers::new(limits.concurrent_reads_max, limits.worker_wait_timeout),
            writers: Workers::new(limits.concurrent_writes_max, limits.worker_wait_timeout),
            verified: Arc::new(VerifiedBlobs::new(limits.verified_for, SETTLED_AFTER)),
            upload_handover_timeout: limits.upload_handover_timeout,
        }
    }

    /// The same storage with another driver around its own.
    #[cfg(test)]
    pub fn wrapped(mut self, wrap: impl FnOnce(Arc<dyn StorageDriver>) -> Arc<dyn StorageDriver>) -> Self {
        self.driver = wrap(self.driver);
        self
    }

    /// Makes the account's storage space, durably. It may be there already.
    ///
    /// # Errors
    /// [`StorageError::Full`] or [`StorageError::Io`].
    pub async fn prepare_space(&self, account: &AccountName) -> Result<(), StorageError> {
        let account = account.clone();
        self.write(move |driver| driver.prepare_space(&account)).await
    }

    /// Removes the account's storage space with everything in it. It may be gone already.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub async fn remove_space(&self, account: &AccountName) -> Result<(), StorageError> {
        let account = account.clone();
        self.write(move |driver| driver.remove_space(&account)).await
    }

    /// The accounts that have a storage space, so that one left over from a crash can be found.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub async fn list_spaces(&self) -> Result<Vec<AccountName>, StorageError> {
        self.read(|driver| driver.list_spaces()).await
    }

    /// Begins an upload. `algorithm` is the one its digest is expected to have.
    ///
    /// # Errors
    /// [`StorageError::SpaceMissing`], [`StorageError::UploadExists`], [`StorageError::Full`], [`StorageError::Io`].
    pub async fn begin_upload(
        &self,
        account: &AccountName,
        id: &UploadId,
        algorithm: Algorithm,
    ) -> Result<Upload, StorageError> {
        let place = self.open_uploads.enter(account, id, self.upload_handover_timeout).await?;
        let (account, name) = (account.clone(), id.clone());
        let workers = self.writers.clone();
        let begin = move |driver: &dyn StorageDriver| {
            let bytes = driver.create_upload(&account, &name)?;
            Writer::open(bytes, algorithm, place, workers)
        };
        Ok(Upload::new(id, self.write(begin).await?))
    }

    /// Continues an upload after a restart, or when its handle was dropped: its bytes are read and hashed once for that.
    /// `None` when there is no such upload.
    ///
    /// An upload that was finished under [`StorageKey::from`] its id is taken back: so only ask for one whose end was
    /// never recorded, which a crash in between makes.
    ///
    /// # Errors
    /// [`StorageError::UploadBusy`] while there is another handle, or [`StorageError::Io`].
    pub async fn resume_upload(
        &self,
        account: &AccountName,
        id: &UploadId,
        algorithm: Algorithm,
    ) -> Result<Option<Upload>, StorageError> {
        let place = self.open_uploads.enter(account, id, self.upload_handover_timeout).await?;
        let (account, name) = (account.clone(), id.clone());
        let workers = self.writers.clone();
        let resume = move |driver: &dyn StorageDriver| {
            driver.take_back(&account, &name)?;
            let bytes = driver.open_upload(&account, &name)?;
            bytes.map(|bytes| Writer::open(bytes, algorithm, place, workers)).transpose()
        };
        Ok(self.write(resume).await?.map(|writer| Upload::new(id, writer)))
    }

    /// Removes an upload and gives its room back. It may be gone already; a handle for it fails from now on.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub async fn discard_upload(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError> {
        let (account, id) = (account.clone(), id.clone());
        self.write(move |driver| driver.discard_upload(&account, &id)).await
    }

    /// Opens a range of a blob whose tree has the root `blake3`, up to but not including its end. Its first piece is read
    /// and checked at once.
    ///
    /// # Errors
    /// [`StorageError::BlobMissing`], [`StorageError::BlobShort`] when the range reaches beyond the blob's end,
    /// [`StorageError::BlobCorrupt`] when the first piece is not what was stored, or [`StorageError::Io`].
    pub async fn open_blob(
        &self,
        account: &AccountName,
        key: &StorageKey,
        blake3: &[u8; 32],
        range: Range<u64>,
    ) -> Result<BlobReader, StorageError> {
        let checked = Arc::new(Checked {
            driver: self.driver.clone(),
            verified: self.verified.clone(),
            account: account.clone(),
            key: key.clone(),
            blake3: *blake3,
        });
        let (blob_of, Range { start, end }) = (checked.clone(), range.clone());
        let open = move |driver: &dyn StorageDriver| {
            let Checked { account, key, verified, .. } = &*blob_of;
            let blob = driver.open_blob(account, key)?.ok_or_else(|| StorageError::BlobMissing(key.clone()))?;
            let actual_bytes = blob.size_bytes();
            if end > actual_bytes {
                return Err(StorageError::BlobShort { key: key.clone(), expected_bytes: end, actual_bytes });
            }
            let imprint = blob.imprint()?;
            if start >= end {
                return Ok((blob, Bytes::new(), Trust::Known(imprint)));
            }
            let first_bytes = (GROUP_BYTES - start % GROUP_BYTES).min(end - start) as usize;
            if verified.are_right(key, &imprint, start / GROUP_BYTES..end.div_ceil(GROUP_BYTES)) {
                match blob.read_at_once(start, first_bytes)? {
                    Some(first) if !first.is_empty() && imprint.is_still(&blob.imprint()?) => {
                        return Ok((blob, first, Trust::Known(imprint)));
                    }
                    // It comes from the disk again: nobody knows in what state.
                    _ => verified.forget(key),
                }
            }
            let (first, verifier) = blob_of.read(&*blob, None, start, end)?;
            Ok((blob, first, Trust::Checking(verifier)))
        };
        let (blob, first, trust) = self.read(open).await?;
        Ok(BlobReader::new(blob, checked, range, first, trust, self.readers.clone()))
    }

    /// The size of a blob; `None` when its bytes are not there.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub async fn blob_size_bytes(&self, account: &AccountName, key: &StorageKey) -> Result<Option<u64>, StorageError> {
        let (account, key) = (account.clone(), key.clone());
        self.read(move |driver| driver.blob_size_bytes(&account, &key)).await
    }

    /// Removes a blob and its outboard and gives their room back. They may be gone already.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub async fn delete_blob(&self, account: &AccountName, key: &StorageKey) -> Result<(), StorageError> {
        let (account, key) = (account.clone(), key.clone());
        self.write(move |driver| driver.delete_blob(&account, &key)).await
    }

    /// Reads and hashes a whole blob, to find out whether it is still what was stored.
    ///
    /// # Errors
    /// [`StorageError::BlobMissing`], [`StorageError::BlobShort`] when it was cut while being read, or
    /// [`StorageError::Io`].
    pub async fn hash_blob(
        &self,
        account: &AccountName,
        key: &StorageKey,
        algorithm: Algorithm,
    ) -> Result<StoredBlob, StorageError> {
        let (account, key) = (account.clone(), key.clone());
        let hash = move |driver: &dyn StorageDriver| {
            let blob = driver.open_blob(&account, &key)?.ok_or_else(|| StorageError::BlobMissing(key.clone()))?;
            let mut hasher = BlobHasher::new(algorithm);
            for_each_piece(&*blob, &key, |piece| hasher.update(piece))?;
            let hashes = hasher.finish();
            let (digest, blake3) = (hashes.digest, hashes.blake3);
            Ok(StoredBlob { size_bytes: blob.size_bytes(), key, digest, blake3 })
        };
        self.read(hash).await
    }

    /// The outboard of a blob whose tree has the root `blake3`. One that is lost or damaged is computed again.
    ///
    /// # Errors
    /// [`StorageError::BlobMissing`], [`StorageError::BlobCorrupt`] when the bytes have another root,
    /// [`StorageError::BlobShort`] or [`StorageError::Io`].
    pub async fn load_outboard(
        &self,
        account: &AccountName,
        key: &StorageKey,
        blake3: &[u8; 32],
    ) -> Result<Outboard, StorageError> {
        let (account, key, blake3) = (account.clone(), key.clone(), *blake3);
        let load = move |driver: &dyn StorageDriver| {
            let blob = driver.open_blob(&account, &key)?.ok_or_else(|| StorageError::BlobMissing(key.clone()))?;
            load_outboard(driver, &account, &key, &*blob, &blake3)
        };
        self.read(load).await
    }

    /// Begins a walk through everything in the account's space: uploads, blobs and outboards.
    pub fn list(&self, account: &AccountName) -> ObjectListing {
        ObjectListing::new(self.driver.clone(), account.clone(), self.readers.clone())
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn StorageDriver) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let driver = self.driver.clone();
        self.readers.run(move || job(&*driver)).await
    }

    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn StorageDriver) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let driver = self.driver.clone();
        self.writers.run(move || job(&*driver)).await
    }
}

fn for_each_piece(blob: &dyn StoredBytes, key: &StorageKey, mut each: impl FnMut(&[u8])) -> Result<(), StorageError> {
    let (mut offset, expected_bytes) = (0, blob.size_bytes());
    while offset < expected_bytes {
        let piece = blob.read(offset, (expected_bytes - offset).min(PIECE_BYTES as u64) as usize)?;
        if piece.is_empty() {
            return Err(StorageError::BlobShort { key: key.clone(), expected_bytes, actual_bytes: offset });
        }
        each(&piece);
        offset += piece.len() as u64;
    }
    Ok(())
}
