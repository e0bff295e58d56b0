//! Whether this node may take pushes for an account.

use std::time::Duration;

use async_trait::async_trait;
use keppel_federation::vocabulary::AccountName;

use super::AccountRules;
use crate::model::uptime;

/// Why this node may not take pushes for an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimRefusal {
    /// Nobody has claimed the name, and this push does not either.
    Unclaimed,
    /// Another region is primary.
    Elsewhere {
        /// The region's name.
        region: String,
    },
    /// It is being deleted.
    Deleting,
    /// It could not be decided now; nothing was changed, or what was is harmless.
    Undecided {
        /// What is in the way and what to do.
        reason: String,
    },
}

/// Decides who owns account names: the federation, or this node alone.
#[async_trait]
pub trait AccountClaims: Send + Sync + 'static {
    /// Whether this node is primary for the account. With `may_claim` a free name is claimed. Quick for an account that
    /// is known to be ours: it is asked at every push.
    ///
    /// Cancel safety: dropping the future leaves open whether the name is claimed.
    ///
    /// # Errors
    /// [`ClaimRefusal`].
    async fn ensure_primary(&self, account: &AccountName, may_claim: bool) -> Result<(), ClaimRefusal>;

    /// Whether the account is being deleted. From memory: it is asked inside transactions.
    fn is_deleting(&self, account: &AccountName) -> bool;

    /// What was decided about an account's content; `None`: nothing. From memory: it is asked inside transactions.
    fn rules(&self, account: &AccountName) -> Option<AccountRules>;

    /// Whether this node is primary for the account, as far as it knows. From memory.
    fn is_primary(&self, account: &AccountName) -> bool;

    /// The epoch of the claim that makes this node primary for the account; `None`: it is not, or there are no epochs. From
    /// memory: it is asked inside transactions.
    fn primary_epoch(&self, _: &AccountName) -> Option<u64> {
        None
    }

    /// Which claim of the name this is: the same as long as the account is, whoever is its primary, and another one when the
    /// name is claimed again. `None`: nobody has claimed it, as far as this node knows. From memory: it is asked inside
    /// transactions.
    fn claim_of(&self, _: &AccountName) -> Option<u64> {
        None
    }

    /// Grows whenever who is primary may have changed. From memory.
    fn version(&self) -> u64 {
        0
    }

    /// The last moment, as uptime, at which a majority of the federation is known to have stood behind what this node
    /// knows; `None`: none since it started. A moment and not an age, so that no pause of this process can make it younger.
    fn majority_asked_at(&self) -> Option<Duration>;

    /// Asks the majority now, and gives whether it stands behind what this node knows. Comes back soon.
    async fn confirm_majority(&self) -> bool;
}

/// Claims without a federation: every name may be had for the asking.
#[derive(Debug, Default, Clone, Copy)]
pub struct LocalClaims;

#[async_trait]
impl AccountClaims for LocalClaims {
    async fn ensure_primary(&self, _: &AccountName, may_claim: bool) -> Result<(), ClaimRefusal> {
        match may_claim {
            true => Ok(()),
            false => Err(ClaimRefusal::Unclaimed),
        }
    }

    fn is_deleting(&self, _: &AccountName) -> bool {
        false
    }

    fn rules(&self, _: &AccountName) -> Option<AccountRules> {
        None
    }

    fn is_primary(&self, _: &AccountName) -> bool {
        true
    }

    fn majority_asked_at(&self) -> Option<Duration> {
        Some(uptime())
    }

    async fn confirm_majority(&self) -> bool {
        true
    }
}
