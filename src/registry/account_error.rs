use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, TenantId};

use super::{RegistryError, Undecided};
use crate::model::policy::SettingsError;

/// Why a change of an account is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccountError {
    /// There is no such account.
    #[error("no such account")]
    Unknown,
    /// A field is not valid.
    #[error(transparent)]
    Invalid(#[from] SettingsError),
    /// Another region has the name.
    #[error("account {name} is claimed by region {region}")]
    Elsewhere {
        /// The account.
        name: AccountName,
        /// The region that is primary.
        region: String,
    },
    /// Another tenant has the name.
    #[error("account name {name} is already taken in region {region}")]
    Taken {
        /// The account.
        name: AccountName,
        /// The region that is primary.
        region: String,
    },
    /// What is to let a replica be made does not.
    #[error("X-Keppel-Sublease-Token: {reason}")]
    Sublease {
        /// Why not.
        reason: &'static str,
    },
    /// Someone else changes the quota all the time.
    #[error("the quota of auth tenant {tenant} is being changed by someone else; try again")]
    QuotaConflict {
        /// The tenant.
        tenant: TenantId,
    },
    /// What the account holds could not be looked up.
    #[error("what is held in this region cannot be looked up now")]
    Usage(#[source] Arc<RegistryError>),
    /// It is being deleted.
    #[error("account {name} is being deleted")]
    Deleting {
        /// The account.
        name: AccountName,
    },
    /// Other regions hold replicas of it.
    #[error("account {name} still has replicas in {}", .regions.join(", "))]
    HasReplicas {
        /// The account.
        name: AccountName,
        /// Those regions.
        regions: Vec<String>,
    },
    /// This node is not primary for it.
    #[error("account {name} is {role} here; its primary is in region {region}")]
    NotPrimary {
        /// What it is to this node.
        role: &'static str,
        /// The account.
        name: AccountName,
        /// The region that is primary.
        region: String,
    },
    /// Its content comes from a registry outside the federation.
    #[error("account {name} is a replica itself, of {upstream}: no replica can be made of it")]
    Mirror {
        /// The account.
        name: AccountName,
        /// That registry.
        upstream: String,
    },
    /// It is being deleted, so that nobody can make a replica of it any more.
    #[error("account {name} is being deleted: no replica can be made of it")]
    NoSublease {
        /// The account.
        name: AccountName,
    },
    /// Someone else changes it all the time.
    #[error("account {name} is being changed by someone else; try again")]
    Conflict {
        /// The account.
        name: AccountName,
    },
    /// A policy is managed by someone else.
    #[error("policies[{at}]: is managed by user {user:?}, who alone may change it")]
    ManagedByOther {
        /// Its place.
        at: usize,
        /// Whose it is.
        user: String,
    },
    /// It could not be decided now; nothing has changed, or what has is harmless.
    #[error("{0}")]
    Undecided(String),
    /// The storage of the account could not be prepared.
    #[error("the storage of account {name} cannot be prepared")]
    Storage {
        /// The account.
        name: AccountName,
    },
}

impl From<Undecided> for AccountError {
    fn from(undecided: Undecided) -> Self {
        Self::Undecided(undecided.0)
    }
}
