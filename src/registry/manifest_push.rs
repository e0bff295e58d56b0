//! Pushing manifests.

use std::sync::Arc;

use bytes::Bytes;
use keppel_federation::vocabulary::{Algorithm, Digest, RepositoryName, Tag};
use sha2::Digest as _;

use super::elsewhere::is_followed;
use super::manifest_cache::CacheKey;
use super::succession::MovePatience;
use super::{Inner, Registry, RegistryError, WriteWindow};
use crate::metadata::{BlobId, ManifestFacts, NewManifest, Reader, RepositoryId, Usage, WriteTransaction};
use crate::model::{Descriptor, ImageConfig, ManifestDescription, ManifestKind};

/// Up to this many references are looked up by the writer alone.
const FEW_REFERENCES: usize = 200;

/// Manifests from this size on are hashed and parsed off the async threads.
const LARGE_BYTES: usize = 64 << 10;

/// Large manifests that are read and recorded at a time: each takes many times its size while it is.
pub(super) const LARGE_AT_ONCE: usize = 4;

/// Under which name a manifest is pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestTarget {
    /// A tag; the digest is then SHA-256.
    Tag(Tag),
    /// Its digest, and tags to set on it.
    Digest {
        /// The digest that it must have.
        digest: Digest,
        /// Tags to set, perhaps none.
        tags: Vec<Tag>,
    },
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutManifest {
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
    /// The tags that were set besides the one in the path.
    pub tags: Vec<Tag>,
    /// What is known of it where it was recorded, if that is another region.
    pub facts: Option<ManifestFacts>,
}

/// A manifest that has been read and checked by itself.
pub(super) struct Checked {
    pub(super) digest: Digest,
    pub(super) description: ManifestDescription,
    bytes: Bytes,
    /// All tags to set.
    pub(super) tags: Vec<Tag>,
    config: ImageConfig,
    /// What is known of it elsewhere.
    facts: Option<ManifestFacts>,
}

impl Registry {
    /// Stores a manifest; when it answers, manifest and tags are on disk, in as many regions as the account asks for, and no
    /// region answers with what was before.
    /// Pushing the same again is harmless.
    ///
    /// Cancel safety: once the write is queued it is done, whether or not anybody waits.
    ///
    /// Source: OCI distribution-spec, "Pushing manifests".
    ///
    /// # Errors
    /// [`RegistryError::ManifestInvalid`], [`RegistryError::ManifestTooLarge`], [`RegistryError::DigestMismatch`],
    /// [`RegistryError::ManifestBlobsUnknown`], [`RegistryError::AccountUnknown`], [`RegistryError::AccountElsewhere`],
    /// [`RegistryError::ClaimUndecided`], [`RegistryError::TagProtected`], [`RegistryError::QuotaExceeded`],
    /// [`RegistryError::CopiesMissing`], or our own trouble.
    pub async fn put_manifest(
        &self,
        repository: &RepositoryName,
        target: ManifestTarget,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        self.put_manifest_within(&WriteWindow::open(), repository, target, media_type, bytes).await
    }

    /// The same for a client of another region, while that waits.
    pub(super) async fn put_manifest_within(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        target: ManifestTarget,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        let (patience, mut gathered) = (MovePatience::begin(), false);
        loop {
            let put = self.try_put_manifest(window, repository, target.clone(), media_type, bytes.clone()).await;
            if let (false, Err(RegistryError::ManifestBlobsUnknown { digests })) = (gathered, &put)
                && !self.is_elsewhere(&repository.account())
            {
                gathered = true;
                if self.gather_blobs(repository, digests).await? {
                    continue;
                }
            }
            if !patience.tries_again(&put).await {
                return put;
            }
        }
    }

    async fn try_put_manifest(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        target: ManifestTarget,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        let limit_bytes = self.inner.options.manifest_size_max_bytes;
        if bytes.len() as u64 > limit_bytes {
            return Err(RegistryError::ManifestTooLarge { limit_bytes });
        }
        if let Some(elsewhere) = self.inner.check_account(repository).await? {
            window.refuse_passing_on(repository, &elsewhere)?;
            self.inner.refuse_pushed_here(&elsewhere, repository, &target, media_type, &bytes).await?;
            return self.inner.put_manifest_at(&elsewhere, repository, target, media_type, bytes).await;
        }
        let media_type = media_type.map(str::to_owned);
        let extra_tags = match &target {
            ManifestTarget::Tag(_) => Vec::new(),
            ManifestTarget::Digest { tags, .. } => tags.clone(),
        };
        let (mut checked, permit) = match bytes.len() < LARGE_BYTES {
            true => (check(target, media_type.as_deref(), bytes)?, None),
            false => {
                let permit = self.inner.large_manifests.acquire().await.map_err(|_| RegistryError::Interrupted)?;
                let checking = tokio::task::spawn_blocking(move || check(target, media_type.as_deref(), bytes));
                (checking.await.map_err(|_| RegistryError::Interrupted)??, Some(permit))
            }
        };
        // Other regions must not be asked to keep what is not here.
        if checked.description.references() > FEW_REFERENCES || self.inner.copies_wanted(&repository.account()) > 1 {
            self.refuse_unknown_references(repository, &checked.description).await?;
        }
        checked.config = self.inner.look_into(repository, &checked.description).await?;
        let (digest, subject) = (checked.digest, checked.description.subject);
        let put = PutManifest { digest, subject, tags: extra_tags, facts: None };
        let spread = self.inner.spread(repository, &checked.description).await?;
        let (inner, name, account) = (self.inner.clone(), repository.clone(), repository.account());
        let (since, window) = (self.inner.term(&account), window.clone());
        let recorded = self.inner.metadata.write(move |transaction| {
            let account = name.account();
            window.begin(&account)?;
            record(&inner, transaction, &name, checked, Origin::Client)?;
            inner.note_spreading(transaction, &account)
        });
        let sequence = recorded.await?;
        // What is waited for from here on is in other regions: it takes no memory, and must not keep other accounts waiting.
        drop(permit);
        self.inner.settled(&account).await;
        self.inner.ensure_spread(&account, spread, sequence).await?;
        self.inner.check_still_primary(&account, since)?;
        Ok(put)
    }
}

impl Registry {
    /// Looks the references of a manifest up before the one writer has to, so that a manifest with very many that are
    /// not there keeps nobody waiting.
    pub(super) async fn refuse_unknown_references(
        &self,
        repository: &RepositoryName,
        description: &ManifestDescription,
    ) -> Result<(), RegistryError> {
        let (inner, repository, description) = (self.inner.clone(), repository.clone(), description.clone());
        self.inner
            .metadata
            .read(move |reader| match reader.get_repository(&repository)? {
                Some(id) => inner.refuse_unknown(&description, &References::find(reader, id, &description)?),
                None => Err(RegistryError::ManifestBlobsUnknown { digests: description.needed_digests() }),
            })
            .await
    }
}

/// Who says that a manifest is to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A client of ours: what it refers to must be here, and the account's rules apply.
    Client,
    /// The account's primary, which has seen to all that.
    Elsewhere,
}

/// Records a manifest that another region gave, or took. It was checked there; `digest` has been checked here. Where the
/// account is followed nothing is done: what is told in order must not be mixed with answers that may be older. Without
/// `facts` it was pushed now, and the configuration is looked for here.
pub(super) async fn record_from_elsewhere(
    inner: &Arc<Inner>,
    repository: &RepositoryName,
    digest: &Digest,
    target: ManifestTarget,
    media_type: &str,
    bytes: Bytes,
    facts: Option<ManifestFacts>,
) -> Result<(), RegistryError> {
    let (inner, repository, digest, media_type) = (inner.clone(), repository.clone(), *digest, media_type.to_owned());
    let _permit = match bytes.len() < LARGE_BYTES {
        true => None,
        false => Some(inner.large_manifests.acquire().await.map_err(|_| RegistryError::Interrupted)?),
    };
    let parsing = tokio::task::spawn_blocking(move || {
        let description = ManifestDescription::parse(Some(&*media_type).filter(|text| !text.is_empty()), &bytes)
            .map_err(|error| RegistryError::ManifestInvalid { reason: error.to_string() })?;
        let tags = match target {
            ManifestTarget::Tag(tag) => vec![tag],
            ManifestTarget::Digest { tags, .. } => tags,
        };
        Ok::<_, RegistryError>(Checked { digest, description, bytes, tags, config: ImageConfig::default(), facts })
    });
    let checked = parsing.await.map_err(|_| RegistryError::Interrupted)??;
    let (writer, name) = (inner.clone(), repository.clone());
    let recorded = inner.metadata.write(move |transaction| {
        match is_followed(transaction, name.account_str())? || writer.is_stepping_down(&name.account()) {
            true => Ok(()),
            false => record(&writer, transaction, &name, checked, Origin::Elsewhere),
        }
    });
    recorded.await?;
    inner.learn_about(&repository, &digest).await;
    Ok(())
}

pub(super) fn check(target: ManifestTarget, media_type: Option<&str>, bytes: Bytes) -> Result<Checked, RegistryError> {
    let description = ManifestDescription::parse(media_type, &bytes)
        .map_err(|error| RegistryError::ManifestInvalid { reason: error.to_string() })?;
    let (digest, tags) = match target {
        ManifestTarget::Tag(tag) => (digest_of(Algorithm::Sha256, &bytes), vec![tag]),
        ManifestTarget::Digest { digest: expected, tags } => {
            let actual = digest_of(expected.algorithm(), &bytes);
            if actual != expected {
                return Err(RegistryError::DigestMismatch { expected, actual });
            }
            (actual, tags)
        }
    };
    Ok(Checked { digest, description, bytes, tags, config: ImageConfig::default(), facts: None })
}

pub(super) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let digest = match algorithm {
        Algorithm::Sha256 => Digest::from_hash(algorithm, &sha2::Sha256::digest(bytes)),
        Algorithm::Sha512 => Digest::from_hash(algorithm, &sha2::Sha512::digest(bytes)),
    };
    digest.expect("a hash has its algorithm's length")
}

/// What a manifest refers to, as rows.
#[derive(Default)]
pub(super) struct References {
    pub(super) blobs: Vec<BlobId>,
    size_bytes: u64,
    unknown: Vec<Digest>,
}

fn record(
    inner: &Arc<Inner>,
    transaction: &WriteTransaction<'_>,
    repository: &RepositoryName,
    checked: Checked,
    origin: Origin,
) -> Result<(), RegistryError> {
    let now = inner.clock.now();
    if origin == Origin::Client {
        inner.check_primacy(&repository.account())?;
    }
    let account = inner.account_for_push(transaction, &repository.account())?;
    let id = transaction.ensure_repository(account, repository, now)?;
    let description = checked.description;
    let references = References::find(transaction, id, &description)?;
    if origin == Origin::Client {
        inner.refuse_unknown(&description, &references)?;
        if transaction.get_manifest_id(id, &checked.digest)?.is_none() {
            let more = Usage { manifests: 1, size_bytes: checked.bytes.len() as u64 };
            inner.charge(transaction, &repository.account(), account, more)?;
        }
    }
    let referenced_bytes = match origin {
        Origin::Client => references.size_bytes,
        Origin::Elsewhere => described_bytes(transaction, id, &description)?,
    };
    let told = checked.facts.unwrap_or_else(|| ManifestFacts {
        total_size_bytes: (checked.bytes.len() as u64).saturating_add(referenced_bytes),
        labels: serde_json::to_string(&checked.config.labels).unwrap_or_else(|_| "{}".into()),
        min_layer_created_at: checked.config.min_layer_created_at,
        max_layer_created_at: checked.config.max_layer_created_at,
        pushed_at: now,
        tag_pushed_at: None,
    });
    let more_bytes = told.total_size_bytes.saturating_sub(checked.bytes.len() as u64);
    let is_new_here =
        origin == Origin::Elsewhere && more_bytes > 0 && transaction.get_manifest_id(id, &checked.digest)?.is_none();
    let manifest = NewManifest {
        digest: checked.digest,
        media_type: description.kind.media_type(),
        total_size_bytes: told.total_size_bytes,
        subject: description.subject,
        artifact_type: description.artifact_type,
        annotations: serde_json::to_string(&description.annotations).unwrap_or_else(|_| "{}".into()),
        labels: told.labels,
        min_layer_created_at: told.min_layer_created_at,
        max_layer_created_at: told.max_layer_created_at,
        bytes: checked.bytes,
    };
    let manifest = transaction.put_manifest(id, &manifest, told.pushed_at)?;
    if is_new_here {
        // What listed it before counted its bytes only.
        transaction.grow_parents(id, &checked.digest, more_bytes)?;
    }
    references.blobs.iter().try_for_each(|blob| transaction.ensure_manifest_blob(manifest, *blob))?;
    description.children.iter().try_for_each(|child| transaction.ensure_child(id, manifest, &child.digest))?;
    let mut changed = transaction.list_tags_of(manifest)?;
    for tag in &checked.tags {
        if origin == Origin::Client {
            inner.check_tag_push(transaction, repository, id, tag.as_str(), manifest)?;
        }
        transaction.put_tag(id, tag.as_str(), manifest, told.tag_pushed_at.unwrap_or(told.pushed_at))?;
        changed.push(tag.to_string());
    }
    changed.push(checked.digest.to_string());
    inner.evict_around_commit(transaction, repository, changed);
    Ok(())
}

/// What a copy refers to, in bytes: it may come later, so it is what the copy says, but for manifests that are here.
fn described_bytes(
    reader: &Reader<'_>,
    repository: RepositoryId,
    description: &ManifestDescription,
) -> Result<u64, RegistryError> {
    let mut bytes = description.blobs.iter().map(|blob| blob.size).fold(0, u64::saturating_add);
    for child in &description.children {
        let known = reader.get_manifest_id(repository, &child.digest)?;
        bytes = bytes.saturating_add(known.map_or(child.size, |(_, size_bytes)| size_bytes));
    }
    Ok(bytes)
}

impl References {
    /// What is not here, the digests of manifests among it.
    pub(super) fn unknown(&self) -> &[Digest] {
        &self.unknown
    }

    pub(super) fn find(
        reader: &Reader<'_>,
        repository: RepositoryId,
        description: &ManifestDescription,
    ) -> Result<Self, RegistryError> {
        let mut found = Self::default();
        for blob in &description.blobs {
            if !found.add_blob(reader, repository, blob)? {
                found.unknown.push(blob.digest);
            }
        }
        for blob in &description.foreign_blobs {
            found.add_blob(reader, repository, blob)?;
        }
        for child in &description.children {
            // An index may list things that are no manifests: BuildKit's caches list layers.
            let is_blob = ManifestKind::from_media_type(&child.media_type).is_none();
            let known = found.add_child(reader, repository, child)?
                || (is_blob && found.add_blob(reader, repository, child)?);
            if !known && !child.is_foreign() {
                found.unknown.push(child.digest);
            }
        }
        Ok(found)
    }

    fn add_blob(
        &mut self,
        reader: &Reader<'_>,
        repository: RepositoryId,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        // One whose bytes are known to be bad is asked for again.
        let blob = reader.get_mounted_blob(repository, &descriptor.digest)?.filter(|blob| blob.is_sound);
        if let Some(blob) = &blob {
            self.blobs.push(blob.id);
            self.size_bytes = self.size_bytes.saturating_add(blob.size_bytes);
        }
        Ok(blob.is_some())
    }

    fn add_child(
        &mut self,
        reader: &Reader<'_>,
        repository: RepositoryId,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let child = reader.get_manifest_id(repository, &descriptor.digest)?;
        if let Some((_, size_bytes)) = child {
            self.size_bytes = self.size_bytes.saturating_add(size_bytes);
        }
        Ok(child.is_some())
    }
}

impl Inner {
    fn refuse_unknown(&self, description: &ManifestDescription, references: &References) -> Result<(), RegistryError> {
        let may_come_later = self.options.sparse_indexes && description.kind.is_index();
        match references.unknown.is_empty() || may_come_later {
            true => Ok(()),
            false => Err(RegistryError::ManifestBlobsUnknown { digests: references.unknown.clone() }),
        }
    }

    /// Takes changed references out of the cache before the commit and after it; see [`super::manifest_cache`].
    pub(super) fn evict_around_commit(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        repository: &RepositoryName,
        references: Vec<String>,
    ) {
        let key = |reference: String| CacheKey { repository: repository.as_str().into(), reference: reference.into() };
        let keys: Vec<_> = references.into_iter().map(key).collect();
        self.cache.evict(&keys);
        let inner = self.clone();
        transaction.after_commit(move || inner.cache.evict(&keys));
    }
}
