//! Reading a blob piece by piece, each checked against the blob's tree before anybody gets it.

use std::sync::Arc;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, StorageKey};

use super::driver::{StorageDriver, StoredBytes};
use super::tree::{self, TreeHasher};
use super::verified::VerifiedBlobs;
use super::{GROUP_BYTES, Outboard, StorageError, Verifier, for_each_piece, outboard_size_bytes};

/// Which blob is read, and what its bytes should be.
pub(super) struct Checked {
    pub(super) driver: Arc<dyn StorageDriver>,
    pub(super) verified: Arc<VerifiedBlobs>,
    pub(super) account: AccountName,
    pub(super) key: StorageKey,
    /// The root of its tree.
    pub(super) blake3: [u8; 32],
}

impl Checked {
    /// Reads from `offset` to the end of its group, or to `end`, and checks all of the group. `verifier` is what checks
    /// it, when that is at hand. Blocks.
    pub(super) fn read(
        &self,
        blob: &dyn StoredBytes,
        verifier: Option<Arc<Verifier>>,
        offset: u64,
        end: u64,
    ) -> Result<(Bytes, Arc<Verifier>), StorageError> {
        // Before the bytes: whoever writes to them from now on changes it.
        let imprint = blob.imprint()?;
        let verifier = match verifier {
            Some(verifier) => verifier,
            None => self.verifier(blob)?,
        };
        let group = offset / GROUP_BYTES;
        let start = group * GROUP_BYTES;
        let size_bytes = verifier.size_bytes().saturating_sub(start).min(GROUP_BYTES) as usize;
        let bytes = read_fully(blob, start, size_bytes)?;
        if bytes.len() < size_bytes {
            let (expected_bytes, actual_bytes) = (verifier.size_bytes(), start + bytes.len() as u64);
            return Err(StorageError::BlobShort { key: self.key.clone(), expected_bytes, actual_bytes });
        }
        metrics::counter!("keppel_storage_verified_bytes_total").increment(bytes.len() as u64);
        if !verifier.is_part(start, &bytes) {
            return Err(StorageError::BlobCorrupt(self.key.clone()));
        }
        self.verified.note(&self.key, &imprint, &verifier, group);
        let to = (end - start).min(size_bytes as u64) as usize;
        Ok((bytes.slice((offset - start) as usize..to), verifier))
    }

    fn verifier(&self, blob: &dyn StoredBytes) -> Result<Arc<Verifier>, StorageError> {
        if let Some(verifier) = self.verified.verifier(&self.key) {
            return Ok(verifier);
        }
        let outboard = load_outboard(&*self.driver, &self.account, &self.key, blob, &self.blake3)?;
        let verifier = Verifier::new(&outboard, self.blake3);
        verifier.map(Arc::new).ok_or_else(|| StorageError::BlobCorrupt(self.key.clone()))
    }
}

/// The outboard of a blob whose tree has the root `blake3`. One that is lost or damaged is computed again.
pub(super) fn load_outboard(
    driver: &dyn StorageDriver,
    account: &AccountName,
    key: &StorageKey,
    blob: &dyn StoredBytes,
    blake3: &[u8; 32],
) -> Result<Outboard, StorageError> {
    let blob_size_bytes = blob.size_bytes();
    let kept = match outboard_size_bytes(blob_size_bytes) {
        0 => Some(Bytes::new()),
        _ => driver.get_outboard(account, key)?,
    };
    if let Some(pairs) = kept.filter(|kept| tree::is_outboard_of(kept, blob_size_bytes, blake3)) {
        return Ok(Outboard { blob_size_bytes, pairs });
    }
    let mut hasher = TreeHasher::new();
    for_each_piece(blob, key, |piece| hasher.update(piece))?;
    let (root, pairs) = hasher.finish();
    if root != *blake3 {
        return Err(StorageError::BlobCorrupt(key.clone()));
    }
    // That of a blob which was deleted meanwhile would be left over.
    if driver.blob_size_bytes(account, key)?.is_some()
        && let Err(error) = driver.put_outboard(account, key, &pairs)
    {
        tracing::warn!(%account, %key, %error, "cannot keep the outboard of a blob; it will be computed again");
    }
    Ok(Outboard { blob_size_bytes, pairs: pairs.into() })
}

/// Reads so many bytes, or up to the end.
fn read_fully(blob: &dyn StoredBytes, offset: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
    let first = blob.read(offset, size_bytes)?;
    if first.len() == size_bytes || first.is_empty() {
        return Ok(first);
    }
    let mut all = Vec::with_capacity(size_bytes);
    all.extend_from_slice(&first);
    while all.len() < size_bytes {
        let more = blob.read(offset + all.len() as u64, size_bytes - all.len())?;
        if more.is_empty() {
            break;
        }
        all.extend_from_slice(&more);
    }
    Ok(all.into())
}
