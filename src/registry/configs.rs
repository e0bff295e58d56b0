//! What the configurations of mirrored images say. A mirror has an image's manifest before its configuration: labels and times
//! are read when both are here, from what is stored here, and once.

use std::sync::Arc;

use keppel_federation::vocabulary::{Digest, RepositoryName};

use super::rules::CONFIG_BYTES_MAX;
use super::{Inner, RegistryError};
use crate::metadata::ManifestRow;
use crate::model::{ImageConfig, ManifestDescription};

/// Manifests with one configuration that learn from it.
const MANIFESTS_MAX: usize = 100;

impl Inner {
    /// A manifest was recorded: its configuration may be here already.
    pub(super) async fn learn_about(self: &Arc<Self>, repository: &RepositoryName, manifest: &Digest) {
        if self.external_source(&repository.account()).is_none() {
            return;
        }
        let (name, digest) = (repository.clone(), *manifest);
        let found = self.metadata.read(move |reader| {
            Ok::<_, RegistryError>(reader.get_manifest_without_config(name.as_str(), &digest)?.into_iter().collect())
        });
        self.learn(repository, found.await, None).await;
    }

    /// A blob has come, which may be the configuration of images that are here.
    pub(super) async fn learn_from(self: &Arc<Self>, repository: &RepositoryName, blob: &Digest) {
        if self.external_source(&repository.account()).is_none() {
            return;
        }
        let (name, digest) = (repository.clone(), *blob);
        let found = self.metadata.read(move |reader| {
            let none = Ok::<_, RegistryError>(Vec::new());
            let Some(id) = reader.get_repository(&name)? else { return none };
            // Most blobs are layers, which are larger.
            match reader.get_blob_by_name(name.as_str(), &digest)? {
                Some(row) if row.size_bytes <= CONFIG_BYTES_MAX => {
                    Ok(reader.list_manifests_without_config(id, &digest, MANIFESTS_MAX)?)
                }
                Some(_) | None => none,
            }
        });
        self.learn(repository, found.await, Some(*blob)).await;
    }

    /// What goes wrong here costs labels in lists, no more.
    async fn learn(
        self: &Arc<Self>,
        repository: &RepositoryName,
        found: Result<Vec<ManifestRow>, RegistryError>,
        config: Option<Digest>,
    ) {
        let learned = async {
            for row in found? {
                let described = ManifestDescription::parse(Some(&row.media_type), &row.bytes).ok();
                let named = described.as_ref().and_then(|description| description.config.as_ref());
                let Some(named) = named.map(|named| named.digest) else { continue };
                if config.is_none_or(|config| config == named)
                    && let Some(description) = described
                    && let Some(config) = self.load_config(repository, &description).await?
                    && config != ImageConfig::default()
                {
                    self.put_config(repository, row, config).await?;
                }
            }
            Ok::<_, RegistryError>(())
        };
        if let Err(error) = learned.await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, %repository, "the configuration of a mirrored image was not looked into");
        }
    }

    async fn put_config(
        self: &Arc<Self>,
        repository: &RepositoryName,
        row: ManifestRow,
        config: ImageConfig,
    ) -> Result<(), RegistryError> {
        let (inner, name) = (self.clone(), repository.clone());
        let written = self.metadata.write(move |transaction| {
            let labels = serde_json::to_string(&config.labels).unwrap_or_else(|_| "{}".into());
            let times = config.min_layer_created_at.zip(config.max_layer_created_at);
            transaction.set_image_config(row.id, &labels, times)?;
            let mut changed = transaction.list_tags_of(row.id)?;
            changed.push(row.digest.to_string());
            inner.evict_around_commit(transaction, &name, changed);
            Ok(())
        });
        written.await
    }
}
