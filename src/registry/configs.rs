//! What the configurations of mirrored images say. A mirror has an image's manifest before its configuration, so it fetches
//! that one as well, whoever pulled the manifest will want it next: labels and times are read when both are here, from what
//! is stored here, and once.

use std::sync::Arc;
use std::time::Duration;

use keppel_federation::vocabulary::{Digest, RepositoryName};

use super::external::Mirror;
use super::rules::CONFIG_BYTES_MAX;
use super::{Inner, Registry, RegistryError};
use crate::metadata::ManifestRow;
use crate::model::{ImageConfig, ManifestDescription};

/// Manifests with one configuration that learn from it.
const MANIFESTS_MAX: usize = 100;
/// How long the first answer with a mirrored manifest waits for its configuration, which goes on coming after that.
const CONFIG_PATIENCE: Duration = Duration::from_secs(1);

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

    /// A manifest of a mirror was recorded: fetches its configuration, so that its labels and times are known. What goes wrong
    /// costs those only.
    pub(super) async fn fetch_config(self: &Arc<Self>, mirror: &Mirror, repository: &RepositoryName, digest: &Digest) {
        let registry = Registry { inner: self.clone() };
        let fetched = async {
            let (name, manifest) = (repository.clone(), *digest);
            let row = self.metadata.read(move |reader| reader.get_manifest_without_config(name.as_str(), &manifest));
            let Some(row) = row.await? else { return Ok(()) };
            let parsing =
                tokio::task::spawn_blocking(move || ManifestDescription::parse(Some(&row.media_type), &row.bytes));
            let described = parsing.await.map_err(|_| RegistryError::Interrupted)?;
            let Some(config) = described.ok().and_then(|described| described.config) else { return Ok(()) };
            if !ImageConfig::is_media_type(&config.media_type) || config.size > CONFIG_BYTES_MAX {
                return Ok(());
            }
            match registry.load_local_blob(repository, &config.digest).await {
                // It says nothing that could be known.
                Ok(_) => return Ok(()),
                Err(RegistryError::BlobUnknown { .. }) => {}
                Err(error) => return Err(error),
            }
            match registry.mount_from_account(mirror, repository, &config.digest).await? {
                Some(_) => self.learn_about(repository, digest).await,
                None => registry.fly(mirror, repository, &config.digest).stored().await?,
            }
            Ok::<_, RegistryError>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(CONFIG_PATIENCE, fetched).await {
            tracing::debug!(%error, %repository, %digest, "the configuration of a mirrored image did not come");
        }
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
