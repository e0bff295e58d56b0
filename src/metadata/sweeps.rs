//! Mark and sweep: mounts that no manifest refers to, blobs that no repository has, and images that policies delete.
//!
//! Marks count from the moment somebody saw that a thing is not needed. Whatever is needed again takes its mark away, and
//! every deletion asks once more, in its own transaction.

use keppel_federation::vocabulary::{Digest, StorageKey};
use rusqlite::params;

use super::blobs::read_digest;
use super::{AccountId, BlobId, ManifestId, MetadataError, Reader, RepositoryId, WriteTransaction};

/// A mount as the sweep sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweptMount {
    /// The blob.
    pub blob: BlobId,
    /// Whether a manifest of the repository refers to it.
    pub is_needed: bool,
    /// Since when it is known that none does.
    pub unneeded_since: Option<i64>,
}

/// A blob as the sweep sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweptBlob {
    /// The blob.
    pub blob: BlobId,
    /// Its name: what the next page begins after.
    pub digest: Digest,
    /// Whether a repository has it.
    pub is_needed: bool,
    /// Since when it is known that none does.
    pub unneeded_since: Option<i64>,
}

/// An image as retention sees it. Times are in UNIX seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// Its row.
    pub id: ManifestId,
    /// Its name.
    pub digest: Digest,
    /// The last push.
    pub pushed_at: i64,
    /// The last pull.
    pub last_pulled_at: Option<i64>,
    /// An index that lists it.
    pub parent: Option<Digest>,
    /// What it is about, where that is here.
    pub subject: Option<Digest>,
    /// Whether what it is about was here and was deleted.
    pub subject_gone: bool,
    /// What was last noted about it, a JSON object.
    pub gc_status: Option<String>,
}

const COLUMNS: &str = "manifests.id, manifests.digest, manifests.pushed_at, manifests.last_pulled_at, \
    (SELECT parents.digest FROM manifest_children JOIN manifests AS parents ON parents.id = parent_id \
     WHERE manifest_children.repository_id = manifests.repository_id AND child = manifests.digest LIMIT 1), \
    (SELECT subjects.digest FROM manifests AS subjects \
     WHERE subjects.repository_id = manifests.repository_id AND subjects.digest = manifests.subject), \
    manifest_care.subject_gone, manifest_care.gc_status";

fn read_image(row: &rusqlite::Row<'_>) -> Result<ImageRow, MetadataError> {
    let digest_in = |column| match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => read_digest(row, column).map(Some),
    };
    Ok(ImageRow {
        id: ManifestId(row.get(0)?),
        digest: read_digest(row, 1)?,
        pushed_at: row.get(2)?,
        last_pulled_at: row.get(3)?,
        parent: digest_in(4)?,
        subject: digest_in(5)?,
        subject_gone: row.get(6)?,
        gc_status: row.get(7)?,
    })
}

impl Reader<'_> {
    /// Mounts of a repository after a blob, `limit` at most.
    pub fn list_swept_mounts(
        &self,
        repository: RepositoryId,
        after: Option<BlobId>,
        limit: usize,
    ) -> Result<Vec<SweptMount>, MetadataError> {
        let sql = "SELECT blob_id, unneeded_since, EXISTS (SELECT 1 FROM manifest_blobs AS refers \
                   WHERE refers.blob_id = mounts.blob_id AND refers.repository_id = mounts.repository_id) \
                   FROM mounts WHERE repository_id = ?1 AND blob_id > ?2 ORDER BY blob_id LIMIT ?3";
        let after = after.map_or(i64::MIN, |blob| blob.0);
        self.rows(sql, params![repository.0, after, limit as i64], |row| {
            Ok(SweptMount { blob: BlobId(row.get(0)?), unneeded_since: row.get(1)?, is_needed: row.get(2)? })
        })
    }

    /// Blobs of an account after a digest, `limit` at most.
    pub fn list_swept_blobs(
        &self,
        account: AccountId,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<SweptBlob>, MetadataError> {
        let sql = "SELECT id, digest, unneeded_since, EXISTS (SELECT 1 FROM mounts WHERE mounts.blob_id = blobs.id) \
                   OR EXISTS (SELECT 1 FROM manifest_blobs WHERE manifest_blobs.blob_id = blobs.id) \
                   OR EXISTS (SELECT 1 FROM divergent_blobs WHERE divergent_blobs.blob_id = blobs.id) \
                   FROM blobs WHERE account_id = ?1 AND digest > ?2 ORDER BY digest LIMIT ?3";
        let after = after.map(Digest::to_compact).unwrap_or_default();
        self.rows(sql, params![account.0, after, limit as i64], |row| {
            Ok(SweptBlob {
                blob: BlobId(row.get(0)?),
                digest: read_digest(row, 1)?,
                unneeded_since: row.get(2)?,
                is_needed: row.get(3)?,
            })
        })
    }

    /// Since when it is known that no manifest refers to a mounted blob; `None` also where it is not mounted.
    pub fn get_mount_mark(&self, repository: RepositoryId, blob: BlobId) -> Result<Option<i64>, MetadataError> {
        let sql = "SELECT unneeded_since FROM mounts WHERE repository_id = ?1 AND blob_id = ?2";
        Ok(self.get_row(sql, params![repository.0, blob.0], |row| Ok(row.get(0)?))?.flatten())
    }

    /// Images of a repository whose digests follow `after`, `limit` at most.
    pub fn list_images(
        &self,
        repository: RepositoryId,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<ImageRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM manifests JOIN manifest_care ON manifest_care.manifest_id = manifests.id \
             WHERE manifests.repository_id = ?1 AND manifests.digest > ?2 ORDER BY manifests.digest LIMIT ?3"
        );
        let after = after.map(Digest::to_compact).unwrap_or_default();
        self.rows(&sql, params![repository.0, after, limit as i64], read_image)
    }

    /// Whether a manifest is still there.
    pub fn has_manifest(&self, manifest: ManifestId) -> Result<bool, MetadataError> {
        Ok(self.get_row("SELECT 1 FROM manifests WHERE id = ?1", [manifest.0], |_| Ok(()))?.is_some())
    }

    /// One image.
    pub fn get_image(&self, manifest: ManifestId) -> Result<Option<ImageRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM manifests JOIN manifest_care ON manifest_care.manifest_id = manifests.id \
             WHERE manifests.id = ?1"
        );
        self.get_row(&sql, [manifest.0], read_image)
    }

    fn is_mount_needed(&self, repository: RepositoryId, blob: BlobId) -> Result<bool, MetadataError> {
        Ok(self.get_manifest_using_blob(repository, blob)?.is_some())
    }
}

impl WriteTransaction<'_> {
    /// Marks a mount that no manifest refers to, unless it is marked, and takes the mark from one that is needed.
    pub fn mark_mount(&self, repository: RepositoryId, blob: BlobId, now: i64) -> Result<(), MetadataError> {
        let mark = if self.is_mount_needed(repository, blob)? { None } else { Some(now) };
        let sql = "UPDATE mounts SET unneeded_since = CASE WHEN ?3 IS NULL THEN NULL \
                   ELSE coalesce(unneeded_since, ?3) END WHERE repository_id = ?1 AND blob_id = ?2";
        self.execute(sql, params![repository.0, blob.0, mark]).map(drop)
    }

    /// Takes the mark from a mount: somebody was told that the blob is there. Gives whether it is mounted.
    pub fn unmark_mount(&self, repository: RepositoryId, blob: BlobId) -> Result<bool, MetadataError> {
        let sql = "UPDATE mounts SET unneeded_since = NULL WHERE repository_id = ?1 AND blob_id = ?2";
        Ok(self.execute(sql, params![repository.0, blob.0])? > 0)
    }

    /// Takes a blob out of a repository when it was marked at `marked_until` or before, and is not needed still. The blob
    /// stays in the account, marked from the same time if this was its last place. Gives whether it was taken out.
    pub fn sweep_mount(
        &self,
        repository: RepositoryId,
        blob: BlobId,
        marked_until: i64,
    ) -> Result<bool, MetadataError> {
        if self.is_mount_needed(repository, blob)? {
            self.unmark_mount(repository, blob)?;
            return Ok(false);
        }
        let sql = "DELETE FROM mounts WHERE repository_id = ?1 AND blob_id = ?2 AND unneeded_since <= ?3 \
                   RETURNING unneeded_since";
        let swept = self.get_row(sql, params![repository.0, blob.0, marked_until], |row| Ok(row.get::<_, i64>(0)?));
        let Some(since) = self.noting_full(swept)? else { return Ok(false) };
        self.mark_blob(blob, since)?;
        Ok(true)
    }

    /// Marks a blob that no repository has, unless it is marked, and takes the mark from one that is needed.
    pub fn mark_blob(&self, blob: BlobId, now: i64) -> Result<(), MetadataError> {
        let mark = if self.is_blob_needed(blob)? { None } else { Some(now) };
        let sql = "UPDATE blobs SET unneeded_since = CASE WHEN ?2 IS NULL THEN NULL \
                   ELSE coalesce(unneeded_since, ?2) END WHERE id = ?1";
        self.execute(sql, params![blob.0, mark]).map(drop)
    }

    /// Deletes a blob that was marked at `marked_until` or before, and that no repository has still. Gives its size and
    /// where its bytes are, which are to be deleted once this is on disk.
    pub fn sweep_blob(&self, blob: BlobId, marked_until: i64) -> Result<Option<(u64, StorageKey)>, MetadataError> {
        if self.is_blob_needed(blob)? {
            self.execute("UPDATE blobs SET unneeded_since = NULL WHERE id = ?1", [blob.0])?;
            return Ok(None);
        }
        let sql = "DELETE FROM blobs WHERE id = ?1 AND unneeded_since <= ?2 RETURNING size_bytes, storage_key";
        self.noting_full(self.get_row(sql, params![blob.0, marked_until], |row| {
            let key: String = row.get(1)?;
            let key = StorageKey::parse(&key).map_err(|_| MetadataError::Corrupt { what: "storage key" })?;
            Ok((row.get::<_, i64>(0)? as u64, key))
        }))
    }

    /// Notes what retention says about an image.
    pub fn put_gc_status(&self, manifest: ManifestId, status: &str) -> Result<(), MetadataError> {
        let sql = "UPDATE manifest_care SET gc_status = ?2 WHERE manifest_id = ?1";
        self.execute(sql, params![manifest.0, status]).map(drop)
    }
}
