//! Has everything of an image here: the manifest, what it lists, their blobs, and what refers to any of them. Of an index, what
//! the replica's platform filter lets through.

use std::collections::BTreeSet;

use keppel_federation::vocabulary::{Digest, Reference, RepositoryName};

use crate::model::{ManifestDescription, ManifestKind};
use crate::registry::platforms::is_wanted;
use crate::registry::{Priority, Registry, RegistryError};

/// Manifests of one image that are looked at; an image has fewer.
const MANIFESTS_MAX: usize = 20_000;
/// Referrers that are listed at a time.
const REFERRERS_PAGE: usize = 1000;

/// How much of an image is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageHolding {
    /// Manifests that are here, those of referrers included.
    pub manifests: u64,
    /// Blobs that are here.
    pub blobs: u64,
    /// Manifests and blobs that are not here yet, as far as they are known.
    pub missing: u64,
}

impl Registry {
    /// Fetches, of an image, what is not here, and gives how much is here in the end. What cannot be had now is counted
    /// as missing.
    ///
    /// Cancel safety: transfers that have begun go on; asking again joins them.
    ///
    /// # Errors
    /// [`RegistryError::ManifestUnknown`] and [`RegistryError::RepositoryUnknown`] for the image itself, or our own
    /// trouble.
    pub async fn hold_image(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<ImageHolding, RegistryError> {
        use RegistryError as E;
        let (mut holding, mut left, mut seen) = (ImageHolding::default(), vec![*digest], BTreeSet::from([*digest]));
        let mut blobs = BTreeSet::new();
        let filter = self.inner.platform_filter(&repository.account());
        while let Some(next) = left.pop() {
            let loaded = self.load_manifest(repository, &Reference::Digest(next)).await;
            let manifest = match loaded {
                Ok(manifest) => manifest,
                Err(error @ (E::ManifestUnknown { .. } | E::RepositoryUnknown { .. })) if next == *digest => {
                    return Err(error);
                }
                // An index may list what the repository does not have: there is nothing to be held then.
                Err(E::ManifestUnknown { .. } | E::RepositoryUnknown { .. }) => continue,
                Err(E::PrimaryUnreachable { .. }) => {
                    holding.missing += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            match manifest.row {
                Some(_) => holding.manifests += 1,
                // It only passed through: it is here once the events have come so far.
                None => holding.missing += 1,
            }
            let media_type = String::from_utf8_lossy(&manifest.media_type).into_owned();
            let description = ManifestDescription::parse(Some(&media_type), &manifest.bytes)
                .map_err(|error| RegistryError::ManifestInvalid { reason: error.to_string() })?;
            let wanted = |child: &Digest| filter.is_empty() || is_wanted(&manifest.bytes, child, &filter);
            for child in description.children.iter().filter(|child| wanted(&child.digest)) {
                match ManifestKind::from_media_type(&child.media_type) {
                    Some(_) if seen.insert(child.digest) => left.push(child.digest),
                    Some(_) => {}
                    None => drop(blobs.insert(child.digest)),
                }
            }
            blobs.extend(description.blobs.iter().map(|blob| blob.digest));
            let (mut after, mut more) = (None, true);
            while more {
                let page = self.list_referrers(repository, &next, None, after.as_ref(), REFERRERS_PAGE).await?;
                after = page.items.last().map(|referrer| referrer.digest);
                more = page.more && after.is_some();
                left.extend(page.items.iter().map(|referrer| referrer.digest).filter(|found| seen.insert(*found)));
            }
            if seen.len() > MANIFESTS_MAX {
                let reason = format!("the image has more than {MANIFESTS_MAX} manifests");
                return Err(RegistryError::ManifestInvalid { reason });
            }
        }
        for blob in blobs {
            match self.hold_blob(repository, &blob).await {
                Ok(()) => holding.blobs += 1,
                Err(error) => {
                    tracing::debug!(%repository, digest = %blob, %error, "a blob of an image is not here yet");
                    holding.missing += 1;
                }
            }
        }
        Ok(holding)
    }

    async fn hold_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), RegistryError> {
        let unknown = match self.load_local_blob(repository, digest).await {
            Err(unknown @ RegistryError::BlobUnknown { .. }) => unknown,
            known => return known.map(|_| ()),
        };
        let elsewhere = self.inner.elsewhere(&repository.account()).ok_or(unknown)?;
        let flight = self.inner.join_flight(elsewhere, repository, digest).await?;
        flight.start(&self.inner, Priority::Background);
        flight.stored().await
    }
}
