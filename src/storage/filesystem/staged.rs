//! The file of an upload.

use std::fs::{self, File};
use std::io::{self, IoSlice, Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, StorageKey, UploadId};

use crate::storage::StorageError;
use crate::storage::driver::{StagedBytes, StoredBytes};

use super::file_sync::{FileSync, sync_data};
use super::{Shared, StoredFile, read_file, remove_file, system};

/// How much is written before the kernel is asked to begin bringing it to the disk.
const WRITE_BACK_BYTES: u64 = 4 * 1024 * 1024;

/// How much is written before it is worth an fsync beside the writing. A disk with a cache of its own takes bytes
/// gladly and only an fsync makes it write them; without these, the last one would have all of them to wait for.
const EARLY_SYNC_BYTES: u64 = 32 * 1024 * 1024;

/// More slices than this are refused by the system in one call.
const SLICES_MAX: usize = 256;

pub(super) struct StagedFile {
    shared: Arc<Shared>,
    account: AccountName,
    id: UploadId,
    file: Arc<File>,
    path: PathBuf,
    size_bytes: u64,
    written_back_bytes: u64,
    sync: Arc<FileSync>,
    synced_early_bytes: u64,
    entry_is_durable: bool,
    /// A failed append may have left bytes after the end.
    has_surplus: bool,
}

impl StagedFile {
    pub(super) fn new(shared: Arc<Shared>, account: &AccountName, id: &UploadId, file: File, size_bytes: u64) -> Self {
        let path = shared.layout.upload(account, id);
        Self {
            shared,
            account: account.clone(),
            id: id.clone(),
            file: Arc::new(file),
            path,
            size_bytes,
            written_back_bytes: size_bytes,
            sync: Arc::default(),
            synced_early_bytes: size_bytes,
            entry_is_durable: false,
            has_surplus: false,
        }
    }

    fn write_all(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        let mut file = &*self.file;
        file.seek(io::SeekFrom::Start(self.size_bytes))?;
        for pieces in pieces.chunks(SLICES_MAX) {
            let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut left = &mut slices[..];
            IoSlice::advance_slices(&mut left, 0);
            while !left.is_empty() {
                match file.write_vectored(left) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => IoSlice::advance_slices(&mut left, written),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn cut_surplus(&mut self) -> io::Result<()> {
        if self.has_surplus {
            self.file.set_len(self.size_bytes)?;
            self.has_surplus = false;
        }
        Ok(())
    }

    /// After a failure what is on disk is in doubt, and would not be any less when it is read again: nobody may resume.
    fn sync_file(&mut self) -> Result<(), StorageError> {
        self.cut_surplus().map_err(StorageError::io("cut", &self.path))?;
        self.sync.sync(|| sync_data(&self.file)).map_err(|error| {
            let _ = remove_file(&self.path);
            StorageError::io("sync", &self.path)(error)
        })
    }

    fn try_publish(&mut self, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError> {
        self.sync_file()?;
        self.shared.ensure_fan(&self.account, key)?;
        let mut placed = self.put_in_place(key, outboard);
        if placed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            // The space may have been removed and made anew since its directories were known.
            self.shared.forget_fans(&self.account);
            self.shared.ensure_fan(&self.account, key)?;
            placed = self.put_in_place(key, outboard);
        }
        placed.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StorageError::UploadMissing(self.id.clone()),
            _ => StorageError::io("publish", &self.path)(error),
        })?;
        self.shared.sync_directory(&self.shared.layout.fan(&self.account, key))
    }

    fn put_in_place(&self, key: &StorageKey, outboard: &[u8]) -> io::Result<()> {
        let layout = &self.shared.layout;
        if !outboard.is_empty() {
            fs::write(layout.outboard(&self.account, key), outboard)?;
        }
        fs::rename(&self.path, layout.blob(&self.account, key))
    }
}

impl StagedBytes for StagedFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn append(&mut self, pieces: &[Bytes]) -> Result<(), StorageError> {
        if let Err(error) = self.write_all(pieces) {
            // Gives the room back at once if possible, before the bytes count as stored at the latest.
            self.has_surplus = true;
            let _ = self.cut_surplus();
            return Err(StorageError::io("write to", &self.path)(error));
        }
        self.size_bytes += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let waiting_bytes = self.size_bytes - self.written_back_bytes;
        if waiting_bytes >= WRITE_BACK_BYTES {
            system::begin_write_back(&self.file, self.written_back_bytes, waiting_bytes);
            self.written_back_bytes = self.size_bytes;
        }
        Ok(())
    }

    fn early_sync(&mut self) -> Option<Box<dyn FnOnce() + Send>> {
        if self.size_bytes - self.synced_early_bytes < EARLY_SYNC_BYTES {
            return None;
        }
        let early = self.sync.early(self.file.clone())?;
        self.synced_early_bytes = self.size_bytes;
        Some(early)
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.sync_file()?;
        if !self.entry_is_durable {
            self.shared.sync_directory(&self.shared.layout.uploads(&self.account))?;
            self.entry_is_durable = true;
        }
        Ok(())
    }

    fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
        read_file(&self.file, &self.path, &self.shared.buffers, offset, size_bytes)
    }

    fn open_beside(&self) -> Result<Box<dyn StoredBytes>, StorageError> {
        let (file, path, buffers) = (self.file.clone(), self.path.clone(), self.shared.buffers.clone());
        Ok(Box::new(StoredFile { file, path, size_bytes: self.size_bytes, buffers }))
    }

    fn publish(mut self: Box<Self>, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError> {
        let published = self.try_publish(key, outboard);
        if published.is_err() {
            // The first error is the one to tell; what cannot be removed now is left to the sweep.
            let _ = remove_file(&self.path);
            let _ = remove_file(&self.shared.layout.blob(&self.account, key));
            let _ = remove_file(&self.shared.layout.outboard(&self.account, key));
        }
        published
    }

    fn discard(self: Box<Self>) -> Result<(), StorageError> {
        remove_file(&self.path)
    }
}
