//! How much the accounts of a tenant may hold.

use std::sync::Arc;

use keppel_federation::vocabulary::TenantId;
use serde::{Deserialize, Serialize};

use super::accounts::ATTEMPTS_MAX;
use super::{AccountDecision, AccountError, Accounts, RegistryError};
use crate::metadata::Usage;

/// The most that a tenant's accounts may hold; `None`: as much as there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    /// Manifests.
    pub manifests: Option<u64>,
    /// Bytes of blobs, each once per account, and of manifests.
    #[serde(rename = "bytes")]
    pub size_bytes: Option<u64>,
}

/// A change of a [`Quota`]; what is `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuotaChange {
    /// Manifests.
    pub manifests: Option<Option<u64>>,
    /// Bytes.
    pub size_bytes: Option<Option<u64>>,
}

/// What a tenant may hold, and what its accounts hold in this region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuotaReport {
    /// What it may.
    pub quota: Quota,
    /// What it does.
    pub usage: Usage,
}

impl Quota {
    /// Reads what [`Self::to_stored`] wrote. `None`: nothing of ours.
    pub fn from_stored(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The form that all regions share.
    pub fn to_stored(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Accounts {
    /// What a tenant may hold and holds. A tenant that nobody has mentioned holds nothing.
    ///
    /// # Errors
    /// [`AccountError::Usage`].
    pub async fn load_quota(&self, tenant: &TenantId) -> Result<QuotaReport, AccountError> {
        let quota = self.book().get_quota(tenant).and_then(|(bytes, _)| Quota::from_stored(&bytes)).unwrap_or_default();
        let name = tenant.clone();
        let usage = self.registry().metadata().read(move |reader| Ok(reader.tenant_usage(name.as_str())?));
        let usage = usage.await.map_err(|error: RegistryError| AccountError::Usage(Arc::new(error)))?;
        Ok(QuotaReport { quota, usage })
    }

    /// Changes what a tenant may hold. Less than it holds only stops new pushes.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn put_quota(&self, tenant: &TenantId, change: QuotaChange) -> Result<QuotaReport, AccountError> {
        for _ in 0..ATTEMPTS_MAX {
            let (current, revision) = match self.book().get_quota(tenant) {
                Some((bytes, revision)) => (Quota::from_stored(&bytes).unwrap_or_default(), revision),
                None => (Quota::default(), 0),
            };
            let next = Quota {
                manifests: change.manifests.unwrap_or(current.manifests),
                size_bytes: change.size_bytes.unwrap_or(current.size_bytes),
            };
            if next == current {
                return self.load_quota(tenant).await;
            }
            let decision = self.book().put_quota(tenant, next.to_stored(), revision).await?;
            if decision == AccountDecision::Done {
                return self.load_quota(tenant).await;
            }
        }
        Err(AccountError::QuotaConflict { tenant: tenant.clone() })
    }
}
