//! Keeps replicas whole that are to hold everything: finds out which they are, and gives each its turn.

use std::time::Duration;

use keppel_federation::Federation;
use keppel_federation::vocabulary::AccountName;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::registry::Registry;

/// How often it is looked which accounts they are.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often it is looked for work when nothing calls for it.
const TURN_INTERVAL: Duration = Duration::from_secs(1);
/// Accounts that are looked through in one step.
const ACCOUNTS_STEP: usize = 1000;

/// The task. Dropping it ends it.
pub struct Backfill {
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Backfill {
    /// Begins to fetch.
    pub fn spawn(federation: Federation, registry: Registry) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        // Dropped anywhere, it leaves nothing half-done: transfers end by themselves.
        let task = tokio::spawn(async move {
            let _ = stopped.run_until_cancelled(run(&federation, &registry)).await;
        });
        Self { task, stop }
    }

    /// Ends it, in the middle of what it does.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Backfill {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run(federation: &Federation, registry: &Registry) {
    let (mut accounts, mut look_at) = (Vec::new(), Instant::now());
    loop {
        if look_at <= Instant::now() {
            accounts = whole_replicas(federation, registry);
            registry.set_backfilled(&accounts);
            measure(registry, &accounts);
            look_at = Instant::now() + LOOK_INTERVAL;
        }
        let mut is_more = false;
        for account in &accounts {
            match registry.backfill(account).await {
                Ok(more) => is_more |= more,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, %account, "a replica that holds everything cannot be worked on");
                }
            }
        }
        if !is_more {
            tokio::select! {
                () = tokio::time::sleep(TURN_INTERVAL) => {}
                () = registry.backfill_wanted() => {}
            }
        }
    }
}

/// The accounts of other regions of which everything is to be here.
fn whole_replicas(federation: &Federation, registry: &Registry) -> Vec<AccountName> {
    let (state, node, region) = (federation.state(), federation.node(), federation.region());
    let (mut whole, mut after) = (Vec::new(), None);
    loop {
        let accounts = state.accounts_after(after.as_ref(), ACCOUNTS_STEP);
        let Some(last) = accounts.last() else { return whole };
        after = Some(last.name.clone());
        let replicas = accounts.iter().filter(|account| account.owner != node && account.replicas.contains_key(&node));
        whole.extend(replicas.map(|account| account.name.clone()).filter(|name| {
            // Policies that cannot be read say nothing: what is here stays.
            registry.policies(name).is_ok_and(|policies| policies.is_some_and(|it| it.is_eager_in(region.as_str())))
        }));
    }
}

/// Sets the gauges of what is missing.
fn measure(registry: &Registry, accounts: &[AccountName]) {
    let (mut blobs, mut bytes, mut unproven) = (0, 0, 0);
    for status in accounts.iter().filter_map(|account| registry.backfill_status(account)) {
        blobs += status.missing_blobs;
        bytes += status.missing_bytes;
        unproven += u64::from(status.proven.is_none());
    }
    metrics::gauge!("keppel_backfill_accounts").set(accounts.len() as f64);
    metrics::gauge!("keppel_backfill_accounts_unproven").set(unproven as f64);
    metrics::gauge!("keppel_backfill_missing_blobs").set(blobs as f64);
    metrics::gauge!("keppel_backfill_missing_bytes").set(bytes as f64);
}
