use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keppel_federation::Federation;
use keppel_federation::claims::{
    Account, AccountState, ClaimsError, Command, Decision, DocumentKind, Member, Opaque, Outcome, SecretHash,
};
use keppel_federation::vocabulary::{AccountName, TenantId};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::registry::{AccountBook, AccountDecision, AccountEntry, PeerEntry, Undecided};

/// How long a change that was decided may take to show here.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the federation may take to say what was decided.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(3);

/// Accounts as the federation agrees on them.
#[derive(Clone)]
pub struct FederationAccounts {
    federation: Federation,
    caught_up: Arc<Mutex<CaughtUp>>,
}

/// The last time that the federation was asked what it has decided.
#[derive(Default)]
struct CaughtUp {
    asked_at: Option<Instant>,
    failure: Option<Undecided>,
}

impl FederationAccounts {
    /// The accounts of this federation.
    pub fn new(federation: Federation) -> Self {
        Self { federation, caught_up: Arc::default() }
    }

    fn entry(&self, account: &Account) -> AccountEntry {
        AccountEntry {
            name: account.name.clone(),
            tenant: account.tenant.clone(),
            settings: account.settings.0.clone(),
            settings_revision: account.settings_revision,
            region: account.region.to_string(),
            primary: self.host_of_member(account),
            is_ours: account.owner == self.federation.node(),
            region_here: self.federation.region().to_string(),
            is_replica_here: account.replicas.contains_key(&self.federation.node()),
            deleting: account.state == AccountState::Deleting,
            replicas: account.replicas.values().map(ToString::to_string).collect(),
        }
    }

    /// The host of the primary's API; its region where it has told none.
    fn host_of_member(&self, account: &Account) -> String {
        let owner = self.federation.state().member(account.owner);
        owner.map_or_else(|| account.region.to_string(), |owner| name_of(&owner))
    }

    /// Whoever changed something sees it here when they are told so.
    async fn outcome(&self, decided: Result<Decision, ClaimsError>) -> Result<AccountDecision, Undecided> {
        let decision = decided.map_err(|error| Undecided(error.to_string()))?;
        let view = self.federation.state();
        let _ = tokio::time::timeout(SHOWN_TIMEOUT, view.wait_applied(decision.applied)).await;
        decision_of(decision.outcome)
    }
}

fn decision_of(outcome: Outcome) -> Result<AccountDecision, Undecided> {
    match outcome {
        Outcome::Won { created: true, .. } | Outcome::Done | Outcome::Stored { .. } => Ok(AccountDecision::Done),
        Outcome::Won { created: false, .. } => Ok(AccountDecision::Held),
        Outcome::Taken { region, .. } => Ok(AccountDecision::Taken { region: region.to_string() }),
        Outcome::Conflict { .. } | Outcome::StaleEpoch { .. } => Ok(AccountDecision::Conflict),
        Outcome::NotFound | Outcome::Expired | Outcome::AlreadyUsed => Ok(AccountDecision::NotFound),
        Outcome::NotMember { .. } => Err(Undecided("this node is no longer a member of the federation".into())),
        Outcome::Refused(refusal) => Err(Undecided(refusal.to_string())),
        // None of these belongs to an account.
        Outcome::Admitted(_) | Outcome::Moved { .. } => Err(Undecided("the federation gave another answer".into())),
    }
}

#[async_trait]
impl AccountBook for FederationAccounts {
    fn get(&self, name: &AccountName) -> Option<AccountEntry> {
        self.federation.state().account(name).map(|account| self.entry(&account))
    }

    async fn catch_up(&self) -> Result<(), Undecided> {
        let came_at = Instant::now();
        // The lock is the queue: whoever comes while a question is under way waits, and one of them asks the next for all.
        let mut last = self.caught_up.lock().await;
        if last.asked_at.is_none_or(|asked_at| asked_at < came_at) {
            let asked_at = Instant::now();
            let asked = tokio::time::timeout(CATCH_UP_TIMEOUT, self.federation.linearize()).await;
            let failure = match asked {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(Undecided(error.to_string())),
                Err(_) => Some(Undecided("the federation does not answer; see `keppel federation status`".into())),
            };
            *last = CaughtUp { asked_at: Some(asked_at), failure };
        }
        last.failure.clone().map_or(Ok(()), Err)
    }

    fn list(&self, after: Option<&AccountName>, limit: usize) -> Vec<AccountEntry> {
        let accounts = self.federation.state().accounts_after(after, limit);
        accounts.iter().map(|account| self.entry(account)).collect()
    }

    fn peers(&self) -> Vec<PeerEntry> {
        let others = self.federation.members().into_iter().filter(|member| member.node != self.federation.node());
        let peer = |member: Member| PeerEntry {
            node: member.node,
            hostname: name_of(&member),
            region: member.region.to_string(),
            role: member.role.as_str().to_owned(),
        };
        others.map(peer).collect()
    }

    async fn claim(
        &self,
        name: &AccountName,
        tenant: &TenantId,
        settings: Vec<u8>,
    ) -> Result<AccountDecision, Undecided> {
        let decided = self.federation.claim(name.clone(), tenant.clone(), Opaque::from(settings)).await;
        self.outcome(decided).await
    }

    async fn put_settings(
        &self,
        name: &AccountName,
        settings: Vec<u8>,
        expected_revision: u64,
    ) -> Result<AccountDecision, Undecided> {
        let settings = Opaque::from(settings);
        let decided = self.federation.put_settings(name.clone(), settings, Some(expected_revision)).await;
        self.outcome(decided).await
    }

    async fn set_deleting(&self, name: &AccountName) -> Result<AccountDecision, Undecided> {
        let command = Command::SetDeleting { name: name.clone(), deleting: true };
        let decided = self.federation.submit(command).await;
        self.outcome(decided).await
    }

    async fn forfeit(&self, name: &AccountName) -> Result<AccountDecision, Undecided> {
        let Some(account) = self.federation.state().account(name) else { return Ok(AccountDecision::NotFound) };
        if account.owner != self.federation.node() || account.state != AccountState::Deleting {
            return Ok(AccountDecision::Conflict);
        }
        let decided = self.federation.forfeit(name.clone(), account.epoch).await;
        self.outcome(decided).await
    }

    async fn issue_sublease(
        &self,
        name: &AccountName,
        token: &str,
        lifetime: Duration,
    ) -> Result<AccountDecision, Undecided> {
        let token = SecretHash::of(token.as_bytes());
        let decided = self.federation.issue_sublease(name.clone(), token, lifetime).await;
        self.outcome(decided).await
    }

    async fn redeem_sublease(&self, name: &AccountName, token: &str) -> Result<AccountDecision, Undecided> {
        let decided = self.federation.redeem_sublease(name.clone(), SecretHash::of(token.as_bytes())).await;
        self.outcome(decided).await
    }

    async fn detach_replica(&self, name: &AccountName) -> Result<AccountDecision, Undecided> {
        let command = Command::DetachReplica { name: name.clone(), node: self.federation.node() };
        let decided = self.federation.submit(command).await;
        self.outcome(decided).await
    }

    fn get_quota(&self, tenant: &TenantId) -> Option<(Bytes, u64)> {
        let document = self.federation.state().document(DocumentKind::Quota, tenant.as_str())?;
        Some((document.body.0.clone(), document.revision))
    }

    async fn put_quota(
        &self,
        tenant: &TenantId,
        quota: Vec<u8>,
        expected_revision: u64,
    ) -> Result<AccountDecision, Undecided> {
        let (id, body) = (tenant.to_string(), Opaque::from(quota));
        let decided = self.federation.put_document(DocumentKind::Quota, id, body, Some(expected_revision)).await;
        self.outcome(decided).await
    }
}

/// What clients call a member: the host of its API, or its region where it has told none.
fn name_of(member: &Member) -> String {
    match host_of(&member.api_url) {
        "" => member.region.to_string(),
        host => host.to_owned(),
    }
}

/// The host and port of a URL.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_cut_out_of_urls() {
        assert_eq!(host_of("https://eu.example.org:5000/x"), "eu.example.org:5000");
        assert_eq!(host_of("http://[::1]:5000"), "[::1]:5000");
        assert_eq!(host_of(""), "");
    }
}
