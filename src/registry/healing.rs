//! Blobs whose bytes are lost or wrong: never served, and fetched again from wherever they are.
//!
//! A blob that is known to be bad counts as absent for whoever pulls, mounts or refers to it; so a push of it repairs it.
//! Whoever pulls it meanwhile gets it from another region, by the same flight that repairs it.

use std::ops::Range;
use std::time::Duration;

use keppel_federation::vocabulary::{Digest, RepositoryName};

use super::blob_stream::BlobStream;
use super::blobs::BlobInfo;
use super::{Priority, Registry, RegistryError};
use crate::metadata::{BlobId, BlobRow, MetadataError, OwnedBlob};
use crate::storage::StorageError;

/// How long whoever asks for a bad blob, without wanting its bytes, waits for it to be repaired.
const REPAIR_WAIT: Duration = Duration::from_secs(5);

/// What came of healing a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healing {
    /// It has right bytes again; this region gave them.
    From {
        /// Its name.
        region: String,
    },
    /// It has right bytes again, from the registry outside that its account mirrors.
    FromOutside {
        /// Its URL.
        url: String,
    },
    /// It was right already, or is gone.
    NotNeeded,
    /// Nobody who can be reached has it.
    Nowhere,
}

impl Registry {
    /// Notes that the stored bytes of a blob are lost or wrong. From then on they are not served. Gives whether that was
    /// news; a blob that has other bytes by now is left alone.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn mark_broken(&self, blob: &BlobRow) -> Result<bool, RegistryError> {
        let (id, key, now) = (blob.id, blob.storage_key.clone(), self.inner.clock.now());
        let marked = self.inner.metadata.write(move |transaction| transaction.mark_broken(id, key.as_str(), now));
        let news = marked.await.map_err(|error: MetadataError| RegistryError::from(error))?;
        if news {
            metrics::counter!("keppel_blobs_found_broken_total").increment(1);
        }
        Ok(news)
    }

    /// Fetches the bytes of a bad blob from another region, or from the registry that its account mirrors, and puts them in
    /// the place of the bad ones.
    ///
    /// Cancel safety: a fetch that has begun goes on.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn heal_blob(&self, blob: BlobId) -> Result<Healing, RegistryError> {
        let known = self.inner.metadata.read(move |reader| {
            let Some(owned) = reader.get_owned_blob(blob)? else { return Ok::<_, MetadataError>(None) };
            Ok(reader.get_mounting_repository(blob)?.map(|repository| (owned, repository)))
        });
        let Some((OwnedBlob { digest, blob: row, .. }, repository)) = known.await.map_err(RegistryError::Metadata)?
        else {
            return Ok(Healing::NotNeeded);
        };
        if row.is_sound {
            return Ok(Healing::NotNeeded);
        }
        self.forget_stored(&repository, &digest);
        if let Some(mirror) = self.inner.mirror(&repository.account()) {
            match self.fly(&mirror, &repository, &digest).stored().await {
                Ok(()) => return Ok(Healing::FromOutside { url: mirror.url().to_owned() }),
                Err(error @ RegistryError::StorageFull) => return Err(error),
                Err(error) => tracing::debug!(%error, %digest, url = mirror.url(), "a blob is not had from outside"),
            }
        }
        for source in self.inner.sources(&repository.account()) {
            let region = source.primary.region.clone();
            let fetched = async {
                let flight = self.inner.flights.join(source, &repository, &digest).await?;
                flight.start(&self.inner, Priority::Background);
                flight.stored().await
            };
            match fetched.await {
                Ok(()) => return Ok(Healing::From { region }),
                Err(error @ RegistryError::StorageFull) => return Err(error),
                Err(error) => tracing::debug!(%error, %digest, region, "a region does not give a blob"),
            }
        }
        Ok(Healing::Nowhere)
    }

    /// A blob that is mounted here, known to be bad, and to be had elsewhere.
    pub(super) async fn load_damaged_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        to_read: bool,
    ) -> Result<Option<BlobInfo>, RegistryError> {
        let (name, wanted) = (repository.clone(), *digest);
        let row = self.inner.metadata.read(move |reader| reader.get_blob_by_name(name.as_str(), &wanted)).await?;
        match row {
            None => return Ok(None),
            // It was healed a moment ago.
            Some(row) if row.is_sound => {
                let healed = match to_read {
                    true => self.load_local_blob(repository, digest).await,
                    false => self.promise_local_blob(repository, digest).await,
                };
                return healed.map(Some);
            }
            Some(_) => {}
        }
        let flight = match self.inner.flight_from_others(repository, digest).await {
            Ok(Some(flight)) => flight,
            Ok(None) => return Ok(None),
            // It is not absent: some region may have it whole. Whoever only asks may push it, which heals it.
            Err(error) if to_read => return Err(error),
            Err(_) => return Ok(None),
        };
        flight.start(&self.inner, Priority::Pull);
        if to_read {
            return Ok(Some(BlobInfo::on_the_way(flight)));
        }
        // Whoever is told that a blob is there may push a manifest that refers to it, which needs it here.
        match tokio::time::timeout(REPAIR_WAIT, flight.stored()).await {
            Ok(Ok(())) => self.promise_local_blob(repository, digest).await.map(Some),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Opens a blob that is stored here, but whose bytes turned out to be lost or wrong, from wherever else it is. `error`
    /// tells what the storage said. The blob is healed by that, where it can be.
    pub(super) async fn recover_blob(
        &self,
        blob: &BlobInfo,
        range: Range<u64>,
        error: StorageError,
    ) -> Result<BlobStream, RegistryError> {
        let (repository, digest) = (blob.repository(), &blob.digest);
        // Bytes that should not be there are not missing.
        if range.end > blob.size_bytes {
            return Err(error.into());
        }
        self.note_damage(blob, &error).await?;
        self.forget_stored(repository, digest);
        match self.load_blob(repository, digest, true).await {
            Ok(again) if again.size_bytes == blob.size_bytes => {
                if let Some(flight) = again.flight() {
                    flight.start(&self.inner, Priority::Pull);
                }
                self.open_blob(&again, range).await
            }
            // Nobody has it.
            Ok(_) | Err(RegistryError::BlobUnknown { .. }) => Err(error.into()),
            Err(error) => Err(error),
        }
    }

    /// Notes that the bytes which are stored here of a blob turned out to be lost or wrong, if they are still its bytes.
    pub(super) async fn note_damage(&self, blob: &BlobInfo, error: &StorageError) -> Result<(), RegistryError> {
        let (repository, digest) = (blob.repository(), &blob.digest);
        match self.inner.blob_here(repository, digest).await {
            // The row names these bytes, so they should be there. What was deleted is not damaged.
            Ok(row) if Some(&row.storage_key) == blob.storage_key() => {
                if self.mark_broken(&row).await? {
                    let error = error as &dyn std::error::Error;
                    tracing::error!(error, %repository, %digest, "the stored bytes of a blob are lost or wrong");
                }
                Ok(())
            }
            // Others have found out, and perhaps healed it already.
            Ok(_) | Err(RegistryError::BlobUnknown { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// No flight that brought what is damaged now is joined once more.
    fn forget_stored(&self, repository: &RepositoryName, digest: &Digest) {
        self.inner.flights.forget_stored(repository, digest);
        self.forget_stored_from_outside(repository, digest);
    }
}
