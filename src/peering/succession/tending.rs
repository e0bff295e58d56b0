//! Sees to it that this node acts on what was decided: takes accounts over, gives them up, and goes on with those that were to
//! be moved and were not.

use std::collections::BTreeMap;
use std::time::Duration;

use keppel_federation::Federation;
use keppel_federation::claims::Outcome;
use keppel_federation::vocabulary::{AccountName, NodeId};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{BRIEF_DEADLINE, SuccessionAnswer, SuccessionQuestion, ask};
use crate::metadata::Cursor;
use crate::registry::{Handover, Registry, RegistryError};

/// When something is tried again that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks for blobs that are missing, and at what is divergent.
const MISSING_INTERVAL: Duration = Duration::from_secs(10);

/// What is being done, each account by one task at most. Dropping it ends them.
#[derive(Default)]
pub(in crate::peering) struct Roles {
    tasks: BTreeMap<AccountName, JoinHandle<()>>,
    missing: Option<JoinHandle<()>>,
    missing_at: Option<Instant>,
}

impl Drop for Roles {
    fn drop(&mut self) {
        self.tasks.values().chain(&self.missing).for_each(JoinHandle::abort);
    }
}

impl Roles {
    fn start<F: Future<Output = Result<(), RegistryError>> + Send + 'static>(
        &mut self,
        account: AccountName,
        work: impl FnOnce(AccountName) -> F,
    ) {
        if self.tasks.contains_key(&account) {
            return;
        }
        let work = work(account.clone());
        let name = account.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::warn!(error = &error as &dyn std::error::Error, account = %name, "a change of roles is tried again");
                tokio::time::sleep(RETRY).await;
            }
        });
        self.tasks.insert(account, task);
    }
}

/// Looks for what has to be done, and has it done. Comes back at once; to be called several times a second.
pub(in crate::peering) fn tend(federation: &Federation, registry: &Registry, roles: &mut Roles) {
    roles.tasks.retain(|_, task| !task.is_finished());
    for account in registry.arrived_accounts() {
        // It was decided, and this node did not get to act on it: it may have been long ago, or just now.
        let registry = registry.clone();
        roles.start(account, |account| async move { registry.take_account(&account, Handover::Seized).await });
    }
    for (account, epoch) in registry.lost_accounts() {
        let (federation, registry) = (federation.clone(), registry.clone());
        roles.start(account, |account| async move { step_down(&federation, &registry, &account, epoch).await });
    }
    for (account, epoch) in registry.overdue_accounts() {
        let (federation, registry) = (federation.clone(), registry.clone());
        roles.start(account, |account| async move { keep(&federation, &registry, &account, epoch).await });
    }
    let state = federation.state();
    for (account, epoch) in registry.surveyed_accounts() {
        // Whoever was to be replaced has been.
        if state.account(&account).is_none_or(|claimed| claimed.epoch != epoch) {
            registry.end_survey(&account);
        }
    }
    for account in registry.unordered_accounts() {
        let registry = registry.clone();
        roles.start(account, |account| async move { registry.put_account_in_order(&account).await });
    }
    let is_idle = roles.missing.as_ref().is_none_or(JoinHandle::is_finished);
    if is_idle && roles.missing_at.is_none_or(|at| at <= Instant::now()) {
        roles.missing_at = Some(Instant::now() + MISSING_INTERVAL);
        let registry = registry.clone();
        roles.missing = Some(tokio::spawn(async move {
            if let Err(error) = registry.prune_divergent().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "divergent changes are looked through again");
            }
            match registry.fetch_missing_blobs().await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "blobs that were missing since a region was lost have come"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "missing blobs are looked for again")
                }
            }
        }));
    }
}

/// Finds out where the successor took over, and becomes a replica.
async fn step_down(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    epoch: u64,
) -> Result<(), RegistryError> {
    match find_place(federation, registry, account, epoch + 1).await {
        Some(place) => registry.step_down(account, place).await.map(drop),
        None => {
            // Whoever knows cannot be asked now. What is here stays as it is until then.
            tokio::time::sleep(RETRY).await;
            Ok(())
        }
    }
}

/// Where in the log here the node began that has the next epoch: asked of all, the primary first, since it may have given the
/// account on. `Some(None)`: nobody knows. `None`: the primary cannot be asked.
pub(in crate::peering) async fn find_place(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    epoch: u64,
) -> Option<Option<Cursor>> {
    let owner = federation.state().account(account)?.owner;
    let others = federation.members().into_iter().map(|member| member.node);
    let others = others.filter(|node| *node != owner && *node != federation.node());
    let nodes: Vec<NodeId> = std::iter::once(owner).chain(others).collect();
    let mut owner_answered = false;
    for node in nodes {
        let question = SuccessionQuestion::Place { account: account.clone(), epoch };
        match ask(federation, registry, node, question, BRIEF_DEADLINE).await {
            Ok(SuccessionAnswer::Place(Some(place))) => return Some(Some(place)),
            Ok(_) => owner_answered |= node == owner,
            Err(reason) => tracing::debug!(%account, peer = %node, reason, "a node cannot be asked about an epoch"),
        }
    }
    owner_answered.then_some(None)
}

/// Goes on as the primary of an account that was not moved in time: in another epoch, so that it cannot be any more.
async fn keep(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    epoch: u64,
) -> Result<(), RegistryError> {
    let decided = federation.move_primary(account.clone(), federation.node(), epoch).await;
    let next = match decided.map(|decision| (decision.outcome, decision.applied)) {
        Ok((Outcome::Moved { epoch }, applied)) => {
            federation.state().wait_applied(applied).await;
            Some(epoch)
        }
        Ok((Outcome::StaleEpoch { epoch, owner }, applied)) => {
            federation.state().wait_applied(applied).await;
            // It was ours already, or it is another's: then this node steps down.
            (owner == federation.node()).then_some(epoch)
        }
        Ok((other, _)) => {
            tracing::warn!(%account, outcome = ?other, "an account cannot be kept");
            None
        }
        Err(error) => {
            tracing::warn!(%account, %error, "whether an account was moved cannot be asked now: it takes no writes until then");
            None
        }
    };
    match next {
        Some(next) => registry.keep_account(account, epoch, next).await,
        None => {
            tokio::time::sleep(RETRY).await;
            Ok(())
        }
    }
}
