//! Pull times, written in batches.

use keppel_federation::vocabulary::{AccountName, Digest};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::blobs::read_digest;
use super::{ManifestId, MetadataError, Reader, RepositoryId, WriteTransaction};

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

/// When manifests and tags of a repository were last pulled, by their names, in UNIX seconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PulledNames {
    /// Manifests.
    pub manifests: Vec<(Digest, i64)>,
    /// Tags.
    pub tags: Vec<(String, i64)>,
}

impl Reader<'_> {
    /// What was pulled of a repository since a time, the earliest first, `limit` of each at most.
    pub fn list_pulled_since(
        &self,
        repository: RepositoryId,
        since: i64,
        limit: usize,
    ) -> Result<PulledNames, MetadataError> {
        let sql = "SELECT digest, last_pulled_at FROM manifests INDEXED BY manifests_by_pull \
                   WHERE repository_id = ?1 AND last_pulled_at >= ?2 ORDER BY last_pulled_at LIMIT ?3";
        let parameters = params![repository.0, since, limit as i64];
        let manifests = self.rows(sql, parameters, |row| Ok((read_digest(row, 0)?, row.get(1)?)))?;
        let sql = "SELECT name, last_pulled_at FROM tags INDEXED BY tags_by_pull \
                   WHERE repository_id = ?1 AND last_pulled_at >= ?2 ORDER BY last_pulled_at LIMIT ?3";
        let tags = self.rows(sql, parameters, |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(PulledNames { manifests, tags })
    }

    /// Up to when the primary of a followed account was told of pulls, in UNIX seconds.
    pub fn get_pulls_told_until(&self, account: &AccountName) -> Result<Option<i64>, MetadataError> {
        let sql = "SELECT pulls_told_until FROM follows WHERE account = ?1";
        self.get_row(sql, [account.as_str()], |row| Ok(row.get(0)?))
    }
}

impl WriteTransaction<'_> {
    /// The primary of a followed account was told of all pulls up to this time, in UNIX seconds.
    pub fn put_pulls_told_until(&self, account: &AccountName, until: i64) -> Result<(), MetadataError> {
        let sql = "UPDATE follows SET pulls_told_until = ?2 WHERE account = ?1";
        self.execute(sql, params![account.as_str(), until]).map(drop)
    }

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
