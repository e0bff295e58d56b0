//! Tags.

use rusqlite::params;

use super::{ManifestId, MetadataError, Reader, RepositoryId, WriteTransaction};

impl Reader<'_> {
    /// Names of tags after `after` in bytewise order, `limit` at most.
    pub fn list_tags(&self, repository: RepositoryId, after: &str, limit: usize) -> Result<Vec<String>, MetadataError> {
        let sql = "SELECT name FROM tags WHERE repository_id = ?1 AND name > ?2 ORDER BY name LIMIT ?3";
        self.rows(sql, params![repository.0, after, limit as i64], |row| Ok(row.get(0)?))
    }

    /// All tags on a manifest.
    pub fn list_tags_of(&self, manifest: ManifestId) -> Result<Vec<String>, MetadataError> {
        self.rows("SELECT name FROM tags WHERE manifest_id = ?1", [manifest.0], |row| Ok(row.get(0)?))
    }
}

impl WriteTransaction<'_> {
    /// Makes a tag name a manifest, whatever it named before.
    pub fn put_tag(
        &self,
        repository: RepositoryId,
        tag: &str,
        manifest: ManifestId,
        now: i64,
    ) -> Result<(), MetadataError> {
        let sql = "INSERT INTO tags (repository_id, name, manifest_id, pushed_at) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT (repository_id, name) DO UPDATE SET manifest_id = excluded.manifest_id, \
                   pushed_at = excluded.pushed_at";
        self.execute(sql, params![repository.0, tag, manifest.0, now]).map(|_| ())
    }

    /// Deletes a tag; gives whether it was there.
    pub fn delete_tag(&self, repository: RepositoryId, tag: &str) -> Result<bool, MetadataError> {
        let sql = "DELETE FROM tags WHERE repository_id = ?1 AND name = ?2";
        Ok(self.execute(sql, params![repository.0, tag])? > 0)
    }
}
