//! Fetches everything for replicas that are to hold everything, and proves that nothing is missing.
//!
//! What events bring is noted as they are applied (`following`); what was there before, and after a restart, is found by
//! walking through the manifests that are here. When nothing is missing any more, digests of sets are compared with the
//! primary (`comparing`): what differs is named in the log, and repaired.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};
use tokio::time::Instant;

use super::backfills::{BackfillStatus, Found, Wanted};
use super::keeping::needed_by;
use crate::metadata::{ManifestId, MetadataError, Reader, RepositoryId};
use crate::model::ManifestDescription;
use crate::registry::{Inner, Priority, Registry, RegistryError};

/// Blobs of one account that are fetched before it is another one's turn.
const BLOBS_PER_TURN: usize = 64;
/// Blobs that are fetched at a time.
const BLOBS_AT_ONCE: usize = 4;
/// Manifests that are walked through at a time, and their bytes.
const MANIFESTS_STEP: usize = 100;
const MANIFESTS_STEP_BYTES: usize = 4 << 20;
/// Between two proofs of an account in which something happens all the time: this long, and so many times what one takes.
const PROOF_PAUSE_MIN: Duration = Duration::from_secs(10);
const PROOF_PAUSE_FACTOR: u32 = 20;
/// When it is tried again that came to nothing, or found something.
const PROOF_AGAIN: Duration = Duration::from_secs(3);
/// How old a proof becomes of an account in which nothing happens.
const PROOF_INTERVAL: Duration = Duration::from_secs(3600);
/// Digests that the log names of what differs.
const NAMED_MAX: usize = 20;

impl Inner {
    /// Of what a manifest needs, notes what is not here, where everything is to be.
    pub(in crate::registry) fn note_missing(
        &self,
        repository: &RepositoryName,
        manifest: ManifestId,
        description: &ManifestDescription,
        is_unknown: impl Fn(&Digest) -> bool,
    ) {
        if !self.backfills.has(&repository.account()) {
            return;
        }
        let unknown = needed_by(description).filter(|blob| is_unknown(&blob.digest));
        let found = unknown.map(|blob| Found { digest: blob.digest, size_bytes: blob.size, manifest: Some(manifest) });
        self.backfills.note(repository, found);
    }
}

impl Registry {
    /// These accounts of other regions, and no others, are to be here with everything.
    pub fn set_backfilled(&self, accounts: &[AccountName]) {
        self.inner.backfills.set(accounts);
        accounts.iter().for_each(|account| self.inner.want_copy(account));
    }

    /// Waits until something is missing that was not before. Cancel-safe.
    pub async fn backfill_wanted(&self) {
        self.inner.backfills.wanted().await;
    }

    /// How far an account is that is to be here with everything; `None` for others.
    pub fn backfill_status(&self, account: &AccountName) -> Option<BackfillStatus> {
        self.inner.backfills.status(account)
    }

    /// Some of the work for an account that is to be here with everything. Gives whether there may be more at once.
    ///
    /// Cancel safety: transfers that have begun go on, and are noted when they are asked for again.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn backfill(&self, account: &AccountName) -> Result<bool, RegistryError> {
        let backfills = &self.inner.backfills;
        // While it is being listed, what is missing is noted as it comes.
        if backfills.needs_walk(account) && self.inner.copies.is_complete(account) {
            self.walk(account).await?;
        }
        let some = backfills.some(account, BLOBS_PER_TURN);
        let is_full_turn = some.len() == BLOBS_PER_TURN;
        let fetched = stream::iter(some).map(|wanted| self.fetch_missing_blob(wanted)).buffer_unordered(BLOBS_AT_ONCE);
        fetched.collect::<Vec<()>>().await;
        if is_full_turn {
            return Ok(true);
        }
        self.prove(account).await
    }

    async fn fetch_missing_blob(&self, wanted: Wanted) {
        let Wanted { repository, digest, manifests } = &wanted;
        let kept = self.keep_blob(repository, digest, manifests.clone(), Priority::Background).await;
        let backfills = &self.inner.backfills;
        match kept {
            Ok(()) => {
                if let Some(size_bytes) = backfills.done(&wanted) {
                    metrics::counter!("keppel_backfilled_blobs_total").increment(1);
                    metrics::counter!("keppel_backfilled_bytes_total").increment(size_bytes);
                }
            }
            Err(RegistryError::BlobUnknown { .. } | RegistryError::RepositoryUnknown { .. })
                if !self.is_still_needed(&wanted).await =>
            {
                backfills.drop_one(&wanted);
            }
            Err(error) => {
                tracing::debug!(%repository, %digest, %error, "a blob cannot be fetched ahead now");
                metrics::counter!("keppel_backfill_failures_total").increment(1);
                backfills.failed(&wanted);
            }
        }
    }

    /// Whether one of the manifests is still there for which a blob is wanted.
    async fn is_still_needed(&self, wanted: &Wanted) -> bool {
        let (name, digest) = (wanted.repository.clone(), wanted.digest);
        let naming = self.inner.metadata.read(move |reader| match reader.get_repository(&name)? {
            Some(id) => Ok(!reader.list_manifests_naming(id, &digest)?.is_empty()),
            None => Ok::<_, MetadataError>(false),
        });
        naming.await.unwrap_or(true)
    }

    /// Walks through all manifests of an account and notes what they need and is not here.
    async fn walk(&self, account: &AccountName) -> Result<(), RegistryError> {
        let backfills = &self.inner.backfills;
        backfills.begin_walk(account);
        let mut after = String::new();
        loop {
            let (name, last) = (account.clone(), after.clone());
            let next = self.inner.metadata.read(move |reader| match reader.get_account(&name)? {
                Some(id) => reader.get_next_repository(id, &last),
                None => Ok(None),
            });
            let Some((id, name)) = next.await.map_err(RegistryError::Metadata)? else { break };
            let unreadable = |_| RegistryError::ManifestInvalid { reason: format!("{name:?} is no repository") };
            let repository = RepositoryName::parse(&name).map_err(unreadable)?;
            let mut from = None;
            loop {
                let step = self.inner.metadata.read(move |reader| walk_some(reader, id, from)).await?;
                backfills.note(&repository, step.found);
                match step.last {
                    Some(last) => from = Some(last),
                    None => break,
                }
            }
            after = name;
        }
        backfills.end_walk(account);
        if let Some(status) = backfills.status(account) {
            let BackfillStatus { missing_blobs, missing_bytes, .. } = status;
            tracing::info!(%account, missing_blobs, missing_bytes, "what a replica lacks that holds everything is known");
        }
        Ok(())
    }

    /// Compares with the primary, when it is time to, that nothing is missing. Gives whether there is work.
    async fn prove(&self, account: &AccountName) -> Result<bool, RegistryError> {
        let backfills = &self.inner.backfills;
        let name = account.clone();
        let cursor = self.inner.metadata.read(move |reader| reader.get_follow_cursor(&name));
        let Some(cursor) = cursor.await.map_err(RegistryError::Metadata)? else { return Ok(false) };
        if !self.inner.copies.is_complete(account) || !backfills.may_prove(account, cursor, PROOF_INTERVAL) {
            return Ok(false);
        }
        let start = Instant::now();
        let count = |outcome: &'static str| {
            metrics::counter!("keppel_backfill_proofs_total", "outcome" => outcome).increment(1);
        };
        let comparison = match self.compare_copy(account).await {
            Ok(Some(comparison)) => comparison,
            Ok(None) => {
                count("unknown");
                backfills.looked(account, None, start.elapsed().max(PROOF_AGAIN));
                return Ok(false);
            }
            // Perhaps it is too much for the primary to answer in time: that is not asked for again and again.
            Err(RegistryError::PrimaryUnreachable { .. }) => {
                count("unknown");
                backfills.looked(account, None, (start.elapsed() * PROOF_PAUSE_FACTOR).max(PROOF_AGAIN));
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let mut is_whole = true;
        for differing in &comparison.differing {
            if differing.manifests || differing.tags {
                is_whole = false;
                let repository = &differing.repository;
                tracing::warn!(%account, repository, "a replica's manifests or tags are not the primary's: they are listed anew");
                self.list_copy_anew(account);
            }
            is_whole &= !differing.blobs || !self.note_difference(account, &differing.repository).await?;
        }
        let pause = (start.elapsed() * PROOF_PAUSE_FACTOR).max(PROOF_PAUSE_MIN);
        if is_whole {
            count("whole");
            backfills.looked(account, Some(comparison.at), pause);
        } else {
            count("different");
            backfills.looked(account, None, PROOF_AGAIN);
        }
        Ok(!is_whole)
    }

    /// Names what a replica lacks of a repository, and notes it as missing. Gives whether anything is: more than the
    /// primary's does no harm.
    async fn note_difference(&self, account: &AccountName, repository: &str) -> Result<bool, RegistryError> {
        let Ok(repository) = RepositoryName::parse(repository) else { return Ok(false) };
        let missing = self.blobs_not_here(account, &repository).await?;
        if missing.is_empty() {
            return Ok(false);
        }
        let named: Vec<String> = missing.iter().take(NAMED_MAX).map(|(digest, _)| digest.to_string()).collect();
        tracing::warn!(%account, %repository, count = missing.len(), blobs = named.join(" "), "a replica that holds everything lacks blobs: they are fetched");
        metrics::counter!("keppel_backfill_found_missing_total").increment(missing.len() as u64);
        for (digest, size_bytes) in missing {
            let name = repository.clone();
            let naming = self.inner.metadata.read(move |reader| match reader.get_repository(&name)? {
                Some(id) => reader.list_manifests_naming(id, &digest),
                None => Ok(Vec::new()),
            });
            let mut found: Vec<Found> = naming
                .await
                .map_err(RegistryError::Metadata)?
                .into_iter()
                .map(|manifest| Found { digest, size_bytes, manifest: Some(manifest) })
                .collect();
            if found.is_empty() {
                found.push(Found { digest, size_bytes, manifest: None });
            }
            self.inner.backfills.note(&repository, found);
        }
        Ok(true)
    }
}

/// One step of a walk.
struct Walked {
    found: Vec<Found>,
    /// The last manifest, if there are more.
    last: Option<Digest>,
}

fn walk_some(reader: &Reader<'_>, id: RepositoryId, after: Option<Digest>) -> Result<Walked, RegistryError> {
    let (copies, is_end) = reader.list_manifest_copies(id, after.as_ref(), MANIFESTS_STEP, MANIFESTS_STEP_BYTES)?;
    let (mut found, mut here) = (Vec::new(), HashMap::new());
    for copy in &copies {
        let Some((manifest, _)) = reader.get_manifest_id(id, &copy.digest)? else { continue };
        // One that cannot be read is another task's business.
        let Ok(description) = ManifestDescription::parse(Some(&copy.media_type), &copy.bytes) else { continue };
        for blob in needed_by(&description) {
            let row = match here.get(&blob.digest) {
                Some(row) => *row,
                None => {
                    let row = reader.get_mounted_blob(id, &blob.digest)?.filter(|row| row.is_sound);
                    *here.entry(blob.digest).or_insert(row.map(|row| row.id))
                }
            };
            let is_here = match row {
                Some(row) => reader.is_linked(manifest, row)?,
                None => false,
            };
            if !is_here {
                found.push(Found { digest: blob.digest, size_bytes: blob.size, manifest: Some(manifest) });
            }
        }
    }
    let last = copies.last().map(|copy| copy.digest).filter(|_| !is_end);
    Ok(Walked { found, last })
}
