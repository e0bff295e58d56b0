//! Looks at all that one account keeps here, now and not when it is due.

use keppel_federation::vocabulary::AccountName;

use crate::metadata::MetadataError;
use crate::registry::RegistryError;

use super::report::{LINES_MAX, RunReport, ScrubProgress};
use super::work::JanitorWork;
use super::{blob_validation, manifest_validation};

/// Manifests that are read together.
const MANIFESTS_PAGE: usize = 100;
/// Blobs that are listed together.
const BLOBS_PAGE: usize = 200;

/// Runs once, keeping `tell` informed.
pub(super) async fn run(
    work: &JanitorWork,
    account: &AccountName,
    tell: impl Fn(&dyn Fn(&mut ScrubProgress)) + Send + Sync,
) -> Result<(), RegistryError> {
    let registry = work.registry();
    let name = account.clone();
    let counted = registry.metadata().read(move |reader| match reader.get_account(&name)? {
        Some(id) => Ok::<_, MetadataError>(Some((id, reader.count_blobs(id)?))),
        None => Ok(None),
    });
    let Some((id, (blobs, bytes))) = counted.await.map_err(RegistryError::Metadata)? else { return Ok(()) };
    tell(&|progress| (progress.blobs_total, progress.bytes_total) = (blobs, bytes));
    for repository in work.repositories_of(account).await? {
        let mut after = None;
        loop {
            let name = repository.clone();
            let page = registry.metadata().read(move |reader| match reader.get_repository(&name)? {
                Some(id) => reader.list_images(id, after.as_ref(), MANIFESTS_PAGE),
                None => Ok(Vec::new()),
            });
            let page = page.await.map_err(|error: MetadataError| RegistryError::from(error))?;
            let Some(last) = page.last() else { break };
            after = Some(last.digest);
            let report = manifest_validation::run(registry, page.iter().map(|image| image.id).collect()).await?;
            tell(&|progress| {
                progress.manifests_done += report.looked_at;
                add_lines(progress, &report);
            });
        }
    }
    let mut after = None;
    loop {
        let page = registry.metadata().read(move |reader| reader.list_blobs(id, after.as_ref(), BLOBS_PAGE)).await;
        let page = page.map_err(RegistryError::Metadata)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.digest);
        for owned in page {
            let told = |bytes| tell(&|progress: &mut ScrubProgress| progress.bytes_done += bytes);
            let report = blob_validation::run_telling(registry, owned.blob.id, work.budget(), told).await?;
            tell(&|progress| {
                progress.blobs_done += 1;
                progress.bad += report.faults;
                progress.healed += report.changed;
                add_lines(progress, &report);
            });
        }
    }
}

fn add_lines(progress: &mut ScrubProgress, report: &RunReport) {
    let room = LINES_MAX.saturating_sub(progress.lines.len());
    progress.lines.extend(report.lines.iter().take(room).cloned());
}
