//! What is about a manifest: signatures, SBOMs and other artifacts.

use keppel_federation::vocabulary::Digest;
use rusqlite::{Row, params};

use super::blobs::read_digest;
use super::{MetadataError, Reader, RepositoryId};

/// A manifest whose subject was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferrerRow {
    /// Its name.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The size of the manifest itself, in bytes.
    pub size_bytes: u64,
    /// Its artifact type.
    pub artifact_type: Option<String>,
    /// Its annotations, a JSON object.
    pub annotations: String,
}

fn read_referrer(row: &Row<'_>) -> Result<ReferrerRow, MetadataError> {
    Ok(ReferrerRow {
        digest: read_digest(row, 0)?,
        media_type: row.get(1)?,
        size_bytes: row.get::<_, i64>(2)? as u64,
        artifact_type: row.get(3)?,
        annotations: row.get(4)?,
    })
}

impl Reader<'_> {
    /// Manifests about `subject`, by digest after `after`, `limit` at most; of one artifact type where it is given.
    pub fn list_referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<ReferrerRow>, MetadataError> {
        const COLUMNS: &str = "digest, media_type, length(bytes), artifact_type, annotations";
        let (subject, limit) = (subject.to_compact(), limit as i64);
        let after = after.map(Digest::to_compact).unwrap_or_default();
        match artifact_type {
            None => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM manifests WHERE repository_id = ?1 AND subject = ?2 AND digest > ?3 \
                     ORDER BY digest LIMIT ?4"
                );
                self.rows(&sql, params![repository.0, subject, after, limit], read_referrer)
            }
            Some(kind) => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM manifests WHERE repository_id = ?1 AND subject = ?2 AND artifact_type = ?5 \
                     AND digest > ?3 ORDER BY digest LIMIT ?4"
                );
                self.rows(&sql, params![repository.0, subject, after, limit, kind], read_referrer)
            }
        }
    }
}
