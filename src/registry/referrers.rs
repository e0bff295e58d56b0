//! What is about a manifest.

use std::collections::BTreeMap;

use keppel_federation::vocabulary::{Digest, RepositoryName};
use serde::Serialize;

use super::elsewhere::Elsewhere;
use super::{Inner, Page, Registry, RegistryError};
use crate::metadata::{Reader, ReferrerRow};
use crate::model::{Descriptor, ManifestDescription};

/// Annotations in one page, in bytes; a page holds one referrer at least, whatever its annotations.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// A descriptor in the list of referrers.
///
/// Source: OCI distribution-spec, "Listing Referrers".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// The media type of the manifest.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its artifact type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Its annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl From<ReferrerRow> for Referrer {
    fn from(row: ReferrerRow) -> Self {
        Self {
            media_type: row.media_type,
            digest: row.digest,
            size: row.size_bytes,
            artifact_type: row.artifact_type,
            annotations: serde_json::from_str(&row.annotations).unwrap_or_default(),
        }
    }
}

impl From<Descriptor> for Referrer {
    fn from(descriptor: Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size,
            artifact_type: descriptor.artifact_type,
            annotations: descriptor.annotations.unwrap_or_default(),
        }
    }
}

impl Registry {
    /// Manifests about `subject`, by digest after `after`, of one artifact type where it is given. Those that a client
    /// listed under the fallback tag (`sha256-<hex>`) are among them. An unknown subject or repository has none.
    ///
    /// Source: OCI distribution-spec, "Listing Referrers" and "Referrers Tag Schema".
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn list_referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Page<Referrer>, RegistryError> {
        let limit = limit.min(self.inner.options.page_size_max);
        let Some(elsewhere) = self.inner.elsewhere(&repository.account()) else {
            let read = self.inner.read_referrers(repository, subject, artifact_type, after, limit);
            return self.inner.as_primary(&repository.account(), read).await;
        };
        let before = self.inner.fresh(&elsewhere, repository);
        if before.is_some() {
            let read = self.inner.read_referrers(repository, subject, artifact_type, after, limit).await;
            if self.inner.is_still(before, &elsewhere, repository) {
                return read;
            }
        }
        let Elsewhere { primary, upstream } = elsewhere;
        let asked = upstream.referrers(&primary, repository, subject, artifact_type, after, limit).await;
        let known = self.inner.read_referrers(repository, subject, artifact_type, after, limit);
        self.inner.or_as_known(&repository.account(), asked, known).await
    }
}

impl Inner {
    /// The referrers that are here.
    async fn read_referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Page<Referrer>, RegistryError> {
        self.refuse_former(&repository.account())?;
        let (repository, subject) = (repository.clone(), *subject);
        let (artifact_type, after) = (artifact_type.map(str::to_owned), after.copied());
        self.metadata
            .read(move |reader| {
                let Some(id) = reader.get_repository(&repository)? else {
                    return Ok(Page::cut(Vec::new(), limit));
                };
                let artifact_type = artifact_type.as_deref();
                let (rows, more) =
                    reader.list_referrers(id, &subject, artifact_type, after.as_ref(), limit, PAGE_BYTES_MAX)?;
                // What comes after the last row belongs to later pages.
                let end = rows.last().filter(|_| more).map(|row| row.digest);
                let mut found: BTreeMap<Digest, Referrer> = BTreeMap::new();
                for referrer in listed_by_tag(reader, &repository, &subject)? {
                    let wanted = artifact_type.is_none_or(|wanted| referrer.artifact_type.as_deref() == Some(wanted));
                    let in_page = after.is_none_or(|after| referrer.digest > after)
                        && end.is_none_or(|end| referrer.digest <= end);
                    if wanted && in_page {
                        found.insert(referrer.digest, referrer);
                    }
                }
                found.extend(rows.into_iter().map(|row| (row.digest, row.into())));
                let page = Page::cut(found.into_values().collect(), limit);
                Ok(Page { more: page.more || more, ..page })
            })
            .await
    }
}

/// What a client that knew no referrers API listed under the fallback tag.
fn listed_by_tag(
    reader: &Reader<'_>,
    repository: &RepositoryName,
    subject: &Digest,
) -> Result<Vec<Referrer>, RegistryError> {
    let tag = subject.to_string().replace(':', "-");
    // Tags end at 128 characters; the specification cuts the hash to 64 digits.
    let tag = &tag[..tag.len().min(subject.algorithm().as_str().len() + 1 + 64)];
    let Some(row) = reader.get_manifest_by_tag(repository.as_str(), tag)? else { return Ok(Vec::new()) };
    let index = ManifestDescription::parse(Some(&row.media_type), &row.bytes);
    Ok(index.map(|index| index.children.into_iter().map(Referrer::from).collect()).unwrap_or_default())
}
