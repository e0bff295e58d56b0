//! The catalog, and lists of an account's repositories and manifests.

use keppel_federation::vocabulary::Digest;
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

use super::blobs::read_digest;
use super::{AccountId, BlobRow, ManifestId, MetadataError, Reader, RepositoryId, WriteTransaction};

/// A repository as lists show it. Times are in UNIX seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedRepository {
    /// Account and path.
    pub full_name: String,
    /// How many manifests it holds.
    pub manifest_count: u64,
    /// How many tags it holds.
    pub tag_count: u64,
    /// Its mounted blobs and its manifests, in bytes.
    pub size_bytes: u64,
    /// The last push.
    pub pushed_at: i64,
}

/// A manifest as lists show it. Times are in UNIX seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedManifest {
    /// Its name.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: String,
    /// The size of the manifest and of all that it refers to, in bytes.
    pub total_size_bytes: u64,
    /// The last push.
    pub pushed_at: i64,
    /// The last pull, by tag or digest.
    pub last_pulled_at: Option<i64>,
    /// The labels of the image's configuration, a JSON object.
    pub labels: String,
    /// Its annotations, a JSON object.
    pub annotations: String,
    /// Its artifact type.
    pub artifact_type: Option<String>,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
    /// When the oldest of its layers was made.
    pub min_layer_created_at: Option<i64>,
    /// When the newest of its layers was made.
    pub max_layer_created_at: Option<i64>,
    /// What the retention policies last said about it, a JSON object.
    pub gc_status: Option<String>,
}

/// A tag as lists show it. Times are in UNIX seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedTag {
    /// Its name.
    pub name: String,
    /// When it was set to this manifest.
    pub pushed_at: i64,
    /// The last pull by this tag.
    pub last_pulled_at: Option<i64>,
}

fn read_listed(row: &Row<'_>) -> Result<(ManifestId, ListedManifest), MetadataError> {
    let subject = match row.get_ref(9)? {
        rusqlite::types::ValueRef::Null => None,
        _ => Some(read_digest(row, 9)?),
    };
    let manifest = ListedManifest {
        digest: read_digest(row, 1)?,
        media_type: row.get(2)?,
        total_size_bytes: row.get::<_, i64>(3)? as u64,
        pushed_at: row.get(4)?,
        last_pulled_at: row.get(5)?,
        labels: row.get(6)?,
        annotations: row.get(7)?,
        artifact_type: row.get(8)?,
        subject,
        min_layer_created_at: row.get(10)?,
        max_layer_created_at: row.get(11)?,
        gc_status: row.get(12)?,
    };
    Ok((ManifestId(row.get(0)?), manifest))
}

impl Reader<'_> {
    /// Full names of repositories that hold a manifest, after `after` in bytewise order, `limit` at most.
    pub fn list_repositories(&self, after: &str, limit: usize) -> Result<Vec<String>, MetadataError> {
        let sql = "SELECT full_name FROM repositories WHERE full_name > ?1 AND manifest_count > 0 \
                   ORDER BY full_name LIMIT ?2";
        self.rows(sql, params![after, limit as i64], |row| Ok(row.get(0)?))
    }

    /// The repositories of an account whose full names follow `after` in bytewise order, `limit` at most.
    pub fn list_account_repositories(
        &self,
        account: AccountId,
        after: &str,
        limit: usize,
    ) -> Result<Vec<ListedRepository>, MetadataError> {
        let sql = "SELECT full_name, manifest_count, tag_count, size_bytes, pushed_at FROM repositories \
                   WHERE account_id = ?1 AND full_name > ?2 ORDER BY full_name LIMIT ?3";
        self.rows(sql, params![account.0, after, limit as i64], |row| {
            let count = |column: usize| row.get::<_, i64>(column).map(|count| count as u64);
            Ok(ListedRepository {
                full_name: row.get(0)?,
                manifest_count: count(1)?,
                tag_count: count(2)?,
                size_bytes: count(3)?,
                pushed_at: row.get(4)?,
            })
        })
    }

    /// The manifests of a repository whose digests follow `after`, each with its row: `limit` at most, and no more than have
    /// labels and annotations of `bytes_max` together, but one. Gives whether there are more.
    pub fn list_manifests(
        &self,
        repository: RepositoryId,
        after: Option<&Digest>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<(ManifestId, ListedManifest)>, bool), MetadataError> {
        let sql = "SELECT id, digest, media_type, total_size_bytes, pushed_at, last_pulled_at, labels, annotations, \
                   artifact_type, subject, min_layer_created_at, max_layer_created_at, \
                   (SELECT gc_status FROM manifest_care WHERE manifest_id = manifests.id) FROM manifests \
                   WHERE repository_id = ?1 AND digest > ?2 ORDER BY digest";
        let after = after.map(Digest::to_compact).unwrap_or_default();
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query(params![repository.0, after])?;
        let (mut listed, mut bytes): (Vec<(ManifestId, ListedManifest)>, _) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let (id, manifest) = read_listed(row)?;
            bytes += manifest.labels.len() + manifest.annotations.len();
            if listed.len() >= limit || (bytes > bytes_max && !listed.is_empty()) {
                return Ok((listed, true));
            }
            listed.push((id, manifest));
        }
        Ok((listed, false))
    }

    /// The tags on a manifest, in no order.
    pub fn list_tags_with_times(&self, manifest: ManifestId) -> Result<Vec<ListedTag>, MetadataError> {
        let sql = "SELECT name, pushed_at, last_pulled_at FROM tags WHERE manifest_id = ?1";
        self.rows(sql, [manifest.0], |row| {
            Ok(ListedTag { name: row.get(0)?, pushed_at: row.get(1)?, last_pulled_at: row.get(2)? })
        })
    }

    /// The manifest that a tag names, in a repository.
    pub fn get_tagged(&self, repository: RepositoryId, tag: &str) -> Result<Option<ManifestId>, MetadataError> {
        let sql = "SELECT manifest_id FROM tags WHERE repository_id = ?1 AND name = ?2";
        self.get_row(sql, params![repository.0, tag], |row| Ok(ManifestId(row.get(0)?)))
    }

    /// Blobs that are mounted in a repository, `limit` at most.
    pub fn list_mounts(&self, repository: RepositoryId, limit: usize) -> Result<Vec<BlobRow>, MetadataError> {
        let sql = "SELECT blobs.id, blobs.size_bytes, blobs.storage_key, blobs.blake3, blobs.broken_since FROM mounts \
                   JOIN blobs ON blobs.id = mounts.blob_id WHERE mounts.repository_id = ?1 LIMIT ?2";
        self.rows(sql, params![repository.0, limit as i64], super::blobs::read_blob)
    }
}

impl WriteTransaction<'_> {
    /// Deletes a repository that holds nothing any more.
    pub fn delete_repository(&self, repository: RepositoryId) -> Result<(), MetadataError> {
        self.execute("DELETE FROM repositories WHERE id = ?1", [repository.0]).map(|_| ())
    }
}
