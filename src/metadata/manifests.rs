//! Manifests: their bytes and what they refer to.

use bytes::Bytes;
use keppel_federation::vocabulary::Digest;
use rusqlite::{Row, params};

use super::blobs::read_digest;
use super::{BlobId, MetadataError, Reader, RepositoryId, WriteTransaction};

/// The row of a manifest; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestId(pub(super) i64);

#[cfg(test)]
impl ManifestId {
    /// Any row, for tests that need none.
    pub(crate) fn for_test(id: i64) -> Self {
        Self(id)
    }
}

/// A manifest as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// Its row.
    pub id: ManifestId,
    /// The repository's row.
    pub repository: RepositoryId,
    /// Its name.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: String,
    /// The bytes as pushed.
    pub bytes: Bytes,
    /// When the oldest of its layers was made, in UNIX seconds.
    pub min_layer_created_at: Option<i64>,
    /// When the newest of its layers was made, in UNIX seconds.
    pub max_layer_created_at: Option<i64>,
}

/// A manifest to record.
#[derive(Debug, Clone)]
pub struct NewManifest {
    /// Its name.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: &'static str,
    /// The size of the manifest and of all that it refers to, in bytes.
    pub total_size_bytes: u64,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
    /// Its artifact type as the referrers list shows it.
    pub artifact_type: Option<String>,
    /// Its annotations, a JSON object.
    pub annotations: String,
    /// The labels of the image's configuration, a JSON object.
    pub labels: String,
    /// When the oldest of its layers was made, in UNIX seconds.
    pub min_layer_created_at: Option<i64>,
    /// When the newest of its layers was made, in UNIX seconds.
    pub max_layer_created_at: Option<i64>,
    /// The bytes as pushed.
    pub bytes: Bytes,
}

pub(super) const COLUMNS: &str = "manifests.id, manifests.repository_id, manifests.digest, manifests.media_type, manifests.bytes, manifests.min_layer_created_at, manifests.max_layer_created_at";

pub(super) fn read_manifest(row: &Row<'_>) -> Result<ManifestRow, MetadataError> {
    Ok(ManifestRow {
        id: ManifestId(row.get(0)?),
        repository: RepositoryId(row.get(1)?),
        digest: read_digest(row, 2)?,
        media_type: row.get(3)?,
        bytes: Bytes::copy_from_slice(
            row.get_ref(4)?.as_blob().map_err(|_| MetadataError::Corrupt { what: "manifest" })?,
        ),
        min_layer_created_at: row.get(5)?,
        max_layer_created_at: row.get(6)?,
    })
}

impl Reader<'_> {
    /// The manifest with this digest in the repository with this full name.
    pub fn get_manifest_by_digest(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<Option<ManifestRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM repositories JOIN manifests ON manifests.repository_id = repositories.id \
             WHERE full_name = ?1 AND digest = ?2"
        );
        self.get_row(&sql, params![repository, digest.to_compact()], read_manifest)
    }

    /// A manifest by its row.
    pub fn get_manifest(&self, id: ManifestId) -> Result<Option<ManifestRow>, MetadataError> {
        let sql = format!("SELECT {COLUMNS} FROM manifests WHERE id = ?1");
        self.get_row(&sql, [id.0], read_manifest)
    }

    /// The manifest that a tag names in the repository with this full name.
    pub fn get_manifest_by_tag(&self, repository: &str, tag: &str) -> Result<Option<ManifestRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM repositories JOIN tags ON tags.repository_id = repositories.id \
             JOIN manifests ON manifests.id = tags.manifest_id WHERE full_name = ?1 AND tags.name = ?2"
        );
        self.get_row(&sql, params![repository, tag], read_manifest)
    }

    /// When a manifest was pushed, in UNIX seconds.
    pub fn get_pushed_at(&self, id: ManifestId) -> Result<Option<i64>, MetadataError> {
        self.get_row("SELECT pushed_at FROM manifests WHERE id = ?1", [id.0], |row| Ok(row.get(0)?))
    }

    /// The row of a manifest and the size of it and all that it refers to, in bytes.
    pub fn get_manifest_id(
        &self,
        repository: RepositoryId,
        digest: &Digest,
    ) -> Result<Option<(ManifestId, u64)>, MetadataError> {
        let sql = "SELECT id, total_size_bytes FROM manifests WHERE repository_id = ?1 AND digest = ?2";
        self.get_row(sql, params![repository.0, digest.to_compact()], |row| {
            Ok((ManifestId(row.get(0)?), row.get::<_, i64>(1)? as u64))
        })
    }

    /// An index of the repository that lists the manifest, where there is one.
    pub fn get_parent(&self, repository: RepositoryId, child: &Digest) -> Result<Option<Digest>, MetadataError> {
        let sql = "SELECT digest FROM manifest_children JOIN manifests ON manifests.id = parent_id \
                   WHERE manifest_children.repository_id = ?1 AND child = ?2 LIMIT 1";
        self.get_row(sql, params![repository.0, child.to_compact()], |row| read_digest(row, 0))
    }
}

impl Reader<'_> {
    /// The bytes of the indexes of the repository that list the manifest, a hundred of them at most.
    pub fn list_parents(&self, repository: RepositoryId, child: &Digest) -> Result<Vec<Bytes>, MetadataError> {
        let sql = "SELECT bytes FROM manifest_children JOIN manifests ON manifests.id = parent_id \
                   WHERE manifest_children.repository_id = ?1 AND child = ?2 LIMIT 100";
        self.rows(sql, params![repository.0, child.to_compact()], |row| {
            let bytes = row.get_ref(0)?.as_blob().map_err(|_| MetadataError::Corrupt { what: "manifest" })?;
            Ok(Bytes::copy_from_slice(bytes))
        })
    }
}

impl WriteTransaction<'_> {
    /// Records a manifest, or refreshes the one with the same digest.
    pub fn put_manifest(
        &self,
        repository: RepositoryId,
        manifest: &NewManifest,
        now: i64,
    ) -> Result<ManifestId, MetadataError> {
        let sql = "INSERT INTO manifests (repository_id, digest, media_type, total_size_bytes, subject, artifact_type, \
                   annotations, pushed_at, bytes, labels, min_layer_created_at, max_layer_created_at) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
                   ON CONFLICT (repository_id, digest) DO UPDATE SET media_type = excluded.media_type, \
                   total_size_bytes = excluded.total_size_bytes, artifact_type = excluded.artifact_type, \
                   pushed_at = excluded.pushed_at, \
                   labels = CASE excluded.labels WHEN '{}' THEN labels ELSE excluded.labels END, \
                   min_layer_created_at = coalesce(excluded.min_layer_created_at, min_layer_created_at), \
                   max_layer_created_at = coalesce(excluded.max_layer_created_at, max_layer_created_at) RETURNING id";
        let subject = manifest.subject.map(|subject| subject.to_compact());
        let row = params![
            repository.0,
            manifest.digest.to_compact(),
            manifest.media_type,
            manifest.total_size_bytes as i64,
            subject,
            manifest.artifact_type,
            manifest.annotations,
            now,
            &manifest.bytes[..],
            manifest.labels,
            manifest.min_layer_created_at,
            manifest.max_layer_created_at,
        ];
        self.inserted(sql, row).map(ManifestId)
    }

    /// Records that a manifest refers to a blob.
    pub fn ensure_manifest_blob(&self, manifest: ManifestId, blob: BlobId) -> Result<(), MetadataError> {
        let sql = "INSERT INTO manifest_blobs (manifest_id, blob_id, repository_id) SELECT id, ?2, repository_id \
                   FROM manifests WHERE id = ?1 ON CONFLICT DO NOTHING";
        self.execute(sql, [manifest.0, blob.0]).map(|_| ())
    }

    /// The same, where both are still there.
    pub fn link_blob(&self, manifest: ManifestId, blob: BlobId) -> Result<(), MetadataError> {
        let sql = "INSERT INTO manifest_blobs (manifest_id, blob_id, repository_id) \
                   SELECT manifests.id, blobs.id, manifests.repository_id \
                   FROM manifests, blobs WHERE manifests.id = ?1 AND blobs.id = ?2 ON CONFLICT DO NOTHING";
        self.execute(sql, [manifest.0, blob.0]).map(|_| ())
    }

    /// Records that an index lists a manifest, which may come later.
    pub fn ensure_child(
        &self,
        repository: RepositoryId,
        parent: ManifestId,
        child: &Digest,
    ) -> Result<(), MetadataError> {
        let sql = "INSERT INTO manifest_children (repository_id, child, parent_id) VALUES (?1, ?2, ?3) \
                   ON CONFLICT DO NOTHING";
        self.execute(sql, params![repository.0, child.to_compact(), parent.0]).map(|_| ())
    }

    /// A manifest has come that has so many bytes more than its own: the indexes that listed it before it was here, and those
    /// that list them, have as many more. A hundred of them at most.
    pub fn grow_parents(&self, repository: RepositoryId, child: &Digest, more_bytes: u64) -> Result<(), MetadataError> {
        let sql = "UPDATE manifests SET total_size_bytes = total_size_bytes + ?3 WHERE id IN \
                   (SELECT parent_id FROM manifest_children WHERE repository_id = ?1 AND child = ?2 LIMIT 100) \
                   RETURNING digest";
        let more_bytes = i64::try_from(more_bytes).unwrap_or(i64::MAX);
        let (mut left, mut grown) = (vec![*child], 0);
        while let Some(child) = left.pop()
            && grown < 100
        {
            let parents =
                self.rows(sql, params![repository.0, child.to_compact(), more_bytes], |row| read_digest(row, 0))?;
            grown += parents.len();
            left.extend(parents);
        }
        Ok(())
    }

    /// Deletes a manifest with its tags and references.
    pub fn delete_manifest(&self, manifest: ManifestId) -> Result<(), MetadataError> {
        self.execute("DELETE FROM tags WHERE manifest_id = ?1", [manifest.0])?;
        self.execute("DELETE FROM manifests WHERE id = ?1", [manifest.0]).map(|_| ())
    }
}
