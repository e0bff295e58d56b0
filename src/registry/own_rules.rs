//! Rules that this region's replica of an account has of its own, asked before a change goes to the primary, which has its
//! own. What they need to know they know from the copy that is here.

use std::sync::Arc;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};

use super::elsewhere::Elsewhere;
use super::manifest_push::{Checked, check};
use super::rules::CONFIG_BYTES_MAX;
use super::{Deletion, Inner, ManifestTarget, Priority, RegistryError, TagChange};
use crate::model::policy::{CompiledPolicies, ManifestRule, PlatformFilter};

impl Inner {
    /// Refuses a push that goes to the primary where this region's replica has rules of its own that forbid it, as far as what
    /// is known here tells. The primary's rules are asked there.
    pub(super) async fn refuse_pushed_here(
        self: &Arc<Self>,
        elsewhere: &Elsewhere,
        repository: &RepositoryName,
        target: &ManifestTarget,
        media_type: Option<&str>,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let Some(policies) = self.own_rules(repository)? else { return Ok(()) };
        let (target, media_type, bytes) = (target.clone(), media_type.map(str::to_owned), bytes.clone());
        let checking = tokio::task::spawn_blocking(move || check(target, media_type.as_deref(), bytes));
        let Checked { digest, description, tags, .. } = checking.await.map_err(|_| RegistryError::Interrupted)??;
        if policies.manifest_rule().is_some_and(ManifestRule::sees_labels)
            && let Some(config) = description.config.as_ref().filter(|config| config.size <= CONFIG_BYTES_MAX)
        {
            self.ensure_config(elsewhere, repository, config.digest).await;
        }
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

    /// Fetches the configuration of an image, unless it is here: the client may have had it mounted at the primary. Where it
    /// cannot be had, the rule sees no labels.
    async fn ensure_config(self: &Arc<Self>, elsewhere: &Elsewhere, repository: &RepositoryName, digest: Digest) {
        let fetched = async {
            let name = repository.clone();
            let is_here = self.metadata.read(move |reader| {
                let row = reader.get_blob_by_name(name.as_str(), &digest)?;
                Ok::<_, RegistryError>(row.is_some_and(|row| row.is_sound))
            });
            if is_here.await? {
                return Ok(());
            }
            let flight = self.join_flight(elsewhere.clone(), repository, &digest).await?;
            flight.start(self, Priority::Push);
            flight.stored().await
        };
        if let Err(error) = fetched.await {
            tracing::debug!(%repository, %digest, %error, "the configuration of a pushed image cannot be had");
        }
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
