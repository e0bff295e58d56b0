//! Pushes that come in parts from several regions: a manifest from the one that a client was led to last, its blobs from
//! wherever they were pushed.
//!
//! The node that hands a manifest over is asked for the blobs that are not here. A client may be led to another region with
//! each of its requests (by an anycast address, or since one went down), so what that node does not have either is looked
//! for in all regions, with one question to each.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use keppel_federation::vocabulary::{Digest, NodeId, RepositoryName};
use tokio::time::timeout;

use super::{Elsewhere, FETCHES_PER_PUSH, Primary, Priority};
use crate::model::ManifestDescription;
use crate::registry::{ManifestTarget, PutManifest, Registry, RegistryError, WriteWindow};

/// Blobs of one manifest that are looked for in other regions; a push that lacks more is refused.
pub const GATHERED_MAX: usize = 1000;
/// Nodes that are asked, and how long each may take.
const SEARCHED_MAX: usize = 16;
const SEARCH_PATIENCE: Duration = Duration::from_secs(5);

impl Registry {
    /// Stores a manifest that was pushed to another region, for an account of which this node is primary. Blobs that
    /// are not here yet are fetched from there first.
    ///
    /// Cancel safety: fetches go on; asking again joins them.
    ///
    /// # Errors
    /// Those of [`Registry::put_manifest`], and [`RegistryError::Overdue`].
    pub async fn accept_manifest(
        &self,
        window: &WriteWindow,
        from: NodeId,
        repository: &RepositoryName,
        target: ManifestTarget,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        let missing = match self.check_references(repository, media_type, bytes.clone()).await {
            Err(RegistryError::ManifestBlobsUnknown { digests }) => digests,
            checked => checked.map(|()| Vec::new())?,
        };
        if !missing.is_empty() {
            let source = Primary { node: from, region: from.short().to_string() };
            self.fetch_pushed(source, repository, missing).await?;
        }
        // What is still missing, or was swept here meanwhile, is looked for everywhere.
        self.put_manifest_within(window, repository, target, media_type, bytes).await
    }

    /// Fetches blobs that a client pushed to other regions than the one that has its manifest; gives whether all of them
    /// are here now. Where one of them is nowhere nothing is fetched, since the push is refused anyway.
    ///
    /// Cancel safety: fetches go on; asking again joins them.
    ///
    /// # Errors
    /// [`RegistryError::PrimaryUnreachable`] when a region cannot be asked that may have what is missing; our own trouble.
    pub(in crate::registry) async fn gather_blobs(
        &self,
        repository: &RepositoryName,
        missing: &[Digest],
    ) -> Result<bool, RegistryError> {
        let Some(upstream) = self.inner.upstream.get() else { return Ok(false) };
        if missing.len() > GATHERED_MAX {
            return Ok(false);
        }
        let ask = |node: Primary| async move {
            let asked = timeout(SEARCH_PATIENCE, upstream.has_blobs(&node, repository, missing)).await;
            (node, asked)
        };
        let others = upstream.others(&repository.account()).into_iter().take(SEARCHED_MAX);
        let mut asked: FuturesUnordered<_> = others.map(ask).collect();
        let (mut left, mut found): (BTreeSet<Digest>, _) = (missing.iter().copied().collect(), Vec::new());
        let mut silent = upstream.silent_regions();
        while !left.is_empty()
            && let Some((node, has)) = asked.next().await
        {
            let has = has.ok().and_then(Result::ok);
            silent.extend(has.is_none().then(|| node.region.clone()));
            let has = has.unwrap_or_default();
            let new: Vec<Digest> = has.into_iter().filter(|digest| left.remove(digest)).collect();
            if !new.is_empty() {
                found.push((node, new));
            }
        }
        if let (Some(digest), Some(region)) = (left.first(), silent.pop()) {
            let reason = format!("blob {digest} may have been pushed there: try again, or push it again");
            return Err(RegistryError::PrimaryUnreachable { account: repository.account(), region, reason });
        }
        if !left.is_empty() {
            return Ok(false);
        }
        for (node, blobs) in found {
            tracing::debug!(%repository, region = node.region, blobs = blobs.len(), "fetching what was pushed there");
            self.fetch_pushed(node, repository, blobs).await?;
        }
        Ok(true)
    }

    /// Fetches blobs from the node that a client pushed them to. What is not there either stays missing.
    async fn fetch_pushed(
        &self,
        at: Primary,
        repository: &RepositoryName,
        blobs: Vec<Digest>,
    ) -> Result<(), RegistryError> {
        let Some(upstream) = self.inner.upstream.get() else { return Ok(()) };
        blobs.iter().for_each(|digest| self.inner.holders.note(digest, at.node));
        // The node is asked like a primary: it is the one that has what was pushed there.
        let source = Elsewhere { primary: at, upstream: upstream.clone() };
        stream::iter(blobs)
            .map(|digest| self.ensure_blob_from(source.clone(), repository, digest))
            .buffer_unordered(FETCHES_PER_PUSH)
            .try_collect::<()>()
            .await
    }

    /// Whether all that a manifest refers to is here.
    async fn check_references(
        &self,
        repository: &RepositoryName,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let media_type = media_type.map(str::to_owned);
        let parsing = tokio::task::spawn_blocking(move || ManifestDescription::parse(media_type.as_deref(), &bytes));
        let description = parsing
            .await
            .map_err(|_| RegistryError::Interrupted)?
            .map_err(|error| RegistryError::ManifestInvalid { reason: error.to_string() })?;
        self.refuse_unknown_references(repository, &description).await
    }

    async fn ensure_blob_from(
        &self,
        source: Elsewhere,
        repository: &RepositoryName,
        digest: Digest,
    ) -> Result<(), RegistryError> {
        let fetched = async {
            let flight = self.inner.join_flight(source, repository, &digest).await?;
            // It was pushed to this repository there. Only then may its bytes be those that another repository of the account
            // has here: else whoever may push to one would get, for a digest, what is in all others.
            if self.mount_blob(repository, &digest, None).await? {
                return Ok(());
            }
            flight.start(&self.inner, Priority::Push);
            flight.stored().await
        };
        match fetched.await {
            // Then the manifest is refused, with all that is missing named.
            Err(RegistryError::BlobUnknown { .. } | RegistryError::RepositoryUnknown { .. }) => Ok(()),
            other => other,
        }
    }
}
