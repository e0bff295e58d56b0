//! What an account's owners and the registry's operators allow of its content: tag policies, validation, quotas.
//!
//! Quotas and tags are checked by the one writer, in the transaction that makes the change: so two pushes can never both
//! take the last place.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use keppel_federation::vocabulary::{AccountName, RepositoryName, TenantId};

use super::{Inner, Quota, RegistryError};
use crate::metadata::{AccountId, ManifestId, RepositoryId, Usage, WriteTransaction};
use crate::model::policy::{CompiledPolicies, ManifestFacts};
use crate::model::{ImageConfig, ManifestDescription};

/// The largest configuration of an image that is looked into, in bytes.
pub(super) const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What was decided about an account's content.
#[derive(Debug, Clone)]
pub struct AccountRules {
    /// Who is billed.
    pub tenant: TenantId,
    /// What its owners decided; `None`: that cannot be used, so that nothing may be pushed.
    pub policies: Option<Arc<CompiledPolicies>>,
    /// The most that its tenant may hold.
    pub quota: Quota,
}

impl Inner {
    pub(super) fn rules(&self, account: &AccountName) -> Result<Option<AccountRules>, RegistryError> {
        match self.claims.rules(account) {
            Some(AccountRules { policies: None, .. }) => {
                Err(RegistryError::PoliciesUnusable { account: account.clone() })
            }
            rules => Ok(rules),
        }
    }

    /// Refuses a push to an account whose content comes from a registry outside, in every region.
    pub(super) fn refuse_mirror(&self, account: &AccountName) -> Result<(), RegistryError> {
        match self.outside(account) {
            None => Ok(()),
            Some(upstream) => Err(RegistryError::ExternalReplica { account: account.clone(), upstream }),
        }
    }

    /// The registry outside that an account's content comes from, in every region.
    pub(super) fn outside(&self, account: &AccountName) -> Option<String> {
        let policies = self.claims.rules(account).and_then(|rules| rules.policies)?;
        policies.external_upstream().map(str::to_owned)
    }

    /// Refuses a push to an account whose tenant may hold no more; called before any byte is taken.
    pub(super) async fn refuse_when_full(&self, account: &AccountName) -> Result<(), RegistryError> {
        let Some(AccountRules { tenant, quota, .. }) = self.rules(account)? else { return Ok(()) };
        if quota == Quota::default() {
            return Ok(());
        }
        let name = tenant.clone();
        let usage = self.metadata.read(move |reader| reader.tenant_usage(name.as_str())).await?;
        over_quota(&tenant, &quota, usage, Usage { manifests: 0, size_bytes: 1 })
    }

    /// Counts the account for its tenant, and refuses what would be more than the tenant may hold.
    pub(super) fn charge(
        &self,
        transaction: &WriteTransaction<'_>,
        name: &AccountName,
        account: AccountId,
        more: Usage,
    ) -> Result<(), RegistryError> {
        let Some(AccountRules { tenant, quota, .. }) = self.rules(name)? else { return Ok(()) };
        transaction.set_tenant(account, tenant.as_str())?;
        match quota == Quota::default() {
            true => Ok(()),
            false => over_quota(&tenant, &quota, transaction.tenant_usage(tenant.as_str())?, more),
        }
    }

    /// Refuses to set a tag on a manifest where a policy forbids it.
    pub(super) fn check_tag_push(
        &self,
        transaction: &WriteTransaction<'_>,
        repository: &RepositoryName,
        id: RepositoryId,
        tag: &str,
        manifest: ManifestId,
    ) -> Result<(), RegistryError> {
        let rules = self.rules(&repository.account())?;
        let Some(policies) = rules.and_then(|rules| rules.policies) else { return Ok(()) };
        let protection = policies.tag_protection(repository.path(), tag);
        let protected = |policy, from| Err(RegistryError::TagProtected { tag: tag.to_owned(), policy, from });
        if let Some(policy) = protection.push {
            return protected(policy, TagChange::Push);
        }
        match protection.overwrite {
            Some(policy) if transaction.get_tagged(id, tag)?.is_some_and(|current| current != manifest) => {
                protected(policy, TagChange::Overwrite)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses to delete tags, or the manifest that they are on, where a policy forbids it.
    pub(super) fn check_tag_deletion<'a>(
        &self,
        repository: &RepositoryName,
        tags: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), RegistryError> {
        let rules = self.rules(&repository.account())?;
        let Some(policies) = rules.and_then(|rules| rules.policies) else { return Ok(()) };
        for tag in tags {
            if let Some(policy) = policies.tag_protection(repository.path(), tag).delete {
                return Err(RegistryError::TagProtected { tag: tag.to_owned(), policy, from: TagChange::Delete });
            }
        }
        Ok(())
    }

    /// Reads what the image's configuration says, and checks the manifest against the account's rule.
    pub(super) async fn look_into(
        &self,
        repository: &RepositoryName,
        description: &ManifestDescription,
    ) -> Result<ImageConfig, RegistryError> {
        let config = self.load_config(repository, description).await?;
        let rules = self.rules(&repository.account())?;
        let policies = rules.and_then(|rules| rules.policies);
        let Some(rule) = policies.as_ref().and_then(|policies| policies.manifest_rule()) else {
            return Ok(config.unwrap_or_default());
        };
        // The manifests that an index lists were checked when they were pushed; it has no labels of its own.
        if description.kind.is_index() && rule.sees_labels() {
            return Ok(ImageConfig::default());
        }
        let none = BTreeMap::new();
        let labels = match &config {
            Some(config) => &config.labels,
            None if rule.sees_labels()
                && description.config.as_ref().is_some_and(|config| is_too_large(config.size)) =>
            {
                let reason = format!(
                    "the image's configuration has more than {CONFIG_BYTES_MAX} bytes, which this account's rule cannot check"
                );
                return Err(RegistryError::ManifestInvalid { reason });
            }
            None => &none,
        };
        let media_type = description.kind.media_type();
        let facts = ManifestFacts { media_type, repository: repository.path(), labels, layers: &description.layers };
        rule.check(&facts).map_err(|reason| RegistryError::ManifestInvalid {
            reason: format!("account.validation.rule_for_manifest: {reason}"),
        })?;
        Ok(config.unwrap_or_default())
    }

    /// The configuration of an image; `None` where there is none that can be read.
    pub(super) async fn load_config(
        &self,
        repository: &RepositoryName,
        description: &ManifestDescription,
    ) -> Result<Option<ImageConfig>, RegistryError> {
        let Some(config) = &description.config else { return Ok(None) };
        if !ImageConfig::is_media_type(&config.media_type) || is_too_large(config.size) {
            return Ok(None);
        }
        let (name, digest) = (repository.clone(), config.digest);
        let row = self.metadata.read(move |reader| reader.get_blob_by_name(name.as_str(), &digest)).await?;
        let Some(row) = row.filter(|row| row.is_sound && !is_too_large(row.size_bytes)) else { return Ok(None) };
        let mut bytes = Vec::with_capacity(usize::try_from(row.size_bytes).unwrap_or_default());
        let (key, blake3) = (&row.storage_key, &row.blake3);
        let opened = self.storage.open_blob(&repository.account(), key, blake3, 0..row.size_bytes).await;
        let mut reader = match opened {
            Ok(reader) => reader,
            // Bytes that were lost are another's business: the push says nothing about them.
            Err(error) if error.is_damage() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        while let Some(piece) = reader.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(Some(ImageConfig::parse(&bytes)))
    }
}

/// What was to be done with a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagChange {
    /// Set it.
    Push,
    /// Move it to another manifest.
    Overwrite,
    /// Delete it, or the manifest that it names.
    Delete,
}

impl TagChange {
    /// The field of the policy that forbids it.
    pub fn field(self) -> &'static str {
        match self {
            Self::Push => "block_push",
            Self::Overwrite => "block_overwrite",
            Self::Delete => "block_delete",
        }
    }
}

fn is_too_large(size_bytes: u64) -> bool {
    size_bytes > CONFIG_BYTES_MAX
}

pub(super) fn over_quota(tenant: &TenantId, quota: &Quota, usage: Usage, more: Usage) -> Result<(), RegistryError> {
    let exceeded = |what, quota: Option<u64>, usage: u64, more: u64| match quota {
        Some(quota) if more > 0 && usage.saturating_add(more) > quota => {
            Err(RegistryError::QuotaExceeded { tenant: tenant.clone(), what, quota, usage })
        }
        Some(_) | None => Ok(()),
    };
    exceeded("manifests", quota.manifests, usage.manifests, more.manifests)?;
    exceeded("bytes", quota.size_bytes, usage.size_bytes, more.size_bytes)
}
