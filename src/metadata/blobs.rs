//! Blobs, stored once per account, and their mounts in repositories.

use keppel_federation::vocabulary::{Digest, StorageKey};
use rusqlite::{Row, params};

use super::{AccountId, MetadataError, Reader, RepositoryId, WriteTransaction};

/// The row of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobId(pub(super) i64);

/// A blob as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    /// Its row.
    pub id: BlobId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Where its bytes are, in the account's storage space.
    pub storage_key: StorageKey,
    /// The BLAKE3 hash of its bytes.
    pub blake3: [u8; 32],
    /// Whether its bytes are right, as far as is known. Those of a blob that is not sound are never served.
    pub is_sound: bool,
}

/// A blob to record, whose bytes are stored already.
#[derive(Debug, Clone)]
pub struct NewBlob {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Where its bytes are.
    pub storage_key: StorageKey,
    /// The BLAKE3 hash of its bytes.
    pub blake3: [u8; 32],
}

const COLUMNS: &str = "blobs.id, blobs.size_bytes, blobs.storage_key, blobs.blake3, blobs.broken_since";

pub(super) fn read_blob(row: &Row<'_>) -> Result<BlobRow, MetadataError> {
    let key: String = row.get(2)?;
    Ok(BlobRow {
        id: BlobId(row.get(0)?),
        size_bytes: row.get::<_, i64>(1)? as u64,
        storage_key: StorageKey::parse(&key).map_err(|_| MetadataError::Corrupt { what: "storage key" })?,
        blake3: row.get(3)?,
        is_sound: row.get::<_, Option<i64>>(4)?.is_none(),
    })
}

impl Reader<'_> {
    /// The blob with this digest where it is mounted in the repository.
    pub fn get_mounted_blob(
        &self,
        repository: RepositoryId,
        digest: &Digest,
    ) -> Result<Option<BlobRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM repositories JOIN blobs ON blobs.account_id = repositories.account_id \
             JOIN mounts ON mounts.repository_id = repositories.id AND mounts.blob_id = blobs.id \
             WHERE repositories.id = ?1 AND blobs.digest = ?2"
        );
        self.get_row(&sql, params![repository.0, digest.to_compact()], read_blob)
    }

    /// The same, asked by the repository's full name, in one step.
    pub fn get_blob_by_name(&self, repository: &str, digest: &Digest) -> Result<Option<BlobRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM repositories JOIN blobs ON blobs.account_id = repositories.account_id \
             JOIN mounts ON mounts.repository_id = repositories.id AND mounts.blob_id = blobs.id \
             WHERE repositories.full_name = ?1 AND blobs.digest = ?2"
        );
        self.get_row(&sql, params![repository, digest.to_compact()], read_blob)
    }

    /// The same, with since when it is known that no manifest of the repository refers to it.
    pub fn get_promised_blob(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<Option<(BlobRow, Option<i64>)>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS}, mounts.unneeded_since FROM repositories \
             JOIN blobs ON blobs.account_id = repositories.account_id \
             JOIN mounts ON mounts.repository_id = repositories.id AND mounts.blob_id = blobs.id \
             WHERE repositories.full_name = ?1 AND blobs.digest = ?2"
        );
        self.get_row(&sql, params![repository, digest.to_compact()], |row| Ok((read_blob(row)?, row.get(5)?)))
    }

    /// The blob with this digest in the account, mounted somewhere or not.
    pub fn get_account_blob(&self, account: AccountId, digest: &Digest) -> Result<Option<BlobRow>, MetadataError> {
        let sql = format!("SELECT {COLUMNS} FROM blobs WHERE account_id = ?1 AND digest = ?2");
        self.get_row(&sql, params![account.0, digest.to_compact()], read_blob)
    }

    /// Whether a blob of the account has its bytes under this key.
    pub fn has_storage_key(&self, account: AccountId, key: &StorageKey) -> Result<bool, MetadataError> {
        let sql = "SELECT 1 FROM blobs WHERE account_id = ?1 AND storage_key = ?2";
        Ok(self.get_row(sql, params![account.0, key.as_str()], |_| Ok(()))?.is_some())
    }

    /// A manifest of the repository that refers to the blob, where there is one.
    pub fn get_manifest_using_blob(
        &self,
        repository: RepositoryId,
        blob: BlobId,
    ) -> Result<Option<Digest>, MetadataError> {
        let sql = "SELECT manifests.digest FROM manifest_blobs JOIN manifests ON manifests.id = manifest_id \
                   WHERE blob_id = ?1 AND manifest_blobs.repository_id = ?2 LIMIT 1";
        self.get_row(sql, params![blob.0, repository.0], |row| read_digest(row, 0))
    }

    /// When a blob was mounted in a repository, in UNIX seconds.
    pub fn get_mounted_at(&self, repository: RepositoryId, blob: BlobId) -> Result<Option<i64>, MetadataError> {
        let sql = "SELECT mounted_at FROM mounts WHERE repository_id = ?1 AND blob_id = ?2";
        self.get_row(sql, params![repository.0, blob.0], |row| Ok(row.get(0)?))
    }

    pub(super) fn is_blob_needed(&self, blob: BlobId) -> Result<bool, MetadataError> {
        let sql = "SELECT 1 WHERE EXISTS (SELECT 1 FROM mounts WHERE blob_id = ?1) \
                   OR EXISTS (SELECT 1 FROM manifest_blobs WHERE blob_id = ?1) \
                   OR EXISTS (SELECT 1 FROM divergent_blobs WHERE blob_id = ?1)";
        Ok(self.get_row(sql, [blob.0], |_| Ok(()))?.is_some())
    }
}

impl WriteTransaction<'_> {
    /// Records a blob. An account holds a digest once: the caller asks before.
    pub fn insert_blob(&self, account: AccountId, blob: &NewBlob, now: i64) -> Result<BlobId, MetadataError> {
        let sql = "INSERT INTO blobs (account_id, digest, size_bytes, storage_key, blake3, created_at, validated_at) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) RETURNING id";
        let size = blob.size_bytes as i64;
        let digest = blob.digest.to_compact();
        self.inserted(sql, params![account.0, digest, size, blob.storage_key.as_str(), blob.blake3, now]).map(BlobId)
    }

    /// Gives a blob whose bytes were lost new ones.
    pub fn replace_blob_bytes(&self, id: BlobId, blob: &NewBlob, now: i64) -> Result<(), MetadataError> {
        let sql = "UPDATE blobs SET storage_key = ?2, blake3 = ?3, size_bytes = ?4, validated_at = ?5, \
                   broken_since = NULL WHERE id = ?1";
        let size = blob.size_bytes as i64;
        self.execute(sql, params![id.0, blob.storage_key.as_str(), blob.blake3, size, now]).map(|_| ())
    }

    /// Mounts a blob in a repository of its account; mounting again says that it is needed still.
    pub fn ensure_mount(&self, repository: RepositoryId, blob: BlobId, now: i64) -> Result<(), MetadataError> {
        let sql = "INSERT INTO mounts (repository_id, blob_id, mounted_at) VALUES (?1, ?2, ?3) \
                   ON CONFLICT DO UPDATE SET unneeded_since = NULL WHERE unneeded_since IS NOT NULL";
        self.execute(sql, params![repository.0, blob.0, now]).map(|_| ())
    }

    /// The same, and it counts as mounted no earlier than `at`, which may be to come.
    pub fn ensure_mount_until(&self, repository: RepositoryId, blob: BlobId, at: i64) -> Result<(), MetadataError> {
        let sql = "INSERT INTO mounts (repository_id, blob_id, mounted_at) VALUES (?1, ?2, ?3) \
                   ON CONFLICT DO UPDATE SET unneeded_since = NULL, mounted_at = max(mounted_at, ?3)";
        self.execute(sql, params![repository.0, blob.0, at]).map(drop)
    }

    /// Deletes a blob that no repository has any more and no manifest refers to; gives whether it was so.
    pub fn delete_unneeded_blob(&self, blob: BlobId) -> Result<bool, MetadataError> {
        if self.is_blob_needed(blob)? {
            return Ok(false);
        }
        Ok(self.execute("DELETE FROM blobs WHERE id = ?1", [blob.0])? > 0)
    }

    /// Takes a blob out of a repository, and out of the account when that was its last place. Gives whether the bytes
    /// are to be deleted, once this is on disk.
    pub fn unmount_blob(&self, repository: RepositoryId, blob: BlobId) -> Result<bool, MetadataError> {
        self.execute("DELETE FROM mounts WHERE repository_id = ?1 AND blob_id = ?2", params![repository.0, blob.0])?;
        if self.is_blob_needed(blob)? {
            return Ok(false);
        }
        self.execute("DELETE FROM blobs WHERE id = ?1", [blob.0])?;
        Ok(true)
    }
}

/// Reads a digest in compact form.
pub(super) fn read_digest(row: &Row<'_>, column: usize) -> Result<Digest, MetadataError> {
    let corrupt = || MetadataError::Corrupt { what: "digest" };
    Digest::from_compact(row.get_ref(column)?.as_blob().map_err(|_| corrupt())?).ok_or_else(corrupt)
}
