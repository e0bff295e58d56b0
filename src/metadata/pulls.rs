//! Pull times, written in batches.

use rusqlite::params;

#[cfg(test)]
use super::Reader;
use super::{ManifestId, MetadataError, RepositoryId, WriteTransaction};

/// That a manifest was pulled, perhaps by a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    /// The manifest.
    pub manifest: ManifestId,
    /// The tag by which it was pulled, with its repository.
    pub tag: Option<(RepositoryId, String)>,
    /// When, in UNIX seconds.
    pub at: i64,
}

impl WriteTransaction<'_> {
    /// Moves pull times forward; what was deleted meanwhile is passed over.
    pub fn record_pulls(&self, pulls: &[Pull]) -> Result<(), MetadataError> {
        for pull in pulls {
            let sql = "UPDATE manifests SET last_pulled_at = ?2 \
                       WHERE id = ?1 AND (last_pulled_at IS NULL OR last_pulled_at < ?2)";
            self.execute(sql, params![pull.manifest.0, pull.at])?;
            if let Some((repository, tag)) = &pull.tag {
                let sql = "UPDATE tags SET last_pulled_at = ?3 WHERE repository_id = ?1 AND name = ?2 \
                           AND (last_pulled_at IS NULL OR last_pulled_at < ?3)";
                self.execute(sql, params![repository.0, tag, pull.at])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Reader<'_> {
    /// The latest pull of any manifest, and by any tag.
    pub(crate) fn latest_pulls(&self) -> Result<Option<(i64, i64)>, MetadataError> {
        let sql = "SELECT (SELECT max(last_pulled_at) FROM manifests), (SELECT max(last_pulled_at) FROM tags)";
        self.get_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
    }
}
