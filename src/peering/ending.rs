//! Ends following accounts that are gone, or this node's own, beside what must not wait for that.

use std::collections::BTreeMap;
use std::time::Duration;

use keppel_federation::Federation;
use keppel_federation::vocabulary::AccountName;
use tokio::task::JoinHandle;

use crate::registry::{Registry, RegistryError};

/// Accounts that are seen to at a time.
const AT_ONCE: usize = 4;
/// When one is looked at again that could not be ended.
const RETRY: Duration = Duration::from_secs(1);

/// The accounts that are being seen to. Dropping it ends the work, in which nothing is half-done.
#[derive(Default)]
pub(super) struct Endings {
    tasks: BTreeMap<AccountName, JoinHandle<()>>,
}

impl Drop for Endings {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

impl Endings {
    /// Sees to accounts that seem to be no longer to be followed. Comes back at once; to be called several times a second.
    pub(super) fn tend(&mut self, federation: &Federation, registry: &Registry, over: Vec<AccountName>) {
        self.tasks.retain(|_, task| !task.is_finished());
        for account in over {
            if self.tasks.len() >= AT_ONCE || self.tasks.contains_key(&account) {
                continue;
            }
            let (federation, registry, name) = (federation.clone(), registry.clone(), account.clone());
            let task = tokio::spawn(async move {
                if !end(&federation, &registry, &name).await {
                    tokio::time::sleep(RETRY).await;
                }
            });
            self.tasks.insert(account, task);
        }
    }
}

/// Gives whether the account is not followed any more.
async fn end(federation: &Federation, registry: &Registry, account: &AccountName) -> bool {
    // What this node knows may be older than what it has: after a power failure, or when it has been away.
    let state = match federation.linearize().await {
        Ok(state) => state,
        Err(error) => {
            tracing::debug!(%account, %error, "whether an account is gone cannot be asked now");
            return false;
        }
    };
    let is_gone = registry.is_of_former_account(account);
    let ended = match state.account(account) {
        Some(_) if registry.is_between_roles(account) => return false,
        Some(_) if is_gone => registry.take_copy_away(account).await,
        Some(claimed) if claimed.owner == federation.node() => registry.unfollow(account).await.map(|()| true),
        // It was made in the meantime, or this node had not heard of it: it is followed.
        Some(_) => return true,
        None => registry.take_copy_away(account).await,
    };
    match ended {
        Ok(is_over) => is_over,
        Err(RegistryError::AccountMoving { .. }) => false,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, %account, "an account is still followed");
            false
        }
    }
}
