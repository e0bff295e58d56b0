//! Manifests by way of another region, when a registry outside has been asked by this one as often as it may.
//!
//! Registries count what comes from one address or one customer, and mostly manifests only. So another region is asked for
//! the manifest, which is checked and kept here like any; blobs are then asked for from here again, and whether they count
//! as well is seen. The other region asks on behalf of the account's primary only, keeps nothing, and passes nothing on.

use keppel_federation::vocabulary::{Digest, NodeId, Reference, RepositoryName};

use super::Mirror;
use crate::external::{ExternalError, ManifestAnswer, Origin};
use crate::registry::{Inner, Registry, RegistryError};

/// Regions that are asked for one manifest.
const REGIONS_MAX: usize = 3;

impl Inner {
    /// A manifest from the registry outside; by way of another region where this one may not ask any more.
    pub(super) async fn external_manifest(
        &self,
        mirror: &Mirror,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<ManifestAnswer, ExternalError> {
        let limited = match mirror.client.manifest(&mirror.origin, repository.path(), reference, known).await {
            Err(limited @ ExternalError::Limited { .. }) => limited,
            answer => return answer,
        };
        let Some(upstream) = self.upstream.get() else { return Err(limited) };
        for whom in upstream.keepers(&mirror.account).into_iter().take(REGIONS_MAX) {
            match upstream.external_manifest(&whom, repository, reference, known).await {
                Ok(answer) => {
                    metrics::counter!("keppel_external_delegated_total").increment(1);
                    mirror.client.spare_blobs(&mirror.origin);
                    return Ok(answer);
                }
                Err(error) => {
                    tracing::debug!(%repository, region = whom.region, %error, "a region does not ask on our behalf");
                }
            }
        }
        Err(limited)
    }
}

impl Registry {
    /// Asks a registry outside on behalf of an account's primary. Nothing is kept.
    ///
    /// # Errors
    /// [`RegistryError::PrimaryUnreachable`] for who is not the primary, [`RegistryError::AccountUnknown`] for an account
    /// that mirrors nothing, [`RegistryError::External`].
    pub async fn external_manifest_for(
        &self,
        from: NodeId,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<Digest>,
    ) -> Result<ManifestAnswer, RegistryError> {
        let account = repository.account();
        let primary = self.inner.elsewhere(&account).map(|elsewhere| elsewhere.primary);
        if primary.as_ref().is_none_or(|primary| primary.node != from) {
            let region = primary.map_or_else(String::new, |primary| primary.region);
            let reason = "whoever asks is not known to be the primary here".to_owned();
            return Err(RegistryError::PrimaryUnreachable { account, region, reason });
        }
        let source = self.inner.external_source(&account);
        let (Some(source), Some(client)) = (source, self.inner.external.client.get()) else {
            return Err(RegistryError::AccountUnknown { account });
        };
        let origin = Origin::new(account.clone(), source);
        let failed = |error| RegistryError::External { account, upstream: origin.url().to_owned(), error };
        if let (Some(known), Reference::Tag(tag)) = (known, reference)
            && client.tag_digest(&origin, repository.path(), tag.as_str()).await == Ok(Some(known))
        {
            // Which costs nothing where pulls are counted.
            return Ok(ManifestAnswer::Same);
        }
        let answer = client.manifest(&origin, repository.path(), reference, known.as_ref()).await;
        answer.map_err(failed)
    }
}
