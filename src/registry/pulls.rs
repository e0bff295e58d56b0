//! Pulling manifests.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Digest, Reference, RepositoryName, Tag};

use super::manifest_cache::CacheKey;
use super::{FirstPull, Inner, Registry, RegistryError};
use crate::metadata::{ManifestFacts, ManifestId, ManifestRow, RepositoryId};

/// A manifest as it is served, with its header values ready to be shared without a copy.
#[derive(Debug)]
pub struct Manifest {
    /// The bytes as pushed.
    pub bytes: Bytes,
    /// The media type, without parameters.
    pub media_type: Bytes,
    /// The digest.
    pub digest: Digest,
    /// The digest as text.
    pub digest_text: Bytes,
    /// The digest as text in double quotes.
    pub etag: Bytes,
    /// When the oldest and the newest of its layers were made, in UNIX seconds.
    pub layer_times: Option<(i64, i64)>,
    /// The same as text.
    pub layers_created_at: Option<(Bytes, Bytes)>,
    /// Whether it is only what was known when its primary was last reached.
    pub is_stale: bool,
    /// Its row and its repository's, unless it is not kept here.
    pub(super) row: Option<(ManifestId, RepositoryId)>,
    pub(super) tag: Option<Box<str>>,
    last_noted: AtomicI64,
}

impl Manifest {
    fn new(row: ManifestRow, tag: Option<&str>) -> Self {
        let times = row.min_layer_created_at.zip(row.max_layer_created_at);
        Self {
            row: Some((row.id, row.repository)),
            tag: tag.map(Into::into),
            ..Self::passing_through(row.digest, row.media_type, row.bytes)
        }
        .made_at(times)
    }

    /// The same with the times of its layers, where they are not known yet.
    pub(super) fn made_at(self, times: Option<(i64, i64)>) -> Self {
        match (self.layer_times, times) {
            (None, Some((min, max))) => Self {
                layer_times: times,
                layers_created_at: Some((min.to_string().into(), max.to_string().into())),
                ..self
            },
            _ => self,
        }
    }

    /// A manifest that is not kept here.
    pub(super) fn passing_through(digest: Digest, media_type: String, bytes: Bytes) -> Self {
        let etag = Bytes::from(format!("\"{digest}\""));
        Self {
            bytes,
            media_type: media_type.into(),
            digest,
            digest_text: etag.slice(1..etag.len() - 1),
            etag,
            layer_times: None,
            layers_created_at: None,
            is_stale: false,
            row: None,
            tag: None,
            last_noted: AtomicI64::new(i64::MIN),
        }
    }

    /// The same, as an answer that may be out of date.
    pub(super) fn stale(self) -> Self {
        Self { is_stale: true, ..self }
    }

    /// Whether no pull was noted yet in this second.
    pub(super) fn is_first_pull_at(&self, now: i64) -> bool {
        self.last_noted.load(Ordering::Relaxed) != now && self.last_noted.swap(now, Ordering::Relaxed) != now
    }

    #[cfg(test)]
    pub(super) fn for_test(bytes: &[u8]) -> Self {
        let row = ManifestRow {
            id: ManifestId::for_test(1),
            repository: RepositoryId::for_test(1),
            digest: Digest::from_sha256([0; 32]),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            bytes: Bytes::copy_from_slice(bytes),
            min_layer_created_at: None,
            max_layer_created_at: None,
        };
        Self::new(row, None)
    }
}

impl Registry {
    /// A manifest from memory, by full repository name and reference as text. What it gives is current. `None` says
    /// nothing: ask [`Self::load_manifest`]. Counts no pull.
    pub fn cached_manifest(&self, repository: &str, reference: &str) -> Option<Arc<Manifest>> {
        // Before as well: an account that has another primary is taken out before the authority is renewed.
        let cached = self.inner.feed.has_authority().then(|| self.inner.cache.get(repository, reference)).flatten();
        let cached = cached.filter(|_| self.inner.feed.has_authority())?;
        if !self.inner.copies.are_any() {
            return Some(cached);
        }
        let account = AccountName::parse(repository.split('/').next()?).ok()?;
        (!self.inner.is_of_former_account(&account)).then_some(cached)
    }

    /// A manifest by tag or digest, from wherever it is. Counts no pull: see [`Self::note_pull`].
    ///
    /// # Errors
    /// [`RegistryError::RepositoryUnknown`], [`RegistryError::ManifestUnknown`], [`RegistryError::PrimaryUnreachable`],
    /// [`RegistryError::External`], or our own trouble.
    pub async fn load_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Arc<Manifest>, RegistryError> {
        self.load_manifest_for(repository, reference, FirstPull::Allowed).await
    }

    /// The same, for someone who perhaps may not have it fetched from a registry outside.
    ///
    /// # Errors
    /// Those of [`Self::load_manifest`], and [`RegistryError::FirstPullRefused`].
    pub async fn load_manifest_for(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        first_pull: FirstPull,
    ) -> Result<Arc<Manifest>, RegistryError> {
        let key = CacheKey { repository: repository.as_str().into(), reference: reference.to_string().into() };
        if let Some(manifest) = self.cached_manifest(&key.repository, &key.reference) {
            return Ok(manifest);
        }
        let generation = self.inner.cache.generation(&key.repository);
        let (account, is_tag) = (repository.account(), matches!(reference, Reference::Tag(_)));
        let since = self.inner.term(&account);
        let manifest = match self.inner.manifest_of_others(repository, reference, first_pull).await? {
            None => {
                let read = self.inner.read_manifest(repository, reference).await;
                if is_tag && self.inner.speaks_for(&account) {
                    // Whoever has seen this must not be shown what was before in another region.
                    self.inner.settled(&account).await;
                }
                let manifest = match read {
                    Ok(manifest) => manifest,
                    Err(unknown) if is_tag => return self.inner.or_unsure(&account, since, Err(unknown)).await,
                    Err(unknown) => return self.inner.knows_absence(&account).await.and(Err(unknown)),
                };
                if is_tag && !self.inner.is_sure(&account, since).await {
                    metrics::counter!("keppel_stale_answers_total").increment(1);
                    return Ok(Arc::new(manifest.stale()));
                }
                Arc::new(manifest)
            }
            Some(manifest) => {
                let manifest = Arc::new(manifest);
                // What a tag of another region or registry names has to be asked for again.
                if matches!(reference, Reference::Tag(_)) || manifest.row.is_none() {
                    return Ok(manifest);
                }
                manifest
            }
        };
        self.inner.cache.insert(key, &manifest, generation);
        Ok(manifest)
    }
}

impl Registry {
    /// What is known here of a manifest, and of a tag on it, beyond its bytes.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn get_manifest_facts(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        tag: Option<&Tag>,
    ) -> Result<Option<ManifestFacts>, RegistryError> {
        let (name, digest, tag) = (repository.clone(), *digest, tag.cloned());
        let read = self
            .inner
            .metadata
            .read(move |reader| reader.get_manifest_facts(name.as_str(), &digest, tag.as_ref().map(Tag::as_str)));
        Ok(read.await?)
    }
}

impl Inner {
    /// A manifest of an account whose content comes from elsewhere; `None`: it does not.
    async fn manifest_of_others(
        self: &Arc<Self>,
        repository: &RepositoryName,
        reference: &Reference,
        first_pull: FirstPull,
    ) -> Result<Option<Manifest>, RegistryError> {
        let account = repository.account();
        if let Some(mirror) = self.mirror(&account) {
            return self.manifest_from_external(&mirror, repository, reference, first_pull).await.map(Some);
        }
        let Some(elsewhere) = self.elsewhere(&account) else { return Ok(None) };
        if first_pull == FirstPull::Refused && self.external_source(&account).is_some() {
            return self.manifest_kept_here(repository, reference).await.map(Some);
        }
        self.manifest_from(&elsewhere, repository, reference).await.map(Some)
    }

    /// A manifest that is here.
    pub(super) async fn read_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Manifest, RegistryError> {
        self.refuse_former(&repository.account())?;
        let (repository, reference) = (repository.clone(), reference.clone());
        self.metadata
            .read(move |reader| {
                let row = match &reference {
                    Reference::Tag(tag) => reader.get_manifest_by_tag(repository.as_str(), tag.as_str())?,
                    Reference::Digest(digest) => reader.get_manifest_by_digest(repository.as_str(), digest)?,
                };
                let tag = match &reference {
                    Reference::Tag(tag) => Some(tag.as_str()),
                    Reference::Digest(_) => None,
                };
                match row {
                    Some(row) => Ok(Manifest::new(row, tag)),
                    None if reader.get_repository(&repository)?.is_none() => {
                        Err(RegistryError::RepositoryUnknown { repository })
                    }
                    None => Err(RegistryError::ManifestUnknown { repository, reference }),
                }
            })
            .await
    }
}
