//! What the configurations of images say, where it became known after the manifest.

use keppel_federation::vocabulary::Digest;
use rusqlite::params;

use super::manifests::{COLUMNS, read_manifest};
use super::{ManifestId, ManifestRow, MetadataError, Reader, RepositoryId, WriteTransaction};

/// Nothing is known of the configuration.
const UNKNOWN: &str = "labels = '{}' AND min_layer_created_at IS NULL";

impl Reader<'_> {
    /// The manifest with this digest in the repository with this full name, if nothing is known of its configuration.
    pub fn get_manifest_without_config(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<Option<ManifestRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM repositories JOIN manifests ON manifests.repository_id = repositories.id \
             WHERE full_name = ?1 AND digest = ?2 AND {UNKNOWN}"
        );
        self.get_row(&sql, params![repository, digest.to_compact()], read_manifest)
    }

    /// Manifests of a repository that name a digest somewhere, if nothing is known of their configurations, `limit` at most.
    /// Reads all of them.
    pub fn list_manifests_without_config(
        &self,
        repository: RepositoryId,
        named: &Digest,
        limit: usize,
    ) -> Result<Vec<ManifestRow>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM manifests WHERE repository_id = ?1 AND {UNKNOWN} \
             AND instr(bytes, CAST(?2 AS BLOB)) > 0 LIMIT ?3"
        );
        self.rows(&sql, params![repository.0, named.to_string(), limit as i64], read_manifest)
    }
}

impl WriteTransaction<'_> {
    /// Notes what the configuration of an image says: its labels, a JSON object, and when the oldest and the newest of its
    /// layers were made, in UNIX seconds.
    pub fn set_image_config(
        &self,
        manifest: ManifestId,
        labels: &str,
        layers_created_at: Option<(i64, i64)>,
    ) -> Result<(), MetadataError> {
        let sql =
            "UPDATE manifests SET labels = ?2, min_layer_created_at = ?3, max_layer_created_at = ?4 WHERE id = ?1";
        let (oldest, newest) = layers_created_at.unzip();
        self.execute(sql, params![manifest.0, labels, oldest, newest]).map(drop)
    }
}
