//! Rules that this region's replica of an account has of its own, asked before a change goes to the primary, which has its
//! own. What they need to know they know from the copy that is here.

use std::sync::Arc;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, RepositoryName};

use super::manifest_push::{Checked, check};
use super::{Deletion, Inner, ManifestTarget, RegistryError, TagChange};
use crate::model::policy::{CompiledPolicies, PlatformFilter};

impl Inner {
    /// Refuses a push that goes to the primary where this region's replica has rules of its own that forbid it, as far as what
    /// is known here tells. The primary's rules are asked there.
    pub(super) async fn refuse_pushed_here(
        &self,
        repository: &RepositoryName,
        target: &ManifestTarget,
        media_type: Option<&str>,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let Some(policies) = self.own_rules(repository)? else { return Ok(()) };
        let (target, media_type, bytes) = (target.clone(), media_type.map(str::to_owned), bytes.clone());
        let checking = tokio::task::spawn_blocking(move || check(target, media_type.as_deref(), bytes));
        let Checked { digest, description, tags, .. } = checking.await.map_err(|_| RegistryError::Interrupted)??;
        self.look_into(repository, &description).await?;
        let name = repository.clone();
        self.metadata
            .read(move |reader| {
                for tag in &tags {
                    let protected =
                        |policy, from| Err(RegistryError::TagProtected { tag: tag.to_string(), policy, from });
                    let protection = policies.tag_protection(name.path(), tag.as_str());
                    if let Some(policy) = protection.push {
                        return protected(policy, TagChange::Push);
                    }
                    if let Some(policy) = protection.overwrite {
                        let current = reader.get_manifest_by_tag(name.as_str(), tag.as_str())?;
                        if current.is_some_and(|current| current.digest != digest) {
                            return protected(policy, TagChange::Overwrite);
                        }
                    }
                }
                Ok(())
            })
            .await
    }

    /// The same for a deletion.
    pub(super) async fn refuse_deleted_here(
        self: &Arc<Self>,
        repository: &RepositoryName,
        what: &Deletion,
    ) -> Result<(), RegistryError> {
        if self.own_rules(repository)?.is_none() {
            return Ok(());
        }
        match what {
            Deletion::Blob(_) => Ok(()),
            Deletion::Tag(tag) => self.check_tag_deletion(repository, [tag.as_str()]),
            Deletion::Repository => match self.refuse_protected(repository).await {
                // The primary may have one that is not here yet.
                Err(RegistryError::RepositoryUnknown { .. }) => Ok(()),
                refused => refused,
            },
            Deletion::Manifest(digest) => {
                let (name, digest) = (repository.clone(), *digest);
                let tags = self.metadata.read(move |reader| {
                    let Some(id) = reader.get_repository(&name)? else { return Ok::<_, RegistryError>(Vec::new()) };
                    match reader.get_manifest_id(id, &digest)? {
                        Some((manifest, _)) => Ok(reader.list_tags_of(manifest)?),
                        None => Ok(Vec::new()),
                    }
                });
                self.check_tag_deletion(repository, tags.await?.iter().map(String::as_str))
            }
        }
    }

    /// The policies that hold here, where they have rules that are not the primary's.
    fn own_rules(&self, repository: &RepositoryName) -> Result<Option<Arc<CompiledPolicies>>, RegistryError> {
        let policies = self.rules(&repository.account())?.and_then(|rules| rules.policies);
        Ok(policies.filter(|policies| policies.has_own_rules()))
    }

    /// Which platforms are kept here of what an index of the account lists; empty: all.
    pub(super) fn platform_filter(&self, account: &AccountName) -> Vec<PlatformFilter> {
        let policies = self.claims.rules(account).and_then(|rules| rules.policies);
        policies.map_or_else(Vec::new, |policies| policies.platform_filter().to_vec())
    }
}
