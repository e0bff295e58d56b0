//! Hashing stored blobs again, a little at a time, so that whoever does it can pause in between.

use keppel_federation::vocabulary::{AccountName, Algorithm, StorageKey};

use super::driver::StoredBytes;
use super::hash::BlobHasher;
use super::work::Workers;
use super::{PIECE_BYTES, Storage, StorageError, StoredBlob};

/// A blob that is being hashed.
pub struct BlobCheck {
    state: Box<State>,
    workers: Workers,
}

struct State {
    blob: Box<dyn StoredBytes>,
    hasher: BlobHasher,
    key: StorageKey,
    offset: u64,
}

/// How far a [`BlobCheck`] has come.
pub enum CheckStep {
    /// So many bytes were read in this step, and there are more.
    More(BlobCheck, u64),
    /// All of it was read, so many bytes of it in this step.
    Done(StoredBlob, u64),
}

impl Storage {
    /// Begins to read and hash a whole blob, to find out whether it is still what was stored.
    ///
    /// # Errors
    /// [`StorageError::BlobMissing`] or [`StorageError::Io`].
    pub async fn begin_check(
        &self,
        account: &AccountName,
        key: &StorageKey,
        algorithm: Algorithm,
    ) -> Result<BlobCheck, StorageError> {
        let (account, key) = (account.clone(), key.clone());
        let open = self.read(move |driver| {
            let blob = driver.open_blob(&account, &key)?.ok_or_else(|| StorageError::BlobMissing(key.clone()))?;
            Ok(Box::new(State { blob, hasher: BlobHasher::new(algorithm), key, offset: 0 }))
        });
        Ok(BlobCheck { state: open.await?, workers: self.readers.clone() })
    }
}

impl BlobCheck {
    /// Reads and hashes `step_bytes` more, or what is left.
    ///
    /// # Errors
    /// [`StorageError::BlobShort`] when the blob was cut while being read, or [`StorageError::Io`].
    pub async fn step(self, step_bytes: u64) -> Result<CheckStep, StorageError> {
        let Self { mut state, workers } = self;
        let job = move || {
            let (size_bytes, start) = (state.blob.size_bytes(), state.offset);
            let end = size_bytes.min(start.saturating_add(step_bytes.max(1)));
            while state.offset < end {
                let wanted = (end - state.offset).min(PIECE_BYTES as u64) as usize;
                let piece = state.blob.read(state.offset, wanted)?;
                if piece.is_empty() {
                    let (key, actual_bytes) = (state.key, state.offset);
                    return Err(StorageError::BlobShort { key, expected_bytes: size_bytes, actual_bytes });
                }
                state.hasher.update(&piece);
                state.offset += piece.len() as u64;
            }
            Ok((state, end - start))
        };
        let (state, read_bytes) = workers.run(job).await?;
        if state.offset < state.blob.size_bytes() {
            return Ok(CheckStep::More(Self { state, workers }, read_bytes));
        }
        let State { blob, hasher, key, .. } = *state;
        let (hashes, size_bytes) = (hasher.finish(), blob.size_bytes());
        let (digest, blake3) = (hashes.digest, hashes.blake3);
        Ok(CheckStep::Done(StoredBlob { size_bytes, key, digest, blake3 }, read_bytes))
    }
}
