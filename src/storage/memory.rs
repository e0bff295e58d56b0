//! Bytes in the memory of the process: for tests and for registries that need not outlive it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, StorageKey, UploadId};

use super::driver::{Imprint, ObjectIterator, ObjectKind, StagedBytes, StorageDriver, StoredBytes, StoredObject};
use super::{PIECE_BYTES, StorageError};

/// The driver that keeps everything in memory, up to a capacity.
pub(super) struct MemoryDriver {
    shared: Arc<Shared>,
}

struct Shared {
    capacity_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used_bytes: u64,
    spaces: HashMap<AccountName, HashMap<ObjectKind, Object>>,
}

/// Segments of [`PIECE_BYTES`], only the last one shorter.
#[derive(Clone)]
struct Object {
    segments: Vec<Bytes>,
    size_bytes: u64,
    modified: SystemTime,
}

impl Object {
    fn new() -> Self {
        Self { segments: Vec::new(), size_bytes: 0, modified: SystemTime::now() }
    }

    fn append(&mut self, mut bytes: &[u8]) {
        self.size_bytes += bytes.len() as u64;
        self.modified = SystemTime::now();
        while !bytes.is_empty() {
            let mut segment = match self.segments.last() {
                Some(last) if last.len() < PIECE_BYTES => Vec::from(self.segments.pop().unwrap_or_default()),
                _ => Vec::new(),
            };
            let (taken, rest) = bytes.split_at(bytes.len().min(PIECE_BYTES - segment.len()));
            segment.extend_from_slice(taken);
            self.segments.push(segment.into());
            bytes = rest;
        }
    }

    fn read(&self, offset: u64, size_bytes: usize) -> Bytes {
        let segment = usize::try_from(offset / PIECE_BYTES as u64).ok().and_then(|index| self.segments.get(index));
        let Some(segment) = segment else { return Bytes::new() };
        let start = (offset % PIECE_BYTES as u64) as usize;
        segment.slice(start.min(segment.len())..(start + size_bytes).min(segment.len()))
    }
}

impl MemoryDriver {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        Self { shared: Arc::new(Shared { capacity_bytes, state: Mutex::default() }) }
    }

    fn get<T>(&self, account: &AccountName, kind: &ObjectKind, found: impl FnOnce(&Object) -> T) -> Option<T> {
        self.shared.lock().spaces.get(account)?.get(kind).map(found)
    }
}

impl Shared {
    /// The state is valid at every moment, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn space(&mut self, account: &AccountName) -> Result<&mut HashMap<ObjectKind, Object>, StorageError> {
        self.spaces.get_mut(account).ok_or_else(|| StorageError::SpaceMissing(account.clone()))
    }

    fn remove(&mut self, account: &AccountName, kind: &ObjectKind) {
        if let Some(object) = self.spaces.get_mut(account).and_then(|space| space.remove(kind)) {
            self.used_bytes -= object.size_bytes;
        }
    }

    fn reserve(&mut self, size_bytes: u64, capacity_bytes: u64) -> Result<(), StorageError> {
        match self.used_bytes.checked_add(size_bytes).filter(|used| *used <= capacity_bytes) {
            Some(used) => {
                self.used_bytes = used;
                Ok(())
            }
            None => Err(StorageError::Full),
        }
    }
}

impl StorageDriver for MemoryDriver {
    fn prepare_space(&self, account: &AccountName) -> Result<(), StorageError> {
        self.shared.lock().spaces.entry(account.clone()).or_default();
        Ok(())
    }

    fn remove_space(&self, account: &AccountName) -> Result<(), StorageError> {
        let mut state = self.shared.lock();
        let removed = state.spaces.remove(account).unwrap_or_default();
        state.used_bytes -= removed.values().map(|object| object.size_bytes).sum::<u64>();
        Ok(())
    }

    fn list_spaces(&self) -> Result<Vec<AccountName>, StorageError> {
        Ok(self.shared.lock().spaces.keys().cloned().collect())
    }

    fn create_upload(&self, account: &AccountName, id: &UploadId) -> Result<Box<dyn StagedBytes>, StorageError> {
        let kind = ObjectKind::Upload(id.clone());
        let mut state = self.shared.lock();
        let space = state.space(account)?;
        if space.contains_key(&kind) {
            return Err(StorageError::UploadExists(id.clone()));
        }
        space.insert(kind, Object::new());
        Ok(Box::new(StagedObject {
            shared: self.shared.clone(),
            account: account.clone(),
            id: id.clone(),
            size_bytes: 0,
        }))
    }

    fn open_upload(&self, account: &AccountName, id: &UploadId) -> Result<Option<Box<dyn StagedBytes>>, StorageError> {
        let size_bytes = self.get(account, &ObjectKind::Upload(id.clone()), |object| object.size_bytes);
        let (shared, account, id) = (self.shared.clone(), account.clone(), id.clone());
        Ok(size_bytes.map(|size_bytes| Box::new(StagedObject { shared, account, id, size_bytes }) as _))
    }

    fn take_back(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError> {
        let key = StorageKey::from(id);
        let mut state = self.shared.lock();
        let Ok(space) = state.space(account) else { return Ok(()) };
        let upload = ObjectKind::Upload(id.clone());
        if !space.contains_key(&upload)
            && let Some(object) = space.remove(&ObjectKind::Blob(key.clone()))
        {
            space.insert(upload, object);
            state.remove(account, &ObjectKind::Outboard(key));
        }
        Ok(())
    }

    fn discard_upload(&self, account: &AccountName, id: &UploadId) -> Result<(), StorageError> {
        self.shared.lock().remove(account, &ObjectKind::Upload(id.clone()));
        Ok(())
    }

    fn open_blob(&self, account: &AccountName, key: &StorageKey) -> Result<Option<Box<dyn StoredBytes>>, StorageError> {
        let object = self.get(account, &ObjectKind::Blob(key.clone()), Object::clone);
        Ok(object.map(|object| Box::new(object) as _))
    }

    fn blob_size_bytes(&self, account: &AccountName, key: &StorageKey) -> Result<Option<u64>, StorageError> {
        Ok(self.get(account, &ObjectKind::Blob(key.clone()), |object| object.size_bytes))
    }

    fn delete_blob(&self, account: &AccountName, key: &StorageKey) -> Result<(), StorageError> {
        let mut state = self.shared.lock();
        state.remove(account, &ObjectKind::Blob(key.clone()));
        state.remove(account, &ObjectKind::Outboard(key.clone()));
        Ok(())
    }

    fn get_outboard(&self, account: &AccountName, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.get(account, &ObjectKind::Outboard(key.clone()), |object| object.segments.concat().into()))
    }

    fn put_outboard(&self, account: &AccountName, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError> {
        let kind = ObjectKind::Outboard(key.clone());
        let mut state = self.shared.lock();
        state.space(account)?;
        state.remove(account, &kind);
        state.reserve(outboard.len() as u64, self.shared.capacity_bytes)?;
        let mut object = Object::new();
        object.append(outboard);
        state.space(account)?.insert(kind, object);
        Ok(())
    }

    fn list(&self, account: &AccountName) -> Result<ObjectIterator, StorageError> {
        let stored = |(kind, object): (&ObjectKind, &Object)| {
            let Object { size_bytes, modified, .. } = *object;
            Ok(StoredObject { kind: kind.clone(), size_bytes, modified })
        };
        let state = self.shared.lock();
        let objects: Vec<_> = state.spaces.get(account).into_iter().flatten().map(stored).collect();
        Ok(Box::new(objects.into_iter()))
    }
}

impl StoredBytes for Object {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
        Ok(Object::read(self, offset, size_bytes))
    }

    fn read_at_once(&self, offset: u64, size_bytes: usize) -> Result<Option<Bytes>, StorageError> {
        Ok(Some(Object::read(self, offset, size_bytes)))
    }

    fn imprint(&self) -> Result<Imprint, StorageError> {
        // Nobody but us can write to our memory.
        Ok(Imprint { file: 0, size_bytes: self.size_bytes, modified: (0, 0), changed: Some((0, 0)) })
    }
}

struct StagedObject {
    shared: Arc<Shared>,
    account: AccountName,
    id: UploadId,
    size_bytes: u64,
}

impl StagedObject {
    fn kind(&self) -> ObjectKind {
        ObjectKind::Upload(self.id.clone())
    }

    fn object<'a>(&self, state: &'a mut State) -> Result<&'a mut Object, StorageError> {
        let object = state.spaces.get_mut(&self.account).and_then(|space| space.get_mut(&self.kind()));
        object.ok_or_else(|| StorageError::UploadMissing(self.id.clone()))
    }
}

impl StagedBytes for StagedObject {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn append(&mut self, pieces: &[Bytes]) -> Result<(), StorageError> {
        let size_bytes = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let mut state = self.shared.lock();
        self.object(&mut state)?;
        state.reserve(size_bytes, self.shared.capacity_bytes)?;
        let object = self.object(&mut state)?;
        pieces.iter().for_each(|piece| object.append(piece));
        self.size_bytes += size_bytes;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.object(&mut self.shared.lock()).map(|_| ())
    }

    fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
        self.object(&mut self.shared.lock()).map(|object| object.read(offset, size_bytes))
    }

    fn open_beside(&self) -> Result<Box<dyn StoredBytes>, StorageError> {
        let (shared, account, id) = (self.shared.clone(), self.account.clone(), self.id.clone());
        Ok(Box::new(BesideObject { shared, account, id }))
    }

    fn publish(self: Box<Self>, key: &StorageKey, outboard: &[u8]) -> Result<(), StorageError> {
        let mut state = self.shared.lock();
        if let Err(full) = state.reserve(outboard.len() as u64, self.shared.capacity_bytes) {
            state.remove(&self.account, &self.kind());
            return Err(full);
        }
        let Some(object) = state.spaces.get_mut(&self.account).and_then(|space| space.remove(&self.kind())) else {
            state.used_bytes -= outboard.len() as u64;
            return Err(StorageError::UploadMissing(self.id.clone()));
        };
        let space = state.space(&self.account)?;
        space.insert(ObjectKind::Blob(key.clone()), object);
        if !outboard.is_empty() {
            let mut object = Object::new();
            object.append(outboard);
            space.insert(ObjectKind::Outboard(key.clone()), object);
        }
        Ok(())
    }

    fn discard(self: Box<Self>) -> Result<(), StorageError> {
        self.shared.lock().remove(&self.account, &self.kind());
        Ok(())
    }
}

/// An upload being read while it is written, and after that as the blob that it became under its own name.
struct BesideObject {
    shared: Arc<Shared>,
    account: AccountName,
    id: UploadId,
}

impl StoredBytes for BesideObject {
    fn size_bytes(&self) -> u64 {
        0
    }

    fn read(&self, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
        let state = self.shared.lock();
        let space = state.spaces.get(&self.account);
        let find = |kind| space.and_then(|space| space.get(&kind));
        let object = find(ObjectKind::Upload(self.id.clone()))
            .or_else(|| find(ObjectKind::Blob(StorageKey::from(&self.id))))
            .ok_or_else(|| StorageError::UploadMissing(self.id.clone()))?;
        Ok(object.read(offset, size_bytes))
    }

    fn read_at_once(&self, offset: u64, size_bytes: usize) -> Result<Option<Bytes>, StorageError> {
        self.read(offset, size_bytes).map(Some)
    }

    fn imprint(&self) -> Result<Imprint, StorageError> {
        Ok(Imprint { file: 0, size_bytes: 0, modified: (0, 0), changed: None })
    }
}
