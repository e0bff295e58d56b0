//! Deletes blobs that no repository of their account has.
//!
//! Mark and sweep, like the sweep of mounts before it; nobody can be told of a blob that is mounted nowhere, so that a mark
//! of an earlier run is old enough. Row before bytes: what a crash leaves, the storage sweep takes.

use keppel_federation::vocabulary::AccountName;

use crate::metadata::{AccountId, BlobId};
use crate::registry::{Registry, RegistryError};

use super::report::RunReport;

/// Blobs that are looked at together.
const PAGE: usize = 500;

/// Runs once over an account.
///
/// # Errors
/// Our own trouble; the next run goes on.
pub async fn run(
    registry: &Registry,
    name: &AccountName,
    account: AccountId,
    dry_run: bool,
) -> Result<RunReport, RegistryError> {
    let (mut report, mut after) = (RunReport::default(), None);
    loop {
        let page = registry.metadata().read(move |reader| reader.list_swept_blobs(account, after.as_ref(), PAGE)).await;
        let page = page.map_err(RegistryError::Metadata)?;
        let Some(last) = page.last() else { return Ok(report) };
        after = Some(last.digest);
        report.looked_at += page.len() as u64;
        let until = registry.now().saturating_sub(1);
        let is_ripe = |since: Option<i64>| since.is_some_and(|since| since <= until);
        let ripe: Vec<BlobId> =
            page.iter().filter(|blob| !blob.is_needed && is_ripe(blob.unneeded_since)).map(|b| b.blob).collect();
        let wrong = page.iter().filter(|blob| blob.is_needed == blob.unneeded_since.is_some());
        let wrong: Vec<BlobId> = wrong.map(|blob| blob.blob).collect();
        if dry_run {
            report.changed += ripe.len() as u64;
            continue;
        }
        if wrong.is_empty() && ripe.is_empty() {
            continue;
        }
        let clock = registry.clone();
        let swept = registry.metadata().write(move |transaction| {
            let now = clock.now();
            wrong.iter().try_for_each(|blob| transaction.mark_blob(*blob, now))?;
            let mut swept = Vec::new();
            for blob in ripe {
                swept.extend(transaction.sweep_blob(blob, now.saturating_sub(1))?);
            }
            Ok::<_, RegistryError>(swept)
        });
        for (size_bytes, key) in swept.await? {
            registry.storage().delete_blob(name, &key).await?;
            report.changed += 1;
            report.reclaimed_bytes += size_bytes;
        }
    }
}
