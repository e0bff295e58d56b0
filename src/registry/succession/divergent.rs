//! The list of what this node recorded as the primary of an account and its successor never had.

use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName, Tag};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{STEP, moving};
use crate::metadata::{DivergentChange, DivergentId, DivergentManifest, DivergentRow, MetadataError, Reader};
use crate::registry::{Inner, ManifestTarget, Registry, RegistryError};

/// An entry of the list, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DivergentEntry {
    /// When it was recorded, in UNIX seconds.
    pub at: i64,
    /// The full name of the repository.
    pub repository: String,
    /// `manifest`, `tag`, `manifest deleted` or `tag deleted`.
    pub what: String,
    /// The tag.
    pub tag: Option<String>,
    /// The manifest.
    pub digest: Option<Digest>,
    /// What the tag names at the primary, as far as that is known here.
    pub there: Option<Digest>,
}

/// What came of pushing the list again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PushedAgain {
    /// Entries that the primary has taken.
    pub pushed: u64,
    /// Whether all entries were looked at.
    pub is_over: bool,
    /// Those that it has not, and why.
    pub failed: Vec<(DivergentEntry, String)>,
}

impl Registry {
    /// What only this node has of an account, the oldest first, `limit` entries at most. What the primary turns out to have
    /// is taken off the list.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn list_divergent(
        &self,
        account: &AccountName,
        limit: usize,
    ) -> Result<(Vec<DivergentEntry>, u64), RegistryError> {
        self.inner.prune_divergent(account).await?;
        let name = account.clone();
        let read = self.inner.metadata.read(move |reader| {
            let rows = reader.list_divergent(&name, None, limit)?;
            let entries = rows.iter().map(|row| entry_of(reader, row)).collect::<Result<_, MetadataError>>()?;
            Ok::<_, MetadataError>((entries, reader.count_divergent(&name)?))
        });
        read.await.map_err(RegistryError::Metadata)
    }

    /// Pushes what only this node has of an account to its primary, as a client would, in the order in which it was recorded;
    /// what the primary has taken leaves the list. A tag that was moved there since is moved back. Ends after about `patience`.
    ///
    /// Cancel safety: what was pushed is off the list, the rest stays.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`] while the account has no settled primary; our own trouble.
    pub async fn push_divergent(
        &self,
        account: &AccountName,
        patience: Duration,
    ) -> Result<PushedAgain, RegistryError> {
        let start = Instant::now();
        if self.inner.is_stepping_down(account) {
            return Err(moving(account, "what this node has is still being sorted out"));
        }
        self.inner.prune_divergent(account).await?;
        let (mut outcome, mut after) = (PushedAgain { is_over: true, ..PushedAgain::default() }, None);
        loop {
            let (name, last) = (account.clone(), after);
            let rows = self.inner.metadata.read(move |reader| reader.list_divergent(&name, last, STEP)).await;
            let rows = rows.map_err(RegistryError::Metadata)?;
            let Some(last) = rows.last() else { return Ok(outcome) };
            after = Some(last.id);
            for row in rows {
                if start.elapsed() > patience {
                    outcome.is_over = false;
                    return Ok(outcome);
                }
                match self.push_row(&row).await {
                    Ok(()) => {
                        self.take_off(vec![row.id]).await?;
                        outcome.pushed += 1;
                    }
                    Err(error) => {
                        let read = self.inner.metadata.read(move |reader| entry_of(reader, &row)).await;
                        outcome.failed.push((read.map_err(RegistryError::Metadata)?, error.to_string()));
                    }
                }
            }
        }
    }

    /// Takes off all lists what the primaries have as well.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn prune_divergent(&self) -> Result<(), RegistryError> {
        let (mut after, mut left) = (String::new(), 0);
        loop {
            let last = after.clone();
            let next = self.inner.metadata.read(move |reader| reader.get_next_divergent_account(&last)).await;
            let Some(account) = next.map_err(RegistryError::Metadata)? else { break };
            after = account.to_string();
            self.inner.prune_divergent(&account).await?;
            let count = self.inner.metadata.read(move |reader| reader.count_divergent(&account)).await;
            left += count.map_err(RegistryError::Metadata)?;
        }
        metrics::gauge!("keppel_divergent_changes").set(left as f64);
        Ok(())
    }

    /// Takes everything of an account off the list; its blobs are swept like others from then on. Gives how many entries
    /// there were.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn drop_divergent(&self, account: &AccountName) -> Result<u64, RegistryError> {
        let mut dropped = 0;
        loop {
            let name = account.clone();
            let step = self.inner.metadata.write(move |transaction| {
                let rows = transaction.list_divergent(&name, None, STEP)?;
                rows.iter().try_for_each(|row| transaction.delete_divergent(row.id).map(drop))?;
                Ok::<_, MetadataError>(rows.len())
            });
            match step.await.map_err(RegistryError::Metadata)? {
                0 => return Ok(dropped),
                count => dropped += count as u64,
            }
        }
    }

    async fn push_row(&self, row: &DivergentRow) -> Result<(), RegistryError> {
        use RegistryError as E;
        let invalid = |_| RegistryError::Metadata(MetadataError::Corrupt { what: "divergent change" });
        let repository = RepositoryName::parse(&row.repository).map_err(invalid)?;
        match &row.change {
            DivergentChange::Manifest(manifest) => self.push_manifest(&repository, row.id, manifest, Vec::new()).await,
            DivergentChange::Tag(tag, manifest) => {
                let tag = Tag::parse(tag).map_err(invalid)?;
                self.push_manifest(&repository, row.id, manifest, vec![tag]).await
            }
            DivergentChange::ManifestGone(digest) => match self.delete_manifest(&repository, digest).await {
                Err(E::ManifestUnknown { .. } | E::RepositoryUnknown { .. }) => Ok(()),
                deleted => deleted,
            },
            DivergentChange::TagGone(tag) => {
                let tag = Tag::parse(tag).map_err(invalid)?;
                match self.delete_tag(&repository, &tag).await {
                    Err(E::ManifestUnknown { .. } | E::RepositoryUnknown { .. }) => Ok(()),
                    deleted => deleted,
                }
            }
        }
    }

    async fn push_manifest(
        &self,
        repository: &RepositoryName,
        id: DivergentId,
        manifest: &DivergentManifest,
        tags: Vec<Tag>,
    ) -> Result<(), RegistryError> {
        // The primary fetches from here what it lacks, where it is mounted.
        let (inner, name) = (self.inner.clone(), repository.clone());
        let mounted = self.inner.metadata.write(move |transaction| {
            let now = inner.clock.now();
            let account = transaction.ensure_account(&name.account(), now)?;
            let repository = transaction.ensure_repository(account, &name, now)?;
            let blobs = transaction.list_divergent_blobs(id)?;
            blobs.iter().try_for_each(|blob| transaction.ensure_mount(repository, *blob, now))
        });
        mounted.await.map_err(|error: MetadataError| RegistryError::from(error))?;
        let target = ManifestTarget::Digest { digest: manifest.digest, tags };
        self.put_manifest(repository, target, Some(&manifest.media_type), manifest.bytes.clone()).await.map(drop)
    }

    async fn take_off(&self, ids: Vec<DivergentId>) -> Result<(), RegistryError> {
        let taken = self
            .inner
            .metadata
            .write(move |transaction| ids.iter().try_for_each(|id| transaction.delete_divergent(*id).map(drop)));
        taken.await.map_err(RegistryError::Metadata)
    }
}

impl Inner {
    /// Takes off the list what the primary has as well: what is here is what it has, once the copy is whole.
    async fn prune_divergent(&self, account: &AccountName) -> Result<(), RegistryError> {
        let mut after = None;
        loop {
            // What is here is what the primary has: that is this node, or the copy is whole.
            let is_primary = self.elsewhere(account).is_none() && self.check_primacy(account).is_ok();
            if !is_primary && (!self.copies.is_complete(account) || self.is_stepping_down(account)) {
                return Ok(());
            }
            let (name, last) = (account.clone(), after);
            let step = self.metadata.write(move |transaction| {
                let rows = transaction.list_divergent(&name, last, STEP)?;
                for row in &rows {
                    if is_there(transaction, row)? {
                        transaction.delete_divergent(row.id)?;
                    }
                }
                Ok::<_, MetadataError>(rows.last().map(|row| row.id))
            });
            match step.await.map_err(RegistryError::Metadata)? {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }
}

/// Whether a copy of what the primary has shows what an entry says.
fn is_there(reader: &Reader<'_>, row: &DivergentRow) -> Result<bool, MetadataError> {
    let has =
        |digest: &Digest| Ok::<_, MetadataError>(reader.get_manifest_by_digest(&row.repository, digest)?.is_some());
    Ok(match &row.change {
        DivergentChange::Manifest(manifest) => has(&manifest.digest)?,
        DivergentChange::ManifestGone(digest) => !has(digest)?,
        DivergentChange::Tag(tag, manifest) => tag_there(reader, row, tag)? == Some(manifest.digest),
        DivergentChange::TagGone(tag) => tag_there(reader, row, tag)?.is_none(),
    })
}

fn tag_there(reader: &Reader<'_>, row: &DivergentRow, tag: &str) -> Result<Option<Digest>, MetadataError> {
    Ok(reader.get_manifest_by_tag(&row.repository, tag)?.map(|row| row.digest))
}

fn entry_of(reader: &Reader<'_>, row: &DivergentRow) -> Result<DivergentEntry, MetadataError> {
    let (what, tag, digest) = match &row.change {
        DivergentChange::Manifest(manifest) => ("manifest", None, Some(manifest.digest)),
        DivergentChange::ManifestGone(digest) => ("manifest deleted", None, Some(*digest)),
        DivergentChange::Tag(tag, manifest) => ("tag", Some(tag.clone()), Some(manifest.digest)),
        DivergentChange::TagGone(tag) => ("tag deleted", Some(tag.clone()), None),
    };
    let there = match &tag {
        Some(tag) => tag_there(reader, row, tag)?,
        None => None,
    };
    Ok(DivergentEntry { at: row.at, repository: row.repository.clone(), what: what.to_owned(), tag, digest, there })
}
