//! Accounts: made, changed and ended by decisions that hold in all regions.

use std::sync::Arc;
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, TenantId};

use super::{AccountBook, AccountDecision, AccountEntry, AccountError, CopyLag, PeerEntry, Registry, Undecided};
use crate::model::policy::{AccountSettings, ReplicaSettings, Replication, ScanPolicy, SettingsError, Upstream};

/// How long a sublease token is good.
const SUBLEASE_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often a change is tried again when someone else was first.
pub(super) const ATTEMPTS_MAX: usize = 8;
/// Accounts that are looked through at a time.
const LIST_STEP: usize = 1000;

/// Who asks for a change.
#[derive(Debug, Clone, Copy)]
pub struct Requester<'a> {
    /// Their name; empty: nobody knows.
    pub username: &'a str,
    /// Whether they run the registry.
    pub is_operator: bool,
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

    /// Where accounts are agreed on.
    pub(super) fn book(&self) -> &dyn AccountBook {
        &*self.book
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
        let settings = as_seen_here(&entry, settings);
        Ok((entry, settings))
    }

    /// Whether the content of an account comes from a registry outside the federation, wherever its primary is.
    pub fn is_mirror(&self, name: &AccountName) -> bool {
        let entry = self.book.get(name);
        let settings = entry.and_then(|entry| AccountSettings::from_stored(&entry.settings).ok());
        settings.is_some_and(|settings| settings.is_external_replica())
    }

    /// Makes sure that an account that is not known here did not exist either when this was called: a name that was
    /// claimed in another region a moment ago may not have come here yet.
    ///
    /// Cancel safety: may be dropped.
    ///
    /// # Errors
    /// [`Undecided`], when this node knows of no such account and the federation cannot be asked.
    pub async fn ensure_current(&self, name: &AccountName) -> Result<(), Undecided> {
        match self.book.get(name) {
            Some(_) => Ok(()),
            None => self.book.catch_up().await,
        }
    }

    /// Waits until all that was decided before this call shows here.
    ///
    /// Cancel safety: may be dropped.
    ///
    /// # Errors
    /// [`Undecided`], when the federation cannot be asked.
    pub async fn catch_up(&self) -> Result<(), Undecided> {
        self.book.catch_up().await
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
                let settings = as_seen_here(&entry, settings);
                Some((entry, settings))
            }));
        }
    }

    /// The tenant of an account.
    pub fn tenant_of(&self, name: &AccountName) -> Option<TenantId> {
        self.book.get(name).map(|entry| entry.tenant)
    }

    /// The other nodes in the order of their names, with how far the copies of their accounts here are behind.
    pub fn peers(&self) -> Vec<(PeerEntry, CopyLag)> {
        let copies = self.registry.copy_status();
        let with_lag = |peer: PeerEntry| {
            let lag = CopyLag::of(peer.node, &copies);
            (peer, lag)
        };
        let mut peers: Vec<_> = self.book.peers().into_iter().map(with_lag).collect();
        peers.sort_unstable_by(|(a, _), (b, _)| (&a.hostname, a.node).cmp(&(&b.hostname, b.node)));
        peers
    }

    /// Makes an account, or changes its settings. Asked again with the same settings, the answer is the same. A name whose
    /// primary is another node becomes a replica here with a sublease token.
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
        sublease: Option<&str>,
    ) -> Result<(AccountEntry, AccountSettings), AccountError> {
        for _ in 0..ATTEMPTS_MAX {
            let upstream = settings.replication.as_ref().and_then(peer_of);
            let Some(entry) = self.book.get(name) else {
                if let Some(upstream) = upstream {
                    return Err(bad_upstream(format!("{upstream:?} has no account {name}")));
                }
                settings.check_credentials()?;
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
                return Err(AccountError::Taken { name: name.clone(), region: entry.region });
            }
            if entry.deleting {
                return Err(AccountError::Deleting { name: name.clone() });
            }
            if !entry.is_ours {
                let Some(upstream) = upstream else {
                    return Err(AccountError::Elsewhere { name: name.clone(), region: entry.region });
                };
                if upstream != entry.primary && upstream != entry.region {
                    let reason = format!("{upstream:?} is not the primary of account {name}: {:?} is", entry.primary);
                    return Err(bad_upstream(reason));
                }
                if !entry.is_replica_here {
                    self.redeem(name, sublease).await?;
                    continue;
                }
            }
            let current = AccountSettings::from_stored(&entry.settings)?;
            let next = match entry.is_ours {
                true => settings.clone().replacing(&current)?,
                false => for_replica(&entry, &settings, &current)?,
            };
            self.prepare(name).await?;
            if next == current {
                return Ok((entry.clone(), as_seen_here(&entry, current)));
            }
            let decision = self.book.put_settings(name, next.to_stored(), entry.settings_revision).await?;
            if decision == AccountDecision::Done {
                return self.load(name);
            }
        }
        Err(AccountError::Conflict { name: name.clone() })
    }

    /// Uses a sublease token up, so that this node may hold a replica.
    async fn redeem(&self, name: &AccountName, token: Option<&str>) -> Result<(), AccountError> {
        let token = token.ok_or(AccountError::Sublease { reason: "is missing; the primary issues it" })?;
        match self.book.redeem_sublease(name, token).await? {
            AccountDecision::Done | AccountDecision::Held => Ok(()),
            AccountDecision::NotFound => {
                Err(AccountError::Sublease { reason: "is wrong, was used already, or has run out" })
            }
            AccountDecision::Taken { .. } | AccountDecision::Conflict => {
                Err(AccountError::Conflict { name: name.clone() })
            }
        }
    }

    /// Replaces the policies for reports of vulnerabilities. Those that a user manages, only that user may change, and
    /// whoever runs the registry.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn put_scan_policies(
        &self,
        name: &AccountName,
        policies: Vec<ScanPolicy>,
        requester: Requester<'_>,
    ) -> Result<Vec<ScanPolicy>, AccountError> {
        for _ in 0..ATTEMPTS_MAX {
            let entry = self.book.get(name).ok_or(AccountError::Unknown)?;
            let mut settings = AccountSettings::from_stored(&entry.settings)?;
            let of_others = |policy: &&ScanPolicy| {
                let manager = &*policy.managed_by_user;
                !requester.is_operator && !manager.is_empty() && manager != requester.username
            };
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

    /// Begins the deletion of an account; a replica is given up at once.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn delete(&self, name: &AccountName) -> Result<(), AccountError> {
        let entry = self.book.get(name).ok_or(AccountError::Unknown)?;
        let decision = match (entry.is_ours, entry.is_replica_here) {
            (false, true) => {
                self.forget_replica(&entry).await?;
                self.book.detach_replica(name).await?
            }
            (false, false) => return Err(AccountError::Elsewhere { name: name.clone(), region: entry.region }),
            (true, _) if !entry.replicas.is_empty() => {
                return Err(AccountError::HasReplicas { name: name.clone(), regions: entry.replicas });
            }
            (true, _) if entry.deleting => return Ok(()),
            (true, _) => self.book.set_deleting(name).await?,
        };
        match decision {
            AccountDecision::NotFound => Err(AccountError::Unknown),
            AccountDecision::Conflict => Err(AccountError::Conflict { name: name.clone() }),
            AccountDecision::Done | AccountDecision::Held | AccountDecision::Taken { .. } => Ok(()),
        }
    }

    /// Takes away what the replica here has of its own, unless another node of this region has one, too.
    async fn forget_replica(&self, entry: &AccountEntry) -> Result<(), AccountError> {
        if entry.replicas.iter().filter(|region| **region == entry.region_here).count() > 1 {
            return Ok(());
        }
        for _ in 0..ATTEMPTS_MAX {
            let entry = self.book.get(&entry.name).ok_or(AccountError::Unknown)?;
            let current = AccountSettings::from_stored(&entry.settings)?;
            let mut next = current.clone();
            next.set_replica(&entry.region_here, ReplicaSettings::default());
            next.set_eager(&entry.region_here, false);
            if next == current {
                return Ok(());
            }
            let decision = self.book.put_settings(&entry.name, next.to_stored(), entry.settings_revision).await?;
            if decision == AccountDecision::Done {
                return Ok(());
            }
        }
        Err(AccountError::Conflict { name: entry.name.clone() })
    }

    /// Gives the name of an account back that was being deleted and is empty now.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn forfeit(&self, name: &AccountName) -> Result<(), AccountError> {
        match self.book.forfeit(name).await? {
            AccountDecision::Done | AccountDecision::NotFound => Ok(()),
            AccountDecision::Held | AccountDecision::Taken { .. } | AccountDecision::Conflict => {
                Err(AccountError::Conflict { name: name.clone() })
            }
        }
    }

    /// Makes a one-time token that lets another region make a replica of this primary: not of what is a replica itself, of
    /// another region or of a registry outside, nor of what is on its way out.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn issue_sublease(&self, name: &AccountName) -> Result<String, AccountError> {
        let entry = self.book.get(name).ok_or(AccountError::Unknown)?;
        if !entry.is_ours {
            let role = if entry.is_replica_here { "a replica" } else { "no primary" };
            return Err(AccountError::NotPrimary { role, name: name.clone(), region: entry.region });
        }
        if let Some(upstream) = AccountSettings::from_stored(&entry.settings)?.external_upstream() {
            return Err(AccountError::Mirror { name: name.clone(), upstream: upstream.to_owned() });
        }
        if entry.deleting {
            return Err(AccountError::NoSublease { name: name.clone() });
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
            AccountError::Storage { name: name.clone() }
        })
    }
}

/// The peer that a replica asks for, unless its content comes from outside the federation.
fn peer_of(replication: &Replication) -> Option<&str> {
    match &replication.upstream {
        Upstream::Peer(peer) => Some(peer),
        Upstream::External { .. } => None,
    }
}

fn bad_upstream(reason: String) -> AccountError {
    SettingsError::new("account.replication.upstream", reason).into()
}

/// The settings as this region shows them: a replica says where its primary is and has policies of its own, and only
/// replicas filter platforms.
fn as_seen_here(entry: &AccountEntry, mut settings: AccountSettings) -> AccountSettings {
    if entry.region != entry.region_here {
        settings = settings.in_region(&entry.region_here);
    }
    if entry.is_replica_here {
        let is_eager = settings.is_eager_in(&entry.region_here);
        // As it was written, as long as that still names the primary.
        let written = settings.replicas.get(&entry.region_here).map(|own| &own.upstream);
        let upstream = written.filter(|upstream| **upstream == entry.region).unwrap_or(&entry.primary).clone();
        settings.replication = Some(Replication { upstream: Upstream::Peer(upstream), is_eager });
    } else if settings.replication.is_none() {
        settings.platform_filter.clear();
    }
    settings
}

/// What a request to a replica changes of the settings that travel with the account: what this region has of its own. What
/// is about the content itself, which is one in all regions, is decided where the primary is.
fn for_replica(
    entry: &AccountEntry,
    asked: &AccountSettings,
    current: &AccountSettings,
) -> Result<AccountSettings, AccountError> {
    let shared = [
        ("account.gc_policies", asked.gc_policies.is_empty() || asked.gc_policies == current.gc_policies),
        ("account.copies", asked.copies.is_none() || asked.copies == current.copies),
        ("account.ack", asked.ack.is_none() || asked.ack == current.ack),
    ];
    if let Some((field, _)) = shared.into_iter().find(|(_, is_shared)| !is_shared) {
        let reason = format!("is the same in all regions: change it in region {}, where the primary is", entry.region);
        return Err(SettingsError::new(field, reason).into());
    }
    let mut own = ReplicaSettings::of(asked, current);
    if entry.region == entry.region_here && own != ReplicaSettings::default() {
        let reason = "has policies of its own, which a replica in the region of its primary cannot have";
        return Err(SettingsError::new("account", reason).into());
    }
    let mut next = current.clone();
    let upstream = asked.replication.as_ref().and_then(peer_of).filter(|upstream| *upstream != entry.primary);
    own.upstream = upstream.unwrap_or_default().to_owned();
    next.set_replica(&entry.region_here, own);
    next.set_eager(&entry.region_here, asked.replication.as_ref().is_some_and(|replica| replica.is_eager));
    Ok(next)
}
