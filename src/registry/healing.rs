//! Blobs whose bytes are lost or wrong: never served, and fetched again from wherever they are.
//!
//! A blob that is known to be bad counts as absent for whoever pulls, mounts or refers to it; so a push of it repairs it.
//! Whoever pulls it meanwhile gets it from another region, by the same flight that repairs it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use keppel_federation::vocabulary::{Digest, RepositoryName};

use super::blobs::{BlobInfo, BlobStream};
use super::elsewhere::{Flight, Source};
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
    /// It was right already, or is gone.
    NotNeeded,
    /// No region that can be reached has it.
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

    /// Fetches the bytes of a bad blob from another region and puts them in the place of the bad ones.
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
        if row.is_none_or(|row| row.is_sound) {
            return Ok(None);
        }
        let Some(flight) = self.rescue(repository, digest).await else { return Ok(None) };
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

    /// Opens a blob from elsewhere whose bytes are not where they should be; `error` tells what the storage said.
    pub(super) async fn open_lost_blob(
        &self,
        blob: &BlobInfo,
        row: BlobRow,
        range: Range<u64>,
        error: StorageError,
    ) -> Result<BlobStream, RegistryError> {
        let (repository, digest) = (blob.repository(), &blob.digest);
        tracing::error!(error = &error as &dyn std::error::Error, %repository, %digest, "a blob has lost its bytes");
        self.mark_broken(&row).await?;
        let Some(flight) = self.rescue(repository, digest).await else { return Err(error.into()) };
        flight.start(&self.inner, Priority::Pull);
        if flight.size_bytes() != blob.size_bytes {
            return Err(error.into());
        }
        let left_bytes = range.end - range.start;
        Ok(BlobStream::OnTheWay(Source::new(&self.inner, &flight).read(range), left_bytes))
    }

    /// A flight from the first region that has the blob.
    async fn rescue(&self, repository: &RepositoryName, digest: &Digest) -> Option<Arc<Flight>> {
        for source in self.inner.sources(&repository.account()) {
            if let Ok(flight) = self.inner.flights.join(source, repository, digest).await {
                return Some(flight);
            }
        }
        None
    }
}
