//! A process that dies before a certain write, seen from what it leaves: from then on nothing it does has an effect.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, StorageKey, UploadId};

use crate::storage::{ObjectIterator, StagedBytes, StorageDriver, StorageError, StoredBytes};

/// Counts writes, of metadata and of storage alike, and refuses all from a certain one on.
pub(super) struct Mortal {
    writes: AtomicU64,
    dies_before: u64,
    is_dead: AtomicBool,
}

impl Mortal {
    /// One that dies instead of its write number `dies_before`, which counts from 1.
    pub(super) fn new(dies_before: u64) -> Arc<Self> {
        Arc::new(Self { writes: AtomicU64::new(0), dies_before, is_dead: AtomicBool::new(false) })
    }

    /// Whether a write may happen now.
    pub(super) fn may_write(&self) -> bool {
        let is_last = self.writes.fetch_add(1, Ordering::SeqCst) + 1 >= self.dies_before;
        self.is_dead.fetch_or(is_last, Ordering::SeqCst);
        !self.is_dead.load(Ordering::SeqCst)
    }

    /// How many writes there were.
    pub(super) fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }

    fn write<T>(&self, write: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
        match self.may_write() {
            true => write(),
            false => {
                Err(StorageError::Io { operation: "outlive", path: "death".into(), source: io::Error::other("dead") })
            }
        }
    }
}

/// The storage of a mortal process.
pub(super) struct MortalDriver {
    pub(super) driver: Arc<dyn StorageDriver>,
    pub(super) mortal: Arc<Mortal>,
}

impl StorageDriver for MortalDriver {
    fn prepare_space(&self, account: &AccountName) -> Result<(), StorageError> {
        self.mortal.write(|| self.driver.prepare_space(account))
    }

    fn remove_space(&self, account: &AccountName) -> Result<(), StorageError> {
        self.mortal.write(|| self.driver.remove_space(account))
    }

    fn list_spaces(&self) -> Result<Vec<AccountName>, StorageError> {
        self.driver.list_spaces()
    }

    fn create_upload(&self, account: &AccountName, id: &UploadId) -> Result<Box<dyn StagedBytes>, StorageError> {
        let staged = self.mortal.write(|| self.driver.create_upload(account, id))?;
        Ok(Box::new(MortalBytes { staged, mortal: self.mortal.clone() }))
    }

    fn open_upload(&self, account: &AccountName, id: &UploadId) -> Result<Option<Box<dyn StagedBytes>>, StorageError> {
        let staged = self.driver.open_upload(account, id)?;
        Ok(staged.map(|staged| Box::new(MortalBytes { staged, mortal: self.mortal.clone() }) as _))
    }

    fn take_back(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError> {
        self.mortal.write(|| self.driver.take_back(account, id))
    }

    fn discard_upload(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError> {
        self.mortal.write(|| self.driver.discard_upload(account, id))
    }

    fn open_blob(&self, account: &AccountName, key: &StorageKey) -> Result<Option<Box<dyn StoredBytes>>, StorageError> {
        self.driver.open_blob(account, key)
    }

    fn blob_size_bytes(&self, account: &AccountName, key: &StorageKey) -> Result<Option<u64>, StorageError> {
        self.driver.blob_size_bytes(account, key)
    }

    fn delete_blob(&self, account: &AccountName, key: &StorageKey) -> Result<(), StorageError> {
        self.mortal.write(|| self.driver.delete_blob(account, key))
    }

    fn get_outboard(&self, account: &AccountName, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        self.driver.get_outboard(account, key)
    }

    fn put_outboard(&self, account: &AccountName, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError> {
        self.mortal.write(|| self.driver.put_outboard(account, key, outboard))
    }

    fn list(&self, account: &AccountName) -> Result<ObjectIterator, StorageError> {
        self.driver.list(account)
    }
}

struct MortalBytes {
    staged: Box<dyn StagedBytes>,
    mortal: Arc<Mortal>,
}

impl StagedBytes for MortalBytes {
    fn size_bytes(&self) -> u64 {
        self.staged.size_bytes()
    }

    fn append(&mut self, pieces: &[Bytes]) -> Result<(), StorageError> {
        let staged = &mut self.staged;
        self.mortal.write(|| staged.append(pieces))
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.staged.sync()
    }

    fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
        self.staged.read(offset, size_bytes)
    }

    fn open_beside(&self) -> Result<Box<dyn StoredBytes>, StorageError> {
        self.staged.open_beside()
    }

    fn publish(self: Box<Self>, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError> {
        let Self { staged, mortal } = *self;
        mortal.write(|| staged.publish(key, outboard))
    }

    fn discard(self: Box<Self>) -> Result<(), StorageError> {
        let Self { staged, mortal } = *self;
        mortal.write(|| staged.discard())
    }
}
