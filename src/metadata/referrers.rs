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
    /// Manifests about `subject`, by digest after `after`, of one artifact type where it is given; and whether there are
    /// further ones. There are `limit` at most, and no more than have annotations of `bytes_max` together, but one.
    pub fn list_referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<ReferrerRow>, bool), MetadataError> {
        const COLUMNS: &str = "digest, media_type, length(bytes), artifact_type, annotations";
        let subject = subject.to_compact();
        let after = after.map(Digest::to_compact).unwrap_or_default();
        match artifact_type {
            None => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM manifests WHERE repository_id = ?1 AND subject = ?2 AND digest > ?3 \
                     ORDER BY digest"
                );
                self.referrers_within(&sql, params![repository.0, subject, after], limit, bytes_max)
            }
            Some(kind) => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM manifests WHERE repository_id = ?1 AND subject = ?2 AND artifact_type = ?4 \
                     AND digest > ?3 ORDER BY digest"
                );
                self.referrers_within(&sql, params![repository.0, subject, after, kind], limit, bytes_max)
            }
        }
    }

    /// Takes rows until there are enough of them; SQLite walks an index, so the rest costs nothing.
    fn referrers_within(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<ReferrerRow>, bool), MetadataError> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(params)?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let row_bytes = row.get_ref(4)?.as_str().map_or(0, str::len);
            if found.len() >= limit || (bytes + row_bytes > bytes_max && !found.is_empty()) {
                return Ok((found, true));
            }
            bytes += row_bytes;
            found.push(read_referrer(row)?);
        }
        Ok((found, false))
    }
}
