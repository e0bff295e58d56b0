//! Reads stored manifests again: whether they are what their digest says, can be read, and refer to what is there.
//!
//! On the way it records references that could not be recorded when the manifest was: to what came later. Copies of another
//! region, or of a registry outside, may lack anything.

use keppel_federation::vocabulary::{Algorithm, Digest};
use sha2::Digest as _;

use crate::metadata::{BlobId, ManifestId, ManifestRow, MetadataError, Reader};
use crate::model::{ManifestDescription, ManifestKind};
use crate::registry::{Registry, RegistryError};

use super::report::RunReport;

/// The most digests that an error names.
const NAMED_MAX: usize = 5;

/// What was found out about a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    manifest: ManifestId,
    /// Where it is, for people.
    place: String,
    /// What is wrong with it.
    error: Option<String>,
    /// Whether it is known what it refers to.
    pub(super) is_readable: bool,
    /// Blobs that it refers to and that are here.
    blobs: Vec<BlobId>,
}

/// Runs once over some manifests.
///
/// # Errors
/// Our own trouble; they are looked at again.
pub async fn run(registry: &Registry, manifests: Vec<ManifestId>) -> Result<RunReport, RegistryError> {
    let findings = look(registry, manifests).await?;
    let mut report = RunReport { looked_at: findings.len() as u64, ..RunReport::default() };
    for finding in &findings {
        if let Some(error) = &finding.error {
            tracing::warn!(manifest = finding.place, error, "a manifest is not what it should be");
            report.faults += 1;
            report.say(format!("{}: {error}", finding.place));
        }
    }
    record(registry, findings).await?;
    Ok(report)
}

/// Reads manifests; those that are gone are passed over.
pub(super) async fn look(registry: &Registry, manifests: Vec<ManifestId>) -> Result<Vec<Finding>, RegistryError> {
    let this = registry.clone();
    let read = registry.metadata().read(move |reader| {
        let mut findings = Vec::with_capacity(manifests.len());
        for manifest in manifests {
            if let Some(row) = reader.get_manifest(manifest)? {
                findings.push(examine(&this, reader, row)?);
            }
        }
        Ok::<_, MetadataError>(findings)
    });
    read.await.map_err(RegistryError::Metadata)
}

/// Records what was found about those that are still there.
pub(super) async fn record(registry: &Registry, findings: Vec<Finding>) -> Result<(), RegistryError> {
    let recorded = registry.metadata().write(move |transaction| {
        for finding in &findings {
            if transaction.has_manifest(finding.manifest)? {
                finding.blobs.iter().try_for_each(|blob| transaction.link_blob(finding.manifest, *blob))?;
                transaction.put_manifest_error(finding.manifest, finding.error.as_deref())?;
            }
        }
        Ok::<_, MetadataError>(())
    });
    recorded.await.map_err(RegistryError::Metadata)
}

fn examine(registry: &Registry, reader: &Reader<'_>, row: ManifestRow) -> Result<Finding, MetadataError> {
    let repository = reader.get_repository_name(row.repository)?;
    let place = format!("{}@{}", repository.as_ref().map_or("", |name| name.as_str()), row.digest);
    let mut finding = Finding { manifest: row.id, place, error: None, is_readable: false, blobs: Vec::new() };
    let actual = match row.digest.algorithm() {
        Algorithm::Sha256 => sha2::Sha256::digest(&row.bytes).to_vec(),
        Algorithm::Sha512 => sha2::Sha512::digest(&row.bytes).to_vec(),
    };
    if Digest::from_hash(row.digest.algorithm(), &actual) != Some(row.digest) {
        finding.error = Some("its bytes are not those that its digest names".to_owned());
        return Ok(finding);
    }
    let description = match ManifestDescription::parse(Some(&row.media_type), &row.bytes) {
        Ok(description) => description,
        Err(error) => {
            finding.error = Some(error.to_string());
            return Ok(finding);
        }
    };
    finding.is_readable = true;
    let mut missing = Vec::new();
    let mut find = |digest: &Digest| -> Result<bool, MetadataError> {
        let blob = reader.get_mounted_blob(row.repository, digest)?;
        finding.blobs.extend(blob.iter().map(|blob| blob.id));
        Ok(blob.is_some())
    };
    for blob in &description.blobs {
        if !find(&blob.digest)? {
            missing.push(blob.digest);
        }
    }
    for blob in &description.foreign_blobs {
        find(&blob.digest)?;
    }
    let may_come_later = registry.options().sparse_indexes && description.kind.is_index();
    for child in &description.children {
        let is_blob = ManifestKind::from_media_type(&child.media_type).is_none();
        let known =
            reader.get_manifest_id(row.repository, &child.digest)?.is_some() || (is_blob && find(&child.digest)?);
        if !known && !child.is_foreign() && !may_come_later {
            missing.push(child.digest);
        }
    }
    let is_copy = repository.is_some_and(|name| registry.is_copy(&name.account()));
    if !missing.is_empty() && !is_copy {
        let named: Vec<String> = missing.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let more = if missing.len() > NAMED_MAX { " and more" } else { "" };
        finding.error = Some(format!("it refers to what is not here: {}{more}", named.join(", ")));
    }
    Ok(finding)
}
