//! Blobs that can be had again from where they came, by when they were last used.

use keppel_federation::vocabulary::{AccountName, Digest, StorageKey};
use rusqlite::params;

use super::blobs::read_digest;
use super::{BlobId, ManifestId, MetadataError, Reader, RepositoryId, WriteTransaction};

/// A blob that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledRow {
    /// The blob.
    pub blob: BlobId,
    /// Whose it is.
    pub account: AccountName,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was last used, in UNIX seconds.
    pub used_at: i64,
}

impl Reader<'_> {
    /// How much all of them hold, in bytes.
    pub fn pulled_size_bytes(&self) -> Result<u64, MetadataError> {
        // Goes through all of them: not for every request.
        let sql = "WITH held AS (SELECT blob_id FROM pulled_blobs) \
                   SELECT coalesce(sum(size_bytes), 0) FROM held JOIN blobs ON blobs.id = blob_id";
        Ok(self.get_row(sql, [], |row| Ok(row.get::<_, i64>(0)? as u64))?.unwrap_or_default())
    }

    /// Those last used before `before`, the oldest first, `limit` at most.
    pub fn list_oldest_pulled(&self, before: i64, limit: usize) -> Result<Vec<PulledRow>, MetadataError> {
        let sql = "SELECT pulled_blobs.blob_id, accounts.name, blobs.size_bytes, pulled_blobs.used_at FROM pulled_blobs \
                   JOIN blobs ON blobs.id = pulled_blobs.blob_id JOIN accounts ON accounts.id = blobs.account_id \
                   WHERE pulled_blobs.used_at < ?1 ORDER BY pulled_blobs.used_at LIMIT ?2";
        self.rows(sql, params![before, limit as i64], |row| {
            let name: String = row.get(1)?;
            Ok(PulledRow {
                blob: BlobId(row.get(0)?),
                account: AccountName::parse(&name).map_err(|_| MetadataError::Corrupt { what: "account name" })?,
                size_bytes: row.get::<_, i64>(2)? as u64,
                used_at: row.get(3)?,
            })
        })
    }

    /// Whether a repository has more manifests than so many.
    pub fn has_more_manifests(&self, repository: RepositoryId, count: u64) -> Result<bool, MetadataError> {
        let sql = "SELECT 1 FROM repositories WHERE id = ?1 AND manifest_count > ?2";
        Ok(self.get_row(sql, params![repository.0, count as i64], |_| Ok(()))?.is_some())
    }

    /// Manifests of a repository that name a digest somewhere, a thousand at most. Reads all of them.
    pub fn list_manifests_naming(
        &self,
        repository: RepositoryId,
        digest: &Digest,
    ) -> Result<Vec<ManifestId>, MetadataError> {
        let sql = "SELECT id FROM manifests WHERE repository_id = ?1 AND instr(bytes, CAST(?2 AS BLOB)) > 0 LIMIT 1000";
        self.rows(sql, params![repository.0, digest.to_string()], |row| Ok(ManifestId(row.get(0)?)))
    }

    /// The manifests that refer to a blob, `limit` at most.
    pub fn list_manifests_with_blob(
        &self,
        blob: BlobId,
        limit: usize,
    ) -> Result<Vec<(RepositoryId, Digest)>, MetadataError> {
        let sql = "SELECT manifests.repository_id, manifests.digest FROM manifest_blobs \
                   JOIN manifests ON manifests.id = manifest_blobs.manifest_id WHERE manifest_blobs.blob_id = ?1 LIMIT ?2";
        self.rows(sql, params![blob.0, limit as i64], |row| Ok((RepositoryId(row.get(0)?), read_digest(row, 1)?)))
    }
}

impl WriteTransaction<'_> {
    /// Records that a blob came here because it was pulled. One that was here before, and only got new bytes for lost ones,
    /// stays what it was.
    pub fn note_pulled(&self, blob: BlobId, now: i64) -> Result<(), MetadataError> {
        let sql = "INSERT INTO pulled_blobs (blob_id, used_at) SELECT id, ?2 FROM blobs \
                   WHERE id = ?1 AND validated_at = created_at ON CONFLICT DO UPDATE SET used_at = ?2";
        self.execute(sql, params![blob.0, now]).map(drop)
    }

    /// Moves forward when a blob was last used; nothing happens to others.
    pub fn use_pulled(&self, blob: BlobId, at: i64) -> Result<(), MetadataError> {
        let sql = "UPDATE pulled_blobs SET used_at = ?2 WHERE blob_id = ?1 AND used_at < ?2";
        self.execute(sql, params![blob.0, at]).map(drop)
    }

    /// From now on the blob belongs here.
    pub fn keep_pulled(&self, blob: BlobId) -> Result<(), MetadataError> {
        self.execute("DELETE FROM pulled_blobs WHERE blob_id = ?1", [blob.0]).map(drop)
    }

    /// Takes one out of its account, unless it was used since `before`. Gives where its bytes are, which are to be
    /// deleted once this is on disk.
    pub fn evict_pulled(&self, blob: BlobId, before: i64) -> Result<Option<StorageKey>, MetadataError> {
        let sql = "SELECT storage_key FROM pulled_blobs JOIN blobs ON blobs.id = blob_id WHERE blob_id = ?1 AND used_at < ?2 \
             AND NOT EXISTS (SELECT 1 FROM divergent_blobs WHERE divergent_blobs.blob_id = pulled_blobs.blob_id)";
        let key: Option<String> = self.get_row(sql, params![blob.0, before], |row| Ok(row.get(0)?))?;
        let Some(key) = key else { return Ok(None) };
        self.execute("DELETE FROM manifest_blobs WHERE blob_id = ?1", [blob.0])?;
        self.execute("DELETE FROM mounts WHERE blob_id = ?1", [blob.0])?;
        self.execute("DELETE FROM blobs WHERE id = ?1", [blob.0])?;
        StorageKey::parse(&key).map(Some).map_err(|_| MetadataError::Corrupt { what: "storage key" })
    }
}
