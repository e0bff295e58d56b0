//! Blobs that were not here when an account was taken over: fetched from whoever has them, when somebody asks for one and
//! as soon as it can be had.

use std::sync::Arc;
use std::time::Duration;

use keppel_federation::vocabulary::{Digest, RepositoryName};

use super::moving;
use crate::metadata::{MetadataError, RepositoryId};
use crate::registry::blobs::BlobInfo;
use crate::registry::elsewhere::Flight;
use crate::registry::{Inner, Priority, Registry, RegistryError};

/// Blobs that are looked for in one step.
const BATCH: usize = 100;

impl Registry {
    /// A blob that is not here although a manifest needs it, since the account was taken over without it. `None`: it is none
    /// of those.
    ///
    /// Whoever only asks whether it is here is told that it is not, if nobody can give it: a client that asks so before it
    /// pushes then sends it, which is the best that can happen. Whoever wants to read it is told to come again.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`], or our own trouble.
    pub(in crate::registry) async fn load_missing_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        to_read: bool,
    ) -> Result<Option<BlobInfo>, RegistryError> {
        let (name, wanted) = (repository.clone(), *digest);
        let is_missing = self.inner.metadata.read(move |reader| reader.is_missing_blob(name.as_str(), &wanted)).await;
        // Until the account is in order, nobody has looked yet what is missing.
        if !is_missing.map_err(RegistryError::Metadata)? && !self.inner.is_in_disorder(&repository.account()) {
            return Ok(None);
        }
        let Ok(Some(flight)) = self.inner.flight_from_others(repository, digest).await else {
            let reason = "the account was taken over from a region that cannot be reached, and this was there only";
            return if to_read { Err(moving(&repository.account(), reason)) } else { Ok(None) };
        };
        let (inner, name, wanted, landing) = (self.inner.clone(), repository.clone(), *digest, flight.clone());
        flight.start(&self.inner, if to_read { Priority::Pull } else { Priority::Push });
        let landed = tokio::spawn(async move {
            landing.stored().await?;
            inner.link_arrived(&name, wanted).await
        });
        if to_read {
            return Ok(Some(BlobInfo::on_the_way(flight)));
        }
        landed.await.map_err(|_| RegistryError::Interrupted)??;
        self.promise_local_blob(repository, digest).await.map(Some)
    }

    /// The same for another region, which this one answers as the primary: once all of the blob is here.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`] for a blob that nothing needs, [`RegistryError::BlobOnTheWay`] after `patience`,
    /// [`RegistryError::AccountMoving`], or our own trouble.
    pub async fn load_missing_for_region(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        patience: Duration,
    ) -> Result<BlobInfo, RegistryError> {
        if self.load_missing_blob(repository, digest, true).await?.is_none() {
            return Err(RegistryError::BlobUnknown { digest: *digest });
        }
        match tokio::time::timeout(patience, self.inner.fetch_from_others(repository, digest)).await {
            Ok(fetched) => fetched?,
            Err(_) => return Err(RegistryError::BlobOnTheWay { digest: *digest }),
        }
        self.load_local_blob(repository, digest).await
    }

    /// Fetches blobs that are missing, from whoever can be reached and has them; gives how many came.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn fetch_missing_blobs(&self) -> Result<u64, RegistryError> {
        let (mut after, mut arrived) = (None, 0);
        loop {
            let page = self.inner.metadata.read(move |reader| reader.list_missing_blobs(after, BATCH)).await;
            let page: Vec<(RepositoryId, RepositoryName, Digest)> = page.map_err(RegistryError::Metadata)?;
            let Some((id, _, digest)) = page.last() else { return Ok(arrived) };
            after = Some((*id, *digest));
            for (_, repository, digest) in page {
                match self.inner.fetch_from_others(&repository, &digest).await {
                    Ok(()) => {
                        self.inner.link_arrived(&repository, digest).await?;
                        arrived += 1;
                    }
                    Err(error) => tracing::debug!(%repository, %digest, %error, "a missing blob cannot be had now"),
                }
            }
        }
    }
}

impl Inner {
    /// A flight from the first other node that has the blob. `None`: all of them say that they do not have it.
    ///
    /// # Errors
    /// Why one that may have it cannot be asked, when no other has it.
    pub(in crate::registry) async fn flight_from_others(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Arc<Flight>>, RegistryError> {
        let mut silent = None;
        for source in self.sources(&repository.account()) {
            match self.join_flight(source, repository, digest).await {
                Ok(flight) => return Ok(Some(flight)),
                Err(RegistryError::BlobUnknown { .. } | RegistryError::RepositoryUnknown { .. }) => {}
                Err(error) => silent = silent.or(Some(error)),
            }
        }
        silent.map_or(Ok(None), Err)
    }

    /// Has a blob here, mounted in the repository.
    pub(super) async fn fetch_from_others(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        if self.mount_if_here(repository, *digest).await? {
            return Ok(());
        }
        let flight = self.flight_from_others(repository, digest).await?;
        let flight = flight.ok_or(RegistryError::BlobUnknown { digest: *digest })?;
        flight.start(self, Priority::Background);
        flight.stored().await
    }

    /// Mounts a blob that another repository of the account has; gives whether it is mounted.
    async fn mount_if_here(
        self: &Arc<Self>,
        repository: &RepositoryName,
        digest: Digest,
    ) -> Result<bool, RegistryError> {
        if self.blob_here(repository, &digest).await.is_ok() {
            return Ok(true);
        }
        let (inner, name) = (self.clone(), repository.clone());
        let mounted = self.metadata.write(move |transaction| {
            let (Some(account), Some(id)) =
                (transaction.get_account(&name.account())?, transaction.get_repository(&name)?)
            else {
                return Ok::<_, MetadataError>(false);
            };
            let blob = transaction.get_account_blob(account, &digest)?.filter(|blob| blob.is_sound);
            if let Some(blob) = &blob {
                transaction.ensure_mount(id, blob.id, inner.clock.now())?;
            }
            Ok(blob.is_some())
        });
        mounted.await.map_err(RegistryError::Metadata)
    }

    /// Notes which manifests of a repository refer to a blob that has come, and that it is missing no longer.
    async fn link_arrived(&self, repository: &RepositoryName, digest: Digest) -> Result<(), RegistryError> {
        // All manifests of the repository are looked into for that, which must not keep the one writer. Those that are
        // pushed meanwhile are linked as they come, since the blob is here.
        let name = repository.clone();
        let found = self.metadata.read(move |reader| {
            let Some(id) = reader.get_repository(&name)? else { return Ok::<_, MetadataError>(None) };
            let Some(blob) = reader.get_mounted_blob(id, &digest)? else { return Ok(None) };
            Ok(Some((id, blob.id, reader.list_manifests_naming(id, &digest)?)))
        });
        let Some((id, blob, manifests)) = found.await.map_err(RegistryError::Metadata)? else { return Ok(()) };
        let linked = self.metadata.write(move |transaction| {
            // Either may have gone, and a link needs both.
            if transaction.get_mounted_blob(id, &digest)?.is_none_or(|mounted| mounted.id != blob) {
                return Ok::<_, MetadataError>(());
            }
            for manifest in manifests {
                transaction.link_blob(manifest, blob)?;
            }
            transaction.delete_missing_blob(id, &digest)
        });
        linked.await.map_err(RegistryError::Metadata)
    }
}
