//! Hashes stored blobs again, and has those that are lost or wrong fetched again from wherever they are.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::metadata::{BlobId, MetadataError, OwnedBlob};
use crate::registry::{AuditEvent, Healing, Registry, RegistryError};
use crate::storage::{CheckStep, StorageError};

use super::budget::IoBudget;
use super::report::RunReport;

/// What is read before the budget is asked again, in bytes.
const STEP_BYTES: u64 = 4 << 20;
/// The most images that are named for a blob that nobody has.
const AFFECTED_MAX: usize = 100;

/// Runs once over a blob. `changed` of the report says whether it was healed, `faults` whether it was bad.
///
/// # Errors
/// Our own trouble; it is looked at again.
pub(super) async fn run(registry: &Registry, blob: BlobId, budget: &IoBudget) -> Result<RunReport, RegistryError> {
    run_telling(registry, blob, budget, |_| ()).await
}

/// The same, telling how many bytes were read.
pub(super) async fn run_telling(
    registry: &Registry,
    blob: BlobId,
    budget: &IoBudget,
    tell: impl Fn(u64) + Send,
) -> Result<RunReport, RegistryError> {
    let mut report = RunReport { looked_at: 1, ..RunReport::default() };
    let owned = registry.metadata().read(move |reader| reader.get_owned_blob(blob)).await;
    let Some(owned) = owned.map_err(RegistryError::Metadata)? else { return Ok(report) };
    let key = owned.blob.storage_key.clone();
    let Some(fault) = fault_of(registry, &owned, budget, tell).await? else {
        if !owned.blob.is_sound {
            let sound = registry.metadata().write(move |transaction| transaction.mark_sound(blob, key.as_str()));
            sound.await.map_err(|error: MetadataError| RegistryError::from(error))?;
        }
        return Ok(report);
    };
    let is_news = registry.mark_broken(&owned.blob).await?;
    if !is_news && owned.blob.is_sound {
        // It was deleted, or has other bytes by now.
        return Ok(report);
    }
    let place = format!("{}@{}", owned.account, owned.digest);
    report.faults = 1;
    if is_news {
        tracing::error!(account = %owned.account, digest = %owned.digest, fault, "the stored bytes of a blob are bad");
        note(registry, "detect", &place, &fault);
    }
    match registry.heal_blob(blob).await? {
        Healing::From { region } => {
            report.changed = 1;
            report.say(format!("{place}: {fault}; fetched again from region {region}"));
            tracing::info!(account = %owned.account, digest = %owned.digest, region, "a blob was healed");
            note(registry, "repair", &place, &format!("from region {region}"));
        }
        Healing::FromOutside { url } => {
            report.changed = 1;
            report.say(format!("{place}: {fault}; fetched again from {url}"));
            tracing::info!(account = %owned.account, digest = %owned.digest, url, "a blob was healed");
            note(registry, "repair", &place, &format!("from {url}"));
        }
        Healing::NotNeeded => {
            // A pull was quicker: nothing is left to be repaired.
            report.faults = 0;
            report.say(format!("{place}: {fault}; it is right by now, or nobody needs it"));
        }
        Healing::Nowhere => {
            report.say(format!("{place}: {fault}; nobody who can be reached has it: push it again"));
            let images = registry.metadata().read(move |reader| reader.list_affected_images(blob, AFFECTED_MAX));
            for image in images.await.map_err(|error: MetadataError| RegistryError::from(error))? {
                let tag = image.tag.map(|tag| format!(":{tag}")).unwrap_or_default();
                report.say(format!("  affects {}{tag}@{}", image.repository, image.digest));
            }
        }
    }
    Ok(report)
}

/// What is wrong with the stored bytes of a blob.
async fn fault_of(
    registry: &Registry,
    owned: &OwnedBlob,
    budget: &IoBudget,
    tell: impl Fn(u64) + Send,
) -> Result<Option<String>, RegistryError> {
    let (algorithm, key) = (owned.digest.algorithm(), &owned.blob.storage_key);
    let mut check = match registry.storage().begin_check(&owned.account, key, algorithm).await {
        Ok(check) => check,
        Err(StorageError::BlobMissing(_)) => return Ok(Some("its bytes are missing".to_owned())),
        Err(error) => return Err(error.into()),
    };
    loop {
        match check.step(STEP_BYTES).await {
            Ok(CheckStep::More(more, read_bytes)) => {
                tell(read_bytes);
                budget.spend(read_bytes).await;
                check = more;
            }
            Ok(CheckStep::Done(stored, read_bytes)) => {
                tell(read_bytes);
                budget.spend(read_bytes).await;
                return Ok(match stored.size_bytes == owned.blob.size_bytes {
                    false => Some(format!("it has {} bytes, not {}", stored.size_bytes, owned.blob.size_bytes)),
                    true if stored.digest != owned.digest => {
                        Some(format!("its bytes have the digest {}", stored.digest))
                    }
                    true => None,
                });
            }
            Err(StorageError::BlobShort { .. }) => return Ok(Some("its bytes end too early".to_owned())),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Notes what was found or done in the audit log.
pub(super) fn note(registry: &Registry, action: &str, target: &str, detail: &str) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    registry.note_audit(AuditEvent {
        id: 0,
        at_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        tenant: None,
        actor: "janitor".to_owned(),
        address: "local".to_owned(),
        user_agent: "janitor".to_owned(),
        request_id: String::new(),
        action: action.to_owned(),
        kind: "blob".to_owned(),
        target: target.to_owned(),
        detail: detail.to_owned(),
        status: 200,
    });
}
