//! Empties accounts that are being deleted, then gives their names back.
//!
//! Each step is small and a transaction of its own, so that a crash anywhere is gone on from by the next run: manifests,
//! mounts, repositories, blobs, the storage space, the row, and the claim last, since until then nobody may push.

use crate::registry::{AccountError, AccountStep, Accounts, RegistryError};

use super::report::RunReport;

/// Runs once.
///
/// # Errors
/// Our own trouble; the next run goes on.
pub async fn run(accounts: &Accounts) -> Result<RunReport, RegistryError> {
    let mut report = RunReport::default();
    for (entry, _) in accounts.list(|entry| entry.is_ours && entry.deleting) {
        report.looked_at += 1;
        let account = &entry.name;
        if !entry.replicas.is_empty() {
            report.say(format!("{account}: waits for its replicas in {} to go", entry.replicas.join(", ")));
            continue;
        }
        let mut size_bytes = 0;
        let is_empty = loop {
            match accounts.registry().empty_account(account).await? {
                AccountStep::More(left) => {
                    report.reclaimed_bytes += u64::saturating_sub(size_bytes, left.size_bytes);
                    size_bytes = left.size_bytes;
                    tracing::debug!(%account, manifests = left.manifests, size_bytes, "an account is being emptied");
                }
                AccountStep::Busy => break false,
                AccountStep::Empty => break true,
            }
        };
        report.reclaimed_bytes += size_bytes;
        if !is_empty {
            report.say(format!("{account}: waits for uploads that are being written to"));
            continue;
        }
        match accounts.forfeit(account).await {
            Ok(()) => {
                tracing::info!(%account, "an account was deleted; its name is free");
                report.changed += 1;
                report.say(format!("{account}: deleted"));
            }
            Err(error @ (AccountError::Undecided(_) | AccountError::Conflict { .. })) => {
                tracing::warn!(%account, %error, "an account is empty, but its name cannot be given back now");
                report.faults += 1;
                report.say(format!("{account}: is empty, but its name cannot be given back now: {error}"));
            }
            Err(error) => {
                report.faults += 1;
                report.say(format!("{account}: {error}"));
            }
        }
    }
    Ok(report)
}
