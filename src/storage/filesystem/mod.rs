//! Bytes as files on a local disk.
//!
//! A blob is durable when its file and its directory entry are: the file is fsynced under its upload's name, renamed,
//! and the directory it went to fsynced, the last shared with all who wait for the same directory. Directories of blobs
//! are made when first needed, and their parent fsynced once per process and directory before anything in them counts
//! as stored. Of a large upload, what has arrived is brought to the disk while the rest arrives, and fsynced every 32 MiB
//! beside the writing, so that the last fsync is short. Outboards are not fsynced: they can be checked, and computed again.
//!
//! Nothing is mapped into memory: a file cut short under a mapping would kill the process.

mod buffers;
mod file_sync;
mod group_sync;
mod layout;
mod listing;
mod staged;
mod system;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, StorageKey, UploadId};

use super::driver::{Imprint, ObjectIterator, StagedBytes, StorageDriver, StoredBytes};
use super::{PIECE_BYTES, StorageError};

use buffers::BufferPool;
use group_sync::GroupSync;
use layout::Layout;
use listing::Listing;
use staged::StagedFile;

/// Buffers for large reads that are kept for the next one: 8 MiB in all.
const BUFFERS_KEPT_MAX: usize = 32;

/// From this size on a blob's file is announced to the kernel as read from front to back.
const SEQUENTIAL_FROM_BYTES: u64 = 1024 * 1024;

/// The driver for a local file system.
pub(super) struct FilesystemDriver {
    shared: Arc<Shared>,
}

struct Shared {
    layout: Layout,
    directories: GroupSync,
    /// Which of an account's 256 directories of blobs are known to be durable.
    fans: Mutex<HashMap<AccountName, [u64; 4]>>,
    buffers: Arc<BufferPool>,
}

impl FilesystemDriver {
    /// Keeps everything under `root`, which is made if it is not there.
    pub(super) fn new(root: PathBuf) -> Result<Self, StorageError> {
        fs::create_dir_all(&root).map_err(StorageError::io("make directory", &root))?;
        let root = root.canonicalize().map_err(StorageError::io("find directory", &root))?;
        if let Some(parent) = root.parent() {
            sync_directory(parent).map_err(StorageError::io("sync", parent))?;
        }
        Ok(Self {
            shared: Arc::new(Shared {
                layout: Layout::new(root),
                directories: GroupSync::new(sync_directory),
                fans: Mutex::default(),
                buffers: BufferPool::new(BUFFERS_KEPT_MAX, PIECE_BYTES),
            }),
        })
    }
}

impl Shared {
    fn sync_directory(&self, path: &Path) -> Result<(), StorageError> {
        self.directories.sync(path).map_err(StorageError::io("sync", path))
    }

    /// Makes the directory that a blob goes to, durably.
    fn ensure_fan(&self, account: &AccountName, key: &StorageKey) -> Result<(), StorageError> {
        let number = u8::from_str_radix(&key.as_str()[..2], 16).expect("a storage key is hexadecimal");
        let (word, bit) = (usize::from(number / 64), 1 << (number % 64));
        let known = |fans: &HashMap<_, [u64; 4]>| fans.get(account).is_some_and(|words| words[word] & bit != 0);
        if known(&self.fans.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        // It may be there since a run that did not live to sync it.
        match make_directory(&self.layout.fan(account, key)) {
            Err(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(StorageError::SpaceMissing(account.clone()));
            }
            made => made?,
        }
        self.sync_directory(&self.layout.blobs(account))?;
        let mut fans = self.fans.lock().unwrap_or_else(PoisonError::into_inner);
        fans.entry(account.clone()).or_default()[word] |= bit;
        Ok(())
    }

    fn forget_fans(&self, account: &AccountName) {
        self.fans.lock().unwrap_or_else(PoisonError::into_inner).remove(account);
    }
}

impl StorageDriver for FilesystemDriver {
    fn prepare_space(&self, account: &AccountName) -> Result<(), StorageError> {
        let layout = &self.shared.layout;
        make_directory(&layout.space(account))?;
        make_directory(&layout.uploads(account))?;
        make_directory(&layout.blobs(account))?;
        self.shared.sync_directory(&layout.space(account))?;
        self.shared.sync_directory(layout.root())
    }

    fn remove_space(&self, account: &AccountName) -> Result<(), StorageError> {
        self.shared.forget_fans(account);
        let space = self.shared.layout.space(account);
        accept_missing(fs::remove_dir_all(&space)).map_err(StorageError::io("remove", space))
    }

    fn list_spaces(&self) -> Result<Vec<AccountName>, StorageError> {
        let root = self.shared.layout.root();
        let mut accounts = Vec::new();
        for entry in fs::read_dir(root).map_err(StorageError::io("list", root))? {
            let entry = entry.map_err(StorageError::io("list", root))?;
            let account = entry.file_name().to_str().and_then(|name| AccountName::parse(name).ok());
            accounts.extend(account.filter(|account| self.shared.layout.blobs(account).is_dir()));
        }
        Ok(accounts)
    }

    fn create_upload(&self, account: &AccountName, id: &UploadId) -> Result<Box<dyn StagedBytes>, StorageError> {
        let path = self.shared.layout.upload(account, id);
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => Ok(Box::new(StagedFile::new(self.shared.clone(), account, id, file, 0))),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound => StorageError::SpaceMissing(account.clone()),
                io::ErrorKind::AlreadyExists => StorageError::UploadExists(id.clone()),
                _ => StorageError::io("make", path)(error),
            }),
        }
    }

    fn open_upload(&self, account: &AccountName, id: &UploadId) -> Result<Option<Box<dyn StagedBytes>>, StorageError> {
        let path = self.shared.layout.upload(account, id);
        let opened = found(OpenOptions::new().read(true).write(true).open(&path));
        let Some(file) = opened.map_err(StorageError::io("open", &path))? else { return Ok(None) };
        let size_bytes = file.metadata().map_err(StorageError::io("examine", &path))?.len();
        Ok(Some(Box::new(StagedFile::new(self.shared.clone(), account, id, file, size_bytes))))
    }

    fn take_back(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError> {
        let (layout, key) = (&self.shared.layout, StorageKey::from(id));
        let (upload, blob) = (layout.upload(account, id), layout.blob(account, &key));
        if upload.exists() || !blob.exists() {
            return Ok(());
        }
        remove_file(&layout.outboard(account, &key))?;
        accept_missing(fs::rename(&blob, &upload)).map_err(StorageError::io("rename", blob))?;
        self.shared.sync_directory(&layout.uploads(account))
    }

    fn discard_upload(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError> {
        remove_file(&self.shared.layout.upload(account, id))
    }

    fn open_blob(&self, account: &AccountName, key: &StorageKey) -> Result<Option<Box<dyn StoredBytes>>, StorageError> {
        let path = self.shared.layout.blob(account, key);
        let Some(file) = found(File::open(&path)).map_err(StorageError::io("open", &path))? else { return Ok(None) };
        let size_bytes = file.metadata().map_err(StorageError::io("examine", &path))?.len();
        if size_bytes >= SEQUENTIAL_FROM_BYTES {
            system::expect_sequential_reads(&file);
        }
        Ok(Some(Box::new(StoredFile { file: Arc::new(file), path, size_bytes, buffers: self.shared.buffers.clone() })))
    }

    fn blob_size_bytes(&self, account: &AccountName, key: &StorageKey) -> Result<Option<u64>, StorageError> {
        let path = self.shared.layout.blob(account, key);
        let metadata = found(fs::metadata(&path)).map_err(StorageError::io("examine", path))?;
        Ok(metadata.map(|metadata| metadata.len()))
    }

    fn delete_blob(&self, account: &AccountName, key: &StorageKey) -> Result<(), StorageError> {
        remove_file(&self.shared.layout.outboard(account, key))?;
        remove_file(&self.shared.layout.blob(account, key))
    }

    fn get_outboard(&self, account: &AccountName, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        let path = self.shared.layout.outboard(account, key);
        let outboard = found(fs::read(&path)).map_err(StorageError::io("read", path))?;
        Ok(outboard.map(Bytes::from))
    }

    fn put_outboard(&self, account: &AccountName, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError> {
        let path = self.shared.layout.outboard(account, key);
        fs::write(&path, outboard).map_err(|error| {
            // A part of one would be found out, but would take up room on a full disk.
            let _ = fs::remove_file(&path);
            StorageError::io("write", path)(error)
        })
    }

    fn list(&self, account: &AccountName) -> Result<ObjectIterator, StorageError> {
        let layout = &self.shared.layout;
        Ok(Box::new(Listing::new(layout.uploads(account), &layout.blobs(account))?))
    }
}

/// A blob's file, open for reading.
struct StoredFile {
    file: Arc<File>,
    path: PathBuf,
    size_bytes: u64,
    buffers: Arc<BufferPool>,
}

impl StoredBytes for StoredFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
        read_file(&self.file, &self.path, &self.buffers, offset, size_bytes)
    }

    fn read_at_once(&self, offset: u64, size_bytes: usize) -> Result<Option<Bytes>, StorageError> {
        let mut buffer = self.buffers.take(size_bytes);
        match system::read_cached_at(&self.file, &mut buffer, offset, size_bytes) {
            Ok(true) => Ok(Some(self.buffers.share(buffer))),
            Ok(false) => {
                self.buffers.give_back(buffer);
                Ok(None)
            }
            Err(error) => Err(StorageError::io("read", &self.path)(error)),
        }
    }

    fn imprint(&self) -> Result<Imprint, StorageError> {
        let found = self.file.metadata().map_err(StorageError::io("examine", &self.path))?;
        Ok(Imprint {
            file: found.ino(),
            size_bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.nlink() > 0).then(|| (found.ctime(), found.ctime_nsec())),
        })
    }

    fn cached_file(&self, range: Range<u64>) -> Option<Arc<File>> {
        // Both ends are looked at: what is read in order is cached and dropped in order.
        let is_cached = |offset| {
            let mut byte = Vec::with_capacity(1);
            matches!(system::read_cached_at(&self.file, &mut byte, offset, 1), Ok(true)) && byte.len() == 1
        };
        let last = range.end.checked_sub(1)?;
        (is_cached(last) && is_cached(range.start)).then(|| self.file.clone())
    }
}

fn read_file(
    file: &File,
    path: &Path,
    buffers: &Arc<BufferPool>,
    offset: u64,
    size_bytes: usize,
) -> Result<Bytes, StorageError> {
    let mut buffer = buffers.take(size_bytes);
    system::read_at(file, &mut buffer, offset, size_bytes).map_err(StorageError::io("read", path))?;
    Ok(buffers.share(buffer))
}

fn make_directory(path: &Path) -> Result<(), StorageError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(StorageError::io("make directory", path)),
    }
}

fn remove_file(path: &Path) -> Result<(), StorageError> {
    accept_missing(fs::remove_file(path)).map_err(StorageError::io("remove", path))
}

fn accept_missing(result: io::Result<()>) -> io::Result<()> {
    found(result).map(|_| ())
}

/// Absence as `None`.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let start = Instant::now();
    File::open(path)?.sync_all()?;
    metrics::histogram!("keppel_storage_fsync_seconds", "kind" => "directory").record(start.elapsed());
    Ok(())
}
