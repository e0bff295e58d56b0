//! Compares what is here of other regions' accounts with their primaries, and hands them the pull times of this region.
//!
//! Following brings every change by itself; this is the net under it. What differs at one place of an account's log is lost
//! or wrong, not late: then the account is listed anew, which deletes what the primary deleted, fetches what is missing, and
//! sets the tags as they are there.

use keppel_federation::vocabulary::AccountName;

use super::report::RunReport;
use crate::registry::{Registry, RegistryError};

/// Runs once over an account, or over all that are followed.
///
/// # Errors
/// Our own trouble; the next run goes on.
pub async fn run(
    registry: &Registry,
    account: Option<&AccountName>,
    dry_run: bool,
) -> Result<RunReport, RegistryError> {
    let mut report = RunReport::default();
    for (followed, _) in registry.copy_places() {
        if account.is_none_or(|account| *account == followed) {
            sync(registry, &followed, dry_run, &mut report).await?;
        }
    }
    Ok(report)
}

async fn sync(
    registry: &Registry,
    account: &AccountName,
    dry_run: bool,
    report: &mut RunReport,
) -> Result<(), RegistryError> {
    let comparison = match registry.compare_copy(account).await {
        Ok(Some(comparison)) => comparison,
        Ok(None) => {
            report.say(format!("{account}: cannot be compared now, since it is not all here yet or changes too fast"));
            return Ok(());
        }
        Err(error @ RegistryError::PrimaryUnreachable { .. }) => {
            report.say(format!("{account}: {error}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    report.looked_at += comparison.repositories;
    let mut is_different = false;
    for differing in comparison.differing.iter().filter(|differing| differing.manifests || differing.tags) {
        is_different = true;
        report.changed += 1;
        report.faults += 1;
        let what = match (differing.manifests, differing.tags) {
            (true, true) => "manifests and tags",
            (true, false) => "manifests",
            _ => "tags",
        };
        report.say(format!("{}: its {what} are not those of the primary", differing.repository));
    }
    if dry_run {
        return Ok(());
    }
    if is_different {
        tracing::warn!(%account, "a copy is not what its primary has: it is listed anew");
        metrics::counter!("keppel_janitor_copies_repaired_total").increment(1);
        registry.list_copy_anew(account);
    }
    match registry.hand_over_pull_times(account).await {
        Ok(count) => report.looked_at += count,
        Err(error @ RegistryError::PrimaryUnreachable { .. }) => report.say(format!("{account}: {error}")),
        Err(error) => return Err(error),
    }
    Ok(())
}
