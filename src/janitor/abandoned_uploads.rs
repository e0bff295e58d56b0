//! Ends upload sessions that nobody touched for longer than `upload_idle_timeout`, and gives their space back.

use super::report::RunReport;
use crate::registry::{Registry, RegistryError};

/// Sessions ended between two looks at the list.
const BATCH: usize = 100;

/// Runs once.
///
/// # Errors
/// Our own trouble; the next run goes on.
pub async fn run(registry: Registry) -> Result<RunReport, RegistryError> {
    let mut report = RunReport::default();
    loop {
        let before = registry.idle_uploads_before();
        let idle = registry.metadata().read(move |reader| reader.list_idle_uploads(before, BATCH)).await?;
        let full = idle.len() == BATCH;
        let mut ended = 0;
        report.looked_at += idle.len() as u64;
        for upload in idle {
            if registry.abandon_upload(&upload).await? {
                tracing::info!(upload = %upload.id, repository = %upload.repository, "ended an abandoned upload");
                ended += 1;
            }
        }
        metrics::counter!("keppel_janitor_abandoned_uploads_total").increment(ended);
        report.changed += ended;
        // Sessions that are being written to stay on the list; with none ended, another look would find the same.
        if !full || ended == 0 {
            return Ok(report);
        }
    }
}
