//! What merely passed through this region: kept while there is room, the least recently used goes first.
//!
//! Only what came here because somebody pulled it is ever evicted, and only while it can be had again: never what was
//! pushed here, never an account whose primary is here unless it mirrors a registry outside, never a replica's content, save that of images
//! for platforms that its filter leaves out: of those, this region is as if it had no replica.
//! Whoever reads a blob goes on reading it; whoever wants it the next moment has it fetched again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName, StorageKey};

use super::platforms::is_wanted;
use super::{Inner, Registry, RegistryError};
use crate::metadata::{BlobId, MetadataError, PulledRow, WriteTransaction};

/// What was used so lately is never evicted, in seconds: a pull has several requests, and they come with pauses.
const UNUSED_SECONDS_MIN: i64 = 600;
/// In repositories of so many manifests at the most they are read to find out which of them name a blob that was pulled.
const READ_AT_ONCE_MAX: u64 = 10_000;
/// Blobs looked at together.
const BATCH: usize = 100;
/// A blob that more manifests than this refer to is not asked about one by one whether the platform filter wants them.
const MANIFESTS_MAX: usize = 100;
/// Uses that may wait to be written.
const WAITING_MAX: usize = 100_000;

/// When blobs were last used, until that is written.
#[derive(Default)]
pub(super) struct PulledUses {
    waiting: Mutex<HashMap<BlobId, i64>>,
}

impl PulledUses {
    fn note(&self, blob: BlobId, at: i64) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX || waiting.contains_key(&blob) {
            waiting.insert(blob, at);
        }
    }

    fn take(&self) -> Vec<(BlobId, i64)> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }

    fn has(&self, blob: BlobId) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&blob)
    }
}

impl Inner {
    /// Notes that a blob here is being used. Costs nothing where they may stay for ever.
    pub(super) fn note_use(&self, blob: BlobId) {
        if self.options.pulled_blobs_max_bytes.is_some() {
            self.pulled_uses.note(blob, self.clock.now());
        }
    }

    /// Notes that a blob came here because it was pulled, with its bytes under `key`, and which manifests here it belongs
    /// to: they came before it. What goes wrong here costs room, no more.
    /// Where the account is a mirror, the blob may tell something of its images.
    pub(super) async fn note_pulled(self: &Arc<Self>, repository: &RepositoryName, digest: &Digest, key: &StorageKey) {
        self.learn_from(repository, digest).await;
        // Where everything is to be, whoever fetches it knows what it belongs to, and it stays.
        if !self.is_copy(&repository.account()) || self.backfills.has(&repository.account()) {
            return;
        }
        if let Err(error) = self.try_note_pulled(repository, digest, key).await {
            tracing::warn!(error = &error as &dyn std::error::Error, %repository, %digest, "a blob that was pulled is not noted as one");
        }
    }

    async fn try_note_pulled(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: &Digest,
        key: &StorageKey,
    ) -> Result<(), RegistryError> {
        let (name, wanted) = (repository.clone(), *digest);
        let found = self.metadata.read(move |reader| {
            let blob = reader.get_blob_by_name(name.as_str(), &wanted)?;
            let (Some(blob), Some(id)) = (blob, reader.get_repository(&name)?) else {
                return Ok::<_, RegistryError>(None);
            };
            // Among very many it would take long, for every blob. Before any sweep they are all read, and this is found.
            let manifests = match reader.has_more_manifests(id, READ_AT_ONCE_MAX)? {
                true => Vec::new(),
                false => reader.list_manifests_naming(id, &wanted)?,
            };
            Ok(Some((blob, manifests)))
        });
        let Some((blob, manifests)) = found.await? else { return Ok(()) };
        // The account may have had it before, from a push.
        let (now, is_new) = (self.clock.now(), blob.storage_key == *key);
        self.metadata
            .write(move |transaction| {
                if is_new {
                    transaction.note_pulled(blob.id, now)?;
                }
                manifests.iter().try_for_each(|manifest| transaction.link_blob(*manifest, blob.id))
            })
            .await
            .map_err(RegistryError::Metadata)
    }

    /// Whether a blob belongs to nothing but images that the platform filter of the replica here leaves out.
    fn is_left_out(
        &self,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
        blob: BlobId,
    ) -> Result<bool, MetadataError> {
        let filter = self.platform_filter(account);
        if filter.is_empty() {
            return Ok(false);
        }
        let manifests = transaction.list_manifests_with_blob(blob, MANIFESTS_MAX + 1)?;
        if manifests.is_empty() || manifests.len() > MANIFESTS_MAX {
            return Ok(false);
        }
        for (repository, digest) in manifests {
            let parents = transaction.list_parents(repository, &digest)?;
            if parents.is_empty() || parents.iter().any(|index| is_wanted(index, &digest, &filter)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether what came here of an account may go again.
    fn is_evictable(&self, account: &AccountName) -> bool {
        let is_kept = self.upstream.get().is_some_and(|upstream| upstream.keeps_content(account));
        self.is_copy(account) && !is_kept
    }
}

impl Registry {
    /// Evicts pulled blobs until those that are left fit into their room; gives how many bytes went. Safe to stop anywhere:
    /// what has no row any more, the storage sweep takes.
    ///
    /// # Errors
    /// Our own trouble; the next run goes on.
    pub async fn evict_pulled(&self) -> Result<u64, RegistryError> {
        let inner = &self.inner;
        let Some(limit_bytes) = inner.options.pulled_blobs_max_bytes else { return Ok(0) };
        let uses = inner.pulled_uses.take();
        if !uses.is_empty() {
            let write = inner
                .metadata
                .write(move |transaction| uses.iter().try_for_each(|(blob, at)| transaction.use_pulled(*blob, *at)));
            write.await.map_err(RegistryError::Metadata)?;
        }
        let held_bytes =
            inner.metadata.read(|reader| reader.pulled_size_bytes()).await.map_err(RegistryError::Metadata)?;
        metrics::gauge!("keppel_pulled_blobs_bytes").set(held_bytes as f64);
        let (mut left_bytes, mut evicted_bytes) = (held_bytes, 0);
        let before = inner.clock.now() - UNUSED_SECONDS_MIN;
        while left_bytes > limit_bytes {
            let oldest = inner.metadata.read(move |reader| reader.list_oldest_pulled(before, BATCH));
            let oldest = oldest.await.map_err(RegistryError::Metadata)?;
            if oldest.is_empty() {
                break;
            }
            for pulled in oldest {
                if left_bytes <= limit_bytes {
                    break;
                }
                let size_bytes = pulled.size_bytes;
                evicted_bytes += if self.evict(pulled, before).await? { size_bytes } else { 0 };
                left_bytes = left_bytes.saturating_sub(size_bytes);
            }
        }
        Ok(evicted_bytes)
    }

    /// Evicts one; gives whether it went. One that stays is put to the end of the line or taken out of it.
    async fn evict(&self, pulled: PulledRow, before: i64) -> Result<bool, RegistryError> {
        let (inner, account, blob) = (self.inner.clone(), pulled.account.clone(), pulled.blob);
        let evicted = self.inner.metadata.write(move |transaction| {
            if !inner.is_evictable(&account) && !inner.is_left_out(transaction, &account, blob)? {
                transaction.keep_pulled(blob)?;
                return Ok(None);
            }
            if inner.pulled_uses.has(blob) {
                transaction.use_pulled(blob, inner.clock.now())?;
                return Ok(None);
            }
            transaction.evict_pulled(blob, before)
        });
        let Some(key) = evicted.await.map_err(RegistryError::Metadata)? else { return Ok(false) };
        if let Err(error) = self.inner.storage.delete_blob(&pulled.account, &key).await {
            // No row names it any more; the storage sweep takes it.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the bytes of an evicted blob could not be deleted"
            );
        }
        metrics::counter!("keppel_pulled_blobs_evicted_total").increment(1);
        metrics::counter!("keppel_pulled_blobs_evicted_bytes_total").increment(pulled.size_bytes);
        Ok(true)
    }
}
