//! Takes blobs out of repositories in which no manifest refers to them.
//!
//! Mark and sweep: a mount that nobody needs is marked, and goes once the mark is older than the grace period. Whoever is
//! told that the blob is there (an upload, a mount, a HEAD) takes the mark away or comes before it, so that their manifest
//! may come for as long as the grace period lasts. The decision is made anew in the transaction that deletes.
//!
//! What refers to what is recorded when a manifest is; what came later (copies of another region, layers that may come
//! later) is found by reading the manifests again, before anything is swept. Where one cannot be read, nothing is.

use crate::metadata::{BlobId, RepositoryId};
use crate::registry::{Registry, RegistryError};

use super::manifest_validation;
use super::report::RunReport;

/// Mounts that are looked at together.
const PAGE: usize = 500;
/// Manifests that are read again together.
const MANIFESTS_PAGE: usize = 100;

/// Runs once over a repository. `grace` is in seconds.
///
/// # Errors
/// Our own trouble; the next run goes on.
pub async fn run(
    registry: &Registry,
    repository: RepositoryId,
    grace: i64,
    dry_run: bool,
) -> Result<RunReport, RegistryError> {
    let (mut report, mut after, mut is_read) = (RunReport::default(), None, false);
    loop {
        let page = registry.metadata().read(move |reader| reader.list_swept_mounts(repository, after, PAGE)).await;
        let page = page.map_err(RegistryError::Metadata)?;
        let Some(last) = page.last() else { return Ok(report) };
        after = Some(last.blob);
        report.looked_at += page.len() as u64;
        let until = registry.now().saturating_sub(grace);
        let is_ripe = |since: Option<i64>| since.is_some_and(|since| since <= until);
        let ripe: Vec<BlobId> =
            page.iter().filter(|mount| !mount.is_needed && is_ripe(mount.unneeded_since)).map(|m| m.blob).collect();
        // A mark says the opposite of need.
        let wrong = page.iter().filter(|mount| mount.is_needed == mount.unneeded_since.is_some());
        let wrong: Vec<BlobId> = wrong.map(|mount| mount.blob).collect();
        if dry_run {
            report.changed += ripe.len() as u64;
            continue;
        }
        if !ripe.is_empty() && !is_read {
            if !read_again(registry, repository).await? {
                report.faults += 1;
                report.say("a manifest there cannot be read, so that nothing is swept".to_owned());
                return Ok(report);
            }
            is_read = true;
        }
        if wrong.is_empty() && ripe.is_empty() {
            continue;
        }
        let clock = registry.clone();
        let swept = registry.metadata().write(move |transaction| {
            let now = clock.now();
            wrong.iter().try_for_each(|blob| transaction.mark_mount(repository, *blob, now))?;
            if transaction.has_invalid_manifest(repository)? {
                return Ok::<_, RegistryError>(None);
            }
            let mut swept = 0;
            for blob in ripe {
                swept += u64::from(transaction.sweep_mount(repository, blob, now.saturating_sub(grace))?);
            }
            Ok(Some(swept))
        });
        match swept.await? {
            Some(swept) => report.changed += swept,
            None => {
                report.faults += 1;
                report.say("a manifest there is not valid, so that nothing is swept".to_owned());
                return Ok(report);
            }
        }
    }
}

/// Reads all manifests of a repository again and records what they refer to; gives whether all could be read.
async fn read_again(registry: &Registry, repository: RepositoryId) -> Result<bool, RegistryError> {
    let mut after = None;
    loop {
        let page =
            registry.metadata().read(move |reader| reader.list_images(repository, after.as_ref(), MANIFESTS_PAGE));
        let page = page.await.map_err(RegistryError::Metadata)?;
        let Some(last) = page.last() else { return Ok(true) };
        after = Some(last.digest);
        let manifests = page.iter().map(|image| image.id).collect();
        let findings = manifest_validation::look(registry, manifests).await?;
        let all_read = findings.iter().all(|finding| finding.is_readable);
        manifest_validation::record(registry, findings).await?;
        if !all_read {
            return Ok(false);
        }
    }
}
