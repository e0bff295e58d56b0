//! Compares what is here of another region's account with what its primary has, by digests of sets.
//!
//! Both sides are read at the same place of the account's log, each in one transaction: what differs then is not on its
//! way. Where too much happens to meet, nothing is said.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};

use crate::metadata::{Cursor, RepositorySums};
use crate::registry::{Page, Registry, RegistryError};

/// Repositories that are compared at a time.
const REPOSITORIES: usize = 50;
/// Digests in one answer.
const DIGESTS: usize = 20_000;
/// How often, and after which pause, it is tried to meet the primary at one place of the log.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// What an account has, repository by repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountSums {
    /// The end of the account's log when this was read.
    pub at: Cursor,
    /// Some of its repositories, by name.
    pub repositories: Vec<RepositorySums>,
    /// Whether there are more.
    pub more: bool,
}

/// A repository that is not here as the primary has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyDifference {
    /// Its full name.
    pub repository: String,
    /// Whether there are other manifests here.
    pub manifests: bool,
    /// Whether there are other tags here, or they name other manifests.
    pub tags: bool,
    /// Whether there are other blobs here.
    pub blobs: bool,
}

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopyComparison {
    /// The place in the log at which the last repositories were compared.
    pub at: Cursor,
    /// How many repositories the primary has.
    pub repositories: u64,
    /// How many manifests it has.
    pub manifests: u64,
    /// How many blobs they need, counted in each repository.
    pub blobs: u64,
    /// The bytes of these.
    pub blob_bytes: u64,
    /// What differs.
    pub differing: Vec<CopyDifference>,
}

impl Registry {
    /// What an account of this node has, from the repository on that follows a full name.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn account_sums(&self, account: &AccountName, after: &str) -> Result<AccountSums, RegistryError> {
        let (account, after) = (account.clone(), after.to_owned());
        let read = self.inner.metadata.read(move |reader| {
            let Some((id, at)) = reader.get_event_head(&account)? else {
                return Ok(AccountSums { at: Cursor::default(), repositories: Vec::new(), more: false });
            };
            let mut repositories = reader.list_repository_sums(id, &after, None, REPOSITORIES + 1, false)?;
            let more = repositories.len() > REPOSITORIES;
            repositories.truncate(REPOSITORIES);
            Ok::<_, RegistryError>(AccountSums { at, repositories, more })
        });
        read.await
    }

    /// The blobs that manifests of a repository of this node need, after a digest, with their sizes in bytes.
    ///
    /// # Errors
    /// [`RegistryError::RepositoryUnknown`], or our own trouble.
    pub async fn needed_blobs(
        &self,
        repository: &RepositoryName,
        after: Option<Digest>,
    ) -> Result<Page<(Digest, u64)>, RegistryError> {
        let repository = repository.clone();
        let read = self.inner.metadata.read(move |reader| {
            let id = reader.get_repository(&repository)?;
            let id = id.ok_or(RegistryError::RepositoryUnknown { repository })?;
            Ok(Page::cut(reader.list_needed_blobs(id, after.as_ref(), DIGESTS + 1, false)?, DIGESTS))
        });
        read.await
    }

    /// How many bytes the manifests have together that were put after a place in the log of an account of this node.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn backlog_bytes(&self, account: &AccountName, after: u64) -> Result<u64, RegistryError> {
        let account = account.clone();
        let read = self.inner.metadata.read(move |reader| match reader.get_event_head(&account)? {
            Some((id, _)) => reader.backlog_bytes(id, after),
            None => Ok(0),
        });
        read.await.map_err(RegistryError::Metadata)
    }

    /// Compares what is here of an account with what its primary has. `None`: it is not all here yet, or so much happens
    /// that they cannot be compared now.
    ///
    /// # Errors
    /// [`RegistryError::PrimaryUnreachable`], or our own trouble.
    pub async fn compare_copy(&self, account: &AccountName) -> Result<Option<CopyComparison>, RegistryError> {
        let (mut comparison, mut after) = (CopyComparison::default(), String::new());
        loop {
            let Some((theirs, ours)) = self.meet(account, &after).await? else { return Ok(None) };
            comparison.at = theirs.at;
            let mut ours: BTreeMap<String, RepositorySums> =
                ours.into_iter().map(|sums| (sums.name.clone(), sums)).collect();
            let last = theirs.repositories.last().map(|sums| sums.name.clone());
            for theirs in theirs.repositories {
                comparison.repositories += 1;
                comparison.manifests += theirs.manifests.count;
                comparison.blobs += theirs.blobs.count;
                comparison.blob_bytes += theirs.blob_bytes;
                let ours = ours.remove(&theirs.name).unwrap_or_else(|| RepositorySums::empty(&theirs.name));
                comparison.differing.extend(difference(&theirs, &ours));
            }
            // Those that the primary does not have; a client may just be pushing here.
            let left = ours.into_values();
            comparison.differing.extend(left.filter_map(|ours| difference(&RepositorySums::empty(&ours.name), &ours)));
            match (theirs.more, last) {
                (true, Some(last)) => after = last,
                _ => return Ok(Some(comparison)),
            }
        }
    }

    /// What the primary and this node have of an account from a name on, at the same place of its log.
    async fn meet(
        &self,
        account: &AccountName,
        after: &str,
    ) -> Result<Option<(AccountSums, Vec<RepositorySums>)>, RegistryError> {
        for _ in 0..TRIES {
            let Some(elsewhere) = self.inner.elsewhere(account) else { return Ok(None) };
            if !self.inner.copies.is_complete(account) {
                return Ok(None);
            }
            let theirs = elsewhere.upstream.sums(&elsewhere.primary, account, after).await?;
            let upto = theirs.repositories.last().filter(|_| theirs.more).map(|sums| sums.name.clone());
            let (name, from, at) = (account.clone(), after.to_owned(), theirs.at);
            let read = self.inner.metadata.read(move |reader| {
                if reader.get_follow_cursor(&name)? != Some(at) {
                    return Ok(None);
                }
                let Some(id) = reader.get_account(&name)? else { return Ok(Some(Vec::new())) };
                let sums = reader.list_repository_sums(id, &from, upto.as_deref(), usize::MAX, true)?;
                Ok::<_, RegistryError>(Some(sums))
            });
            if let Some(ours) = read.await? {
                return Ok(Some((theirs, ours)));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// The blobs of a repository that its primary has and that are not here, with their sizes in bytes.
    pub(super) async fn blobs_not_here(
        &self,
        account: &AccountName,
        repository: &RepositoryName,
    ) -> Result<Vec<(Digest, u64)>, RegistryError> {
        let Some(elsewhere) = self.inner.elsewhere(account) else { return Ok(Vec::new()) };
        let name = repository.clone();
        let here = self.inner.metadata.read(move |reader| match reader.get_repository(&name)? {
            Some(id) => reader.list_needed_blobs(id, None, usize::MAX >> 1, true),
            None => Ok(Vec::new()),
        });
        let here = here.await.map_err(RegistryError::Metadata)?;
        let here: BTreeSet<Digest> = here.into_iter().map(|(digest, _)| digest).collect();
        let (mut missing, mut after) = (Vec::new(), None);
        loop {
            let page = elsewhere.upstream.needed_blobs(&elsewhere.primary, repository, after).await?;
            after = page.items.last().map(|(digest, _)| *digest);
            missing.extend(page.items.into_iter().filter(|(digest, _)| !here.contains(digest)));
            if !page.more || after.is_none() {
                return Ok(missing);
            }
        }
    }

    /// Has an account of another region listed anew, which puts right whatever differs of manifests and tags.
    pub fn list_copy_anew(&self, account: &AccountName) {
        metrics::counter!("keppel_copy_resyncs_total").increment(1);
        self.inner.copies.relist(account);
    }
}

fn difference(theirs: &RepositorySums, ours: &RepositorySums) -> Option<CopyDifference> {
    let difference = CopyDifference {
        repository: theirs.name.clone(),
        manifests: theirs.manifests != ours.manifests,
        tags: theirs.tags != ours.tags,
        blobs: theirs.blobs != ours.blobs,
    };
    (difference.manifests || difference.tags || difference.blobs).then_some(difference)
}
