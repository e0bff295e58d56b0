//! Accounts: made, changed and ended by decisions that hold in all regions.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, TenantId};

use super::Registry;
use crate::model::policy::{AccountSettings, ScanPolicy, SettingsError};

/// How long a sublease token is good.
const SUBLEASE_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often a change is tried again when someone else was first.
const ATTEMPTS_MAX: usize = 8;
/// Accounts that are looked through at a time.
const LIST_STEP: usize = 1000;

/// What all regions agree on about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountEntry {
    /// The name.
    pub name: AccountName,
    /// Who is billed and authorised.
    pub tenant: TenantId,
    /// The settings, as they are stored.
    pub settings: Bytes,
    /// Grows with every change of the settings.
    pub settings_revision: u64,
    /// The region that is primary.
    pub region: String,
    /// Whether this node is primary.
    pub is_ours: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The regions that hold replicas.
    pub replicas: Vec<String>,
}

/// Another node, as clients are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerEntry {
    /// The host of its API, with the port where that is not the usual one.
    pub hostname: String,
    /// Where it runs.
    pub region: String,
    /// `full` or `witness`.
    pub role: String,
}

/// What was decided about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountDecision {
    /// It is so now.
    Done,
    /// This node had the name already; its settings were left alone.
    Held,
    /// Another region has the name.
    Taken {
        /// That region.
        region: String,
    },
    /// Someone else changed it first.
    Conflict,
    /// There is no such account or token, or the token has run out or was used.
    NotFound,
}

/// Why nothing was decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecided(pub String);

/// Where accounts are agreed on: the federation. Reads come from memory.
#[async_trait]
pub trait AccountBook: Send + Sync + 'static {
    /// An account.
    fn get(&self, name: &AccountName) -> Option<AccountEntry>;
    /// The accounts that follow a name, in order, `limit` at most.
    fn list(&self, after: Option<&AccountName>, limit: usize) -> Vec<AccountEntry>;
    /// The other nodes.
    fn peers(&self) -> Vec<PeerEntry>;
    /// Claims a name for this node.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn claim(
        &self,
        name: &AccountName,
        tenant: &TenantId,
        settings: Vec<u8>,
    ) -> Result<AccountDecision, Undecided>;
    /// Replaces the settings, if they still have the expected revision.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn put_settings(
        &self,
        name: &AccountName,
        settings: Vec<u8>,
        expected_revision: u64,
    ) -> Result<AccountDecision, Undecided>;
    /// Marks an account as being deleted.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn set_deleting(&self, name: &AccountName) -> Result<AccountDecision, Undecided>;
    /// Records a token that lets another region make a replica.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn issue_sublease(
        &self,
        name: &AccountName,
        token: &str,
        lifetime: Duration,
    ) -> Result<AccountDecision, Undecided>;
}

/// Why a change of an account is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    #[error("account name {name} is already taken")]
    Taken {
        /// The account.
        name: AccountName,
    },
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
    #[error("account {name} is a replica here; its primary is in region {region}")]
    NotPrimary {
        /// The account.
        name: AccountName,
        /// The region that is primary.
        region: String,
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
    #[error("the account's storage cannot be prepared")]
    Storage,
}

impl From<Undecided> for AccountError {
    fn from(undecided: Undecided) -> Self {
        Self::Undecided(undecided.0)
    }
}

/// Makes, changes and ends accounts. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    registry: Registry,
    book: Arc<dyn AccountBook>,
}

impl Accounts {
    /// Accounts of this registry, as this book has them.
    pub fn new(registry: Registry, book: Arc<dyn AccountBook>) -> Self {
        Self { registry, book }
    }

    /// The registry.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// An account with its settings.
    ///
    /// # Errors
    /// [`AccountError::Unknown`], or [`AccountError::Invalid`] for settings that a later version wrote.
    pub fn load(&self, name: &AccountName) -> Result<(AccountEntry, AccountSettings), AccountError> {
        let entry = self.book.get(name).ok_or(AccountError::Unknown)?;
        let settings = AccountSettings::from_stored(&entry.settings)?;
        Ok((entry, settings))
    }

    /// The accounts that `shown` lets through.
    pub fn list(&self, shown: impl Fn(&AccountEntry) -> bool) -> Vec<(AccountEntry, AccountSettings)> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = self.book.list(after.as_ref(), LIST_STEP);
            let Some(last) = page.last() else { return all };
            after = Some(last.name.clone());
            all.extend(page.into_iter().filter(|entry| shown(entry)).filter_map(|entry| {
                let settings = AccountSettings::from_stored(&entry.settings).ok()?;
                Some((entry, settings))
            }));
        }
    }

    /// The other nodes.
    pub fn peers(&self) -> Vec<PeerEntry> {
        self.book.peers()
    }

    /// Makes an account, or changes its settings. Asked again with the same settings, the answer is the same.
    ///
    /// Cancel safety: dropping the future leaves open whether it is done.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn put(
        &self,
        name: &AccountName,
        tenant: &TenantId,
        settings: AccountSettings,
    ) -> Result<(AccountEntry, AccountSettings), AccountError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(entry) = self.book.get(name) else {
                match self.book.claim(name, tenant, settings.to_stored()).await? {
                    AccountDecision::Taken { region } => {
                        return Err(AccountError::Elsewhere { name: name.clone(), region });
                    }
                    // Ours, made now or by someone else just before: what it is like is looked up again.
                    AccountDecision::Done
                    | AccountDecision::Held
                    | AccountDecision::Conflict
                    | AccountDecision::NotFound => continue,
                }
            };
            if entry.tenant != *tenant {
                return Err(AccountError::Taken { name: name.clone() });
            }
            if entry.deleting {
                return Err(AccountError::Deleting { name: name.clone() });
            }
            let current = AccountSettings::from_stored(&entry.settings)?;
            let next = settings.clone().replacing(&current)?;
            if entry.is_ours {
                self.prepare(name).await?;
            }
            if next == current {
                return Ok((entry, current));
            }
            let decision = self.book.put_settings(name, next.to_stored(), entry.settings_revision).await?;
            if decision == AccountDecision::Done {
                return self.load(name);
            }
        }
        Err(AccountError::Conflict { name: name.clone() })
    }

    /// Replaces the policies for reports of vulnerabilities. Those that a user manages, only that user may change.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn put_scan_policies(
        &self,
        name: &AccountName,
        policies: Vec<ScanPolicy>,
        requester: &str,
    ) -> Result<Vec<ScanPolicy>, AccountError> {
        for _ in 0..ATTEMPTS_MAX {
            let (entry, mut settings) = self.load(name)?;
            let of_others =
                |policy: &&ScanPolicy| !policy.managed_by_user.is_empty() && policy.managed_by_user != requester;
            let refuse = |at: usize, policy: &ScanPolicy| {
                Err(AccountError::ManagedByOther { at, user: policy.managed_by_user.clone() })
            };
            let old = &settings.security_scan_policies;
            if let Some((at, lost)) = old.iter().enumerate().find(|(_, old)| of_others(old) && !policies.contains(old))
            {
                return refuse(at, lost);
            }
            if let Some((at, new)) = policies.iter().enumerate().find(|(_, new)| of_others(new) && !old.contains(new)) {
                return refuse(at, new);
            }
            settings.security_scan_policies.clone_from(&policies);
            let decision = self.book.put_settings(name, settings.to_stored(), entry.settings_revision).await?;
            if decision == AccountDecision::Done {
                return Ok(policies);
            }
        }
        Err(AccountError::Conflict { name: name.clone() })
    }

    /// Begins the deletion of an account.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn delete(&self, name: &AccountName) -> Result<(), AccountError> {
        let entry = self.book.get(name).ok_or(AccountError::Unknown)?;
        if !entry.replicas.is_empty() {
            return Err(AccountError::HasReplicas { name: name.clone(), regions: entry.replicas });
        }
        match entry.deleting {
            true => Ok(()),
            false => self.book.set_deleting(name).await.map(|_| ()).map_err(AccountError::from),
        }
    }

    /// Makes a one-time token that lets another region make a replica.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn issue_sublease(&self, name: &AccountName) -> Result<String, AccountError> {
        let entry = self.book.get(name).ok_or(AccountError::Unknown)?;
        if !entry.is_ours {
            return Err(AccountError::NotPrimary { name: name.clone(), region: entry.region });
        }
        let token = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 32]>());
        match self.book.issue_sublease(name, &token, SUBLEASE_LIFETIME).await? {
            AccountDecision::Done => Ok(token),
            AccountDecision::NotFound => Err(AccountError::Unknown),
            AccountDecision::Held | AccountDecision::Taken { .. } | AccountDecision::Conflict => {
                Err(AccountError::Conflict { name: name.clone() })
            }
        }
    }

    async fn prepare(&self, name: &AccountName) -> Result<(), AccountError> {
        self.registry.ensure_accounts(vec![name.clone()]).await.map_err(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::error!(account = %name, error, "an account's storage cannot be prepared");
            AccountError::Storage
        })
    }
}
