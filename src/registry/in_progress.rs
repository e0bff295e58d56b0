//! What is being stored right now and has no row yet, so that the sweeps leave it alone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keppel_federation::vocabulary::{StorageKey, UploadId};

#[derive(Default, Clone)]
pub(super) struct InProgress {
    sets: Arc<Mutex<Sets>>,
}

#[derive(Default)]
struct Sets {
    blobs: HashSet<StorageKey>,
    uploads: HashSet<UploadId>,
}

impl InProgress {
    /// Shields a blob until the guard goes.
    pub(super) fn blob(&self, key: &StorageKey) -> InProgressGuard {
        self.lock().blobs.insert(key.clone());
        InProgressGuard { of: self.clone(), entry: Entry::Blob(key.clone()) }
    }

    /// Shields an upload until the guard goes.
    pub(super) fn upload(&self, id: &UploadId) -> InProgressGuard {
        self.lock().uploads.insert(id.clone());
        InProgressGuard { of: self.clone(), entry: Entry::Upload(id.clone()) }
    }

    pub(super) fn has_blob(&self, key: &StorageKey) -> bool {
        self.lock().blobs.contains(key)
    }

    pub(super) fn has_upload(&self, id: &UploadId) -> bool {
        self.lock().uploads.contains(id)
    }

    fn lock(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Entry {
    Blob(StorageKey),
    Upload(UploadId),
}

pub(super) struct InProgressGuard {
    of: InProgress,
    entry: Entry,
}

impl Drop for InProgressGuard {
    fn drop(&mut self) {
        let mut sets = self.of.lock();
        match &self.entry {
            Entry::Blob(key) => sets.blobs.remove(key),
            Entry::Upload(id) => sets.uploads.remove(id),
        };
    }
}
