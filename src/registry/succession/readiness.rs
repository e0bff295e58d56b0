//! What a replica lacks before it can be the primary, and fetching it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};
use serde::{Deserialize, Serialize};

use crate::metadata::{AccountId, FollowState, MetadataError, Reader, RepositoryId};
use crate::model::{ManifestDescription, ManifestKind};
use crate::registry::{Inner, Registry, RegistryError};

/// Manifests that are read together.
const PAGE: usize = 200;
const PAGE_BYTES: usize = 8 << 20;
/// Blobs that are fetched at a time.
const FETCHES: usize = 4;

/// How much of an account this node has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether all manifests and tags were here at some time.
    pub is_complete: bool,
    /// Events that are known to have happened and are not here; `None`: not known.
    pub behind_events: Option<u64>,
    /// How long ago, in milliseconds, all there was is known to have been here; `None`: not since this node started.
    pub behind_ms: Option<u64>,
    /// Manifests that are here.
    pub manifests: u64,
    /// Blobs that they need.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Those that are not here.
    pub missing_blobs: u64,
    /// Their bytes.
    pub missing_bytes: u64,
}

/// A manifest with the blobs that it needs, as it was found.
pub(super) struct Found {
    pub(super) repository: RepositoryId,
    pub(super) name: RepositoryName,
    pub(super) digest: Digest,
    /// Each with its size, as the manifest says.
    pub(super) blobs: Vec<(Digest, u64)>,
}

/// A place among the manifests of an account.
#[derive(Debug, Clone, Default)]
pub(super) struct ManifestPlace {
    /// The repository that is being read, and the one before.
    repository: Option<(RepositoryId, String)>,
    after: Option<Digest>,
    before: String,
}

/// The manifests that follow, some of them, and moves the place on; `None` at the end.
pub(super) fn next_manifests(
    reader: &Reader<'_>,
    account: AccountId,
    place: &mut ManifestPlace,
) -> Result<Option<Vec<Found>>, MetadataError> {
    let (repository, full_name) = match place.repository.take() {
        Some(repository) => repository,
        None => match reader.get_next_repository(account, &place.before)? {
            Some(next) => next,
            None => return Ok(None),
        },
    };
    let corrupt = || MetadataError::Corrupt { what: "repository name" };
    let name = RepositoryName::parse(&full_name).map_err(|_| corrupt())?;
    let (copies, is_end) = reader.list_manifest_copies(repository, place.after.as_ref(), PAGE, PAGE_BYTES)?;
    place.after = copies.last().map(|copy| copy.digest).filter(|_| !is_end);
    match is_end {
        true => place.before = full_name,
        false => place.repository = Some((repository, full_name)),
    }
    let found = copies.into_iter().map(|copy| {
        let blobs = needed_blobs(&copy.media_type, &copy.bytes);
        Found { repository, name: name.clone(), digest: copy.digest, blobs }
    });
    Ok(Some(found.collect()))
}

/// The blobs that must be where the manifest is; none where it cannot be read.
pub(super) fn needed_blobs(media_type: &str, bytes: &[u8]) -> Vec<(Digest, u64)> {
    let Ok(description) = ManifestDescription::parse(Some(media_type), bytes) else { return Vec::new() };
    let listed = description.children.iter();
    // An index may list things that are no manifests.
    let listed =
        listed.filter(|child| ManifestKind::from_media_type(&child.media_type).is_none() && !child.is_foreign());
    description.blobs.iter().chain(listed).map(|blob| (blob.digest, blob.size)).collect()
}

/// The blobs of an account that are not here, each with a repository that needs it.
type Missing = BTreeMap<Digest, (RepositoryName, u64)>;

impl Registry {
    /// How much of an account is here.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn readiness(&self, account: &AccountName) -> Result<Readiness, RegistryError> {
        self.inner.look_through(account).await.map(|(readiness, _)| readiness)
    }

    /// Fetches what is not here of an account's blobs, for `patience` at most, and gives how much is here then. What became
    /// known in the meantime does not count as missing: under constant pushes there is always something. Transfers that have
    /// begun go on; asking again joins them.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn fetch_missing_of(
        &self,
        account: &AccountName,
        patience: Duration,
    ) -> Result<Readiness, RegistryError> {
        let (readiness, missing) = self.inner.look_through(account).await?;
        if missing.is_empty() {
            return Ok(readiness);
        }
        let wanted: Vec<Digest> = missing.keys().copied().collect();
        let fetching = stream::iter(missing).for_each_concurrent(FETCHES, |(digest, (repository, _))| async move {
            if let Err(error) = self.inner.fetch_from_others(&repository, &digest).await {
                tracing::debug!(%repository, %digest, %error, "a blob cannot be fetched now");
            }
        });
        let _ = tokio::time::timeout(patience, fetching).await;
        let (mut readiness, missing) = self.inner.look_through(account).await?;
        let still = wanted.iter().filter_map(|digest| missing.get(digest));
        (readiness.missing_blobs, readiness.missing_bytes) = (0, 0);
        for (_, size_bytes) in still {
            readiness.missing_blobs += 1;
            readiness.missing_bytes = readiness.missing_bytes.saturating_add(*size_bytes);
        }
        Ok(readiness)
    }
}

impl Inner {
    async fn look_through(&self, account: &AccountName) -> Result<(Readiness, Missing), RegistryError> {
        let status = self.copies.status_of(account);
        let mut readiness = Readiness::default();
        if let Some(status) = status {
            readiness.is_complete = status.state == FollowState::Following;
            readiness.behind_events = status.behind_events;
            let ms = |behind: Duration| u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
            readiness.behind_ms = status.behind.map(ms);
        }
        let (mut seen, mut missing, mut place) =
            (BTreeMap::<Digest, bool>::new(), Missing::new(), ManifestPlace::default());
        loop {
            let (name, mut at) = (account.clone(), place);
            let page = self.metadata.read(move |reader| {
                let Some(account) = reader.get_account(&name)? else { return Ok::<_, MetadataError>(None) };
                let Some(found) = next_manifests(reader, account, &mut at)? else { return Ok(None) };
                let mut here = Vec::with_capacity(found.len());
                for manifest in found {
                    for (digest, size_bytes) in manifest.blobs {
                        let blob = reader.get_account_blob(account, &digest)?;
                        here.push((manifest.name.clone(), digest, size_bytes, blob.is_some_and(|blob| blob.is_sound)));
                    }
                }
                Ok(Some((here, at)))
            });
            let Some((page, next)) = page.await.map_err(RegistryError::Metadata)? else { break };
            place = next;
            for (repository, digest, size_bytes, is_here) in page {
                if seen.insert(digest, is_here).is_some() {
                    continue;
                }
                readiness.blobs += 1;
                readiness.blob_bytes = readiness.blob_bytes.saturating_add(size_bytes);
                if !is_here {
                    readiness.missing_blobs += 1;
                    readiness.missing_bytes = readiness.missing_bytes.saturating_add(size_bytes);
                    missing.insert(digest, (repository, size_bytes));
                }
            }
        }
        let name = account.clone();
        let usage = self.metadata.read(move |reader| match reader.get_account(&name)? {
            Some(account) => reader.account_usage(account),
            None => Ok(None),
        });
        readiness.manifests = usage.await.map_err(RegistryError::Metadata)?.unwrap_or_default().manifests;
        Ok((readiness, missing))
    }
}
