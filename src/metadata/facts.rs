//! What the primary knows of a manifest and its bytes do not say.

use keppel_federation::vocabulary::Digest;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{MetadataError, Reader};

/// What another region cannot find out from a manifest's bytes. Times are in UNIX seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFacts {
    /// The size of the manifest and of all that it refers to, in bytes.
    pub total_size_bytes: u64,
    /// The labels of the image's configuration, a JSON object.
    pub labels: String,
    /// When the oldest of its layers was made.
    pub min_layer_created_at: Option<i64>,
    /// When the newest of its layers was made.
    pub max_layer_created_at: Option<i64>,
    /// When it was pushed.
    pub pushed_at: i64,
    /// When the tag was set to it by which it was asked for.
    pub tag_pushed_at: Option<i64>,
}

impl Reader<'_> {
    /// What is known of a manifest of the repository with this full name, and of a tag on it.
    pub fn get_manifest_facts(
        &self,
        repository: &str,
        digest: &Digest,
        tag: Option<&str>,
    ) -> Result<Option<ManifestFacts>, MetadataError> {
        let sql = "SELECT total_size_bytes, labels, min_layer_created_at, max_layer_created_at, manifests.pushed_at, \
                   (SELECT pushed_at FROM tags WHERE tags.repository_id = repositories.id AND name = ?3 \
                    AND manifest_id = manifests.id) \
                   FROM repositories JOIN manifests ON manifests.repository_id = repositories.id \
                   WHERE full_name = ?1 AND digest = ?2";
        self.get_row(sql, params![repository, digest.to_compact(), tag], |row| {
            Ok(ManifestFacts {
                total_size_bytes: row.get::<_, i64>(0)? as u64,
                labels: row.get(1)?,
                min_layer_created_at: row.get(2)?,
                max_layer_created_at: row.get(3)?,
                pushed_at: row.get(4)?,
                tag_pushed_at: row.get(5)?,
            })
        })
    }
}
