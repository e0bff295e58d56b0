//! The seam between the façade and the places where bytes can be.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, StorageKey, UploadId};

use super::StorageError;

/// A place that keeps bytes: one storage space per account, in it uploads and blobs.
///
/// All methods may block for as long as a disk does; the façade calls them on blocking threads, a bounded number at a
/// time. A driver neither hashes nor counts on being called by one thread only.
pub trait StorageDriver: Send + Sync + 'static {
    /// Makes the account's space, durably. It may be there already.
    ///
    /// # Errors
    /// [`StorageError::Full`] or [`StorageError::Io`].
    fn prepare_space(&self, account: &AccountName) -> Result<(), StorageError>;

    /// Removes the account's space with everything in it. It may be gone already.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn remove_space(&self, account: &AccountName) -> Result<(), StorageError>;

    /// The accounts that have a space.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn list_spaces(&self) -> Result<Vec<AccountName>, StorageError>;

    /// Makes an empty upload.
    ///
    /// # Errors
    /// [`StorageError::SpaceMissing`], [`StorageError::UploadExists`], [`StorageError::Full`], [`StorageError::Io`].
    fn create_upload(&self, account: &AccountName, id: &UploadId) -> Result<Box<dyn StagedBytes>, StorageError>;

    /// Opens an upload that was made before, at its end; `None` when there is none.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn open_upload(&self, account: &AccountName, id: &UploadId) -> Result<Option<Box<dyn StagedBytes>>, StorageError>;

    /// Turns the blob that an upload became back into that upload, if there is no such upload but there is the blob.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn take_back(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError>;

    /// Removes an upload and gives its room back. It may be gone already.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn discard_upload(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError>;

    /// Opens a blob; `None` when there is none.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn open_blob(&self, account: &AccountName, key: &StorageKey) -> Result<Option<Box<dyn StoredBytes>>, StorageError>;

    /// The size of a blob; `None` when there is none.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn blob_size_bytes(&self, account: &AccountName, key: &StorageKey) -> Result<Option<u64>, StorageError>;

    /// Removes a blob and its outboard and gives their room back. They may be gone already.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn delete_blob(&self, account: &AccountName, key: &StorageKey) -> Result<(), StorageError>;

    /// The outboard kept beside a blob; `None` when there is none. It may be damaged: the façade checks it.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn get_outboard(&self, account: &AccountName, key: &StorageKey) -> Result<Option<Bytes>, StorageError>;

    /// Keeps an outboard beside a blob, in place of the one that may be there. Need not be durable.
    ///
    /// # Errors
    /// [`StorageError::Full`] or [`StorageError::Io`].
    fn put_outboard(&self, account: &AccountName, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError>;

    /// Walks through everything in the account's space, in no order, holding little of it in memory. What is stored or
    /// removed meanwhile may or may not appear.
    ///
    /// # Errors
    /// [`StorageError::Io`]. Each step may fail likewise; after a failure the walk has ended.
    fn list(&self, account: &AccountName) -> Result<ObjectIterator, StorageError>;
}

/// The steps of [`StorageDriver::list`].
pub type ObjectIterator = Box<dyn Iterator<Item = Result<StoredObject, StorageError>> + Send>;

/// The bytes of an upload. Holding one, nobody else writes to it.
pub trait StagedBytes: Send {
    /// How many bytes there are.
    fn size_bytes(&self) -> u64;

    /// Adds all pieces at the end, or none of them.
    ///
    /// # Errors
    /// [`StorageError::Full`] or [`StorageError::Io`]; the size is then as before, unless
    /// [`Self::size_bytes`] says otherwise.
    fn append(&mut self, pieces: &[Bytes]) -> Result<(), StorageError>;

    /// Work to be run on another thread beside further appends, that leaves a later sync or publish less to do; `None`
    /// when that is not worth it. It may also be dropped. An error in it shows in the next sync or publish.
    fn early_sync(&mut self) -> Option<Box<dyn FnOnce() + Send>> {
        None
    }

    /// Returns when everything appended so far survives a crash. After an error the upload may be gone.
    ///
    /// # Errors
    /// [`StorageError::Full`] or [`StorageError::Io`].
    fn sync(&mut self) -> Result<(), StorageError>;

    /// Reads from `offset`: at least one byte and at most `size_bytes`, none at the end.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError>;

    /// Opens the bytes for reading beside the writing. They stay readable when the upload becomes a blob under its
    /// own name, as far as they were written. [`StoredBytes::size_bytes`] of it says nothing.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn open_beside(&self) -> Result<Box<dyn StoredBytes>, StorageError>;

    /// Makes the upload a blob, with its outboard unless that is empty. The blob is durable on return; the outboard
    /// need not be. After an error neither the upload nor the blob is there.
    ///
    /// # Errors
    /// [`StorageError::UploadMissing`], [`StorageError::Full`] or [`StorageError::Io`].
    fn publish(self: Box<Self>, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError>;

    /// Removes the upload and gives its room back.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn discard(self: Box<Self>) -> Result<(), StorageError>;
}

/// The bytes of a blob, open for reading. They stay readable when the blob is deleted meanwhile.
pub trait StoredBytes: Send + Sync {
    /// How many bytes there are.
    fn size_bytes(&self) -> u64;

    /// Reads from `offset`: at least one byte and at most `size_bytes`, none at the end.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError>;

    /// Like [`Self::read`], but gives `None` where that would have to wait for a device. Called on async threads.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn read_at_once(&self, offset: u64, size_bytes: usize) -> Result<Option<Bytes>, StorageError>;

    /// What the place tells about the bytes at this moment. Called on async threads.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    fn imprint(&self) -> Result<Imprint, StorageError>;

    /// The file that these bytes are in, at the same offsets, when `range` of it could be read without waiting for a
    /// device: then the kernel can send it by itself. Called on async threads.
    fn cached_file(&self, range: Range<u64>) -> Option<Arc<File>> {
        let _ = range;
        None
    }
}

/// What a place tells about bytes that it keeps: while that is the same, nobody has written to them through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imprint {
    /// Which file it is.
    pub file: u64,
    /// Its size.
    pub size_bytes: u64,
    /// When it was written to, in seconds and nanoseconds since 1970; whoever may write can set this at will.
    pub modified: (i64, i64),
    /// When anything about it was changed, which nobody can set; `None` for a file that was deleted, which is a change too.
    pub changed: Option<(i64, i64)>,
}

impl Imprint {
    /// Whether `later` tells of the same bytes.
    pub fn is_still(&self, later: &Self) -> bool {
        let is_changed = later.changed.is_some() && self.changed != later.changed;
        !is_changed && Self { changed: None, ..*self } == Self { changed: None, ..*later }
    }

    /// Whether the last change was so long ago that another would show, `now` being the time since 1970.
    pub fn is_settled(&self, now: Duration, settled_after: Duration) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let settled = i64::try_from(settled_after.as_secs()).unwrap_or(i64::MAX);
        self.changed.is_some_and(|(seconds, _)| seconds <= now.saturating_sub(settled))
    }
}

/// Something found in a storage space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// What it is.
    pub kind: ObjectKind,
    /// Its size.
    pub size_bytes: u64,
    /// When it was last written to.
    pub modified: SystemTime,
}

/// What a [`StoredObject`] is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// An upload that is neither finished nor discarded.
    Upload(UploadId),
    /// A blob, recorded or left over from a crash.
    Blob(StorageKey),
    /// The outboard of a blob; goes away with it.
    Outboard(StorageKey),
}
