use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use keppel_federation::Federation;
use keppel_federation::claims::{Account, AccountState, ClaimsError, DocumentKind, Opaque, Outcome};
use keppel_federation::vocabulary::{AccountName, NodeId, TenantId};
use tokio::time::{Instant, timeout};

use crate::auth::Auth;
use crate::registry::{AccountClaims, AccountRules, ClaimRefusal, Quota};

/// The auth tenant of accounts that their first push makes.
const DEFAULT_TENANT: &str = "default";

/// Claims as the federation decides them. What is known already is looked up in this node's memory; only a new name
/// asks the leader.
pub struct FederationClaims {
    federation: Arc<Federation>,
    auth: Auth,
    tenant: TenantId,
    /// When the majority was asked last and did not answer.
    unconfirmed: Mutex<Option<Instant>>,
}

/// How long the majority is waited for on behalf of a pull, and how long it is not asked again after that.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(800);
const CONFIRM_PAUSE: Duration = Duration::from_secs(1);
/// How long a claim that was decided may take to show here.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(5);

impl FederationClaims {
    /// Claims through this federation; policies as the auth room has compiled them.
    pub fn new(federation: Arc<Federation>, auth: Auth) -> Self {
        let tenant = TenantId::parse(DEFAULT_TENANT).expect("the name of the default tenant is one");
        Self { federation, auth, tenant, unconfirmed: Mutex::default() }
    }
}

#[async_trait]
impl AccountClaims for FederationClaims {
    async fn ensure_primary(&self, account: &AccountName, may_claim: bool) -> Result<(), ClaimRefusal> {
        if let Some(claimed) = self.federation.state().account(account) {
            return of_claimed(&claimed, self.federation.node());
        }
        if !may_claim {
            return Err(ClaimRefusal::Unclaimed);
        }
        let settings = Opaque::from(b"{}".to_vec());
        let decided = self.federation.claim(account.clone(), self.tenant.clone(), settings).await;
        if let Ok(decision) = &decided {
            // Whoever came second goes on with the account that the first one has, which is to be known here.
            let view = self.federation.state();
            let _ = timeout(SHOWN_TIMEOUT, view.wait_applied(decision.applied)).await;
        }
        of_outcome(decided.map(|decision| decision.outcome))
    }

    fn is_deleting(&self, account: &AccountName) -> bool {
        self.federation.state().account(account).is_some_and(|account| account.state == AccountState::Deleting)
    }

    fn rules(&self, account: &AccountName) -> Option<AccountRules> {
        let view = self.federation.state();
        let tenant = view.account(account)?.tenant.clone();
        let quota = view.document(DocumentKind::Quota, tenant.as_str());
        let quota = quota.and_then(|document| Quota::from_stored(document.body.as_bytes())).unwrap_or_default();
        let policies = self.auth.account(account).map(|(_, policies)| policies);
        Some(AccountRules { tenant, policies, quota })
    }

    fn is_primary(&self, account: &AccountName) -> bool {
        let claimed = self.federation.state().account(account);
        claimed.is_some_and(|claimed| claimed.owner == self.federation.node())
    }

    fn primary_epoch(&self, account: &AccountName) -> Option<u64> {
        let claimed = self.federation.state().account(account)?;
        (claimed.owner == self.federation.node()).then_some(claimed.epoch)
    }

    fn claim_of(&self, account: &AccountName) -> Option<u64> {
        self.federation.state().account(account).map(|claimed| claimed.claim_id)
    }

    fn version(&self) -> u64 {
        self.federation.state().applied()
    }

    fn majority_asked_at(&self) -> Option<Duration> {
        self.federation.majority_asked_at()
    }

    async fn confirm_majority(&self) -> bool {
        let unconfirmed = || self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner);
        let asked_lately = unconfirmed().is_some_and(|at| at.elapsed() < CONFIRM_PAUSE);
        if asked_lately {
            return false;
        }
        let confirmed = tokio::time::timeout(CONFIRM_TIMEOUT, self.federation.confirm_majority()).await;
        let is_confirmed = matches!(confirmed, Ok(Ok(_)));
        *unconfirmed() = (!is_confirmed).then(Instant::now);
        is_confirmed
    }
}

fn of_claimed(account: &Account, node: NodeId) -> Result<(), ClaimRefusal> {
    match (account.owner == node, account.state) {
        (true, AccountState::Active) => Ok(()),
        (true, AccountState::Deleting) => Err(ClaimRefusal::Deleting),
        (false, _) => Err(ClaimRefusal::Elsewhere { region: account.region.to_string() }),
    }
}

fn of_outcome(outcome: Result<Outcome, ClaimsError>) -> Result<(), ClaimRefusal> {
    let undecided = |reason: String| Err(ClaimRefusal::Undecided { reason });
    match outcome {
        Ok(Outcome::Won { .. }) => Ok(()),
        Ok(Outcome::Taken { region, .. }) => Err(ClaimRefusal::Elsewhere { region: region.to_string() }),
        Ok(Outcome::Refused(refusal)) => undecided(refusal.to_string()),
        Ok(Outcome::NotMember { .. }) => undecided("this node is no longer a member of the federation".into()),
        // No other outcome belongs to a claim.
        Ok(other) => undecided(format!("the federation answered {other:?}")),
        Err(error) => undecided(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keppel_federation::claims::QuorumLoss;
    use keppel_federation::vocabulary::Region;

    #[test]
    fn every_outcome_of_a_claim_has_a_clear_answer() {
        let won = Outcome::Won { epoch: 1, settings_revision: 1, created: true };
        assert_eq!(of_outcome(Ok(won)), Ok(()));
        let (region, node) = (Region::parse("eu").unwrap(), NodeId::from_public_key([1; 32]));
        let taken = Outcome::Taken { region, node, epoch: 3 };
        assert_eq!(of_outcome(Ok(taken)), Err(ClaimRefusal::Elsewhere { region: "eu".into() }));
        let lost = of_outcome(Err(ClaimsError::NoQuorum(QuorumLoss::default())));
        assert!(matches!(lost, Err(ClaimRefusal::Undecided { reason }) if reason.contains("no majority")));
    }
}
