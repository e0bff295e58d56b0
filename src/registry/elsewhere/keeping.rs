//! Copies of what is pushed, in as many regions as an account asks for before a push is acknowledged.
//!
//! At the primary, before the manifest is recorded, the blobs are spread: other regions fetch them, by the flights that
//! serve pulls as well, and hold them for good. Once the manifest is recorded it reaches them with the account's log, and
//! the push is acknowledged when their questions say that they have it on disk. A push that finds too few regions in the
//! first step has changed nothing; in the second, the manifest is there, is not acknowledged, and the same push sent again
//! completes it.
//!
//! What is held like that is never evicted: it counts as pushed. It goes as it does at the primary, when no manifest needs
//! it any more.

use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use keppel_federation::vocabulary::{AccountName, Digest, NodeId, RepositoryName};
use tokio::time::Instant;

use super::board::FIRST_PART_BYTES;
use super::{FETCHES_PER_PUSH, Primary, Upstream};
use crate::metadata::ManifestId;
use crate::model::{Descriptor, ManifestDescription, ManifestKind};
use crate::registry::{Inner, Priority, Registry, RegistryError};

/// How long a region is asked again that does not answer, before another one is chosen.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Between two questions to a region that does not answer.
const SILENCE_PAUSE: Duration = Duration::from_millis(500);
/// How long a region may take to fetch what is pushed, as long as it answers.
const FETCH_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// How long the regions that hold the blobs may take to apply the manifest.
const APPLY_PATIENCE: Duration = Duration::from_secs(20);

/// For so long a blob that is held for a manifest to come stays, whatever events from before say about it. As long as clocks
/// may differ, and a manifest may take.
const SHIELDED_SECONDS: i64 = 3600;

/// The regions that hold the blobs of a push.
pub(in crate::registry) struct Spread {
    wanted: u8,
    holders: Vec<Primary>,
}

impl Inner {
    /// How many regions, this one included, are to hold what is pushed to an account.
    pub(in crate::registry) fn copies_wanted(&self, account: &AccountName) -> u8 {
        let policies = self.claims.rules(account).and_then(|rules| rules.policies);
        policies.map_or(1, |policies| policies.copies())
    }

    /// Has as many other regions hold the blobs of a manifest that is about to be recorded as its account asks for.
    pub(in crate::registry) async fn spread(
        &self,
        repository: &RepositoryName,
        description: &ManifestDescription,
    ) -> Result<Spread, RegistryError> {
        let blobs: Vec<Digest> = needed_by(description).map(|blob| blob.digest).collect();
        self.spread_blobs(repository, blobs).await
    }

    /// Finds as many other regions for a deletion that is about to be recorded as its account asks for.
    pub(in crate::registry) async fn spread_deletion(
        &self,
        repository: &RepositoryName,
    ) -> Result<Spread, RegistryError> {
        self.spread_blobs(repository, Vec::new()).await
    }

    async fn spread_blobs(&self, repository: &RepositoryName, blobs: Vec<Digest>) -> Result<Spread, RegistryError> {
        let account = repository.account();
        let wanted = self.copies_wanted(&account);
        let mut spread = Spread { wanted, holders: Vec::new() };
        if wanted < 2 {
            return Ok(spread);
        }
        let began = Instant::now();
        let mut reason = "no other region can be reached".to_owned();
        if let Some(upstream) = self.upstream.get() {
            let mut others = upstream.keepers(&account).into_iter();
            let ask = |whom: Primary| ask(&**upstream, whom, repository, &blobs);
            let mut asked: FuturesUnordered<_> = others.by_ref().take(usize::from(wanted) - 1).map(ask).collect();
            while let Some((whom, kept)) = asked.next().await {
                match kept {
                    Ok(()) => spread.holders.push(whom),
                    Err(error) => {
                        tracing::warn!(%repository, region = whom.region, %error, "a region does not take a copy of a push");
                        reason = error.to_string();
                        asked.extend(others.next().map(ask));
                    }
                }
            }
        }
        match spread.holders.len() + 1 < usize::from(wanted) {
            true => Err(missing(&account, wanted, spread.holders.len(), reason)),
            false => {
                metrics::histogram!("keppel_copies_spread_seconds").record(began.elapsed().as_secs_f64());
                Ok(spread)
            }
        }
    }

    /// Waits until the regions that hold the blobs have everything of the account up to an event as well.
    pub(in crate::registry) async fn ensure_spread(
        &self,
        account: &AccountName,
        spread: Spread,
        sequence: u64,
    ) -> Result<(), RegistryError> {
        let nodes: Vec<NodeId> = spread.holders.iter().map(|holder| holder.node).collect();
        let lacking = self.applied_by(account, sequence, &nodes, APPLY_PATIENCE).await;
        if lacking.is_empty() {
            self.feed.has_spread(account, sequence);
            return Ok(());
        }
        let regions = spread.holders.iter().filter(|holder| lacking.contains(&holder.node));
        let regions: Vec<&str> = regions.map(|holder| &*holder.region).collect();
        let reason = format!("{} has not confirmed the manifest", regions.join(", "));
        Err(missing(account, spread.wanted, nodes.len() - lacking.len(), reason))
    }
}

fn missing(account: &AccountName, wanted: u8, others: usize, reason: String) -> RegistryError {
    metrics::counter!("keppel_copies_missing_total").increment(1);
    let held = u8::try_from(others).unwrap_or(u8::MAX).saturating_add(1);
    RegistryError::CopiesMissing { account: account.clone(), wanted, held, reason }
}

/// The blobs that a manifest needs. Manifests that it lists come by themselves.
pub(super) fn needed_by(description: &ManifestDescription) -> impl Iterator<Item = &Descriptor> {
    // An index may list things that are no manifests.
    let listed = description
        .children
        .iter()
        .filter(|child| ManifestKind::from_media_type(&child.media_type).is_none() && !child.is_foreign());
    description.blobs.iter().chain(listed)
}

/// Asks a node until it holds the blobs, for as long as it answers.
async fn ask(
    upstream: &dyn Upstream,
    whom: Primary,
    repository: &RepositoryName,
    blobs: &[Digest],
) -> (Primary, Result<(), RegistryError>) {
    let (start, mut heard) = (Instant::now(), Instant::now());
    loop {
        let error = match upstream.keep(&whom, repository, blobs).await {
            Ok(true) => return (whom, Ok(())),
            Ok(false) => {
                heard = Instant::now();
                let (account, region) = (repository.account(), whom.region.clone());
                let reason = format!("it has not fetched everything within {FETCH_PATIENCE:?}");
                RegistryError::PrimaryUnreachable { account, region, reason }
            }
            Err(error @ RegistryError::PrimaryUnreachable { .. }) => error,
            Err(error) => return (whom, Err(error)),
        };
        if start.elapsed() > FETCH_PATIENCE || heard.elapsed() > SILENCE_MAX {
            return (whom, Err(error));
        }
        if heard.elapsed() > Duration::ZERO {
            tokio::time::sleep(SILENCE_PAUSE).await;
        }
    }
}

impl Registry {
    /// In how many regions a push to an account has to be on disk before it is acknowledged.
    pub fn copies_of(&self, account: &AccountName) -> u8 {
        self.inner.copies_wanted(account)
    }

    /// Fetches blobs from the primary of their account, which asks for it, and holds them for good: they belong to a
    /// manifest that is to come. When it answers, all are on disk, and the account is followed.
    ///
    /// Cancel safety: transfers that have begun go on; asking again joins them.
    ///
    /// # Errors
    /// [`RegistryError::PrimaryUnreachable`] for who is not the primary, what the primary says, or our own trouble.
    pub async fn keep_blobs(
        &self,
        from: NodeId,
        repository: &RepositoryName,
        blobs: &[Digest],
    ) -> Result<(), RegistryError> {
        let account = repository.account();
        let primary = self.inner.elsewhere(&account).map(|elsewhere| elsewhere.primary);
        if primary.as_ref().is_none_or(|primary| primary.node != from) {
            let region = primary.map_or_else(String::new, |primary| primary.region);
            let reason = "whoever asks is not known to be the primary here".to_owned();
            return Err(RegistryError::PrimaryUnreachable { account, region, reason });
        }
        self.inner.want_copy(&account);
        let keep = |digest: &Digest| {
            let digest = *digest;
            async move { self.keep_blob(repository, &digest, Vec::new(), Priority::Push).await }
        };
        stream::iter(blobs).map(keep).buffer_unordered(FETCHES_PER_PUSH).try_collect().await
    }

    /// Holds a blob of an account of another region for good, fetched if it is not here, and notes that these manifests
    /// need it.
    pub(super) async fn keep_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        manifests: Vec<ManifestId>,
        priority: Priority,
    ) -> Result<(), RegistryError> {
        if self.keep_stored(repository, digest, manifests.clone()).await? {
            return Ok(());
        }
        let elsewhere = self.inner.elsewhere(&repository.account());
        let elsewhere = elsewhere.ok_or(RegistryError::BlobUnknown { digest: *digest })?;
        let (links, primary) = (self.inner.flights.links(), elsewhere.primary.node);
        links.await_budget(primary, priority).await;
        let flight = self.inner.join_flight(elsewhere, repository, digest).await?;
        // The first part is on its way with the answer what the blob is.
        links.charge(primary, priority, flight.head().map_or(0, |_| flight.size_bytes().min(FIRST_PART_BYTES)));
        flight.start(&self.inner, priority);
        flight.stored().await?;
        match self.keep_stored(repository, digest, manifests).await? {
            true => Ok(()),
            false => Err(RegistryError::Interrupted),
        }
    }

    /// Mounts a blob that the account has here, and holds it for good. Gives whether all its bytes are here.
    async fn keep_stored(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        manifests: Vec<ManifestId>,
    ) -> Result<bool, RegistryError> {
        let (account, digest) = (repository.account(), *digest);
        let name = account.clone();
        let known = self.inner.metadata.read(move |reader| match reader.get_account(&name)? {
            Some(account) => reader.get_account_blob(account, &digest),
            None => Ok(None),
        });
        let Some(row) = known.await?.filter(|row| row.is_sound) else { return Ok(false) };
        let stored_bytes = self.inner.storage.blob_size_bytes(&account, &row.storage_key).await?;
        if stored_bytes != Some(row.size_bytes) {
            self.mark_broken(&row).await?;
            return Ok(false);
        }
        let (clock, name) = (self.inner.clock.clone(), repository.clone());
        let kept = self.inner.metadata.write(move |transaction| {
            let Some(account) = transaction.get_account(&name.account())? else { return Ok(false) };
            let blob = transaction.get_account_blob(account, &digest)?;
            let Some(blob) = blob.filter(|blob| blob.is_sound && blob.storage_key == row.storage_key) else {
                return Ok::<_, RegistryError>(false);
            };
            let now = clock.now();
            let id = transaction.ensure_repository(account, &name, now)?;
            // It may have gone at the primary and come back, and only the former be still to come here.
            transaction.ensure_mount_until(id, blob.id, now.saturating_add(SHIELDED_SECONDS))?;
            transaction.keep_pulled(blob.id)?;
            manifests.iter().try_for_each(|manifest| transaction.link_blob(*manifest, blob.id))?;
            Ok(true)
        });
        kept.await
    }
}
